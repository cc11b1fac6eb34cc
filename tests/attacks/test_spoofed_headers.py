"""Attack 2: headers between nginx and the workers, made up by a client, and addresses that are not for clients."""

import hashlib
import os
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from service.api.routes import ROUTES
from tests.attacks import disk
from tests.attacks.logs import Mark
from tests.attacks.wire import BOUNDARY, Answer, Wire, ask, form, head, part, request, talk
from tests.client import PASSWORD, Api
from tests.stack import Stack

Other = Callable[[], Awaitable[Api]]

FORM = f"multipart/form-data; boundary={BOUNDARY}"
SPOOFED = (
    "X-File: {file}", "X-Body-Length: 3", "X-Body-Transfer-Encoding: chunked", "X-Internal: 1",
    "X-Original-Method: GET", "X-Original-Uri: /livez", "X-Original-URL: /livez", "X-Rewrite-URL: /livez",
    "X-Real-IP: 10.0.0.1", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https",
    "X-Forwarded-Port: 1", "X-Forwarded-Prefix: /evil", "Forwarded: for=10.0.0.1;host=evil.example",
    "X-Accel-Redirect: /_blobs/{blob}", "X-Accel-Mapping: /=/etc/", "X-Accel-Buffering: no", "X-Accel-Expires: 1",
    "X-Accel-Limit-Rate: 1", "X-Accel-Charset: utf-7", "X-Sendfile: /etc/passwd", "X-Sendfile-Type: X-Accel-Redirect",
    "X-Next: @upload_admitted", "X-Uploader: x", "X-Reject-Body: x", "X-Request-Id: spoofed",
    "X-HTTP-Method-Override: DELETE", "X-Method: DELETE",
    "X_File: {file}", "Proxy: http://evil.example", "X-Client-IP: 10.0.0.1", "True-Client-IP: 10.0.0.1",
)


def _blob_of(stack: Stack, content: bytes) -> str:
    """Where the bytes lie, as nginx's internal address has it."""
    for path in disk.below(stack.root / "blobs"):
        if path.is_file() and path.read_bytes() == content:
            return str(path.relative_to(stack.root / "blobs"))
    raise AssertionError("the blob is not on the disk")


def _spoofed(stack: Stack, file: str | Path, blob: str = "00/x") -> list[str]:
    return [header.format(file=file, blob=blob) for header in SPOOFED]


def _ghost(stack: Stack, content: bytes) -> Path:
    """A file where nginx would have spooled a body, but did not."""
    folder = next((path for path in (stack.root / "spool").iterdir()), stack.root / "spool" / uuid.uuid4().hex)
    place = folder / "body" / "9" / "99"
    place.mkdir(parents=True, exist_ok=True)
    ghost = place / "9999999999"
    ghost.write_bytes(content)
    return ghost


# The bodies with which a route gets further than with an empty object.
BODIES = {
    "PUT /file": b"new", "POST /file": form(part('name="file"; filename="mine"', b"new")),
    "POST /s/{token}": form(part('name="file"; filename="new"', b"new")),
    **{line: orjson.dumps(body) for line, body in {
        "POST /auth/jwt/login": {"username": "nobody", "password": PASSWORD},
        "POST /auth/jwt/refresh": {"refresh_token": "none"}, "DELETE /auth/me": {"password": "wrong wrong"},
        "POST /auth/password": {"old_password": "wrong wrong", "new_password": PASSWORD},
        "POST /file/folder": {"path": "/mine"}, "POST /file/link": {"path": "/mine"},
        "POST /file/move": {"from": "/mine", "to": "/other", "overwrite": True},
        "POST /file/copy": {"from": "/mine", "to": "/other", "overwrite": True},
        "POST /file/batch": {"operations": [{"op": "delete", "path": "/mine"}]},
        "POST /file/sign": {"path": "/mine", "expires_in": 60},
        "POST /file/trash/restore": {"id": str(uuid.UUID(int=0))},
        "POST /file/versions/restore": {"path": "/mine", "version": 1},
        "POST /s/{token}/open": {"password": PASSWORD},
    }.items()},
}


