-- wrk: PUT small bodies, one connection in each thread: `wrk -t16 -c16 ... -- PREFIX SUFFIX STATUSES BYTES NAMES FOLDER`.
--
-- PREFIX and SUFFIX stand around the name in the address.  NAMES: that many names for each connection in turn, 0: each
-- name once.  FOLDER: where a server that does not wait for the disk has put the file; it is forced there, and the folder
-- too, before the upload counts ("": the server does it).  A body begins with the number of its name.
local ffi = require("ffi")
ffi.cdef [[
int open(const char *path, int flags, ...);
int fsync(int fd);
int close(int fd);
]]
local O_RDONLY = 0
local threads = {}

function setup(thread)
    thread:set("id", #threads)
    table.insert(threads, thread)
end

function init(args)
    prefix, suffix, size, names, folder = args[1], args[2], tonumber(args[4]), tonumber(args[5]), args[6] or ""
    expected = {}
    for status in args[3]:gmatch("%d+") do expected[tonumber(status)] = true end
    filler = string.rep("x", size - 16)
    counter, stored, wrong, wrong_status = 0, 0, 0, 0
end

function request()
    counter = counter + 1
    local number = id * 1000000 + (names > 0 and counter % names or counter)
    name = string.format("%09d", number)
    return wrk.format("PUT", prefix .. name .. suffix, nil, name .. string.format("%07d", counter) .. filler)
end

local function force(path)
    local fd = ffi.C.open(path, O_RDONLY)
    if fd < 0 then return false end
    local result = ffi.C.fsync(fd)
    ffi.C.close(fd)
    return result == 0
end

function response(status)
    if not expected[status] then
        wrong, wrong_status = wrong + 1, status
    elseif folder ~= "" and not (force(folder .. "/" .. name) and force(folder)) then
        wrong = wrong + 1
    else
        stored = stored + 1
    end
end

function done(summary)
    local all_stored, all_wrong, status = 0, 0, 0
    for _, thread in ipairs(threads) do
        all_stored = all_stored + thread:get("stored")
        all_wrong = all_wrong + thread:get("wrong")
        status = math.max(status, thread:get("wrong_status"))
    end
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "microseconds": %d, "bytes": %d, "failed": %d, "status": %d}\n', all_stored, summary.duration,
        summary.bytes, all_wrong + errors.connect + errors.read + errors.write + errors.timeout, status))
end
