"""Two hundred clients that send or take a byte a second (F15): heads, bodies, answers.

Others are served all the same, whatever has a limit ends, and nothing is left of the rest.
"""

import asyncio
import socket
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.client import is_tidy, until
from tests.faults.clients import Account
from tests.faults.examine import everything_holds
from tests.faults.ledger import body_of
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack

HEADS, BODIES, READERS = 67, 67, 66
BODY_BYTES = 24_000_000  # more than all buffers on the way hold
CHANGES = 100  # of somebody else, before and meanwhile
PACE_SECONDS = 1.0


@pytest.fixture
def stack(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FaultyStack]:
    """A service; the parameter is a mistake in how its nginx is set up."""
    found = FaultyStack(tmp_path / "data", {"ACCESS_TOKEN_TTL": "86400"}, module="tests.faults.faulty_nginx",
                        variables={"NGINX_MISTAKE": getattr(request, "param", "daemon off;=>daemon off;")})
    with found.running():
        yield found


class SlowClients:
    """All of them, each with its connection."""

    def __init__(self, stack: FaultyStack, token: str) -> None:
        self._port = stack.port
        authorization = f" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n".encode("ascii")
        self.heads = [self._open(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(HEADS)]
        self.bodies = [self._open(b"PUT /file?path=/%d" % number + authorization + b"Content-Length: 1000000\r\n\r\nx")
                       for number in range(BODIES)]
        self.readers = [self._open(b"GET /file/download?path=/large" + authorization + b"\r\n") for _ in range(READERS)]
        self.ended: set[socket.socket] = set()

    def _open(self, begin: bytes) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self._port))
        connection.sendall(begin)
        connection.setblocking(False)
        return connection

    def step(self) -> None:
        """A byte from or for each."""
        for connection in (*self.heads, *self.bodies):
            try:
                connection.send(b"a")
                if not connection.recv(4096) or connection in self.heads:
                    self.ended.add(connection)
            except BlockingIOError:  # nothing has been said to it
                pass
            except OSError:
                self.ended.add(connection)
        for connection in self.readers:
            try:
                assert connection.recv(1), "an answer ended"
            except BlockingIOError:
                pass

    def close(self) -> None:
        """They go away."""
        for connection in (*self.heads, *self.bodies, *self.readers):
            connection.close()


@asynccontextmanager
async def slow_clients(stack: FaultyStack, token: str) -> AsyncIterator[SlowClients]:
    """They go on as long as the context lasts."""
    clients = await asyncio.to_thread(SlowClients, stack, token)

    async def go_on() -> None:
        while True:
            clients.step()
            await asyncio.sleep(PACE_SECONDS)

    task = asyncio.create_task(go_on())
    try:
        yield clients
        assert not task.done(), task
    finally:
        task.cancel()
        clients.close()


async def work(account: Account, folder: str) -> list[float]:
    """Small and larger uploads and downloads of somebody else; the seconds that each took."""
    seconds = []
    for number in range(CHANGES):
        path, began = f"/{folder}/{number}", time.monotonic()
        body = body_of(path, 1000 if number % 4 else 300_000)
        reply = await account.put(path, body)
        assert reply is not None and reply.status == 201
        assert (await account.api.get(path)).body == body
        seconds.append(time.monotonic() - began)
    return seconds


def p99(seconds: list[float]) -> float:
    """What one of a hundred takes longer than."""
    return statistics.quantiles(seconds, n=100)[98]


async def until_heads_have_ended(clients: SlowClients, *, seconds: float) -> None:
    """AssertionError if one is still waited for."""
    await until(lambda: set(clients.heads) <= clients.ended, seconds=seconds)


async def test_two_hundred_slow_clients_stop_nobody_and_leave_nothing(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder) -> None:
    line = recorder.line("F15 200 clients at a byte a second", "heads, bodies, answers")
    slow, other = [await Account.open(session, stack) for _ in range(2)]
    await slow.put("/large", body_of("large", BODY_BYTES))
    alone = await work(other, "alone")
    async with slow_clients(stack, slow.api.token) as clients:
        beside = await work(other, "beside")
        await until_heads_have_ended(clients, seconds=90)
        assert not clients.ended - set(clients.heads), "a body was not waited for"
    line.injected = HEADS + BODIES + READERS
    line.acknowledged = other.ledger.acknowledged + slow.ledger.acknowledged
    line.note = "an upload and a download of another account, median and p99: " + ", ".join(
        f"{statistics.median(seconds) * 1000:.0f} and {p99(seconds) * 1000:.0f} ms {when}"
        for when, seconds in (("alone", alone), ("beside", beside)))
    await until(lambda: is_tidy(stack), seconds=60)
    assert {file["path"] for file in await slow.api.list()} == {"/large"}, "a part of a body was stored"
    await everything_holds(line, [slow, other], stack.dsn, stack.root)


@pytest.mark.mutant("N6", "a head that is waited for without end")
@pytest.mark.parametrize("stack", ["client_header_timeout 15s;=>client_header_timeout 3600s;"], indirect=True, ids=[""])
async def test_head_without_end_is_found_out(stack: FaultyStack, session: aiohttp.ClientSession) -> None:
    account = await Account.open(session, stack)
    await account.put("/large", body_of("large", BODY_BYTES))
    async with slow_clients(stack, account.api.token) as clients:
        with pytest.raises(AssertionError, match="in vain"):
            await until_heads_have_ended(clients, seconds=25)
