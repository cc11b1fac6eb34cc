"""Transfers that are cut in the middle (F13, F14): by a reload or a kill of nginx or the workers, by the client.

Nobody takes a part for the whole, nothing is stored by half, nothing is left on its way.
"""

import asyncio
import hashlib
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp
import pytest

from service.run import processes
from tests.client import Api, is_tidy, until
from tests.faults.clients import Account
from tests.faults.examine import check_invariants, examine
from tests.faults.ledger import body_of, digest_of
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack

BODY_BYTES = 24_000_000  # more than all buffers on the way hold
SHARES = (0, 1, 50, 99, 100)  # per cent of a body


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    """A service of their own."""
    found = FaultyStack(tmp_path_factory.mktemp("transfers") / "data", {"ACCESS_TOKEN_TTL": "86400"})
    try:
        found.start()
        yield found
    finally:
        if found.process is not None:
            found.stop()


def reload_nginx(stack: FaultyStack) -> None:
    """New processes take over; the old ones finish what they have begun."""
    processes.send(stack.nginx()[:1], signal.SIGHUP)


def kill_nginx_workers(stack: FaultyStack) -> None:
    """Those that move bytes."""
    processes.send(stack.nginx()[1:], signal.SIGKILL)


def kill_nginx(stack: FaultyStack) -> None:
    """All of it, as a restart does that does not wait."""
    processes.send(stack.nginx(), signal.SIGKILL)


def kill_workers(stack: FaultyStack) -> None:
    """Those that decide."""
    processes.send(stack.workers(), signal.SIGKILL)


async def ready(stack: FaultyStack) -> None:
    """Everything runs."""
    await until(lambda: stack.is_ready() and stack.all_workers_listen(), seconds=60)


async def slow_upload(account: Account, path: str, body: bytes, half: asyncio.Event, go: asyncio.Event) -> None:
    """Half of the body, a pause, the rest."""
    async def pieces() -> AsyncIterator[bytes]:
        middle = len(body) // 2
        yield body[:middle]
        half.set()
        await go.wait()
        yield body[middle:]

    await account.change({path: digest_of(body)}, "PUT", f"/file?path={path}", data=pieces(),
                         headers={"Content-Length": str(len(body))})


async def slow_download(api: Api, path: str, half: asyncio.Event, go: asyncio.Event) -> bytes | None:
    """All bytes, with a pause after the first ones; None if it was broken off."""
    url = f"{api.stack.url}/file/download?path={path}"
    try:
        async with api.session.get(url, headers={"Authorization": f"Bearer {api.token}"}) as response:
            assert response.status == 200
            first = await response.content.readexactly(100_000)
            half.set()
            await go.wait()
            return first + await response.content.read()
    except aiohttp.ClientPayloadError:
        return None


@pytest.mark.parametrize(("fault", "is_harmless"), [
    (reload_nginx, True), (kill_nginx_workers, False), (kill_nginx, False), (kill_workers, False)],
    ids=["nginx reloaded", "nginx workers killed", "nginx killed", "workers killed"])
async def test_transfer_that_is_cut_is_whole_or_an_error(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int,
        request: pytest.FixtureRequest, fault: Callable[[FaultyStack], None],
        is_harmless: bool) -> None:
    line = recorder.line(f"F13 {request.node.callspec.id} in the middle of transfers")
    account = await Account.open(session, stack)
    broken = 0
    for number in range(rounds):
        there = body_of(f"there{number}", BODY_BYTES)
        reply = await account.put(f"/there{number}", there)
        assert reply is not None and reply.status == 201
        halves, go = [asyncio.Event(), asyncio.Event()], asyncio.Event()
        upload = asyncio.create_task(slow_upload(
            account, f"/new{number}", body_of(f"new{number}", BODY_BYTES), halves[0], go))
        download = asyncio.create_task(slow_download(account.api, f"/there{number}", halves[1], go))
        await asyncio.wait_for(asyncio.gather(*(half.wait() for half in halves)), 60)
        fault(stack)
        line.injected += 1
        go.set()
        await upload
        data = await download
        broken += data is None
        assert data is None or hashlib.sha256(data).digest() == hashlib.sha256(there).digest(), "a part or a mix"
        assert data is not None or not is_harmless
        assert not is_harmless or account.ledger.known.get(f"/new{number}"), "a reload has cost an upload"
        await ready(stack)
        line.in_doubt += account.ledger.in_doubt
        damage, words = await examine([account], stack.dsn, stack.root)
        line.add(damage)
        assert not damage, words
        again = await account.put(f"/new{number}", body_of(f"new{number}", BODY_BYTES))
        assert again is not None and again.status in (200, 201)
    line.acknowledged = account.ledger.acknowledged
    line.note = f"{broken} of {line.injected} downloads were broken off, none was taken for whole"


@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
async def test_client_that_vanishes_leaves_nothing_or_the_whole_file(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, is_reset: bool) -> None:
    line = recorder.line("F14 client vanishes in the middle of an upload", "RST" if is_reset else "FIN")
    await ready(stack)
    account = await Account.open(session, stack)
    for size_bytes in (1000, 2_000_000):
        for share in SHARES:
            path = f"/{size_bytes}-{share}"
            body = body_of(path, size_bytes)
            account.ledger.begin({path: digest_of(body)})  # nobody is told what became of it
            await asyncio.to_thread(vanish, stack, account.api.token, path, body, share, is_reset)
            line.injected += 1
    await until(lambda: is_tidy(stack), seconds=60)
    line.in_doubt = account.ledger.in_doubt
    damage, words = await examine([account], stack.dsn, stack.root)
    line.add(damage)
    assert not damage, words
    whole = {f"/{size_bytes}-100" for size_bytes in (1000, 2_000_000)}
    assert set(account.ledger.known) <= whole, "a part of a body was stored"


def vanish(stack: FaultyStack, token: str, path: str, body: bytes, share: int, is_reset: bool) -> None:
    """Send a head and so much of the body, then close the connection, or cut it."""
    with socket.create_connection(("127.0.0.1", stack.port)) as connection:
        connection.sendall(f"PUT /file?path={path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                           f"Content-Length: {len(body)}\r\n\r\n".encode("ascii"))
        connection.sendall(body[:len(body) * share // 100])
        if is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_invariants_hold_after_all_of_it(stack: FaultyStack, recorder: Recorder) -> None:
    """The last one: all that the tests above have left."""
    await asyncio.to_thread(stack.stop)
    await asyncio.to_thread(stack.start)
    in_doubt = sum(line.in_doubt for line in recorder.lines)
    await check_invariants(stack.dsn, stack.root, max_strays=in_doubt)
