"""What a backup asks of the database: nothing is fenced while blobs are copied, every table of one moment, back again.

Tables, columns and sequences are taken from the catalogue, so that a table that is added later is not forgotten.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from service.db.outcomes import Session
from service.db.pool import Connection
from service.errors import Unavailable
from service.model import BlobKey

Sink = Callable[[bytes], Coroutine[Any, Any, None]]

CONNECT_SECONDS = 10.0
STAY_SECONDS = 30.0
ANSWER_SECONDS = 30.0  # for what asks a trifle
SILENCE_SECONDS = 300.0  # since the last that was heard, when an answer is awaited
LOOK_SECONDS = 1.0
SETTINGS = {
    "application_name": "file-storage backup", "synchronous_commit": "on",
    # whatever the role or the database has for these: nothing here is done in seconds
    "statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0",
    # how values are written, which is how they are read
    "timezone": "UTC", "datestyle": "ISO, YMD", "intervalstyle": "postgres", "bytea_output": "hex",
    "extra_float_digits": "1",
}


@asynccontextmanager
async def connected(dsn: str, *, is_patient: bool = False) -> AsyncIterator[Connection]:
    """A connection of one's own, for hours; raise Unavailable with what the database or the way to it had to say.

    It is given up when nothing is heard on it for long, unless there are statements of which that is to be expected.
    """
    try:
        conn = await asyncpg.connect(dsn, timeout=CONNECT_SECONDS, server_settings=SETTINGS, connection_class=Session)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise Unavailable(f"the database cannot be reached: {error or type(error).__name__}") from error
    watching = asyncio.create_task(_watch(conn)) if not is_patient else None
    try:
        yield conn
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if watching is not None and watching.done():
            raise Unavailable(f"the database has said nothing for {SILENCE_SECONDS:.0f} s") from error
        raise Unavailable(f"the database failed: {error}") from error
    finally:
        if watching is not None:
            watching.cancel()
        try:
            await conn.close(timeout=CONNECT_SECONDS)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            conn.terminate()


async def _watch(conn: Session) -> None:
    """End a connection on which nothing is heard any more; who waits for an answer gets an error of asyncpg."""
    while conn.asked_at is None or time.monotonic() - conn.asked_at < SILENCE_SECONDS:
        await asyncio.sleep(LOOK_SECONDS)
    conn.terminate()


# --- bytes stay while they are copied ---

HOLD_KEY = 0x66696C656261636B  # "fileback": shared by all backups, taken alone by each transaction that fences

HOLD_FENCES = """
-- as long as this connection lasts, or until it lets go; a transaction that is fencing is waited for
SELECT pg_advisory_lock_shared($1)
"""


async def hold_fences(conn: Connection) -> None:
    """Keep every sweep from fencing blobs, so that what a later snapshot refers to stays on the disk."""
    await conn.execute(HOLD_FENCES, HOLD_KEY)


RELEASE_FENCES = """
-- false (with a warning) if this connection did not hold them
SELECT pg_advisory_unlock_shared($1)
"""


async def release_fences(conn: Connection) -> bool:
    """Let sweeps go on; whether they were held off until now."""
    return bool(await conn.fetchval(RELEASE_FENCES, HOLD_KEY, timeout=ANSWER_SECONDS))


class Hold:
    """Fences that are held for as long as a connection lasts; it is used now and then, so that nothing ends it."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._staying = asyncio.create_task(self._stay())

    async def _stay(self) -> None:
        while not self._conn.is_closed():
            await asyncio.sleep(STAY_SECONDS)
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):  # `release` finds out
                await get_moment(self._conn)

    async def release(self) -> bool:
        """Let go; whether they were held until now."""
        await self.rest()
        try:
            return await release_fences(self._conn)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return False

    async def rest(self) -> None:
        self._staying.cancel()
        await asyncio.wait([self._staying])


@asynccontextmanager
async def fences_held(dsn: str) -> AsyncIterator[Hold]:
    """Hold the fences on a connection of their own while the context lasts; raise Unavailable."""
    async with connected(dsn) as conn:
        await hold_fences(conn)
        hold = Hold(conn)
        try:
            yield hold
        finally:
            await hold.rest()


MAY_FENCE = """
-- alone, until this transaction ends; never waits, since a backup may take hours
SELECT pg_try_advisory_xact_lock($1)
"""


