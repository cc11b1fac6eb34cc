"""Connections to PostgreSQL and transactions; what it means when they fail."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

import asyncpg
import asyncpg.pool

from service.db.watchdog import Borrowed, Watchdog
from service.errors import InvalidField, InvalidPath, StorageFull, Unavailable

if TYPE_CHECKING:  # the classes take no type arguments at run time
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Connection = asyncpg.Connection
T = TypeVar("T")

ACQUIRE_SECONDS = 4.0
RELEASE_SECONDS = 2.0
STATEMENT_SECONDS = 30.0
_MAX_TRIES = 3
# what the outcome of a statement tells about the server, not about the statement
_LOST = (
    asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.OutOfMemoryError, asyncpg.ReadOnlySQLTransactionError, asyncpg.InternalClientError,
)
# of the system, but raised by the driver: a server that is not there, or does not answer in time
_SYSTEM = (TimeoutError, OSError)
_RETRIED = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)


_UNFIT: dict[str | None, type[InvalidField]] = {"files_name_check": InvalidPath, "users_username_check": InvalidField}


def _means_lost(error: Exception) -> bool:
    """Whether the error is about the server, or the way to it.

    What a caller does between two statements, to a disk or to a client, fails with errors of the system too: only
    those that the driver raised count, which the place tells where they were raised.
    """
    if isinstance(error, _LOST):
        return True
    raised_in = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    by = next((name for name in reversed(raised_in) if not name.startswith("asyncio.")), "")
    return isinstance(error, _SYSTEM) and by.startswith("asyncpg.")


@contextmanager
def refuse_unfit_name(field: str) -> Iterator[None]:
    """Around a statement that stores a name: raise InvalidPath or InvalidField if PostgreSQL does not take it for NFC.

    It was NFC by the Unicode of Python; PostgreSQL may know a newer or an older one.
    """
    try:
        yield
    except asyncpg.CheckViolationError as error:
        if (kind := _UNFIT.get(error.constraint_name)) is None:
            raise
        raise kind("This name has characters that the database does not know in this order.", field=field) from None


class Database:
    """A pool of connections.

    Everything that means "cannot be reached now" is raised as Unavailable; after a failed commit the outcome is not
    known, so a caller must not undo what a committed transaction would need.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", watchdog: Watchdog) -> None:
        self._pool = pool
        self._watchdog = watchdog
        self._watching = asyncio.create_task(watchdog.watch())

    @classmethod
    async def open(cls, dsn: str, *, size: int) -> "Database":
        """Connect; raise Unavailable if there is no server."""
        try:
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=size, timeout=ACQUIRE_SECONDS, command_timeout=STATEMENT_SECONDS,
                server_settings={
                    "application_name": "file-storage", "timezone": "UTC", "synchronous_commit": "on",
                    "lock_timeout": "10s", "idle_in_transaction_session_timeout": "60s", "jit": "off"})
        except (*_LOST, *_SYSTEM) as error:
            raise Unavailable("The database cannot be reached.", retry_after_seconds=2) from error
        return cls(pool, Watchdog(dsn))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection, for statements that each stand alone; raise Unavailable, or StorageFull for its disk."""
        connection = await self._acquire()
        try:
            with self._watchdog.watching(connection):
                yield connection
        except asyncpg.DiskFullError as error:
            raise StorageFull("The database has no room for this; nothing was stored.") from error
        except Exception as error:
            if not _means_lost(error):
                raise
            raise Unavailable("The database cannot be reached; try again.", retry_after_seconds=2) from error
        finally:
            await self._release(connection)

    async def _acquire(self) -> Borrowed:
        try:
            return await self._pool.acquire(timeout=ACQUIRE_SECONDS)
        except (*_LOST, *_SYSTEM) as error:
            raise Unavailable("The database cannot be reached; try again.", retry_after_seconds=2) from error

    async def _release(self, connection: Borrowed) -> None:
        try:
            await self._pool.release(connection, timeout=RELEASE_SECONDS)
        except (*_LOST, *_SYSTEM):
            pass  # what was done on it is done; the pool has closed it and makes another one

    async def in_transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do the work in one transaction, which commits when it returns; again if PostgreSQL chose it as a victim."""
        for tries_left in reversed(range(_MAX_TRIES)):
            try:
                async with self.connection() as connection, connection.transaction():
                    return await work(connection)
            except _RETRIED as error:
                if not tries_left:
                    raise Unavailable("Too many changes at once; try again.", retry_after_seconds=1) from error
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """Borrow a connection for several queries that all see the same moment, and change nothing."""
        async with self.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection

    def usage(self) -> tuple[int, int]:
        """How many connections there are, and how many of them are in use."""
        size = self._pool.get_size()
        return size, size - self._pool.get_idle_size()

    async def ping(self) -> None:
        """Ask the server for a trifle; raise Unavailable."""
        async with self.connection() as connection:
            await connection.fetchval("SELECT 1")

    async def close(self) -> None:
        """Give the connections back; at most ten seconds are waited for those in use."""
        self._watching.cancel()
        try:
            await asyncio.wait_for(self._pool.close(), 10)
        except TimeoutError:
            self._pool.terminate()
