"""What became of a transaction whose COMMIT was not answered: PostgreSQL is asked for it by the transaction's id."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

if TYPE_CHECKING:  # the class takes no type arguments at run time
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

Outcome = Literal["committed", "aborted", "unknown"]

ANSWER_SECONDS = 1.0  # a server that hangs was waited for long enough by whoever lost the connection
LOOKS_AFTER_SECONDS = (0.0, 0.2, 1.0)


class Session(_Connection):
    """A connection that knows the ids of its transactions.

    PostgreSQL reports each change of `application_name`, so the id comes back with the answer to BEGIN: another query
    for it would be another round trip of each change.
    """

    __slots__ = ("counted_since",)
    counted_since: datetime

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As asyncpg does; raise asyncpg.InFailedSQLTransactionError for a COMMIT that PostgreSQL made a ROLLBACK."""
        if query == "BEGIN;":  # asyncpg's own, of a transaction without options
            return await super().execute(
                "BEGIN; SELECT set_config('application_name', 'file-storage ' || pg_current_xact_id(), true)",
                timeout=timeout)
        status = await super().execute(query, *args, timeout=timeout)
        if query == "COMMIT;" and status != "COMMIT":
            raise asyncpg.InFailedSQLTransactionError("a statement had failed, so nothing was committed")
        return status


GET_COUNTED_SINCE = """
-- since when the server counts: after a crash it begins anew, and gives ids again that it had given before
SELECT stats_reset FROM pg_stat_bgwriter
"""


async def get_counted_since(conn: _Connection) -> datetime:
    """When the statistics of the server begin; another time after a crash, the same after an orderly restart."""
    found = await conn.fetchval(GET_COUNTED_SINCE)
    assert isinstance(found, datetime)
    return found


async def prepare(session: Any) -> None:
    """For a new connection of a pool."""
    session.counted_since = await get_counted_since(session)


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction that is about to be committed: its id, its backend, and which run of the server gave the id."""

    xact_id: str
    backend_pid: int
    counted_since: datetime


def about_to_commit(connection: Any) -> Commit:
    """The transaction that a connection of the pool is in."""
    return Commit(connection.get_settings().application_name.rpartition(" ")[2], connection.get_server_pid(),
                  connection.counted_since)


GET_STATUS = """
-- how a transaction ended; a backend that still waits for the client it has lost is ended
SELECT pg_xact_status($1::text::xid8) AS status,
       (SELECT bool_or(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE pid = $2 AND backend_xid = ($1::text::xid8)::xid) AS is_being_ended
"""


async def get_status(conn: _Connection, commit: Commit) -> str | None:
    """PostgreSQL's word for how the transaction ended; None if it has forgotten that."""
    try:
        row = await conn.fetchrow(GET_STATUS, commit.xact_id, commit.backend_pid)
    except asyncpg.InvalidParameterValueError:
        return "aborted"  # "in the future": the server crashed before anything of it was on its disk
    assert row is not None
    return str(row["status"]) if row["status"] else None


async def find_outcome(connect: Callable[[], Any], commit: Commit) -> Outcome:
    """Ask on fresh connections, at most three times, and none that takes longer than `ANSWER_SECONDS`."""
    for pause_seconds in LOOKS_AFTER_SECONDS:
        await asyncio.sleep(pause_seconds)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await _look(connect, commit)
        except TimeoutError:
            break
        if found is not None:
            return found
    return "unknown"


async def _look(connect: Callable[[], Any], commit: Commit) -> Outcome | None:
    """What one look says; None: look again."""
    connection = None
    try:
        connection = await connect()
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