async def may_fence(conn: Connection) -> bool:
    """Whether this transaction may fence blobs: no backup copies any, and no other transaction is fencing.

    Has to be asked in every transaction that fences what a version referred to.
    """
    return bool(await conn.fetchval(MAY_FENCE, HOLD_KEY))


# --- the tables of one moment ---

@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table and the columns that hold something of their own, in order."""

    name: str
    columns: tuple[str, ...]


LIST_TABLES = """
-- all that migrations made, whatever it is; columns that are computed from others are not copied
SELECT relname, array_agg(attname ORDER BY attnum) FILTER (WHERE attgenerated = '') AS columns
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname NOT LIKE '%yoyo%'
  AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
GROUP BY relname ORDER BY relname
"""


async def list_tables(conn: Connection) -> list[Table]:
    """Every table of the service, by name."""
    return [Table(name=row["relname"], columns=tuple(row["columns"])) for row in await conn.fetch(LIST_TABLES)]


LIST_APPLIED = """
-- written by the command migrate, in the transaction of each migration
SELECT migration_id FROM _yoyo_migration ORDER BY migration_id
"""


async def list_applied(conn: Connection) -> list[str]:
    """The migrations that this schema is made of."""
    return [row["migration_id"] for row in await conn.fetch(LIST_APPLIED)]


LIST_SEQUENCES = """
-- what a sequence gave out last; NULL if it was never asked
SELECT sequencename, last_value FROM pg_sequences
WHERE schemaname = current_schema() AND last_value IS NOT NULL ORDER BY sequencename
"""


async def list_sequences(conn: Connection) -> dict[str, int]:
    """Where sequences stand now: no snapshot holds them, so they are at or beyond what an earlier one saw."""
    return {row["sequencename"]: row["last_value"] for row in await conn.fetch(LIST_SEQUENCES)}


GET_MOMENT = """
-- by the clock of the server, like all times in the tables
SELECT transaction_timestamp()
"""


async def get_moment(conn: Connection) -> datetime:
    """When this transaction began."""
    try:
        moment = await conn.fetchval(GET_MOMENT, timeout=ANSWER_SECONDS)
    except TimeoutError as error:
        raise Unavailable(f"the database has said nothing for {ANSWER_SECONDS:.0f} s") from error
    assert isinstance(moment, datetime)
    return moment


async def copy_out(conn: Connection, table: Table, write: Sink) -> int:
    """Hand over all rows of a table as text (COPY); how many there were."""
    return _rows_of(await conn.copy_from_table(table.name, columns=table.columns, output=write))


async def copy_in(conn: Connection, table: Table, source: AsyncIterator[bytes]) -> int:
    """Fill a table with what `copy_out` gave; how many rows there were."""
    return _rows_of(await conn.copy_to_table(table.name, columns=table.columns, source=source))


def _rows_of(status: str) -> int:
    return int(status.removeprefix("COPY "))


LIST_REFERRED_BLOBS = """
-- what a backup has to hold, in the order of the folders that blobs lie in: by the last byte of the key
SELECT id, size_bytes, sha256 FROM blobs
WHERE EXISTS (SELECT FROM versions WHERE versions.blob_id = blobs.id)
ORDER BY substring(uuid_send(id) FROM 16 FOR 1), id
"""


async def list_referred_blobs(conn: Connection) -> AsyncIterator[tuple[BlobKey, int, bytes]]:
    """Key, size and SHA-256 of every blob that a version refers to; needs a transaction."""
    try:
        async for row in conn.cursor(LIST_REFERRED_BLOBS, prefetch=1000, timeout=SILENCE_SECONDS):
            yield BlobKey(row["id"]), row["size_bytes"], row["sha256"]
    except TimeoutError as error:
        raise Unavailable(f"the database has said nothing for {SILENCE_SECONDS:.0f} s") from error


# --- and back ---

LIST_REFERENCES = """
-- which table has to be filled before which; those that are checked at the end of the transaction do not matter
SELECT DISTINCT referring.relname AS referring, referred.relname AS referred
FROM pg_constraint
JOIN pg_class AS referring ON referring.oid = conrelid JOIN pg_class AS referred ON referred.oid = confrelid
WHERE contype = 'f' AND NOT condeferrable AND conrelid <> confrelid
  AND connamespace = current_schema()::regnamespace
