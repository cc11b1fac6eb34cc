"""Attack 9, through the logs: an address that is a permission is in none of them, whatever goes wrong on its way."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import pytest

from service.run import processes
from tests.attacks.logs import Mark
from tests.attacks.test_links import make_link
from tests.attacks.wire import BOUNDARY, Wire, form, head, part, request
from tests.client import PASSWORD, Api, files_on_disk, new_account, until
from tests.stack import Stack

FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
JSON = "Content-Type: application/json"
HUGE = "Content-Length: 99999999999"
CHUNKED = "Transfer-Encoding: chunked"
LARGE = 3_000_000
CHUNK = f"{LARGE:x}\r\n".encode() + bytes(LARGE)


class Permissions(NamedTuple):
    """Addresses that need no account."""

    file: str
    box: str
    locked: str
    signed: str

    @property
    def secrets(self) -> list[bytes]:
        """What must be nowhere."""
        tokens = [link.removeprefix("/s/") for link in self[:3]]
        return [secret.encode() for secret in (*tokens, self.signed.rpartition("&s=")[2])]


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Behind nginx; its workers are killed here."""
    stack = Stack(tmp_path_factory.mktemp("permissions") / "data",
                  {"MAX_UPLOAD_SIZE": "4000000", "UPLOADS_PER_ACCOUNT": "1"})
    with stack.running():
        yield stack


async def _permissions(api: Api) -> tuple[Permissions, Path]:
    """To a large file, and to drop files; and where the bytes are."""
    before = files_on_disk(api.stack)
    await api.put("/a.bin", os.urandom(LARGE))
    [blob] = (name for name in files_on_disk(api.stack) - before if name.startswith("blobs/"))
    signed = await api.call("POST", "/file/sign", json={"path": "/a.bin", "expires_in": 600}, expect=201)
    parts = urlsplit(signed.json["url"])
    return Permissions(await make_link(api, "/a.bin"), await make_link(api, "/", kind="upload"),
                       await make_link(api, "/a.bin", password=PASSWORD), f"{parts.path}?{parts.query}"), \
        api.stack.root / blob


def _ask(stack: Stack, data: bytes) -> int:
    """The status; 0 if the connection ended without an answer."""
    with Wire(stack) as wire:
        wire.send(data)
        with contextlib.suppress(AssertionError):
            return wire.read_last().status
    return 0


def _usual(permissions: Permissions) -> list[bytes]:
    own = f"Referer: http://localhost{permissions.file}"
    file = form(part('name="file"; filename="f"', bytes(200_000)))
    return [*(request(f"GET {address}", own, *more) for address in permissions
              for more in ((), ("If-Match: *",), ("Range: bytes=1-2",), ("Range: bytes=99999999-",), (HUGE,))),
            request(f"POST {permissions.box}", own, FORM, body=file),
            request(f"POST {permissions.box}", own, FORM, "Expect: 100-continue", body=file),
            request(f"POST {permissions.locked}/open", own, JSON, body=b'{"password": "x"}')]


def _excessive(permissions: Permissions) -> list[bytes]:
    """Bodies and heads that nginx itself refuses."""
    shots = []
    for address in (*permissions, f"{permissions.locked}/open", f"/./{permissions.box}", f"//x/..{permissions.box}",
                    permissions.box.replace("/s/", "/%73/")):
        for method in ("POST", "PUT", "GET", "DELETE"):
            for kind in (FORM, JSON, "Content-Type: application/x-www-form-urlencoded"):
                line = f"{method} {address}"
                shots += [head(line, kind, HUGE, "Connection: close"),
                          head(line, kind, CHUNKED, "Connection: close") + CHUNK + b"\r\n" + CHUNK + b"\r\n0\r\n\r\n",
                          request(line, kind, body=bytes(70_000)), request(line, kind, body=bytes(1_100_000))]
        for more in ("Transfer-Encoding: gzip", "X: " + "x" * 20_000, "Host: other", "Content-Length: -1", "broken",
                     "Content-Length: 1\r\nContent-Length: 2", f"{CHUNKED}\r\nContent-Length: 5", "X-\0: x"):
            shots.append(request(f"GET {address}", more))
        shots += [request(f"GET {address} HTTP/9.9"), request(f"GET {address}{'x' * 20_000}"),
                  request(f"GET {address}/../../../x"), request(f"GET {address}%zz"), request(f"TRACE {address}"),
                  request(f"CONNECT {address}"), request(f"GET {address} x HTTP/1.1"),
                  head(f"POST {address}", FORM, CHUNKED) + b"zz\r\n"]
    return shots


