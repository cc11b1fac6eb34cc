"""What became of a transaction whose COMMIT was not answered: PostgreSQL is asked for it by the transaction's id."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

if TYPE_CHECKING:  # the class takes no type arguments at run time
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

Outcome = Literal["committed", "aborted", "unknown"]

ANSWER_SECONDS = 1.0
LOOKS_AFTER_SECONDS = (0.0, 0.2, 1.0)


class Session(_Connection):
    """A connection that knows the ids of its transactions, and since when an answer is awaited on it.

    PostgreSQL reports each change of `application_name`, so the id comes back with the answer to BEGIN: another query
    for it would be another round trip of each change.
    """

    __slots__ = ("asked_at", "backend_pid", "counted_since", "heard_at")
    asked_at: float | None
    """By the clock of `time.monotonic`; None while nobody waits.  Cursors are not noted."""
    heard_at: float
    """When a question was last answered."""
    backend_pid: int
    counted_since: datetime

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked_at = None
        self.heard_at = time.monotonic()

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As asyncpg does; raise asyncpg.InFailedSQLTransactionError for a COMMIT that PostgreSQL made a ROLLBACK."""
        if query == "BEGIN;":  # asyncpg's own, of a transaction without options
            query = "BEGIN; SELECT set_config('application_name', 'file-storage ' || pg_current_xact_id(), true)"
        self.asked_at = time.monotonic()
        try:
            status = await super().execute(query, *args, timeout=timeout)
            self.heard_at = time.monotonic()
        finally:
            self.asked_at = None
        if query == "COMMIT;" and status != "COMMIT":
            raise asyncpg.InFailedSQLTransactionError("a statement had failed, so nothing was committed")
        return status

    async def _execute(self, *args: Any, **kwargs: Any) -> Any:
        """What asyncpg's `fetch`, `fetchrow`, `fetchval` and `fetchmany` have in common."""
        self.asked_at = time.monotonic()
        try:
            # the types of asyncpg leave out what is not public
            found = await super()._execute(*args, **kwargs)  # type: ignore[misc]
            self.heard_at = time.monotonic()
            return found
        finally:
            self.asked_at = None

    async def _copy_out(self, copy_stmt: str, output: Callable[[bytes], Awaitable[None]], timeout: float | None) -> Any:
        """What asyncpg's COPY ... TO STDOUT have in common; `output` may take its time."""
        async def take(data: bytes) -> None:
            self.asked_at, self.heard_at = None, time.monotonic()
            await output(data)
            self.asked_at = time.monotonic()

        self.asked_at = time.monotonic()
        try:
            # not public either
            return await super()._copy_out(copy_stmt, take, timeout)  # type: ignore[misc]
        finally:
            self.asked_at = None


GET_COUNTED_SINCE = """
-- since when the server counts: after a crash it begins anew, and gives ids again that it had given before
SELECT stats_reset FROM pg_stat_bgwriter
"""


async def get_counted_since(conn: _Connection) -> datetime:
    """When the statistics of the server begin; another time after a crash, the same after an orderly restart."""
    found = await conn.fetchval(GET_COUNTED_SINCE)
    assert isinstance(found, datetime)
    return found


GET_BACKEND_PID = """
-- what a pooler in between said at the begin may be another number
SELECT pg_backend_pid()
"""


async def get_backend_pid(conn: _Connection) -> int:
    """The process that works for this connection."""
    found = await conn.fetchval(GET_BACKEND_PID)
    assert isinstance(found, int)
    return found


async def prepare(session: Any) -> None:
    """For a new connection of a pool."""
    session.counted_since, session.backend_pid = await get_counted_since(session), await get_backend_pid(session)


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction that is about to be committed: its id, its backend, and which run of the server gave the id."""

    xact_id: str
    backend_pid: int
    counted_since: datetime
    asked_at: float
    """By the clock of `time.monotonic`."""


def about_to_commit(connection: Any) -> Commit:
    """The transaction that a connection of the pool is in."""
    return Commit(connection.get_settings().application_name.rpartition(" ")[2], connection.backend_pid,
                  connection.counted_since, time.monotonic())


GET_STATUS = """
-- how a transaction ended; a backend that still waits for the client it has lost is ended
SELECT pg_xact_status($1::text::xid8) AS status,
       (SELECT bool_or(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE pid = $2 AND backend_xid = ($1::text::xid8)::xid) AS is_being_ended
"""

IS_STANDBY = """
-- it follows another server, and may not have heard yet of what that has committed
SELECT pg_is_in_recovery()
"""


async def is_standby(conn: _Connection) -> bool:
    """Whether this server only repeats what another one does."""
    return bool(await conn.fetchval(IS_STANDBY))


async def get_status(conn: _Connection, commit: Commit) -> str | None:
    """PostgreSQL's word for how the transaction ended; None if it has forgotten that."""
    try:
        row = await conn.fetchrow(GET_STATUS, commit.xact_id, commit.backend_pid)
    except asyncpg.InvalidParameterValueError:
        return "aborted"  # "in the future": the server crashed before anything of it was on its disk
    assert row is not None
    return str(row["status"]) if row["status"] else None


async def find_outcome(connect: Callable[[], Any], commit: Commit, *, seconds: float = 3.0) -> Outcome:
    """Ask on fresh connections, at most three times and for so long, and no server twice that does not answer."""
    try:
        async with asyncio.timeout(seconds):
            for pause_seconds in LOOKS_AFTER_SECONDS:
                await asyncio.sleep(pause_seconds)
                async with asyncio.timeout(ANSWER_SECONDS):
                    found = await _look(connect, commit)
                if found is not None:
                    return found
    except TimeoutError:
        pass
    return "unknown"


async def _look(connect: Callable[[], Any], commit: Commit) -> Outcome | None:
    """What one look says; None: look again."""
    connection = None
    try:
        connection = await connect()
        if await is_standby(connection):
            return None
        status = await get_status(connection, commit)
        # an id that was given again after a crash may be another transaction's, which was committed
        is_same_run = await get_counted_since(connection) == commit.counted_since
    except TimeoutError:
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        return None  # the server may be on its way
    finally:
        if connection is not None:
            connection.terminate()
    if status == "in progress":
        return None
    if status == "aborted":
        return "aborted"
    return "committed" if status == "committed" and is_same_run else "unknown"
