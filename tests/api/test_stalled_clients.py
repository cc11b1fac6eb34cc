"""Without nginx: a client that stops in the middle is cut off, whichever way bytes were to go; a slow one is not."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from service.api import protocol
from service.api.keys import BEHIND_NGINX
from tests.client import until

STALL_SECONDS = 0.3


@dataclass
class Service:
    """A few handlers on the connections of the service."""

    port: int
    received: list[bytes] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client that takes little at a time."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=connection, limit=4096)


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """Impatient; /take reads a body, /give writes without an end."""
    monkeypatch.setattr(protocol, "STALL_SECONDS", STALL_SECONDS)
    monkeypatch.setattr(protocol, "LOOK_SECONDS", 0.02)

    async def take(request: web.Request) -> web.Response:
        try:
            found.received.append(await request.read())
        except Exception as error:
            found.failed.append(type(error).__name__)
            raise
        return web.Response(text="taken")

    async def give(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError as error:
            found.failed.append(type(error).__name__)
        return response

    async def think(request: web.Request) -> web.Response:
        await asyncio.sleep(4 * STALL_SECONDS)
        return web.Response(text="thought")

    app = web.Application()
    app[BEHIND_NGINX] = False
    app.add_routes([web.put("/take", take), web.get("/give", give), web.get("/think", think)])
    runner = protocol.Runner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found = Service(runner.addresses[0][1])
    yield found
    await runner.cleanup()


async def is_cut(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends, whatever came before; waits for it."""
    try:
        async with asyncio.timeout(20):
            while await reader.read(65536):
                pass
    except ConnectionError:
        pass
    return True


async def test_body_that_does_not_go_on_is_cut_off(service: Service) -> None:
    reader, writer = await service.connect()
    writer.write(b"PUT /take HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    assert await is_cut(reader)
    await until(lambda: len(service.failed) == 1)
    assert service.received == []
    writer.close()


async def test_body_that_comes_slowly_is_taken(service: Service) -> None:
    reader, writer = await service.connect()
    writer.write(b"PUT /take HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
    for _ in range(10):
        await asyncio.sleep(STALL_SECONDS / 3)
        writer.write(b"x")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert service.received == [b"x" * 10]
    writer.close()


async def test_answer_that_nobody_takes_is_cut_off(service: Service) -> None:
    reader, writer = await service.connect()
    writer.write(b"GET /give HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: len(service.failed) == 1)  # although nothing was read here
    assert await is_cut(reader)
    writer.close()


async def test_answer_that_takes_long_to_make_is_waited_for(service: Service) -> None:
    """Neither side is the client's to move."""
    reader, writer = await service.connect()
    writer.write(b"GET /think HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.mutant("D3", "a client that stalls is waited for")
async def test_without_looking_a_stalled_client_stays(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LOOK_SECONDS", 3600.0)
    reader, writer = await service.connect()
    writer.write(b"PUT /take HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    ended = asyncio.ensure_future(is_cut(reader))
    done, _ = await asyncio.wait([ended], timeout=4 * STALL_SECONDS)
    assert not done and service.failed == []
    ended.cancel()
    writer.close()
