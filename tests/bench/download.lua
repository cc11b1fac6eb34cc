-- wrk: GET the paths of a file in turn, `wrk ... -- FILE`.  The answers are not looked at here, which would cost more
-- than they do; wrk counts statuses and bytes, and wrk.py compares samples by their hash.
local requests, position = {}, 0

function init(args)
    for path in io.lines(args[1]) do requests[#requests + 1] = wrk.format("GET", path) end
end

function request()
    position = position % #requests + 1
    return requests[position]
end

function done(summary)
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "microseconds": %d, "bytes": %d, "failed": %d}\n', summary.requests, summary.duration,
        summary.bytes, errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
