"""The audit trail: what was done to an account, in which session and from where.

`record` is the way into it, called in the transaction of the change, so that one is never there without the other; the
uploads of a group (`group_commit.py`) write their lines with their files.
Who asks is known to the middleware, which notes it once for each request; the functions of the domain need not pass it
on.  What only reads leaves no line.
"""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, replace
from uuid import UUID

import structlog

from service.cache.base import Cache
from service.db import audit
from service.db.pool import Connection, Database, mark_changed
from service.domain.throttle import network
from service.model import Action, AuditEntry, Caller, Outcome, SessionId, UserId

log = structlog.get_logger()

_ENDING_SESSIONS = frozenset[Action]({"logout", "token_reuse", "session_end", "password_change", "account_delete"})

# Refusals of one account that are written down: a stranger who tries passwords must not fill the trail of its owner.
REFUSALS_PER_MINUTE = 1
REFUSALS_AT_ONCE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a change comes from; without a session it is a visitor of a link, or the service itself."""

    request_id: str | None = None
    address: str | None = None
    session_id: SessionId | None = None

    @property
    def network(self) -> str | None:
        """What of the address is kept."""
        return None if self.address is None else network(self.address)


_SOURCE: ContextVar[Source] = ContextVar("audit_source", default=Source())


def begin(*, request_id: str, address: str) -> None:
    """A request begins; what the task of it, and tasks that it starts, records is put down to it."""
    _SOURCE.set(Source(request_id=request_id, address=address))


def identified(caller: Caller) -> None:
    """The session behind the request is known now."""
    _SOURCE.set(replace(_SOURCE.get(), session_id=caller.session_id))


def current() -> Source:
    """Where the change comes from that is being made."""
    return _SOURCE.get()


async def record(conn: Connection, user_id: UserId, action: Action, *, outcome: Outcome = "ok",
                 file_id: UUID | None = None, path: str | None = None, session_id: SessionId | None = None,
                 **details: object) -> None:
    """Write a line, in the transaction of the change; before the usage of the account is touched, whose lock is hot.

    `details` are few and small, and never a secret.
    """
    mark_changed(user_id, ends_sessions=action in _ENDING_SESSIONS)
    source = _SOURCE.get()
    await audit.insert_audit(
        conn, user_id=user_id, action=action, outcome=outcome, session_id=session_id or source.session_id,
        network=source.network, request_id=source.request_id,
        file_id=file_id, path=path, details=details)


class Audit:
    """Reading the trail, and writing down what was refused, which has no transaction of its own."""

    def __init__(self, database: Database, cache: Cache) -> None:
        self._database = database
        self._cache = cache
        self._writing: set[asyncio.Task[None]] = set()

    async def list(self, caller: Caller, *, before: int | None, limit: int) -> list[AuditEntry]:
        """A page of the caller's own trail, newest first; `before` is the id of the last line of the page before."""
        async with self._database.connection() as conn:
            return await audit.list_audit(conn, caller.user_id, before=before, limit=limit)

    def refused(self, user_id: UserId, action: Action) -> None:
        """Note a refusal; nobody waits for it, or the time of the answer would tell that there is such an account."""
        task = asyncio.create_task(self._write_refusal(user_id, action))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write_refusal(self, user_id: UserId, action: Action) -> None:
        try:
            wait = await self._cache.take(f"audit:{user_id}", per_minute=REFUSALS_PER_MINUTE, burst=REFUSALS_AT_ONCE)
            if not wait:
                async with self._database.connection() as conn:
                    await record(conn, user_id, action, outcome="refused")
        except Exception as error:  # the log has the request in any case
            log.warning("audit.lost", user=str(user_id), action=action, error=type(error).__name__)

    async def drain(self) -> None:
        """Wait for what is being written."""
        while self._writing:
            await asyncio.wait(self._writing)
