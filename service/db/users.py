"""Accounts, and what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from service.db.pool import Connection, refuse_unfit_name
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
        with refuse_unfit_name("username"):
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


GET_PASSWORD = """
-- what a caller's own password is checked against
SELECT username, password_hash FROM users WHERE id = $1
"""


async def get_password(conn: Connection, user_id: UserId) -> tuple[str, str] | None:
    """The username and the password's hash, or None."""
    row = await conn.fetchrow(GET_PASSWORD, user_id)
    return None if row is None else (row["username"], row["password_hash"])


LOCK_PASSWORD = """
-- whoever changes the password waits for us, or we for them and then find another hash
SELECT true FROM users WHERE id = $1 AND password_hash = $2 FOR SHARE
"""


async def lock_password(conn: Connection, user_id: UserId, password_hash: str) -> bool:
    """Whether this is still the hash of the account; if so, it stays until the transaction ends."""
    return await conn.fetchval(LOCK_PASSWORD, user_id, password_hash) is not None


UPDATE_PASSWORD = """
-- only over the hash that the old password was checked against
UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2 RETURNING true
"""


async def update_password(conn: Connection, user_id: UserId, *, old_hash: str, new_hash: str) -> bool:
    """Replace the hash; False if it is another one by now, or the account is gone."""
    return await conn.fetchval(UPDATE_PASSWORD, user_id, old_hash, new_hash) is not None


LOCK_USER = """
-- the account is about to go
SELECT true FROM users WHERE id = $1 AND password_hash = $2 FOR UPDATE
"""


async def lock_user(conn: Connection, user_id: UserId, password_hash: str) -> bool:
    """Keep everybody else away from the account's row; False if it has another password by now, or is gone."""
    return await conn.fetchval(LOCK_USER, user_id, password_hash) is not None


DELETE_USER = """
-- the account; its sessions, files, versions, links and trail follow by their foreign keys; planned as DELETE_TREE is
DELETE FROM users USING set_config('plan_cache_mode', 'force_generic_plan', true) AS plan,
                        set_config('enable_bitmapscan', 'off', true) AS scan
WHERE id = $1
"""


async def delete_user(conn: Connection, user_id: UserId) -> None:
    """Delete the account with all rows of it; `files.lock_tree` and `blobs.release_user` have to come before."""
    await conn.execute(DELETE_USER, user_id, timeout=600)


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


UPDATE_USAGES = """
-- the same for files of several accounts, which are locked in the order of their ids, so that two of these never wait
-- for each other
WITH charged AS MATERIALIZED (
    SELECT users.id, added_files_bytes, added_versions_bytes, added_count
    FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[])
        AS charge (id, added_files_bytes, added_versions_bytes, added_count)
    JOIN users ON users.id = charge.id ORDER BY users.id FOR NO KEY UPDATE OF users
)
UPDATE users SET files_bytes = files_bytes + added_files_bytes, versions_bytes = versions_bytes + added_versions_bytes,
    file_count = file_count + added_count
FROM charged
WHERE users.id = charged.id
  AND (added_files_bytes + added_versions_bytes <= 0 OR quota_bytes IS NULL
       OR files_bytes + versions_bytes + trash_bytes + added_files_bytes + added_versions_bytes <= quota_bytes)
RETURNING users.id
"""


@dataclass(slots=True, kw_only=True)
class Charge:
    """What is to be added to what an account holds, or taken from it."""

    files_bytes: int = 0
    versions_bytes: int = 0
    file_count: int = 0


async def update_usages(conn: Connection, charges: Mapping[UserId, Charge]) -> None:
    """Add to (or take from) what each account holds; raise QuotaExceeded if one has no room for it."""
    rows = await conn.fetch(
        UPDATE_USAGES, list(charges), [charge.files_bytes for charge in charges.values()],
        [charge.versions_bytes for charge in charges.values()], [charge.file_count for charge in charges.values()])
    if len(rows) < len(charges):
        raise QuotaExceeded()
