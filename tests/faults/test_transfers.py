"""Transfers that are cut in the middle (F13, F14): by a reload or a kill of nginx or the workers, by the client.

Nobody takes a part for the whole, nothing is stored by half, nothing is left on its way.
"""

import asyncio
import hashlib
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from service.run import processes
from tests.client import Api, is_tidy, until
from tests.faults.clients import Account
from tests.faults.examine import check_invariants, examine
from tests.faults.ledger import body_of, digest_of
from tests.faults.machine import kill
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack
from tests.invariants import sweep
from tests.open_files import removed_but_open

BODY_BYTES = 24_000_000  # more than all buffers on the way hold
SHARES = (0, 1, 50, 99, 100)  # per cent of a body

Fault = Callable[[FaultyStack], Awaitable[None]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, recorder: Recorder) -> Iterator[FaultyStack]:
    """A service of their own; after them all invariants hold."""
    before = len(recorder.lines)
    found = FaultyStack(tmp_path_factory.mktemp("transfers") / "data", {"ACCESS_TOKEN_TTL": "86400"})
    with found.running():
        yield found
        # a start removes what killed workers had in staging
        found.stop()
        found.start()
        in_doubt = sum(line.in_doubt for line in recorder.lines[before:])
        asyncio.run(check_invariants(found.dsn, found.root, max_strays=in_doubt))


async def reload_nginx(stack: FaultyStack) -> None:
    """New processes take over; the old ones finish what they have begun."""
    before = stack.nginx()
    processes.send([before[0]], signal.SIGHUP)
    await until(lambda: not set(stack.nginx()) <= set(before), seconds=60)


async def kill_nginx_workers(stack: FaultyStack) -> None:
    """Those that move bytes."""
    await kill(stack.nginx()[1:])


async def restart_nginx(stack: FaultyStack) -> None:
    """It ends when it is asked to, without waiting, and is started again."""
    await kill(stack.nginx()[:1], signal.SIGTERM)


async def kill_nginx(stack: FaultyStack) -> None:
    """All of it at once."""
    await kill(stack.nginx())


async def kill_workers(stack: FaultyStack) -> None:
    """Those that decide."""
    await kill(stack.workers())


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


@pytest.mark.parametrize(("fault", "is_harmless", "is_cut"), [
    (reload_nginx, True, False), (restart_nginx, False, True), (kill_nginx_workers, False, True),
    (kill_nginx, False, True), (kill_workers, False, False)],
    ids=["nginx reloaded", "nginx restarted", "nginx workers killed", "nginx killed", "workers killed"])
async def test_transfer_that_is_cut_is_whole_or_an_error(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int,
        request: pytest.FixtureRequest, fault: Fault, is_harmless: bool, is_cut: bool) -> None:
    line = recorder.line(f"F13 {request.node.callspec.id} in the middle of transfers")
    account = await Account.open(session, stack)
    uploads = downloads = 0
    for number in range(rounds):
        is_upload_cut, is_download_cut = await cut_transfers(stack, account, number, fault, is_harmless=is_harmless)
        uploads += is_upload_cut
        downloads += is_download_cut
        assert not is_cut or is_upload_cut and is_download_cut, "the fault came when nothing was under way"
        line.injected += 1
        line.in_doubt += account.ledger.in_doubt
        damage, words = await examine([account], stack.dsn, stack.root)
        line.add(damage)
        assert not damage, words
        again = await account.put(f"/new{number}", body_of(f"new{number}", BODY_BYTES))
        assert again is not None and again.status in (200, 201)
    line.acknowledged = account.ledger.acknowledged
    line.note = (f"{uploads} of {line.injected} uploads and {downloads} downloads were broken off, none was taken for "
                 "whole")


async def cut_transfers(stack: FaultyStack, account: Account, number: int, fault: Fault, *,
                        is_harmless: bool) -> tuple[bool, bool]:
    """The fault, amid an upload and a download; whether each was broken off."""
    there = body_of(f"there{number}", BODY_BYTES)
    reply = await account.put(f"/there{number}", there)
    assert reply is not None and reply.status == 201
    halves, go = [asyncio.Event(), asyncio.Event()], asyncio.Event()
    upload = asyncio.create_task(slow_upload(
        account, f"/new{number}", body_of(f"new{number}", BODY_BYTES), halves[0], go))
    download = asyncio.create_task(slow_download(account.api, f"/there{number}", halves[1], go))
    await asyncio.wait_for(asyncio.gather(*(half.wait() for half in halves)), 60)
    await fault(stack)
    go.set()
    await upload
    data = await download
    await ready(stack)
    assert data is None or hashlib.sha256(data).digest() == hashlib.sha256(there).digest(), "a part or a mix"
    assert data is not None or not is_harmless, "a reload has cost a download"
    is_stored = account.ledger.known.get(f"/new{number}") is not None
    assert is_stored or not is_harmless, "a reload has cost an upload"
    return not is_stored, data is None


