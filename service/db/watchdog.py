"""Cuts off the connections to a server that hangs, so that nobody waits longer than a few seconds for it.

A statement that takes long is no reason, nor is a disk that does.  While an answer is late the server is asked for a
new connection, which a server that lives gives or refuses at once.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg
import asyncpg.pool
import structlog

if TYPE_CHECKING:  # the class takes no type arguments at run time
    Borrowed = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Borrowed = asyncpg.pool.PoolConnectionProxy

# both together, and half a second for looking, are the longest that a request waits for a server that hangs
LATE_SECONDS = 0.5
ANSWER_SECONDS = 3.0
LOOK_SECONDS = 0.5

log = structlog.get_logger()


class Watchdog:
    """Looks after the connections of one pool; `watch` runs for as long as that is open."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._borrowed: dict[Borrowed, float] = {}

    @contextmanager
    def watching(self, connection: Borrowed) -> Iterator[None]:
        """While the context lasts somebody may be waiting for an answer on this connection."""
        self._borrowed[connection] = time.monotonic()
        try:
            yield
        finally:
            del self._borrowed[connection]

    async def watch(self) -> None:
        """Look again and again; returns never."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = time.monotonic() - LATE_SECONDS
            if all(since > before for since in self._borrowed.values()):
                continue
            waiting = list(self._borrowed)
            if not await self._answers():
                self._cut(waiting)

    async def _answers(self) -> bool:
        """Whether the server says anything at all; True too if that cannot be found out."""
        try:
            connection = await asyncpg.connect(self._dsn, timeout=ANSWER_SECONDS)
        except (TimeoutError, ConnectionError, FileNotFoundError, BlockingIOError):
            return False  # the last one: so many wait for it that there is no room for another
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return True  # a refusal is an answer; and a lack of files of our own is none of its faults
        connection.terminate()
        return True

    def _cut(self, waiting: list[Borrowed]) -> None:
        """Whoever waits on one of these gets asyncpg's ConnectionDoesNotExistError."""
        still = [connection for connection in waiting if connection in self._borrowed]
        log.warning("database_hangs", connections=len(still))
        for connection in still:
            connection.terminate()
