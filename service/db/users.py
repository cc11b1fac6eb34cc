"""Accounts, and what they hold."""

import asyncpg

from service.db.pool import Connection
from service.errors import QuotaExceeded, Unauthenticated, UsernameTaken
from service.model import Usage, User, UserId

INSERT_USER = """
-- a new account
INSERT INTO users (id, username, password_hash, quota_bytes) VALUES ($1, $2, $3, $4) RETURNING created_at
"""


async def insert_user(conn: Connection, *, user_id: UserId, username: str, password_hash: str,
                      quota_bytes: int | None) -> User:
    """Add an account; raise UsernameTaken."""
    try:
        created_at = await conn.fetchval(INSERT_USER, user_id, username, password_hash, quota_bytes)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "users_username_key":
            raise UsernameTaken(field="username") from None
        raise
    return User(id=user_id, username=username, created_at=created_at)


GET_CREDENTIALS = """
-- what a login is checked against
SELECT id, password_hash FROM users WHERE username = $1
"""


async def get_credentials(conn: Connection, username: str) -> tuple[UserId, str] | None:
    """The id and the password's hash, or None."""
    row = await conn.fetchrow(GET_CREDENTIALS, username)
    return None if row is None else (UserId(row["id"]), row["password_hash"])


GET_USER = """
-- an account by its id
SELECT id, username, created_at FROM users WHERE id = $1
"""


async def get_user(conn: Connection, user_id: UserId) -> User | None:
    """The account, or None."""
    row = await conn.fetchrow(GET_USER, user_id)
    return None if row is None else User(id=UserId(row["id"]), username=row["username"], created_at=row["created_at"])


GET_USAGE = """
-- what an account holds
SELECT files_bytes, trash_bytes, versions_bytes, file_count, quota_bytes FROM users WHERE id = $1
"""


async def get_usage(conn: Connection, user_id: UserId) -> Usage:
    """What the account holds; raise Unauthenticated if it is gone."""
    row = await conn.fetchrow(GET_USAGE, user_id)
    if row is None:
        raise Unauthenticated()
    return Usage(files_bytes=row["files_bytes"], trash_bytes=row["trash_bytes"], versions_bytes=row["versions_bytes"],
                 count=row["file_count"], quota_bytes=row["quota_bytes"])


UPDATE_USAGE = """
-- charge or release, never beyond the quota: the decision and the change are one statement
UPDATE users SET files_bytes = files_bytes + $2, versions_bytes = versions_bytes + $3, trash_bytes = trash_bytes + $4,
    file_count = file_count + $5
WHERE id = $1
  AND ($2::bigint + $3::bigint + $4::bigint <= 0 OR quota_bytes IS NULL
       OR files_bytes + versions_bytes + trash_bytes + $2 + $3 + $4 <= quota_bytes)
RETURNING true
"""


async def update_usage(conn: Connection, user_id: UserId, *, files_bytes: int = 0, versions_bytes: int = 0,
                       trash_bytes: int = 0, file_count: int = 0) -> None:
    """Add to (or take from) what the account holds; raise QuotaExceeded.  Do it last: its lock is the hottest."""
    if await conn.fetchval(UPDATE_USAGE, user_id, files_bytes, versions_bytes, trash_bytes, file_count) is None:
        raise QuotaExceeded()
