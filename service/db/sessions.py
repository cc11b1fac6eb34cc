"""Sessions: what a login begins and a logout ends."""

from datetime import timedelta

from service.db.pool import Connection
from service.model import SessionId, UserId

INSERT_SESSION = """
-- a login
INSERT INTO sessions (id, user_id, refresh_sha256, expires_at) VALUES ($1, $2, $3, now() + $4::interval)
"""


async def insert_session(conn: Connection, *, session_id: SessionId, user_id: UserId, refresh_sha256: bytes,
                         ttl_seconds: int) -> None:
    """Begin a session."""
    await conn.execute(INSERT_SESSION, session_id, user_id, refresh_sha256, timedelta(seconds=ttl_seconds))


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


END_SESSION = """
-- a logout, or a refresh token used twice
UPDATE sessions SET ended_at = now() WHERE id = $1 AND ended_at IS NULL
"""


async def end_session(conn: Connection, session_id: SessionId) -> None:
    """End a session; nothing happens if it has ended."""
    await conn.execute(END_SESSION, session_id)


DELETE_EXPIRED_SESSIONS = """
-- what nobody can use any more
DELETE FROM sessions WHERE expires_at < now() - interval '1 day'
"""


async def delete_expired_sessions(conn: Connection) -> None:
    """Forget sessions a day after they expired."""
    await conn.execute(DELETE_EXPIRED_SESSIONS)
