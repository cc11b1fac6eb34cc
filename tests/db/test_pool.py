"""Transactions and what it means when they fail: tried again, refused, or unknown; and no connection is lost by it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from service.db import pool
from service.db.pool import Connection, Database
from service.errors import Conflict, Unavailable
from service.run.postgres import EmbeddedPostgres
from tests import databases

SIZE = 3


@pytest.fixture(scope="module")
def shared_dsn(postgres: EmbeddedPostgres) -> str:
    """A database for this file, with a table to play with."""
    return databases.make_shared(postgres, "shared_by_pool")


@pytest.fixture
async def dsn(shared_dsn: str) -> str:
    """The same, as it was at first."""
    await databases.empty(shared_dsn)
    return shared_dsn


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """A pool of a few connections, and a table to play with."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE IF NOT EXISTS numbers (id integer PRIMARY KEY, value integer NOT NULL "
                             "DEFAULT 0); INSERT INTO numbers VALUES (1), (2)")
    # a deadlock is looked for after a second by default
    await connection.execute("DO $$ BEGIN EXECUTE format("
                             "'ALTER DATABASE %I SET deadlock_timeout = ''20ms''', current_database()); END $$")
    await connection.close()
    opened = await Database.open(dsn, size=SIZE)
    yield opened
    await opened.close()


async def values(database: Database) -> list[int]:
    """What is committed."""
    async with database.connection() as conn:
        return [row["value"] for row in await conn.fetch("SELECT value FROM numbers ORDER BY id")]


async def add(conn: Connection, number: int) -> None:
    await conn.execute("UPDATE numbers SET value = value + 1 WHERE id = $1", number)


async def test_work_is_committed_when_it_returns_and_its_result_comes_back(database: Database) -> None:
    async def work(conn: Connection) -> str:
        await add(conn, 1)
        return "done"

    assert await database.in_transaction(work) == "done"
    assert await values(database) == [1, 0]


@pytest.mark.parametrize("error", [Conflict(), ZeroDivisionError(), KeyError(), asyncio.CancelledError()],
                         ids=lambda error: type(error).__name__)
async def test_work_that_raises_changes_nothing_and_its_error_comes_out(
        database: Database, error: BaseException) -> None:
    async def work(conn: Connection) -> None:
        await add(conn, 1)
        raise error

    for _ in range(SIZE + 1):  # a connection that is not given back would be missed
        with pytest.raises(type(error)):
            await database.in_transaction(work)
    assert await values(database) == [0, 0]


async def test_deadlock_is_tried_again_and_both_succeed(database: Database) -> None:
    """Two that lock in opposite order: PostgreSQL ends one of them, and nobody outside notices."""
    both_hold_one = asyncio.Barrier(2)
    tries = [0, 0]

    def crossing(first: int, second: int, number: int) -> Callable[[Connection], Awaitable[None]]:
        async def work(conn: Connection) -> None:
            tries[number] += 1
            await add(conn, first)
            if tries[number] == 1:
                await both_hold_one.wait()
            await add(conn, second)

        return work

    await asyncio.gather(database.in_transaction(crossing(1, 2, 0)), database.in_transaction(crossing(2, 1, 1)))
    assert max(tries) == 2  # of one of them, or of both: the second try may meet the first one again
    assert await values(database) == [2, 2]


@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.SerializationError])
async def test_victim_is_tried_three_times_and_then_refused(
        database: Database, error: type[asyncpg.PostgresError]) -> None:
    tries = 0

    async def work(conn: Connection) -> None:
        nonlocal tries
        tries += 1
        await add(conn, 1)
        raise error("injected")

    with pytest.raises(Unavailable) as caught:
        await database.in_transaction(work)
    assert tries == 3 and caught.value.retry_after_seconds
    assert await values(database) == [0, 0]