def _assert_untold(mark: Mark, permissions: Permissions) -> None:
    written = {path: path.read_bytes() for path in (mark.stack.root / "log").iterdir()}
    written[mark.stack.root] = (mark.stack.root.parent / f"{mark.stack.root.name}.out").read_bytes()
    for path, text in written.items():
        for secret in permissions.secrets:
            assert secret not in text, (path, [line for line in text.splitlines() if secret in line][:3])


async def test_refused_and_large_requests_are_told_without_their_address(
        session: aiohttp.ClientSession, own_stack: Stack) -> None:
    api = await new_account(session, own_stack)
    permissions, _ = await _permissions(api)
    mark = Mark.now(own_stack)
    statuses = {_ask(own_stack, shot) for shot in (*_usual(permissions), *_excessive(permissions))}
    assert {200, 201, 206, 400, 404, 405, 413, 415, 416} <= statuses
    assert not {status for status in statuses if status >= 500} - {501, 505}
    with Wire(own_stack) as slow:  # more uploads at the same time than there may be
        slow.send(head(f"POST {permissions.box}", FORM, "Content-Length: 100000") + b"x" * 70_000)
        file = form(part('name="file"; filename="f"', bytes(200_000)))
        await until(lambda: _ask(own_stack, request(f"POST {permissions.box}", FORM, body=file)) == 429)
    assert _ask(own_stack, head("PUT /file?path=/x", HUGE, "Connection: close", token=api.token)) == 413
    await until(lambda: any(b"too large body" in line for line in mark.lines("nginx.log")))  # of an account it is told
    _assert_untold(mark, permissions)


def _told(mark: Mark) -> list[bytes]:
    return [line for line in mark.lines("service.log") if b'"code":"content_unavailable"' in line]


async def test_missing_bytes_are_told_without_the_address(
        session: aiohttp.ClientSession, own_stack: Stack, tmp_path: Path) -> None:
    api = await new_account(session, own_stack)
    permissions, blob = await _permissions(api)
    mark = Mark.now(own_stack)
    blob.rename(tmp_path / "aside")
    for headers in ((), ("Range: bytes=0-1",), ("If-Match: *",), (f"Referer: http://localhost{permissions.file}",)):
        assert _ask(own_stack, request(f"GET {permissions.file}", *headers)) == 500
        assert _ask(own_stack, request(f"GET {permissions.locked}", f"X-Link-Password: {PASSWORD}", *headers)) == 500
        assert _ask(own_stack, request(f"GET {permissions.signed}", *headers)) == 404
    await until(lambda: len(_told(mark)) == 8)
    assert all(b'"link":' in line for line in _told(mark))
    assert _ask(own_stack, request("GET /file/download?path=/a.bin", token=api.token)) == 500
    await until(lambda: any(b"failed (2: " in line and blob.name.encode() in line for line in mark.lines("nginx.log")))
    (tmp_path / "aside").rename(blob)
    assert _ask(own_stack, request(f"GET {permissions.file}")) == 200
    _assert_untold(mark, permissions)


async def test_killed_workers_are_told_without_the_address(session: aiohttp.ClientSession, own_stack: Stack) -> None:
    api = await new_account(session, own_stack)
    permissions, _ = await _permissions(api)
    mark = Mark.now(own_stack)
    killed = set(_workers(own_stack))
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not killed & set(_workers(own_stack)))
    statuses = {_ask(own_stack, shot) for shot in _usual(permissions)}
    assert 503 in statuses
    # what has no secret in its address is told, uploads and the question before them too
    for shot in (request("GET /file/list", token=api.token),
                 request("PUT /file?path=/x", token=api.token, body=bytes(200_000))):
        _ask(own_stack, shot)
    await until(lambda: any(b"connect() to " in line and b"/_preflight" in line for line in mark.lines("nginx.log")))
    await until(own_stack.is_ready)
    await until(lambda: len(_workers(own_stack)) == 2)
    _assert_untold(mark, permissions)


def _workers(stack: Stack) -> list[int]:
    return processes.find_working_in(stack.root / "run", processes.own_program())