@pytest.mark.mutant("N4", "a reload that waits for nobody")
async def test_reload_that_waits_for_nobody_is_found_out(stack: FaultyStack, session: aiohttp.ClientSession) -> None:
    with pytest.raises(AssertionError, match="a reload has cost"):
        await cut_transfers(stack, await Account.open(session, stack), 0, restart_nginx, is_harmless=True)


async def vanish_in_uploads(stack: FaultyStack, account: Account, is_reset: bool, *, seconds: float) -> int:
    """Clients leave at every moment; how many.  AssertionError if something of what they sent is still on its way."""
    await ready(stack)
    count = 0
    for size_bytes in (1000, 2_000_000):
        for share in (*SHARES, None):
            path = f"/{size_bytes}-{share}"
            body = body_of(path, size_bytes)
            account.ledger.begin({path: digest_of(body)})  # nobody is told what became of it
            await asyncio.to_thread(vanish, stack, account.api.token, path, body, share, is_reset)
            count += 1
    await until(lambda: is_tidy(stack), seconds=seconds)
    return count


@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
async def test_client_that_vanishes_leaves_nothing_or_the_whole_file(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, is_reset: bool) -> None:
    line = recorder.line("F14 client vanishes in the middle of an upload", "RST" if is_reset else "FIN")
    account = await Account.open(session, stack)
    line.injected = await vanish_in_uploads(stack, account, is_reset, seconds=60)
    line.in_doubt = account.ledger.in_doubt
    damage, words = await examine([account], stack.dsn, stack.root)
    line.add(damage)
    assert not damage, words
    answered = {"/1000-None", "/2000000-None"}
    assert answered <= set(account.ledger.known), "the answer had begun, and nothing is there"
    assert set(account.ledger.known) <= answered | {"/1000-100", "/2000000-100"}, "a part of a body was stored"


def vanish(stack: FaultyStack, token: str, path: str, body: bytes, share: int | None, is_reset: bool) -> None:
    """Send a head and so much of the body, then close the connection, or cut it; None: when the answer begins."""
    with socket.create_connection(("127.0.0.1", stack.port), 60) as connection:
        connection.sendall(f"PUT /file?path={path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                           f"Content-Length: {len(body)}\r\n\r\n".encode("ascii"))
        connection.sendall(body[:len(body) * (100 if share is None else share) // 100])
        if share is None:
            assert connection.recv(12) == b"HTTP/1.1 201"
        if is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
async def test_client_that_vanishes_in_a_download_leaves_nothing_open(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, is_reset: bool) -> None:
    """By every door; afterwards nobody holds the bytes of a file that was deleted."""
    line = recorder.line("F14 client vanishes in the middle of a download", "RST" if is_reset else "FIN")
    await ready(stack)
    account = await Account.open(session, stack)
    body = body_of("large", BODY_BYTES)
    await account.put("/large", body)
    signed = (await account.api.call("POST", "/file/sign", json={"path": "/large", "expires_in": 600})).json["url"]
    plain = f"/file/download?path=/large HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.api.token}\r\n"
    for head in (plain, f"{plain}Range: bytes=1-\r\n", f"{plain}If-Match: *\r\n",
                 f"{signed.removeprefix(stack.url)} HTTP/1.1\r\nHost: x\r\n"):
        for share in SHARES:
            await asyncio.to_thread(vanish_in_download, stack, head, len(body) * share // 100, is_reset)
            line.injected += 1
    assert (await account.api.get("/large")).body == body
    await account.delete("/large", permanent=True)
    await sweep(stack.dsn, stack.root)
    pids = [*stack.nginx(), *stack.workers()]
    await until(lambda: max(removed_but_open(pids, stack.root), default=0) < len(body), seconds=60)
    line.acknowledged = account.ledger.acknowledged
    damage, words = await examine([account], stack.dsn, stack.root)
    line.add(damage)
    assert not damage, words


def vanish_in_download(stack: FaultyStack, head: str, count: int, is_reset: bool) -> None:
    """Ask, read so many bytes, then close the connection, or cut it."""
    with socket.create_connection(("127.0.0.1", stack.port), 60) as connection:
        connection.sendall(f"GET {head}\r\n".encode("ascii"))
        while count > 0:
            piece = connection.recv(min(count, 2**18))
            assert piece, "the answer ends early"
            count -= len(piece)
        if is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def mistaken_stack(folder: Path, mistake: str) -> Iterator[FaultyStack]:
    """A service whose nginx is set up otherwise."""
    found = FaultyStack(folder / "data", {"ACCESS_TOKEN_TTL": "86400"}, module="tests.faults.faulty_nginx",
                        variables={"NGINX_MISTAKE": mistake})
    with found.running():
        yield found


@pytest.mark.mutant("N3", "bodies of clients that left stay in the spool")
async def test_spool_that_is_not_emptied_is_found_out(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    with mistaken_stack(tmp_path, "client_body_in_file_only clean;=>client_body_in_file_only on;") as stack:
        account = await Account.open(session, stack)
        with pytest.raises(AssertionError, match="in vain"):
            await vanish_in_uploads(stack, account, True, seconds=5)
