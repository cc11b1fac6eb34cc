"""Sessions: what a login begins and a logout ends."""

from datetime import timedelta

from service.db.pool import Connection
from service.model import Session, SessionId, UserId

INSERT_SESSION = """
-- a login
INSERT INTO sessions (id, user_id, refresh_sha256, expires_at, user_agent, network)
VALUES ($1, $2, $3, now() + $4::interval, $5, $6)
"""


async def insert_session(conn: Connection, *, session_id: SessionId, user_id: UserId, refresh_sha256: bytes,
                         ttl_seconds: int, user_agent: str | None, network: str | None) -> None:
    """Begin a session."""
    await conn.execute(INSERT_SESSION, session_id, user_id, refresh_sha256, timedelta(seconds=ttl_seconds), user_agent,
                       network)


IS_SESSION_OPEN = """
-- whether a session still counts
SELECT true FROM sessions WHERE id = $1 AND user_id = $2 AND ended_at IS NULL AND expires_at > now()
"""


async def is_session_open(conn: Connection, session_id: SessionId, user_id: UserId) -> bool:
    """Whether the session of that account is neither ended nor expired."""
    return await conn.fetchval(IS_SESSION_OPEN, session_id, user_id) is not None


UPDATE_REFRESH = """
-- exchange a refresh token: the old one is compared and replaced in one statement, so it is good for one use
UPDATE sessions SET refresh_sha256 = $3, refreshed_at = now(), expires_at = now() + $4::interval
WHERE id = $1 AND refresh_sha256 = $2 AND ended_at IS NULL AND expires_at > now()
RETURNING user_id
"""


async def update_refresh(conn: Connection, session_id: SessionId, *, old_sha256: bytes, new_sha256: bytes,
                         ttl_seconds: int) -> UserId | None:
    """Replace the refresh token; the account, or None if the old token is not the current one."""
    user_id = await conn.fetchval(UPDATE_REFRESH, session_id, old_sha256, new_sha256, timedelta(seconds=ttl_seconds))
    return None if user_id is None else UserId(user_id)


LIST_SESSIONS = """
-- what is open, the one used last first
SELECT id, created_at, refreshed_at, expires_at, user_agent, network FROM sessions
WHERE user_id = $1 AND ended_at IS NULL AND expires_at > now() ORDER BY refreshed_at DESC, id DESC LIMIT 1000
"""


async def list_sessions(conn: Connection, user_id: UserId) -> list[Session]:
    """The open sessions of the account, a thousand at most."""
    return [Session(id=SessionId(row["id"]), created_at=row["created_at"], refreshed_at=row["refreshed_at"],
                    expires_at=row["expires_at"], user_agent=row["user_agent"], network=row["network"])
            for row in await conn.fetch(LIST_SESSIONS, user_id)]


END_SESSION = """
-- a refresh token used twice
UPDATE sessions SET ended_at = now() WHERE id = $1 AND ended_at IS NULL AND expires_at > now() RETURNING user_id
"""


async def end_session(conn: Connection, session_id: SessionId) -> UserId | None:
    """End a session; whose it was, or None if it was not open."""
    user_id = await conn.fetchval(END_SESSION, session_id)
    return None if user_id is None else UserId(user_id)


END_OWN_SESSION = """
-- one session of an account
UPDATE sessions SET ended_at = now() WHERE id = $2 AND user_id = $1 AND ended_at IS NULL AND expires_at > now()
RETURNING true
"""


async def end_own_session(conn: Connection, user_id: UserId, session_id: SessionId) -> bool:
    """End an open session of the account; whether there was one."""
    return await conn.fetchval(END_OWN_SESSION, user_id, session_id) is not None


END_SESSIONS = """
-- all sessions of an account, or all but one
UPDATE sessions SET ended_at = now()
WHERE user_id = $1 AND id IS DISTINCT FROM $2 AND ended_at IS NULL AND expires_at > now() RETURNING id
"""


async def end_sessions(conn: Connection, user_id: UserId, *, keep: SessionId | None) -> list[SessionId]:
    """End the open sessions of the account but `keep`; which."""
    return [SessionId(row["id"]) for row in await conn.fetch(END_SESSIONS, user_id, keep)]


DELETE_EXPIRED_SESSIONS = """
-- what nobody can use any more
DELETE FROM sessions WHERE expires_at < now() - interval '1 day'
"""


async def delete_expired_sessions(conn: Connection) -> None:
    """Forget sessions a day after they expired."""
    await conn.execute(DELETE_EXPIRED_SESSIONS)
