"""Housekeeping and checks run inside the service, without being asked, on one worker at a time.

The first round comes ten minutes after a start; here it comes at once, which is all that differs (faulty_service.py).
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import aiohttp
import asyncpg
import pytest

from service.run import processes
from tests.client import Api, new_account, until
from tests.faults.sites import FaultyStack

if TYPE_CHECKING:  # the class takes no type arguments at run time
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

SECONDS = 60.0  # a walk along all folders may come first
CHECKS = ["leftovers", "rows", "sizes", "walk"]
HOLDERS = """
SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND application_name = 'file-storage upkeep' AND datname = current_database()
"""


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[FaultyStack]:
    """A service of two workers, of which each wants the turn."""
    stack = FaultyStack(tmp_path / "data", faults="frequent_upkeep")
    with stack.running():
        yield stack


@pytest.fixture
async def observer(own_stack: FaultyStack) -> AsyncIterator[Connection]:
    """A connection to look on."""
    connection = await asyncpg.connect(own_stack.dsn)
    yield connection
    await connection.close()


async def flip_a_byte(api: Api, path: str, body: bytes) -> Path:
    """Store a file, and have the disk change one byte of it; where it lies."""
    await api.put(path, body)
    [file] = [file for file in (api.stack.root / "blobs").glob("*/*") if file.read_bytes() == body]
    with file.open("r+b") as blob:
        blob.write(bytes([body[0] ^ 1]))
    return file


async def is_noticed(observer: Connection, file: Path) -> bool:
    """Whether it is noted and set aside; the week until it is read back is over."""
    key = UUID(file.name)
    await observer.execute("UPDATE blobs SET verified_at = NULL WHERE id = $1", key)
    kind = await observer.fetchval("SELECT kind FROM damaged_blobs WHERE blob_id = $1", key)
    return kind == "digest" and not file.exists()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing while the context lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_service_notices_by_itself_what_rots_and_so_does_the_next_worker_when_one_is_killed(
        session: aiohttp.ClientSession, own_stack: FaultyStack, observer: Connection) -> None:
    api = await new_account(session, own_stack)

    async def notices(path: str) -> None:
        file = await flip_a_byte(api, path, path.encode())
        await until(lambda: is_noticed(observer, file), seconds=SECONDS)
        assert (await api.get(path, expect=500)).code == "content_unavailable"

    async def holder() -> int | None:
        """The server's process behind the worker that has the turn; never there are two."""
        pids = [int(row["pid"]) for row in await observer.fetch(HOLDERS)]
        assert len(pids) <= 1
        return pids[0] if pids else None

    async def all_is_done() -> bool:
        return [row["name"] for row in await observer.fetch("SELECT name FROM checks ORDER BY name")] == CHECKS

    async def has_moved_from(before: int | None) -> None:
        async def has_moved() -> bool:
            return await holder() not in (None, before)

        await until(has_moved, seconds=SECONDS)

    await notices("/first")
    await until(all_is_done, seconds=SECONDS)
    assert own_stack.log_text.count('"upkeep.begun"') == 1
    first, second = own_stack.workers()
    with stopped(first):
        before = await holder()
        await observer.fetchval("SELECT pg_terminate_backend($1, 10000)", before)
        await has_moved_from(before)  # now it is the second's, whoever had it
        before = await holder()
    assert own_stack.process is not None
    with stopped(own_stack.process.pid):  # nobody starts another one
        os.kill(second, signal.SIGKILL)
        await has_moved_from(before)
    assert await asyncio.to_thread(processes.wait_until, own_stack.all_workers_listen, SECONDS)
    await notices("/second")