async def _addresses(api: Api) -> dict[str, str]:
    """Each route that is for clients, with an address of it that leads to something of the account where it can."""
    await api.put("/box/kept", b"kept")
    links = {method: await api.call("POST", "/file/link", json={"path": "/", "kind": kind}, expect=201)
             for method, kind in (("GET", "download"), ("POST", "upload"))}
    signed = await api.call("POST", "/file/sign", json={"path": "/box/kept", "expires_in": 600}, expect=201)
    found = {"GET /nowhere": "/nowhere", "GET /file": "/file?path=/mine"}  # which are no routes
    for method, path, *_ in ROUTES:
        query = "?path=/box" if path == "/file/archive" else "?path=/mine"
        if path.startswith("/d/"):
            found[f"{method} {path}"] = urlsplit(signed.json["url"])._replace(scheme="", netloc="").geturl()
        elif path.startswith("/s/"):
            token = links[method].json["url"].rpartition("/")[2]
            found[f"{method} {path}"] = path.replace("{token}", token) + query
        elif not path.startswith("/_"):  # these are in DOORS
            found[f"{method} {path}"] = re.sub(r"\{[^}]*\}", "x", path) + query
    return found


def _shot(route: str, address: str, *headers: str, token: str) -> bytes:
    method = route.partition(" ")[0]
    body = BODIES.get(route, b"{}" if method == "POST" else None)
    kind = FORM if body is not None and body.startswith(b"--") else "application/json"
    return request(f"{method} {address}", f"Content-Type: {kind}", *headers, token=token, body=body)


@pytest.mark.parametrize("with_token", [True, False], ids=["account", "anonymous"])
async def test_spoofed_headers_on_every_address_change_nothing(
        api: Api, other_account: Other, with_token: bool) -> None:
    """Each address answers as it does without them, and the file that X-File names is never taken."""
    ghost = _ghost(api.stack, b"hey")
    mark = Mark.now(api.stack)

    async def ask_for(route: str, address: str, *headers: str) -> Answer:
        await api.delete("/mine", permanent=True, expect=None)
        await api.put("/mine", b"own")
        owner = await other_account() if route == "POST /auth/jwt/logout" else api  # or it would be the last request
        return ask(api.stack, _shot(route, address, *headers, token=owner.token if with_token else ""))

    try:
        for route, address in (await _addresses(api)).items():
            plain = await ask_for(route, address)
            names = {name for name, _ in plain.headers}
            for file in (str(ghost), "/etc/passwd"):  # one that could be taken, one that would be an error
                answer = await ask_for(route, address, *_spoofed(api.stack, file))
                assert answer.status == plain.status, (route, plain, answer)
                assert ghost.read_bytes() == b"hey"
                assert names == {name for name, _ in answer.headers}, route
                # without nginx an archive asks whatever proxy there is not to put it aside
                assert not any(name.startswith(("x-accel", "x-reject")) for name in names - {"x-accel-buffering"})
                assert b"evil.example" not in answer.body
                assert answer.one("X-Request-Id") != "spoofed"
                if answer.status >= 400:
                    assert answer.code
    finally:
        ghost.unlink()
    assert "spoofed" not in mark.text()


# a ghost, what must not be read, what is not there; each with a small body, which nginx keeps, and a large one
FILES = ("{ghost}", "{secret}", "/etc/passwd", "../../etc/passwd", "", "spool/x", "\xff", "{ghost}")
CONTENTS = (b"own", b"own" * 30_000)


@contextmanager
def _spoofing(stack: Stack) -> Iterator[list[list[str]]]:
    """Headers for one upload after another; none may have taken anything in the end."""
    secret = stack.root / "jwt_secret"
    before = secret.read_bytes()
    ghost = _ghost(stack, b"hey")
    try:
        yield [_spoofed(stack, file.format(ghost=ghost, secret=secret)) for file in FILES]
        assert ghost.read_bytes() == b"hey"
        assert ghost.stat().st_nlink == 1
    finally:
        ghost.unlink()
    assert secret.read_bytes() == before


