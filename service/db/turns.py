"""Work that one process does at a time: whoever holds the turn, until it lets go or its connection ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from service.db.pool import Connection
from service.errors import Unavailable

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 30.0

TRY_TURN = """
-- held until this connection ends, however it ends
SELECT pg_try_advisory_lock(hashtextextended($1::text, 8))
"""


async def try_turn(conn: Connection, name: str) -> bool:
    """Take the turn of that name, if nobody has it."""
    return bool(await conn.fetchval(TRY_TURN, name))


class Turn:
    """A turn that is held."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ended = asyncio.Event()
        connection.add_termination_listener(lambda _: self._ended.set())

    async def until_lost(self) -> None:
        """Return when the connection has ended, and with it the turn."""
        while not self._ended.is_set():
            try:
                await asyncio.wait_for(self._ended.wait(), LOOK_SECONDS)
            except TimeoutError:  # a server that is gone without a word
                try:
                    await self._connection.fetchval("SELECT 1", timeout=ANSWER_SECONDS)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    return


class Turns:
    """Takes turns, each on a connection of its own: one of a pool would be missed there."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    @asynccontextmanager
    async def take(self, name: str) -> AsyncIterator[Turn | None]:
        """The turn while the context lasts; None if another process has it.  Raises Unavailable."""
        try:
            connection = await asyncpg.connect(
                self._dsn, timeout=CONNECT_SECONDS, command_timeout=ANSWER_SECONDS,
                server_settings={"application_name": f"file-storage {name}"})
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise Unavailable("The database cannot be reached.", retry_after_seconds=2) from error
        try:
            yield Turn(connection) if await try_turn(connection, name) else None
        finally:
            connection.terminate()
