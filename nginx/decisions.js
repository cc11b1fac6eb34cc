// Under which name nginx remembers a worker's decision about a download: the request, its token, and the mark of the
// account (service/cache/generations.py), so that a decision from before a change is not found any more.
//
// The token is not verified here.  It says whose mark to read; that it is good was found by the worker whose decision
// bears this name, and a token that differs in one character has another one.
import crypto from 'crypto';
import fs from 'fs';

// Tokens begin with the Base64 of {"alg":"HS256","shard":"xyz": the digits are whole characters of it, so that nothing
// has to be decoded (service/model.py: shard_of).
const BEGIN = 'eyJhbGciOiJIUzI1NiIsInNoYXJkIjoi';
const AT = 'Bearer '.length;

// They would be compared with care by the worker, and nginx does it otherwise, even with one that is empty.
const CONDITIONS = ['Range', 'If-Range', 'If-Match', 'If-None-Match', 'If-Modified-Since', 'If-Unmodified-Since'];

// Where a download goes: to a worker, or to a decision, whose name is then in $decision_name.
function door(r) {
    if (r.method != 'GET' && r.method != 'HEAD' || CONDITIONS.some(header => r.headersIn[header] !== undefined)) {
        return '@download_asked';
    }
    r.variables.decision_name = name(r);
    return '@download_decided';
}

function name(r) {
    try {
        const authorization = r.headersIn.Authorization;
        const end = AT + BEGIN.length;
        if (authorization.slice(AT, end) != BEGIN) {
            return '';
        }
        const slot = authorization.slice(end, end + 4);
        if (!/^[A-Za-z0-9]{4}$/.test(slot)) {
            return '';
        }
        const mark = fs.readFileSync('{{generations}}/' + slot, 'utf8');
        if (mark.length != 32) {
            return '';
        }
        return crypto.createHash('sha256').update(`${mark} ${authorization} ${r.variables.request_uri}`).digest('hex');
    } catch (e) { // no token, none of ours, no mark: nothing to remember
        return '';
    }
}

export default {door};
