"""Finds out that the server, or the way of one connection to it, hangs, so that nobody waits for it for long.

A statement that takes long is no reason, nor is a disk that does.  While an answer is late the server is asked on a
new connection, which a server that lives gives or refuses at once.  If nothing at all is heard of it, everybody who
waits is cut off, and whoever comes is refused until it says something again.  If it lives, but has nothing to do for a
connection that waits, the question or the answer was lost on the way, and that connection is cut off.
"""

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import structlog

# all three together are the longest that anybody waits for a server that hangs
LATE_SECONDS = 0.5
LOOK_SECONDS = 0.5
ANSWER_SECONDS = 2.5
LOST_SECONDS = 1.5  # that a server has nothing to do for somebody who waits

# the last one: so many wait for the server that there is no room for another
_GONE = (ConnectionError, FileNotFoundError, BlockingIOError)

log = structlog.get_logger()

LIST_AT_WORK = """
-- which of these backends have something to do, as far as this role may know
SELECT pid FROM pg_stat_activity WHERE pid = ANY($1::int[]) AND coalesce(state, '') NOT LIKE 'idle%'
"""


async def list_at_work(conn: Any, pids: Sequence[int]) -> set[int]:
    """The backends of these that work on a statement, or do not tell."""
    return {row["pid"] for row in await conn.fetch(LIST_AT_WORK, pids)}


END_IDLE = """
-- backends whose client does not hear them, with what they have locked
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ANY($1::int[]) AND state LIKE 'idle%'
"""


async def end_idle(conn: Any, pids: Sequence[int]) -> None:
    """End those of the backends that have nothing to do."""
    await conn.fetch(END_IDLE, pids)


@dataclass(frozen=True, slots=True)
class _Wait:
    """Somebody who has asked on a connection and waits for the answer."""

    connection: Any
    asked_at: float
    backend_pid: int


def _asked_at(connection: Any) -> float | None:
    """Since when somebody waits for an answer on it; None for nobody, and for one that was just given back."""
    return getattr(connection, "asked_at", None)


