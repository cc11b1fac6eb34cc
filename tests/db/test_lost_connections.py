"""Connections on which nothing arrives any more while the server lives, as behind a firewall that has forgotten them.

They are told from statements that take long, and nobody else pays for them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest

from service.db import pool, watchdog
from service.db.pool import Connection, Database
from service.errors import OutcomeUnknown, Unavailable
from service.run.postgres import EmbeddedPostgres
from tests.client import until
from tests.domain.commit_proxy import CommitProxy, open_proxy

SIZE = 3
DEADLINE_SECONDS = 20.0  # for a broken run, not a measurement


class Way:
    """A pool whose connections go through a proxy, and one that does not."""

    def __init__(self, database: Database, proxy: CommitProxy, direct: Any) -> None:
        self.database = database
        self.proxy = proxy
        self.direct = direct

    async def insert(self, number: int) -> None:
        """A transaction."""
        async def work(conn: Connection) -> None:
            await conn.execute("INSERT INTO numbers VALUES ($1)", number)

        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.database.in_transaction(work)

    async def count(self, number: int) -> int:
        """How often it was inserted."""
        return int(await self.direct.fetchval("SELECT count(*) FROM numbers WHERE number = $1", number))

    async def fill_pool(self) -> None:
        """As many connections as there may be, none of them in use."""
        async def hold(barrier: asyncio.Barrier) -> None:
            async with self.database.connection() as conn:
                await conn.fetchval("SELECT 1")
                await barrier.wait()

        barrier = asyncio.Barrier(SIZE)
        await asyncio.gather(*(hold(barrier) for _ in range(SIZE)))
        await until(lambda: self.database.usage() == (SIZE, 0))


@pytest.fixture
async def way(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Way]:
    """An impatient pool with all its connections."""
    for name in ("LATE_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(watchdog, name, 0.02)
    monkeypatch.setattr(watchdog, "LOST_SECONDS", 0.3)
    postgres.ensure_database("lost_connections")
    dsn = postgres.dsn("lost_connections")
    async with open_proxy(dsn) as (proxy, address):
        database, direct = await Database.open(address, size=SIZE), await asyncpg.connect(dsn)
        await direct.execute("DROP TABLE IF EXISTS numbers; CREATE TABLE numbers (number int UNIQUE)")
        found = Way(database, proxy, direct)
        await found.fill_pool()
        yield found
        await proxy.end()  # or the pool would wait for an orderly end of what is lost
        await database.close()
        await direct.close()


async def test_connection_that_is_lost_is_given_up_and_so_are_all_idle_ones(way: Way) -> None:
    way.proxy.swallow()
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(Unavailable):
            await way.database.ping()
        for _ in range(2 * SIZE):
            await way.database.ping()
    await until(lambda: way.database.usage()[1] == 0)


async def lost_question(way: Way) -> None:
    """The INSERT was made, then COMMIT and everything else is lost: nobody has to wait for its lock for long."""
    inserted, go = asyncio.Event(), asyncio.Event()

    async def work(conn: Connection) -> None:
        await conn.execute("INSERT INTO numbers VALUES (7)")
        inserted.set()
        await go.wait()

    task = asyncio.create_task(way.database.in_transaction(work))
    await inserted.wait()
    way.proxy.swallow()
    go.set()
    done, _ = await asyncio.wait([task], timeout=8 * watchdog.LOST_SECONDS)
    if not done:
        task.cancel()
    assert done, "nobody noticed that the question was lost"
    assert isinstance(task.exception(), (type(None), Unavailable))
    expected = 1 if task.exception() is None else 0
    assert await way.count(7) == expected
    if not expected:  # by another one, whom the lock of the lost one does not keep waiting
        await way.insert(7)


async def test_question_that_is_lost_is_given_up_with_its_locks(way: Way) -> None:
    await lost_question(way)


@pytest.mark.mutant("D4", "nobody asks whether the server works on it")
async def test_without_the_question_who_is_at_work_a_lost_one_is_waited_for(
        way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_all(conn: object, pids: Sequence[int]) -> set[int]:
        return set(pids)

    monkeypatch.setattr(watchdog, "list_at_work", say_all)
    with pytest.raises(AssertionError, match="nobody noticed"):
        await lost_question(way)


async def test_commit_whose_answer_is_lost_is_asked_after(way: Way) -> None:
    way.proxy.arm("after", tells_nobody=True)
    await way.insert(7)
    assert way.proxy.lost == 1 and await way.count(7) == 1


async def test_commit_is_not_done_again_when_time_is_short(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known that nothing was committed; whoever waits is told so instead of waiting as long again."""
    monkeypatch.setattr(pool, "AGAIN_SECONDS", 0.1)
    way.proxy.arm("before", tells_nobody=True)
    with pytest.raises(Unavailable) as caught:
        await way.insert(7)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert way.proxy.lost == 1 and await way.count(7) == 0


# --- what is left alone ---

async def test_who_waits_for_a_lock_is_left_alone(way: Way) -> None:
    """The other one has its connection for long, and asks nothing: both live."""
    async def hold(conn: Connection) -> None:
        await conn.execute("INSERT INTO numbers VALUES (7)")
        held.set()
        await go.wait()
        await conn.execute("INSERT INTO numbers VALUES (8)")

    held, go = asyncio.Event(), asyncio.Event()
    holder = asyncio.create_task(way.database.in_transaction(hold))
    await held.wait()
    waiting = asyncio.create_task(way.insert(7))
    await asyncio.sleep(4 * watchdog.LOST_SECONDS)  # nothing is to be seen of what does not happen
    assert not waiting.done() and not holder.done()
    go.set()
    await holder
    with pytest.raises(asyncpg.UniqueViolationError):
        await waiting
    assert way.database.usage()[0] == SIZE


async def test_slow_taker_of_a_list_is_left_alone(way: Way) -> None:
    """The server has sent everything and is idle; the answer is here, in buffers."""
    taken = 0

    async def take(data: bytes) -> None:
        nonlocal taken
        taken += len(data)
        await asyncio.sleep(3 * watchdog.LOST_SECONDS if not is_slow.is_set() else 0)
        is_slow.set()

    is_slow = asyncio.Event()
    async with way.database.snapshot() as conn:
        await conn.copy_from_query("SELECT generate_series(1, 1000)", output=take)
    assert taken == sum(len(str(number)) + 1 for number in range(1, 1001))
