"""After load nothing is left (I18): no open file of somebody's bytes, no transaction, nothing beyond the pools."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
import asyncpg
import pytest

from service.run import processes
from tests.client import until
from tests.faults.clients import Account
from tests.faults.examine import everything_holds, leftovers
from tests.faults.ledger import body_of, digest_of
from tests.faults.load import under_load
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack
from tests.open_files import open_files

CHANGES = 150
CALLS_OFF, HANG_UP_SECONDS = 20, 0.004
BODY_BYTES = 5_000_000
WORKERS, POOL_SIZE = 2, 10
# what is kept for the next request: each worker's pool, of which one was there before, and its turn (db/turns.py)
SPARE_BACKENDS = WORKERS * POOL_SIZE
# the same connections in a worker; and some between it and nginx, which last for 50 s after their last request
SPARE_DESCRIPTORS = POOL_SIZE + 6
SETTLE_SECONDS = 120.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    """A service to which nothing happens but requests."""
    stack = FaultyStack(tmp_path_factory.mktemp("leaks") / "data", {
        "ACCESS_TOKEN_TTL": "86400", "WORKERS": str(WORKERS), "DATABASE_POOL_SIZE": str(POOL_SIZE)})
    with stack.running():
        yield stack


@dataclass(frozen=True)
class Held:
    """What a service that nobody asks anything holds: descriptors of each process, connections to the database."""

    descriptors: dict[int, Counter[str]]
    backends: int

    @classmethod
    async def now(cls, stack: FaultyStack) -> "Held":
        """What it holds."""
        connection = await asyncpg.connect(stack.dsn)
        try:
            backends = int(await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"))
        finally:
            await connection.close()
        # nginx keeps blobs open that may be asked for again, and closes them when it opens others: open_file_cache
        blobs = f"{stack.root}/blobs/"
        nginx = {pid: Counter({name: count for name, count in kinds_of_descriptors(pid).items()
                               if not name.startswith(blobs)}) for pid in stack.nginx()}
        return cls({pid: kinds_of_descriptors(pid) for pid in stack.workers()} | nginx, backends)

    def excess(self, before: "Held") -> list[str]:
        """Where there is more than is kept for the next request, in words."""
        found = []
        for pid, now in self.descriptors.items():
            then = before.descriptors.get(pid, Counter())
            if now.total() > then.total() + SPARE_DESCRIPTORS:
                found.append(f"process {pid} has {now.total()} descriptors, before {then.total()}: {dict(now - then)}")
        if self.backends > before.backends + SPARE_BACKENDS:
            found.append(f"{self.backends} connections to the database, before {before.backends}")
        return found


def kinds_of_descriptors(pid: int) -> Counter[str]:
    """How many descriptors a process has of each kind: socket, pipe, or a file's name."""
    found: Counter[str] = Counter()
    folder = processes.PROC / str(pid) / "fd"
    with contextlib.suppress(FileNotFoundError):  # it has ended, as the one of nginx that looks for cached decisions
        for descriptor in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found[os.readlink(folder / descriptor).partition(":[")[0]] += 1
    return found


async def busy_connections(dsn: str) -> int:
    """How many connections are in a transaction, ours aside."""
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"))
    finally:
        await connection.close()


async def nothing_is_left(stack: FaultyStack) -> None:
    """Soon; AssertionError if it never comes true."""
    await until(lambda: open_files(stack.workers(), stack.root) == [])
    await until(lambda: leftovers(stack.root) == (0, 0))

    async def is_quiet() -> bool:
        return await busy_connections(stack.dsn) == 0

    await until(is_quiet)


async def nothing_more_is_held(stack: FaultyStack, before: Held) -> None:
    """Nor that, when what is kept for the next request has been given up."""
    excess: list[str] = []

    async def is_as_before() -> bool:
        nonlocal excess
        excess = (await Held.now(stack)).excess(before)
        return not excess

    with contextlib.suppress(AssertionError):
        await until(is_as_before, seconds=SETTLE_SECONDS)
    assert not excess, excess


async def test_nothing_is_left_after_load(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder) -> None:
    line = recorder.line("I18 load, and clients that hang up")
    account = await Account.open(session, stack)
    body = body_of(account.api.username, BODY_BYTES)
    await account.put("/large", body)
    before = await Held.now(stack)
    async with under_load(stack, session, line) as load:
        for number in range(CALLS_OFF):
            account.ledger.begin({f"/off-{number}": digest_of(body)})  # whoever hangs up is not told what became of it
            for method, address in (("PUT", f"/file?path=/off-{number}"), ("GET", "/file/archive?path=/"),
                                    ("GET", "/file/download?path=/large")):
                task = asyncio.create_task(account.api.call(method, address, data=body if method == "PUT" else None))
                await asyncio.sleep(HANG_UP_SECONDS * number)  # at another moment each time
                task.cancel()
                await asyncio.wait([task])
        async with asyncio.timeout(120):
            while load.acknowledged < CHANGES:
                await asyncio.sleep(0.05)
    await nothing_is_left(stack)
    await nothing_more_is_held(stack, before)
    line.acknowledged += account.ledger.acknowledged
    line.in_doubt += account.ledger.in_doubt
    await everything_holds(line, [account], stack.dsn, stack.root)
    line.note = "no open file, no transaction, nothing staged or spooled, no connection or descriptor beyond the pools"


async def test_file_that_stays_open_would_be_noticed(stack: FaultyStack, session: aiohttp.ClientSession) -> None:
    """Our own process holds one: the look finds it."""
    await (await Account.open(session, stack)).put("/one", b"one")
    blob = next((stack.root / "blobs").glob("*/*"))
    with blob.open("rb"):
        assert open_files([os.getpid()], stack.root) == [str(blob)]


async def test_more_than_is_kept_would_be_noticed() -> None:
    """Our own process holds one descriptor too many, then the database one connection."""
    def now(backends: int) -> Held:
        return Held({os.getpid(): kinds_of_descriptors(os.getpid())}, backends)

    before = now(0)
    with contextlib.ExitStack() as files:
        for _ in range(SPARE_DESCRIPTORS):
            files.enter_context(open(os.devnull, "rb"))
        assert now(SPARE_BACKENDS).excess(before) == []
        files.enter_context(open(os.devnull, "rb"))
        [words] = now(SPARE_BACKENDS).excess(before)
        assert f"'/dev/null': {SPARE_DESCRIPTORS + 1}" in words
    assert now(SPARE_BACKENDS + 1).excess(before) == [f"{SPARE_BACKENDS + 1} connections to the database, before 0"]
