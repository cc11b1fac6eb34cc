"""Sessions of an account: which are open, and the end of them."""

from collections.abc import Iterable

from service.cache.base import Cache
from service.db import sessions
from service.db.pool import Connection, Database
from service.domain.audit import record
from service.errors import NotFound
from service.model import Caller, Session, SessionId


def key_of(session_id: SessionId) -> str:
    """Where the cache has whether a session is open."""
    return f"session:{session_id}"


async def forget(cache: Cache, session_ids: Iterable[SessionId]) -> None:
    """After the commit: no worker that shares the cache believes in these sessions any more."""
    for session_id in session_ids:
        await cache.forget(key_of(session_id))


class Sessions:
    """What logins began."""

    def __init__(self, database: Database, cache: Cache) -> None:
        self._database = database
        self._cache = cache

    async def list(self, caller: Caller) -> list[Session]:
        """The caller's open sessions, the one used last first."""
        async with self._database.connection() as conn:
            return await sessions.list_sessions(conn, caller.user_id)

    async def end(self, caller: Caller, session_id: SessionId) -> None:
        """End one of the caller's open sessions; raise NotFound, also for another account's."""
        async def work(conn: Connection) -> None:
            if not await sessions.end_own_session(conn, caller.user_id, session_id):
                raise NotFound()
            await record(conn, caller.user_id, "session_end", ended=[str(session_id)])

        await self._database.in_transaction(work)
        await forget(self._cache, [session_id])

    async def end_all(self, caller: Caller, *, also_current: bool) -> None:
        """End all sessions of the caller but the current one, or that one too."""
        async def work(conn: Connection) -> list[SessionId]:
            ended = await sessions.end_sessions(conn, caller.user_id, keep=None if also_current else caller.session_id)
            await record(conn, caller.user_id, "session_end", count=len(ended))
            return ended

        await forget(self._cache, await self._database.in_transaction(work))