"""


async def list_references(conn: Connection) -> list[tuple[str, str]]:
    """Pairs of tables: the first one's rows need the second one's."""
    return [(row["referring"], row["referred"]) for row in await conn.fetch(LIST_REFERENCES)]


HAS_ACCOUNTS = """
-- everything that anybody ever stored belongs to an account
SELECT EXISTS (SELECT FROM users)
"""


async def has_accounts(conn: Connection) -> bool:
    """Whether the database is in use; the schema has to be there."""
    return bool(await conn.fetchval(HAS_ACCOUNTS))


LOCK_USERS = """
-- nobody signs up until this transaction ends
LOCK TABLE users IN EXCLUSIVE MODE
"""


async def lock_users(conn: Connection) -> None:
    """Keep the accounts as they are until the transaction ends."""
    await conn.execute(LOCK_USERS)


IS_SERVED = """
-- a service keeps connections, also while it has no accounts; in a transaction their name ends in its id
SELECT EXISTS (SELECT FROM pg_stat_activity
               WHERE datname = current_database() AND application_name ~ '^file-storage( [0-9]+)?$')
"""


async def is_served(conn: Connection) -> bool:
    """Whether a service uses the database."""
    return bool(await conn.fetchval(IS_SERVED))


EMPTY_TABLES = """
-- the statement that empties all tables, since migrations put rows into some
SELECT format('TRUNCATE %s', string_agg(format('%I', tablename), ', ')) FROM pg_tables
WHERE schemaname = current_schema() AND tablename = ANY($1::text[])
"""


async def empty_tables(conn: Connection, names: list[str]) -> None:
    """Take all rows out of these tables."""
    statement = await conn.fetchval(EMPTY_TABLES, names)
    await conn.execute(statement)


DEFER_CONSTRAINTS = """
-- rows that need each other come one after the other
SET CONSTRAINTS ALL DEFERRED
"""


async def defer_constraints(conn: Connection) -> None:
    """Let those constraints that can wait do so until `check_constraints`."""
    await conn.execute(DEFER_CONSTRAINTS)


CHECK_CONSTRAINTS = """
-- what was deferred, now
SET CONSTRAINTS ALL IMMEDIATE
"""


async def check_constraints(conn: Connection) -> None:
    """Check what was deferred, before COMMIT has to."""
    await conn.execute(CHECK_CONSTRAINTS)


SET_SEQUENCE = """
-- the next value is the one after it
SELECT setval(format('%I', $1::text)::regclass, $2::bigint)
"""


async def set_sequence(conn: Connection, name: str, last_value: int) -> None:
    """Have a sequence go on where it stood."""
    await conn.execute(SET_SEQUENCE, name, last_value)


DELETE_UNREFERRED_BLOBS = """
-- garbage that waited for its sweep: its bytes are not in the backup
DELETE FROM blobs WHERE NOT EXISTS (SELECT FROM versions WHERE versions.blob_id = blobs.id)
"""


async def delete_unreferred_blobs(conn: Connection) -> None:
    """Forget the blobs that no version refers to."""
    await conn.execute(DELETE_UNREFERRED_BLOBS)


END_ALL_SESSIONS = """
-- one that was ended after the backup was made would be open again
UPDATE sessions SET ended_at = now() WHERE ended_at IS NULL
"""


async def end_all_sessions(conn: Connection) -> None:
    """Have everybody log in again."""
    await conn.execute(END_ALL_SESSIONS)


SET_EPOCH = """
-- a data root of before the restore does not fit any more, and says so
UPDATE instance SET epoch = $1
"""


async def set_epoch(conn: Connection, epoch: UUID) -> None:
    """Make it another database than the one that was backed up."""
    await conn.execute(SET_EPOCH, epoch)


FORGET_DATA_ROOT = """
-- what was seen in the data root that was backed up tells nothing of the one that was made now
WITH strays AS (DELETE FROM strays), damaged AS (DELETE FROM damaged_blobs) DELETE FROM checks
"""


async def forget_data_root(conn: Connection) -> None:
    """Begin anew with what the checks found; needs the newest schema."""
    await conn.execute(FORGET_DATA_ROOT)
