"""Something runs out (F10, F11), or the kernel refuses (F2): clear refusals, nothing half done, then all as before."""

import asyncio
import os
import re
import resource
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from service.run import processes
from tests.faults.clients import Account
from tests.faults.examine import check_invariants, everything_holds, examine
from tests.faults.ledger import body_of
from tests.faults.load import PATIENCE_SECONDS, PROBE_SECONDS, under_load
from tests.faults.machine import tmpfs
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack, own_postgres
from tests.invariants import sweep

TOGETHER = 8
REFUSALS = 12
FILE_BYTES = 400_000
LARGE_BYTES = 200 * 2**20
SLACK_BYTES = 8 * 2**20  # logs and the like
DOWNLOADS = 4
SPARE_FILES = 6
FSYNC = re.compile(r"fsync\(\d+<([^>]*)>(?:\(deleted\))?\)\s+= (-1 EIO|0)")


async def fill(account: Account, number: int, size_bytes: int) -> None:
    """Upload until uploads are refused again and again."""
    count = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(account.ledger.refused) < REFUSALS:
            count += 1
            await account.put(f"/{number}/{count}", body_of(f"{account.api.username}-{number}-{count}", size_bytes))


@pytest.mark.parametrize(("what", "options", "size_bytes"), [
    ("room", "size=64m", FILE_BYTES), ("inodes", "size=256m,nr_inodes=800", 100)], ids=["room", "inodes"])
async def test_full_disk_refuses_uploads_and_nothing_else(
        tmp_path: Path, session: aiohttp.ClientSession, recorder: Recorder, what: str, options: str, size_bytes: int
) -> None:
    line = recorder.line(f"F10 disk full: {what}", "tmpfs, PostgreSQL elsewhere")
    with own_postgres(tmp_path) as postgres, tmpfs(tmp_path / "small", options) as small:
        stack = FaultyStack(small / "data", {"DATABASE_URL": postgres.server.dsn(), "MIN_FREE_SPACE": "0"})
        try:
            await asyncio.to_thread(stack.start)
            account = await Account.open(session, stack)
            await account.put("/kept", b"kept")
            await asyncio.gather(*(fill(account, number, size_bytes) for number in range(TOGETHER)))
            line.injected = len(account.ledger.refused)
            assert all(": 507 " in words for words in account.ledger.refused), account.ledger.refused
            line.in_doubt = account.ledger.in_doubt
            damage, words = await examine([account], stack.dsn, stack.root)  # which reads everything
            line.add(damage)
            assert not damage, words
            for path in account.ledger.free_paths():
                if path == "/kept":
                    continue
                reply = await account.delete(path, permanent=True)
                assert reply is not None and reply.status == 204, reply
            await sweep(stack.dsn, stack.root)
            account.ledger.refused.clear()
            if what == "inodes":
                # small files that nginx has sent lately stay open; it lets go of the oldest when it sends another one
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while "/again" not in account.ledger.known:
                        await account.put("/again", body_of("again", FILE_BYTES))
                        await account.api.get("/kept")
            else:
                again = await account.put("/again", body_of("again", FILE_BYTES))
                assert again is not None and again.status == 201
            line.acknowledged = account.ledger.acknowledged
            line.in_doubt += account.ledger.in_doubt
            # a refused upload leaves no bytes
            await everything_holds(line, [account], stack.dsn, stack.root)
            line.note = "507 each time; reads, deletions and the sweep went on; the room came back"
        finally:
            if stack.process is not None:
                await asyncio.to_thread(stack.stop)


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


async def test_disk_gets_its_room_back_as_soon_as_a_large_file_is_removed(
        tmp_path: Path, session: aiohttp.ClientSession, recorder: Recorder) -> None:
    """nginx has sent it by every door, and has nothing to do from then on."""
    line = recorder.line("F10 large file removed after it was sent", "tmpfs, PostgreSQL elsewhere")
    with own_postgres(tmp_path) as postgres, tmpfs(tmp_path / "small", "size=256m") as small:
        stack = FaultyStack(small / "data", {"DATABASE_URL": postgres.server.dsn(), "MIN_FREE_SPACE": "0"})
        try:
            await asyncio.to_thread(stack.start)
            account = await Account.open(session, stack)
            await account.put("/small", b"small")
            before = _free_bytes(small)
            body = bytes(LARGE_BYTES)
            await account.put("/large", body)
            assert _free_bytes(small) < before - LARGE_BYTES + SLACK_BYTES
            signed = await account.api.call("POST", "/file/sign", json={"path": "/large", "expires_in": 600})
            for _ in range(DOWNLOADS):
                for address in ("/file/download?path=/large", signed.json["url"].removeprefix(stack.url)):
                    assert (await account.api.call("GET", address, expect=200)).body == body
            await account.delete("/large", permanent=True)
            await sweep(stack.dsn, stack.root)
            line.injected = 1
            line.note = f"{(before - _free_bytes(small)) / 2**20:.1f} of {LARGE_BYTES / 2**20:.0f} MiB were kept"
            assert _free_bytes(small) > before - SLACK_BYTES, line.note
            line.acknowledged = account.ledger.acknowledged
            await everything_holds(line, [account], stack.dsn, stack.root)
        finally:
            if stack.process is not None:
                await asyncio.to_thread(stack.stop)