class Watchdog:
    """Looks after the connections of one pool; `watch` runs for as long as that is open."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._opened: weakref.WeakSet[Any] = weakref.WeakSet()
        self._borrowed: dict[Any, float] = {}
        self._acquiring: dict[asyncio.Timeout, float] = {}
        self._idle_since: dict[_Wait, float] = {}
        """Who waits although the backend has nothing to do, and when that was first seen."""
        self._heard_at = time.monotonic()
        self.is_silent = False
        """Whether the server says nothing, not even to a new connection: whoever comes need not try."""

    def introduce(self, session: object) -> None:
        """A connection that the pool has opened."""
        self._opened.add(session)

    @contextmanager
    def watching(self, connection: object) -> Iterator[None]:
        """While the context lasts somebody may be waiting for an answer on this connection.

        If the server hangs, or has lost the question, the connection is ended: asyncpg's ConnectionDoesNotExistError.
        """
        self._borrowed[connection] = time.monotonic()
        try:
            yield
        finally:
            self._heard_at = max(self._heard_at, getattr(connection, "heard_at", 0.0))
            del self._borrowed[connection]

    @contextmanager
    def acquiring(self, limit: asyncio.Timeout) -> Iterator[None]:
        """While the context lasts somebody waits for a connection; if the server hangs, `limit` ends it."""
        self._acquiring[limit] = time.monotonic()
        try:
            yield
        finally:
            self._acquiring.pop(limit, None)

    def _last_heard(self) -> float:
        """When the server last answered, by the clock of `time.monotonic`."""
        return max(self._heard_at, *(getattr(connection, "heard_at", 0.0) for connection in self._borrowed), 0.0)

    async def watch(self, expire: Callable[[], Awaitable[None]]) -> None:
        """Look again and again; returns never.  `expire` makes the pool use none of its connections again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = time.monotonic() - LATE_SECONDS
            if self.is_silent or any(since <= before for waits in (self._borrowed, self._acquiring)
                                     for since in waits.values()):
                try:
                    await self._look(expire)
                except Exception as error:  # whatever it was: without these looks nobody would be let in again
                    log.error("watchdog.failed", exc_info=error)
                    self.is_silent = False
            else:
                self._idle_since.clear()

    async def _look(self, expire: Callable[[], Awaitable[None]]) -> None:
        began = time.monotonic()
        waiting = [_Wait(connection, asked_at, connection.backend_pid) for connection in self._borrowed
                   if (asked_at := _asked_at(connection)) is not None and asked_at <= began - LATE_SECONDS]
        try:
            at_work = await self._ask([wait.backend_pid for wait in waiting])
        except TimeoutError:
            if self._last_heard() < began:
                self._cut_all(is_silent=True)
            return
        except _GONE:  # it says so at once, to whoever comes
            if self._last_heard() < began - LATE_SECONDS:
                self._cut_all(is_silent=False)
            return
        if self.is_silent:
            log.warning("database_is_back")
        self.is_silent = False
        self._heard_at = time.monotonic()
        if lost := self._find_lost([wait for wait in waiting if wait.backend_pid not in at_work]):
            await self._cut(lost, expire)

    @asynccontextmanager
    async def _new_connection(self) -> AsyncIterator[Any]:
        """One that is none of the pool's; all that is done with it has to be over within `ANSWER_SECONDS`."""
        async with asyncio.timeout(ANSWER_SECONDS):
            connection = await asyncpg.connect(self._dsn)
            try:
                yield connection
            finally:
                connection.terminate()

    async def _ask(self, pids: Sequence[int]) -> Collection[int]:
        """Which backends are at work, all if that cannot be found out.

        Raises TimeoutError if the server says nothing at all, and one of `_GONE` if nobody is there to say anything.
        """
        try:
            async with self._new_connection() as connection:
                return await list_at_work(connection, pids) if pids else ()
        except (TimeoutError, *_GONE):
            raise
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return pids  # a refusal is an answer; and a lack of files of our own is none of its faults

    def _find_lost(self, idle: Sequence["_Wait"]) -> list["_Wait"]:
        """Those for which the server has had nothing to do for some time, while they waited for the same answer.

        Not at the first sight: the question may have been on its way to it, or the answer on its way back.
        """
        now = time.monotonic()
        self._idle_since = {wait: self._idle_since.get(wait, now) for wait in idle
                            if wait.connection in self._borrowed and _asked_at(wait.connection) == wait.asked_at}
        return [wait for wait, since in self._idle_since.items() if now - since >= LOST_SECONDS]

    async def _cut(self, lost: Sequence["_Wait"], expire: Callable[[], Awaitable[None]]) -> None:
        """These wait for nothing; and what cut them off, such as a firewall, may have cut off others that are idle.

        Their backends are ended, all that have nothing to do, since somebody may wait for what they have locked, and
        they would be missed among the connections that the server has room for.
        """
        log.warning("database_connections_lost", connections=len(lost))
        in_use = {getattr(connection, "backend_pid", None) for connection in self._borrowed}
        doubtful = {session.backend_pid for session in self._opened if not session.is_closed()} - in_use
        doubtful |= {wait.backend_pid for wait in lost}
        for wait in lost:
            wait.connection.terminate()
        await expire()
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # then they end by their own time-outs
            async with self._new_connection() as connection:
                await end_idle(connection, list(doubtful))

    def _cut_all(self, *, is_silent: bool) -> None:
        """The server hangs or is gone: nobody waits any longer, neither for an answer nor for a connection."""
        if not self.is_silent:
            log.warning("database_hangs" if is_silent else "database_gone", connections=len(self._borrowed),
                        waiting=len(self._acquiring))
        self.is_silent = is_silent
        for connection in list(self._borrowed):
            with suppress(asyncpg.InterfaceError):  # it was given back a moment ago
                connection.terminate()
        limits, self._acquiring = list(self._acquiring), {}
        for limit in limits:
            if not limit.expired():  # by itself, a moment ago
                limit.reschedule(asyncio.get_running_loop().time())
