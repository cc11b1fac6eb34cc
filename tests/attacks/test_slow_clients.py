"""Attack 13: clients that send a byte now and then, or read none: whoever else comes is served all the same."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

from tests.attacks import disk
from tests.attacks.wire import BOUNDARY, Wire, ask, form, head, part, request
from tests.client import Api

SLOW = 50
ROUNDS = 20
PATIENCE_SECONDS = 60.0  # for all rounds together: a deadline for a broken run, not a measurement


@contextmanager
def _dribblers(api: Api, begins: list[bytes]) -> Iterator[list[Wire]]:
    """That many connections, each with the beginning of a request."""
    wires = [Wire(api.stack) for _ in range(SLOW)]
    try:
        for wire, begin in zip(wires, cycle(begins)):
            assert wire.send(begin)
        yield wires
    finally:
        for wire in wires:
            wire.reset()


async def _work_meanwhile(api: Api, wires: list[Wire], crumbs: bytes) -> None:
    """In each round every slow client sends one byte, and another one does something useful."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    for number in range(ROUNDS):
        for wire in wires:
            wire.send(crumbs[number % len(crumbs)].to_bytes(1, "big"))
        content = hashlib.sha256(str(number).encode()).digest() * 1000
        stored = ask(api.stack, request(f"PUT /file?path=/{number}", token=api.token, body=content))
        assert stored.status == 201
        assert (await api.get(f"/{number}")).body == content
        assert ask(api.stack, request("GET /ping/all")).status == 200
        assert time.monotonic() < deadline, f"only {number} rounds"
    assert len(await api.list()) == ROUNDS


async def test_fifty_dribbled_heads_stop_nobody(api: Api) -> None:
    begins = [b"", b"G", b"GET /live", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ",
              b"PUT /file?path=/slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "]
    with _dribblers(api, begins) as wires:
        await _work_meanwhile(api, wires, b"a")


async def test_fifty_dribbled_uploads_stop_nobody(api: Api) -> None:
    content = form(part('name="file"; filename="slow"', b"x" * 1000))
    begins = [head("PUT /file?path=/slow", "Content-Length: 100000", token=api.token) + b"x" * 10,
              head("PUT /file?path=/slow", "Transfer-Encoding: chunked", token=api.token) + b"ffff\r\n",
              head("POST /file", f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
                   f"Content-Length: {len(content)}", token=api.token) + content[:50]]
    with _dribblers(api, begins) as wires:
        await _work_meanwhile(api, wires, b"x")
    disk.settle(api.stack)
    assert len(await api.list()) == ROUNDS


async def test_fifty_dribbled_logins_stop_nobody(api: Api) -> None:
    begins = [head("POST /auth/jwt/login", "Content-Type: application/json", "Content-Length: 500") + b'{"username": "',
              head("POST /auth/register", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 500"),
              head("POST /auth/jwt/login", "Content-Type: application/json", "Transfer-Encoding: chunked") + b"fff\r\n"]
    with _dribblers(api, begins) as wires:
        await _work_meanwhile(api, wires, b"a")
        await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token}, expect=200)


async def test_fifty_refused_uploads_that_go_on_stop_nobody(api: Api) -> None:
    begins = [head("PUT /file?path=/slow", "Content-Length: 10000000000"),
              head("PUT /file?path=/slow", "Transfer-Encoding: chunked") + b"ffffff\r\n",
              head("PUT /file?path=/slow", "Content-Length: 10000000000", token="wrong")]
    with _dribblers(api, begins) as wires:
        await _work_meanwhile(api, wires, b"x")
        assert disk.bytes_in_flight(api.stack) == 0


async def test_fifty_downloads_that_nobody_reads_stop_nobody(api: Api) -> None:
    """More than the kernel keeps for a connection, so each sender has to wait."""
    content = hashlib.shake_256(b"large").digest(8 * 2**20)
    await api.put("/large", content, expect=201)
    begins = [head("GET /file/download?path=/large", token=api.token),
              head("GET /file/download?path=/large", "If-Match: *", token=api.token),
              head("GET /file/download?path=/large", "Range: bytes=1-", token=api.token)]
    with _dribblers(api, begins) as wires:
        for number in range(ROUNDS):
            small = str(number).encode()
            await api.put(f"/{number}", small, expect=201)
            assert (await api.get(f"/{number}")).body == small
        # and who reads in the end, gets it all
        for wire, wanted in zip(wires, cycle((content, content, content[1:]))):
            answer = wire.read()
            assert answer is not None and answer.body == wanted


async def test_connections_without_a_word_stop_nobody(api: Api) -> None:
    wires = [Wire(api.stack) for _ in range(300)]
    try:
        for number in range(ROUNDS):
            await api.put(f"/{number}", b"x", expect=201)
            assert ask(api.stack, head("GET /livez", "Connection: close")).status == 200
    finally:
        for wire in wires:
            wire.reset()