@pytest.fixture(scope="module")
def short_stack() -> Iterator[FaultyStack]:
    """A service that will lack something."""
    with tempfile.TemporaryDirectory(prefix="short-") as folder:
        stack = FaultyStack(Path(folder) / "data", {"ACCESS_TOKEN_TTL": "86400"})
        with stack.running():
            yield stack


def _limit_files(pids: list[int], spare: int | None) -> None:
    """Let each process open so many files more, or as many as the service usually may."""
    for pid in pids:
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        count = len(list((processes.PROC / str(pid) / "fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if spare is None else count + spare, hard))


async def test_too_few_descriptors_are_refusals_until_there_are_more(
        short_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int) -> None:
    line = recorder.line("F11 too few file descriptors")
    refused = 0
    wrong: Counter[int] = Counter()
    async with under_load(short_stack, session, line) as load:
        for number in range(rounds):
            async def starve() -> None:
                nonlocal refused
                pids = [*short_stack.workers(), *short_stack.nginx()[1:]]
                _limit_files(pids, SPARE_FILES)
                try:
                    replies = await asyncio.gather(*(
                        load.probe.put(f"/many-{number}-{each}", body_of(f"{number}-{each}", FILE_BYTES))
                        for each in range(10 * TOGETHER)))
                    answers = [reply for reply in replies if reply is not None]  # the rest was not taken
                    refused += sum(reply.status == 503 and int(reply.headers["Retry-After"]) > 0 for reply in answers)
                    wrong.update(reply.status for reply in answers if reply.status not in (201, 503))
                finally:
                    _limit_files(pids, None)

            await load.inject(starve)
    assert refused, "there were enough"
    assert not wrong, wrong
    line.note = f"{refused} refusals"
    await asyncio.to_thread(short_stack.stop)
    await asyncio.to_thread(short_stack.start)
    await check_invariants(short_stack.dsn, short_stack.root, max_strays=line.in_doubt)


async def test_kernel_that_fails_an_fsync_is_believed_the_first_time(
        tmp_path: Path, short_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int
) -> None:
    """strace has fsyncs of the real workers fail; the same file is never forced again (M8)."""
    line = recorder.line("F2 fsync fails in the kernel", "strace")
    account = await Account.open(session, short_stack)
    await account.put("/first", b"first")
    for size_bytes in (100, FILE_BYTES):
        for number in range(rounds):
            name = f"{size_bytes}-{number}"
            # new workers for each, since a disk that has failed often is not written to any more
            await asyncio.to_thread(short_stack.stop)
            await asyncio.to_thread(short_stack.start)
            assert await asyncio.to_thread(processes.wait_until, short_stack.all_workers_listen, PATIENCE_SECONDS)
            tracers = [await trace(pid, tmp_path / name) for pid in short_stack.workers()]
            try:
                reply = await account.put(f"/{name}", body_of(name, size_bytes))
            finally:
                for tracer in tracers:
                    tracer.terminate()
                    await asyncio.to_thread(tracer.wait)
            synced = [match for path in tmp_path.glob(f"{name}.*") for match in FSYNC.findall(
                path.read_text(encoding="utf-8", errors="replace"))]
            failed = [path for path, result in synced if result != "0"]
            line.injected += len(failed)
            assert failed, "no fsync failed"
            assert all(sum(path == each for path, _ in synced) == 1 for each in failed), "an fsync was tried again"
            assert reply is not None and (reply.status, reply.code) == (503, "disk_failed"), reply
    line.in_doubt = account.ledger.in_doubt
    damage, words = await examine([account], short_stack.dsn, short_stack.root)
    assert {file["path"] for file in await account.api.list()} == {"/first"}, "an upload that failed is there"
    line.acknowledged = account.ledger.acknowledged
    line.add(damage)
    assert not damage, words
    await asyncio.to_thread(short_stack.stop)
    await asyncio.to_thread(short_stack.start)
    await check_invariants(short_stack.dsn, short_stack.root, max_strays=line.injected)


async def trace(pid: int, log: Path) -> "subprocess.Popen[bytes]":
    """Have the first fsync of each thread of the process fail."""
    tracer = subprocess.Popen(
        ["strace", "-ff", "-y", "-p", str(pid), "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1",
         "-o", str(log)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while "TracerPid:\t0\n" in (processes.PROC / str(pid) / "status").read_text(encoding="ascii"):
            await asyncio.sleep(PROBE_SECONDS)
    return tracer
