"""A server that hangs, dies or comes back, and callers that fail for reasons of their own: told apart, and no leak."""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import pytest

from service.db import pool, watchdog
from service.db.pool import Connection, Database
from service.errors import StorageFull, Unavailable
from service.model import UserId, new_uuid
from service.run.postgres import EmbeddedPostgres
from tests.client import until
from tests.db.test_shares import new_account, opened

SIZE = 3
SOMEBODY = UserId(new_uuid())
DEADLINE_SECONDS = 20.0  # for a broken run, not a measurement

Work = Callable[[Database], Awaitable[object]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server to be stopped and killed; every test leaves it running."""
    with EmbeddedPostgres.temporary(tmp_path_factory.mktemp("faulty")) as started:
        yield started


@pytest.fixture
async def database(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A small pool, which is impatient."""
    for name in ("LATE_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(watchdog, name, 0.02)
    monkeypatch.setattr(watchdog, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 1.0)
    async with opened(server, SIZE) as database:
        yield database


def processes_of(server: EmbeddedPostgres) -> list[int]:
    """The server's own process first, then all that it has started."""
    assert server.pid is not None
    children = (Path("/proc") / str(server.pid) / "task" / str(server.pid) / "children").read_text(encoding="ascii")
    return [server.pid, *map(int, children.split())]


@contextmanager
def hanging(server: EmbeddedPostgres) -> Iterator[None]:
    """Every process of the server stands still; the kernel goes on taking connections for it."""
    stopped = processes_of(server)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


async def pause(database: Database) -> object:
    """A statement that the server never ends by itself."""
    async with database.connection() as conn:
        return await conn.fetchval("SELECT pg_sleep(600)")


async def pause_within(database: Database) -> None:
    """The same, in a transaction."""
    async def work(conn: Connection) -> None:
        await conn.execute("SELECT 1")
        await conn.execute("SELECT pg_sleep(600)")

    await database.in_transaction(work)


async def copy(database: Database) -> None:
    """A list on its way out."""
    async def take(data: bytes) -> None:
        pass

    async with database.snapshot() as conn:
        await conn.copy_from_query("SELECT pg_sleep(600)", output=take, timeout=600)


async def wait_for_a_share(database: Database) -> None:
    """A transaction of an account that has had its share; the statements of those before it never end."""
    async def work(conn: Connection) -> None:
        await conn.execute("SELECT pg_sleep(600)")

    await database.in_transaction(work, share=SOMEBODY)


async def wait_for_the_lane(database: Database) -> None:
    """A long request; as many as there may be never end."""
    async with database.lane(new_account()), database.connection() as conn:
        await conn.execute("SELECT pg_sleep(600)")


async def nothing_is_borrowed(database: Database) -> None:
    """All connections have been given back."""
    await until(lambda: database.usage()[1] == 0)


async def is_back(database: Database) -> bool:
    """Whether the server is asked again, and answers."""
    try:
        await database.ping()
    except Unavailable:
        return False
    return True


async def works(database: Database) -> None:
    """All connections of the pool can be used at once."""
    async def hold(barrier: asyncio.Barrier) -> None:
        async with database.connection() as conn:
            await conn.fetchval("SELECT 1")
            await barrier.wait()

    barrier = asyncio.Barrier(SIZE)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*(hold(barrier) for _ in range(SIZE)))
    await nothing_is_borrowed(database)


# --- what is the server's fault, and what is not ---

@pytest.mark.parametrize("error", [OSError(errno.EIO, "the disk"), ConnectionResetError("the client"),
                                   TimeoutError("the client is slow"), FileNotFoundError("a blob")], ids=repr)
async def test_error_of_the_caller_comes_out_as_it_is(database: Database, error: OSError) -> None:
    async def work(conn: Connection) -> None:
        await conn.fetchval("SELECT 1")
        raise error

    for _ in range(SIZE + 1):
        with pytest.raises(type(error)) as caught:
            await database.in_transaction(work)
        assert caught.value is error
    await works(database)


async def test_client_that_leaves_a_streamed_list_is_no_lost_server(database: Database) -> None:
    """The client's error passes through the driver on its way."""
    async def leave(data: bytes) -> None:
        raise ConnectionResetError("the client is gone")

    for _ in range(SIZE + 1):
        with pytest.raises(ConnectionResetError):
            async with database.snapshot() as conn:
                await conn.copy_from_query("SELECT generate_series(1, 100000)", output=leave)
    await works(database)


async def test_time_out_of_the_driver_is_the_servers(database: Database) -> None:
    for _ in range(SIZE + 1):
        with pytest.raises(Unavailable) as caught:
            async with database.connection() as conn:
                await conn.fetchval("SELECT pg_sleep(600)", timeout=0.05)
        assert caught.value.retry_after_seconds
    await works(database)


async def test_full_disk_of_the_database_is_no_room(database: Database) -> None:
    async def work(conn: Connection) -> None:
        raise asyncpg.DiskFullError("could not extend file: No space left on device")

    with pytest.raises(StorageFull):
        await database.in_transaction(work)
    await works(database)


async def test_failing_disk_of_the_database_is_unavailable(database: Database) -> None:
    """The server lives, but cannot read or write (class 58 of its codes): no mistake of the service's."""
    async def work(conn: Connection) -> None:
        await conn.execute("DO $$ BEGIN RAISE 'could not read block 0: Input/output error' "
                           "USING ERRCODE = 'io_error'; END $$")

    with pytest.raises(Unavailable) as caught:
        await database.in_transaction(work)
    assert caught.value.retry_after_seconds
    await works(database)


# --- a server that hangs ---

@pytest.mark.parametrize("work", [pause, pause_within, copy])
async def test_hanging_server_keeps_nobody_waiting_and_is_used_again(
        server: EmbeddedPostgres, database: Database, work: Work) -> None:
    tasks = [asyncio.ensure_future(work(database)) for _ in range(SIZE)]
    await until(lambda: database.usage()[1] == SIZE)
    with hanging(server):
        late = asyncio.ensure_future(database.ping())  # finds the pool empty
        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await asyncio.gather(*tasks, late, return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * (SIZE + 1)
        with pytest.raises(Unavailable):
            await database.ping()
        await nothing_is_borrowed(database)
    await until(lambda: is_back(database))
    await works(database)


@pytest.mark.parametrize("work", [wait_for_a_share, wait_for_the_lane])
async def test_who_waits_for_leave_to_ask_a_hanging_server_is_refused(
        server: EmbeddedPostgres, database: Database, monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    """One has a connection, and the others, one after the other, would each wait as long for the same server."""
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 10 * DEADLINE_SECONDS)
    tasks = [asyncio.ensure_future(work(database)) for _ in range(2 * SIZE)]
    await until(lambda: database.usage()[1] == 1)
    with hanging(server):
        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {Unavailable}
    await until(lambda: is_back(database))
    await works(database)


async def test_idle_connection_to_a_hanging_server_is_found_out(server: EmbeddedPostgres, database: Database) -> None:
    await works(database)
    with hanging(server):
        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await asyncio.gather(*(database.ping() for _ in range(3 * SIZE)), return_exceptions=True)
        assert {type(result) for result in results} == {Unavailable}
    await until(lambda: is_back(database))
    await works(database)


async def test_timer_that_is_early_takes_a_hanging_server_for_no_other(
        server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop's clock stands still while it works, so its timers may be early; who comes next is refused even so."""
    def early(seconds: float | None) -> asyncio.Timeout:
        return asyncio.timeout(seconds and 0.9 * seconds)

    monkeypatch.setattr(watchdog, "asyncio", SimpleNamespace(**{**vars(asyncio), "timeout": early}))
    monkeypatch.setattr(watchdog, "ANSWER_SECONDS", 0.5)
    async with opened(server, SIZE) as database:
        await works(database)  # there are connections that nobody uses
        with hanging(server):
            with pytest.raises(Unavailable):
                await database.ping()
            assert database._watchdog.is_silent
        await until(lambda: is_back(database))


@pytest.mark.mutant("D1", "nobody asks whether the server lives")
async def test_without_the_watchdog_a_hanging_server_is_waited_for(
        server: EmbeddedPostgres, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", DEADLINE_SECONDS)
    await asyncio.sleep(0.1)  # the look that was begun with the shorter pause
    task = asyncio.ensure_future(pause(database))
    await until(lambda: database.usage()[1] == 1)
    with hanging(server):
        done, _ = await asyncio.wait([task], timeout=3 * watchdog.ANSWER_SECONDS)
        assert not done
    task.cancel()
    await asyncio.wait([task])


async def test_statement_that_takes_long_is_left_alone(database: Database) -> None:
    """Asked many times meanwhile, the server lives."""
    async with database.connection() as conn:
        assert await conn.fetchval("SELECT 7 FROM pg_sleep(1)") == 7
    await works(database)


async def test_lack_of_files_of_our_own_cuts_nobody_off(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with database.connection() as conn:
        monkeypatch.setattr(asyncpg, "connect", connect)
        assert await conn.fetchval("SELECT 7 FROM pg_sleep(0.3)") == 7


# --- a server that dies ---

async def test_killed_backend_takes_nobody_with_it_for_long(server: EmbeddedPostgres, database: Database) -> None:
    """A backend that is killed makes the server end all others and recover."""
    tasks = [asyncio.ensure_future(pause(database)) for _ in range(SIZE)]
    await until(lambda: database.usage()[1] == SIZE)
    admin = await asyncpg.connect(server.dsn("postgres"))
    pid = await admin.fetchval("SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)' LIMIT 1")
    os.kill(pid, signal.SIGKILL)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    admin.terminate()
    await until(lambda: is_back(database))
    await works(database)


async def test_restarted_server_is_used_again(server: EmbeddedPostgres, database: Database) -> None:
    await works(database)
    tasks = [asyncio.ensure_future(pause(database)) for _ in range(SIZE)]
    await until(lambda: database.usage()[1] == SIZE)
    server.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    with pytest.raises(Unavailable):
        await database.ping()
    server.start()  # by this thread: the server ends with the one that started it
    await works(database)


# --- no leak ---

async def test_cancelled_callers_leave_the_pool_as_it_was(database: Database) -> None:
    """At whatever moment: while they wait for a connection, borrow it, ask, or give it back."""
    async def ask() -> None:
        async with database.connection() as conn:
            await conn.fetchval("SELECT pg_sleep(0.001)")

    for round_number in range(30):
        tasks = [asyncio.ensure_future(ask()) for _ in range(2 * SIZE)]
        for _ in range(round_number):
            await asyncio.sleep(0)
        if round_number % 2:
            await asyncio.sleep(round_number / 10_000)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await works(database)


async def test_wait_that_ends_by_itself_in_that_moment_does_not_keep_the_others() -> None:
    """A time-out that has expired cannot be moved any more, and there may be many who wait."""
    dog = watchdog.Watchdog("")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as other, asyncio.timeout(0) as limit:
            with dog.acquiring(limit), dog.acquiring(other):
                try:
                    await asyncio.Event().wait()
                finally:
                    assert limit.expired() and not other.expired()
                    dog._cut_all(is_silent=True)
                    when = other.when()
                    assert when is not None and when <= asyncio.get_running_loop().time()