async def test_upload_with_a_spoofed_x_file_stores_its_own_body(api: Api) -> None:
    with _spoofing(api.stack) as tries:
        for number, headers in enumerate(tries):
            for content in (*CONTENTS, None):  # without a body of its own the file is empty
                line = f"PUT /file?path=/{number}-{len(content or b'')}"
                answer = ask(api.stack, request(line, *headers, token=api.token, body=content))
                assert answer.status == 201, answer
                assert (await api.get(line.partition("=")[2])).body == (content or b"")


async def test_upload_through_a_link_with_a_spoofed_x_file_stores_its_own_body(api: Api) -> None:
    """Of these, too, nginx tells the worker by X-File."""
    made = await api.call("POST", "/file/link", json={"path": "/", "kind": "upload"}, expect=201)
    line = f"POST {urlsplit(made.json['url']).path}"
    with _spoofing(api.stack) as tries:
        for number, headers in enumerate(tries):
            for content in CONTENTS:
                name = f"{number}-{len(content)}"
                body = form(part(f'name="file"; filename="{name}"', content))
                answer = ask(api.stack, request(line, f"Content-Type: {FORM}", *headers, body=body))
                assert answer.status == 201, answer
                assert (await api.get(f"/{name}")).body == content
            for kind in (FORM, "application/json", "application/x-www-form-urlencoded", "text/plain"):
                answer = ask(api.stack, request(line, f"Content-Type: {kind}", *headers))
                assert answer.status in (400, 415), (kind, answer)
                assert answer.code
    assert len(await api.list()) == len(FILES) * len(CONTENTS)


async def test_spoofed_x_file_in_a_trailer_is_not_taken(api: Api) -> None:
    ghost = _ghost(api.stack, b"hey")
    try:
        answers = talk(api.stack, head("PUT /file?path=/t", "Transfer-Encoding: chunked", "Trailer: X-File",
                                       "Connection: close", token=api.token)
                       + f"3\r\nown\r\n0\r\nX-File: {ghost}\r\nContent-Length: 3\r\n\r\n".encode())
        assert [answer.status for answer in answers] in ([201], [400])
        if answers[0].status == 201:
            assert (await api.get("/t")).body == b"own"
        assert ghost.read_bytes() == b"hey"
    finally:
        ghost.unlink()


async def test_spoofed_lengths_do_not_get_an_upload_past_its_limits(api: Api) -> None:
    """What is announced is what nginx read, not what a header of the client says."""
    answers = talk(api.stack, head("PUT /file?path=/short", "X-Body-Length: 999", "Content-Length: 3",
                                   "Connection: close", token=api.token) + b"own")
    assert [answer.status for answer in answers] == [201]
    answer = ask(api.stack, head("PUT /file?path=/big", "X-Body-Length: 3", "X-Body-Transfer-Encoding: chunked",
                                 f"Content-Length: {2**59}", token=api.token))
    assert answer.status == 413
    assert answer.code == "too_large"


DOORS = [
    "/_preflight", "/_preflight/", "/_preflight?path=/x", "/x/../_preflight", "/./_preflight", "//_preflight",
    "/%5fpreflight", "/_%70reflight", "/_preflight%00", "/_PREFLIGHT", "/_preflight/../_preflight",
    "/file/../_preflight",
    "/_refuse/200", "/_refuse/401", "/_refuse/", "/_refused", "/_problem", "/_unreadable/", "/_unreadable/200",
    "/_unsatisfiable", "/_", "/_x", "/_blobs", "/_blobs/", "/_blobs..", "/_blobs../", "/_blobs../jwt_secret",
    "/_blobs../MARKER", "/_blobs/../jwt_secret", "/_blobs/..%2fjwt_secret", "/_blobs/%2e%2e/jwt_secret",
    "/_blobs/%2e%2e%2fjwt_secret", "/_blobs/..%5cjwt_secret", "/_blobs//../jwt_secret", "/_blobs%2f..%2fjwt_secret",
    "/_blobs../spool/", "/_blobs../postgres/PG_VERSION", "/%5fblobs/", "/x/../_blobs/", "//_blobs/", "/_blobs;/",
    "/docs../", "/docs../jwt_secret", "/file../", "/file..", "/auth../", "/auth../jwt_secret", "/metrics", "/metrics/",
    "/metrics/x", "/x/../metrics", "/%6detrics", "//metrics", "/nginx_status", "/server-status", "/stub_status",
]


