"""Connections to PostgreSQL and transactions; what it means when they fail."""

import asyncio
import functools
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import asyncpg.pool
import structlog

from service.db import outcomes
from service.db.shares import Shares
from service.db.watchdog import Watchdog
from service.errors import InvalidField, InvalidPath, OutcomeUnknown, StorageFull, Unavailable
from service.model import UserId

if TYPE_CHECKING:  # the classes take no type arguments at run time
    Borrowed = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | Borrowed
else:
    Borrowed, Connection = asyncpg.pool.PoolConnectionProxy, asyncpg.Connection
T = TypeVar("T")
Tell = Callable[[Mapping[UserId, bool]], Awaitable[None]]  # the bool: whether sessions ended too

log = structlog.get_logger()

ACQUIRE_SECONDS = 4.0
RELEASE_SECONDS = 2.0
STATEMENT_SECONDS = 30.0
# Since COMMIT was sent: when it is known by then that nothing was committed, there is time to do it again; what is not
# known in the longer time is not asked any more.  Whoever waits is told within the five seconds that are promised.
AGAIN_SECONDS = 1.0
KNOWN_SECONDS = 4.25
_MAX_TRIES = 3
# what the outcome of a statement tells about the server, not about the statement
_LOST = (
    asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.OutOfMemoryError, asyncpg.ReadOnlySQLTransactionError, asyncpg.InternalClientError,
    asyncpg.PostgresSystemError,  # its disk fails, or has failed: it says so for each page that it does not get
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


# the accounts that the transaction under way changes, and whether their sessions end
_CHANGED: ContextVar[dict[UserId, bool] | None] = ContextVar("changed_accounts", default=None)


def mark_changed(user_id: UserId, *, ends_sessions: bool = False) -> None:
    """In a transaction: what was remembered about the account is outdated when it ends.

    That a session is open is remembered by itself, and outdated with `ends_sessions` only.
    """
    if (changed := _CHANGED.get()) is not None:
        changed[user_id] = ends_sessions or changed.get(user_id, False)


async def _tell_nobody(changed: Mapping[UserId, bool]) -> None:
    """Nothing is remembered."""


class Database:
    """A pool of connections.

    Everything that means "cannot be reached now" is raised as Unavailable.
    """

    def __init__(self, dsn: str, pool: "asyncpg.Pool[asyncpg.Record]", watchdog: Watchdog, tell: Tell) -> None:
        self._dsn = dsn
        self._pool = pool
        self._tell = tell
        self._watchdog = watchdog
        self._watching = asyncio.create_task(watchdog.watch(pool.expire_connections))
        size = pool.get_max_size()
        self._lane = asyncio.Semaphore(max(1, size // 2))
        # a transaction may wait for what another one of the account has locked, with its connection in its hands
        self._shares = Shares(max(1, size // 3))
        self._lane_shares = Shares(max(1, size // 5))  # an account and its visitors together leave some of it

    @classmethod
    async def open(cls, dsn: str, *, size: int, tell: Tell = _tell_nobody) -> "Database":
        """Connect; raise Unavailable if there is no server.  `tell` learns which accounts were changed."""
        watchdog = Watchdog(dsn)

        async def prepare(session: Any) -> None:
            await outcomes.prepare(session)
            watchdog.introduce(session)

        try:
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=size, timeout=ACQUIRE_SECONDS, command_timeout=STATEMENT_SECONDS,
                connection_class=outcomes.Session, init=prepare,
                server_settings={
                    "application_name": "file-storage", "timezone": "UTC", "synchronous_commit": "on",
                    "lock_timeout": "10s", "idle_in_transaction_session_timeout": "60s", "jit": "off"})
        except (*_LOST, *_SYSTEM) as error:
            raise Unavailable("The database cannot be reached.", retry_after_seconds=2) from error
        return cls(dsn, pool, watchdog, tell)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection, for statements that each stand alone; raise Unavailable, or StorageFull for its disk."""
        connection = await self._acquire()
        with self._watchdog.watching(connection):
            try:
                yield connection
            except asyncpg.DiskFullError as error:
                raise StorageFull("The database has no room for this; nothing was stored.") from error
            except Exception as error:  # of the driver, the system or the caller: which one, `_means_lost` finds out
                if not _means_lost(error):
                    raise
                refusal = Unavailable("The database cannot be reached; try again.", retry_after_seconds=2)
                refusal.is_busy = isinstance(error, asyncpg.LockNotAvailableError)
                raise refusal from error
            finally:
                await self._release(connection)

    async def _acquire(self) -> Borrowed:
        async with self._waiting("The database cannot be reached; try again."):
            return await self._pool.acquire()

    @asynccontextmanager
    async def _waiting(self, in_vain: str) -> AsyncIterator[None]:
        """Around the wait for a connection, or for the leave to ask for one; raise Unavailable if it was `in_vain`.

        A server that hangs ends it: whoever is next would wait for the same server.
        """
        if self._watchdog.is_silent:
            raise Unavailable("The database does not answer; try again.", retry_after_seconds=2)
        try:
            async with asyncio.timeout(ACQUIRE_SECONDS) as limit:
                with self._watchdog.acquiring(limit):
                    yield
        except (*_LOST, *_SYSTEM) as error:
            raise Unavailable(in_vain, retry_after_seconds=2) from error

    async def _release(self, connection: Borrowed) -> None:
        try:
            await self._pool.release(connection, timeout=RELEASE_SECONDS)
        except (*_LOST, *_SYSTEM):
            pass  # what was done on it is done; the pool has closed it and makes another one

    async def in_transaction(self, work: Callable[[Connection], Awaitable[T]], *, share: Hashable = None) -> T:
        """Do the work in one transaction, which commits when it returns; again if PostgreSQL chose it as a victim.

        Of one `share` (`Caller.share`) so many do this at once that they have a third of all connections; more wait
        without one.

        An error of COMMIT is looked into: what was committed is a success, what was not is done again if that was known
        at once.  Raises OutcomeUnknown if nobody can tell; a caller must not undo then what a committed transaction
        would need.  After any other error nothing was committed; `nothing_committed` says that this follows from the
        order of things, not from the word of a server that may have crashed.

        Before this returns, or raises, whoever remembers things about the accounts that the work has named with
        `mark_changed` is told: an error of COMMIT may mean that it took place.
        """
        changed: dict[UserId, bool] = {}
        before = _CHANGED.set(changed)
        try:
            async with AsyncExitStack() as held:
                if share is not None:
                    await self._wait_for_share(held, share)
                return await self._try_transaction(work)
        finally:
            _CHANGED.reset(before)
            if changed:
                await self._tell(changed)

    async def _wait_for_share(self, held: AsyncExitStack, share: Hashable) -> None:
        try:
            async with self._waiting("Too many requests of this account at once; try again."):
                await held.enter_async_context(self._shares.place(share))
        except Unavailable as error:
            error.nothing_committed = error.is_busy = True
            raise

    async def _try_transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        sent: outcomes.Commit | None = None  # of whichever try
        for tries_left in reversed(range(_MAX_TRIES)):
            commit: outcomes.Commit | None = None
            try:
                async with self.connection() as connection, connection.transaction():
                    result = await work(connection)
                    sent = commit = outcomes.about_to_commit(connection)
                return result
            except _RETRIED as error:
                if not tries_left:
                    refusal = Unavailable("Too many changes at once; try again.", retry_after_seconds=1)
                    refusal.nothing_committed = sent is None
                    raise refusal from error
            except Unavailable as error:
                if commit is None:
                    error.nothing_committed = sent is None
                    raise
                if await self._was_committed(commit, error):
                    return result
                if not tries_left or time.monotonic() - commit.asked_at > AGAIN_SECONDS:
                    raise
            except Exception as error:  # of the work, whatever it was: only when a COMMIT was sent it is ours
                if sent is None:
                    raise
                # what stands in the way now may be what was committed then, should the server have been mistaken
                raise OutcomeUnknown(retry_after_seconds=2) from error
        raise AssertionError("unreachable")

    async def _was_committed(self, commit: outcomes.Commit, error: Unavailable) -> bool:
        outcome = await outcomes.find_outcome(functools.partial(asyncpg.connect, self._dsn), commit,
                                              seconds=KNOWN_SECONDS - (time.monotonic() - commit.asked_at))
        log.warning("commit_lost", transaction=commit.xact_id, outcome=outcome)
        if outcome == "unknown":
            raise OutcomeUnknown(retry_after_seconds=2) from error
        return outcome == "committed"

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """Borrow a connection for several queries that all see the same moment, and change nothing."""
        async with self.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection

    @asynccontextmanager
    async def lane(self, share: Hashable) -> AsyncIterator[None]:
        """Around what keeps a connection for long: half of all are left to those who do not, half of it to others.

        Raises Unavailable if there is no place within a few seconds.
        """
        async with AsyncExitStack() as held:
            async with self._waiting("Too many long requests at once; try again."):
                await held.enter_async_context(self._lane_shares.place(share))
                await held.enter_async_context(self._lane)
            yield

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
