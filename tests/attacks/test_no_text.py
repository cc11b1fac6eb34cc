"""Attack 19, the bytes below the names: what is no UTF-8 in an address or a header, with a key and without."""

import uuid

import orjson
import pytest

from service.api.rest.openapi import KEYED
from service.api.routes import ROUTES
from tests.attacks import disk
from tests.attacks.test_links import make_link
from tests.attacks.wire import BOUNDARY, Answer, Wire, form, part, request
from tests.client import PASSWORD, Api
from tests.stack import Stack

RAW = (b"\xff", b"a\xff", b"\xc0\xae", b"\xed\xa0\x80", b"%ff\x80", b"%41\xe9")
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"
LARGE = 100_000  # nginx asks a worker before it takes so much

# each route whose address has a part that a client makes up
ADDRESSES = [f"{route.method} {route.path}" for route in ROUTES if "{" in route.path]
# each that takes a key
WITH_KEY = [f"{route.method} {route.path}" for route in ROUTES if route.handler.__name__ in KEYED]
BODIES: dict[str, dict[str, object]] = {
    "POST /file/folder": {"path": "/folder"},
    "POST /file/move": {"from": "/a", "to": "/moved"},
    "POST /file/copy": {"from": "/a", "to": "/copy"},
    "POST /file/batch": {"operations": [{"op": "copy", "from": "/a", "to": "/b"}]},
    "POST /file/trash/restore": {"id": str(uuid.UUID(int=1))},
    "POST /file/versions/restore": {"path": "/a", "version": 1},
    "POST /file/link": {"path": "/a"},
}
HEADERS = [
    "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range", "Range", "Content-Digest",
    "Repr-Digest", "Content-Type", "Content-Encoding", "Expect", "Accept", "Accept-Encoding", "Accept-Language",
    "Cookie", "User-Agent", "Referer", "Origin", "X-Link-Password", "X-Request-Id", "X-File", "X-Original-Uri",
    "X-Original-Method", "X-Real-IP", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "Prefer",
    "Idempotency-Key", "Authorization", "X-Unknown",
]


def _ask(stack: Stack, data: bytes) -> Answer:
    with Wire(stack) as wire:
        wire.send(data)
        return wire.read_last()


def _assert_refused(shot: bytes, answer: Answer) -> None:
    assert 400 <= answer.status < 500, (shot[:300], answer)
    assert answer.code, (shot[:300], answer)


@pytest.mark.parametrize("line", ADDRESSES)
async def test_address_that_is_no_text_is_refused(api: Api, line: str) -> None:
    method, _, path = line.partition(" ")
    begin, _, rest = path.partition("{")
    kinds: list[tuple[str, bytes | None]] = [("text/plain", None)]
    if method == "POST":
        file = form(part('name="file"; filename="f"', b"mine"))
        large = form(part('name="file"; filename="f"', bytes(LARGE)))
        kinds = [(JSON, b"{}"), (JSON, b'{"password": "x"}'), (JSON, bytes(LARGE)), (FORM, file), (FORM, large),
                 ("application/x-www-form-urlencoded", b"password=x"), ("application/x-www-form-urlencoded", b"")]
    for raw in RAW:
        for address in (begin.encode() + raw + rest.partition("}")[2].encode(),
                        begin.encode() + b"x" + rest.partition("}")[2].encode() + b"?path=" + raw,
                        begin.encode() + raw + b"?" + raw):
            for kind, body in kinds:
                for accept in ("Accept: */*", "Accept: text/html"):
                    for key in ("X-No-Key: x", f"Idempotency-Key: {uuid.uuid4()}"):
                        shot = request(method.encode() + b" " + address, f"Content-Type: {kind}", accept, key,
                                       token=api.token, body=body)
                        answer = _ask(api.stack, shot)
                        if accept.endswith("html") and answer.one("Content-Type").startswith("text/html"):
                            assert 400 <= answer.status < 500, (shot[:300], answer)  # a page, for people
                        else:
                            _assert_refused(shot, answer)


@pytest.mark.parametrize("line", ["GET /%s", "GET /ping/%s", "PATCH /file/%s", "GET /livez?%s", "GET /livez#%s",
                                  "GET http://localhost/%s", "GET http://%s/livez", "GET //%s/livez", "%s /livez",
                                  "GET %s", "GET /_preflight%s", "GET /_decide?%s", "OPTIONS /%s"])
async def test_line_that_is_no_text_is_refused_or_passed_over(api: Api, line: str) -> None:
    for raw in RAW:
        for headers in ((), ("Accept: text/html", "Idempotency-Key: k")):
            answer = _ask(api.stack, request(line.encode().replace(b"%s", raw), *headers, token=api.token))
            assert answer.status < 500, (line, raw, answer)


@pytest.mark.parametrize("line", WITH_KEY)
async def test_header_that_is_no_text_beside_a_key_is_a_clear_answer(api: Api, line: str) -> None:
    """What it brings about, it brings about again: what a key stands for may hold such bytes."""
    await api.put("/a", b"mine")
    for name in HEADERS:
        for value in (b"\xff", b'"\xff"', b'"a", "\xed\xa0\x80"', b"x=\xff; y"):
            for size in (10, LARGE) if line in ("PUT /file", "POST /file") else (0,):
                shot = _shot(api, line, name.encode() + b": " + value, size)
                answers = [_ask(api.stack, shot) for _ in range(2)]
                for answer in answers:
                    assert answer.status < 500, (shot[:300], answer)
                    if answer.status >= 400:
                        assert answer.code, (shot[:300], answer)
                if answers[0].status < 300:
                    assert answers[1].body == answers[0].body, shot[:300]
    disk.settle(api.stack)


def _shot(api: Api, line: str, header: bytes, size: int) -> bytes:
    method, _, path = line.partition(" ")
    given: list[str | bytes] = [header]
    if not header.startswith(b"Idempotency-Key:"):
        given.append(f"Idempotency-Key: {uuid.uuid4()}")
    body = None
    if line == "PUT /file":
        body = bytes(size)
    elif line == "POST /file":
        given = [*given, f"Content-Type: {FORM}"]
        body = form(part('name="file"; filename="f"', bytes(size)))
    elif method == "POST":
        given.append(f"Content-Type: {JSON}")
        body = orjson.dumps(BODIES[line])
    path = path.replace("{id}", str(uuid.UUID(int=1)))
    if "{" not in line and method in ("PUT", "DELETE"):
        path += "?path=/b"
    token = "" if header.startswith(b"Authorization:") else api.token
    return request(f"{method} {path}", *given, token=token, body=body)


async def test_link_takes_headers_that_are_no_text(api: Api) -> None:
    await api.put("/a", b"mine")
    links = [await make_link(api, "/a"), await make_link(api, "/", kind="upload"),
             await make_link(api, "/a", password=PASSWORD)]
    for link in links:
        for name in HEADERS:
            for accept in ("Accept: */*", "Accept: text/html"):
                for value in (b"\xff", b"link_password=\xff; link_resume=\xff", b"1.\xff"):
                    header = name.encode() + b": " + value
                    for shot in (request(f"GET {link}", header, accept, "Range: bytes=1-"),
                                 request(f"POST {link}/open", header, accept, "Content-Type: application/json",
                                         body=b'{"password": "x"}'),
                                 request(f"POST {link}", header, accept, f"Content-Type: {FORM}",
                                         body=form(part('name="file"; filename="f"', b"mine")))):
                        answer = _ask(api.stack, shot)
                        assert answer.status < 500, (shot[:300], answer)
    disk.settle(api.stack)