async def test_addresses_between_nginx_and_the_workers_are_not_there_for_clients(api: Api) -> None:
    await api.put("/secret", b"secret bytes", expect=201)
    secrets = [(api.stack.root / name).read_bytes().strip() for name in ("jwt_secret", "MARKER")] + [b"secret bytes"]
    for address in DOORS:
        for token in ("", api.token):
            for method in ("GET", "POST", "PUT", "HEAD"):
                body = b"x" if method in ("POST", "PUT") else None
                answer = ask(api.stack, request(f"{method} {address}", *_spoofed(api.stack, "/etc/passwd"), token=token,
                                                body=body), method=method)
                # 401, 405: what is left of some of these is an address for clients; 400: not even an address
                assert answer.status in (400, 401, 404, 405), (method, address, answer)
                if method != "HEAD":
                    assert answer.code
                assert not any(secret in answer.body for secret in secrets), address


async def test_a_blob_that_is_there_and_one_that_is_not_look_the_same(api: Api) -> None:
    content = os.urandom(20)
    await api.put("/secret", content, expect=201)
    blob = _blob_of(api.stack, content)
    other = f"{blob[:-8]}{'0' * 6}{blob[-2:]}"
    for spelling in ("/_blobs/{}", "/_blobs/{}?x", "/_blobs//{}", "/_blobs/./{}", "/_blobs/00/../{}", "/%5fblobs/{}",
                     "/_blobs../blobs/{}", "/_blobs/{}/", "/x/../_blobs/{}"):
        for extra in ((), ("Range: bytes=0-3",), ("If-None-Match: *",), tuple(_spoofed(api.stack, "/x", blob))):
            answers = []
            for name in (blob, other):
                answer = ask(api.stack, request(f"GET {spelling.format(name)}", *extra, token=api.token))
                assert (answer.status, answer.code) == (404, "not_found"), (spelling, answer)
                assert content not in answer.body
                answers.append(sorted(name for name, _ in answer.headers))
            assert answers[0] == answers[1]


async def test_spoofed_addresses_do_not_get_around_the_throttle(small: Stack) -> None:
    """Six tries a minute for each worker, however many addresses a client says that it has."""
    body = f'{{"username": "{uuid.uuid4().hex}", "password": "{PASSWORD}"}}'.encode()
    statuses = []
    for number in range(40):
        address = f"10.{number}.7.9"
        answer = ask(small, request(
            "POST /auth/jwt/login", "Content-Type: application/json", f"X-Real-IP: {address}",
            f"X-Forwarded-For: {address}", f"Forwarded: for={address}", f"X-Client-IP: {address}", body=body))
        statuses.append(answer.status)
        if answer.status == 429:
            assert answer.code == "too_many_requests"
            assert int(answer.one("Retry-After")) > 0
    assert set(statuses) == {401, 429}
    assert statuses.count(401) <= 14  # two workers, and what the minute gives back meanwhile


async def test_download_is_not_redirected_by_headers_of_the_client(api: Api) -> None:
    content = os.urandom(1000)
    await api.put("/a", content, expect=201)
    answer = ask(api.stack, request("GET /file/download?path=/a", "X-Accel-Redirect: /_blobs/../jwt_secret",
                                    "X-Accel-Mapping: /=/etc/", "X-Sendfile: /etc/passwd", token=api.token))
    assert answer.status == 200
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(content).digest()


async def test_host_of_the_client_appears_in_no_answer(api: Api) -> None:
    for line in ("GET /docs", "GET /openapi.json", "GET /nowhere", "GET /file/list", "GET /file", "GET /auth/me",
                 "GET /auth", "GET /docs/", "GET /file/download", "GET /s", "GET /d", "GET /assets", "GET /metrics",
                 "GET /_blobs", "GET /_refuse", "GET /_signed", "GET /auth/", "GET //", "GET /.", "GET /s/x",
                 "GET /d/x"):
        with Wire(api.stack) as wire:
            wire.send(head(line, "Connection: close", token=api.token, host="evil.example"))
            for answer in wire.read_all():
                assert b"evil.example" not in answer.body
                assert not any("evil.example" in value for _, value in answer.headers)