async def test_ended_backend_is_unavailable_and_not_tried_again(dsn: str, database: Database) -> None:
    tries = 0

    async def work(conn: Connection) -> None:
        nonlocal tries
        tries += 1
        await add(conn, 1)
        admin = await asyncpg.connect(dsn)
        await admin.execute("SELECT pg_terminate_backend($1, 10000)", conn.get_server_pid())
        await admin.close()

    for number in range(SIZE + 1):
        with pytest.raises(Unavailable) as caught:
            await database.in_transaction(work)
        assert tries == number + 1 and caught.value.retry_after_seconds
    assert await values(database) == [0, 0]


@pytest.mark.parametrize("statement", ["SELECT pg_cancel_backend(pg_backend_pid())",
                                       "SET LOCAL statement_timeout = '1ms'; SELECT pg_sleep(60)"])
async def test_statement_that_takes_too_long_is_unavailable(database: Database, statement: str) -> None:
    async def work(conn: Connection) -> None:
        await conn.execute(statement)

    with pytest.raises(Unavailable):
        await database.in_transaction(work)
    assert await values(database) == [0, 0]


async def test_lock_that_is_not_given_up_is_unavailable(dsn: str, database: Database) -> None:
    holder = await asyncpg.connect(dsn)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("UPDATE numbers SET value = 7")

    async def work(conn: Connection) -> None:
        await conn.execute("SET LOCAL lock_timeout = '10ms'")
        await add(conn, 1)

    with pytest.raises(Unavailable):
        await database.in_transaction(work)
    await transaction.rollback()
    await holder.close()
    assert await values(database) == [0, 0]


async def test_pool_that_is_empty_is_unavailable_and_recovers(
        database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 0.05)
    all_borrowed, give_back = asyncio.Barrier(SIZE + 1), asyncio.Event()

    async def borrow() -> None:
        async with database.connection():
            await all_borrowed.wait()
            await give_back.wait()

    borrowing = asyncio.gather(*(borrow() for _ in range(SIZE)))
    await all_borrowed.wait()
    with pytest.raises(Unavailable) as caught:
        await database.ping()
    assert caught.value.retry_after_seconds
    give_back.set()
    await borrowing
    await database.ping()


async def test_mistake_in_a_statement_is_not_taken_for_a_lost_server(database: Database) -> None:
    async def work(conn: Connection) -> None:
        await conn.execute("SELECT nothing FROM nowhere")

    with pytest.raises(asyncpg.UndefinedTableError):
        await database.in_transaction(work)
    async with database.connection() as conn:
        with pytest.raises(asyncpg.UniqueViolationError):
            await conn.execute("INSERT INTO numbers VALUES (1)")


@pytest.mark.parametrize("value", ["one", 2**63])
async def test_value_that_does_not_fit_its_parameter_is_not_taken_for_a_lost_server(
        database: Database, value: object) -> None:
    """Trying again would never help."""
    with pytest.raises(asyncpg.DataError):
        async with database.connection() as conn:
            await conn.fetchval("SELECT $1::bigint", value)
    await database.ping()


@pytest.mark.parametrize("dsn_of_nobody", ["postgresql:///x?host=/nowhere/at/all", "postgresql://127.0.0.1:1/x"])
async def test_server_that_is_not_there_is_unavailable(dsn_of_nobody: str) -> None:
    with pytest.raises(Unavailable):
        await Database.open(dsn_of_nobody, size=2)


async def test_commits_are_durable_and_times_are_utc(database: Database) -> None:
    async with database.connection() as conn:
        assert await conn.fetchval("SHOW synchronous_commit") == "on"
        assert await conn.fetchval("SHOW timezone") == "UTC"


async def test_pool_is_closed_although_a_connection_is_in_use(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = await Database.open(dsn, size=2)
    async with opened.connection():
        wait_for = asyncio.wait_for
        monkeypatch.setattr(asyncio, "wait_for", lambda work, seconds: wait_for(work, 0.01))
        await opened.close()
