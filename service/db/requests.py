"""Requests that may be sent again: their keys, what was asked for, and what came of it."""

from datetime import datetime

import asyncpg

from service.db.pool import Connection
from service.errors import RequestInProgress, Unauthenticated
from service.model import UserId

INSERT_REQUEST = """
-- the first one gets the key; others wait here until its transaction has ended
INSERT INTO requests (user_id, key, fingerprint) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true
"""


async def insert_request(conn: Connection, user_id: UserId, key: str, *, fingerprint: bytes) -> bool:
    """Take the account's key; False if a request with it was carried out.

    Raises RequestInProgress if one takes too long, Unauthenticated if the account is gone.
    """
    try:
        return await conn.fetchval(INSERT_REQUEST, user_id, key, fingerprint) is not None
    except asyncpg.LockNotAvailableError:
        raise RequestInProgress(retry_after_seconds=1) from None
    except asyncpg.ForeignKeyViolationError:
        raise Unauthenticated() from None


GET_REQUEST = """
-- what was asked for with a key, and what came of it
SELECT fingerprint, result FROM requests WHERE user_id = $1 AND key = $2
"""


async def get_request(conn: Connection, user_id: UserId, key: str) -> tuple[bytes, str | None] | None:
    """Fingerprint and result of the request that was carried out with the key; None if there was none."""
    row = await conn.fetchrow(GET_REQUEST, user_id, key)
    return None if row is None else (row["fingerprint"], row["result"])


GET_BEGIN = """
-- the time, if nothing had been carried out with the key by then
SELECT now() WHERE NOT EXISTS (SELECT FROM requests WHERE user_id = $1 AND key = $2::text)
"""


async def get_begin(conn: Connection, user_id: UserId, key: str | None) -> datetime | None:
    """The time by the database's clock; None if a request with the key was carried out."""
    found: datetime | None = await conn.fetchval(GET_BEGIN, user_id, key)
    return found


UPDATE_RESULT = """
-- what came of the request, in the transaction that took its key
UPDATE requests SET result = $3 WHERE user_id = $1 AND key = $2
"""


async def update_result(conn: Connection, user_id: UserId, key: str, *, result: str) -> None:
    """Keep the result for whoever asks again."""
    await conn.execute(UPDATE_RESULT, user_id, key, result)


DELETE_OLD_REQUESTS = """
-- nobody asks again after so long
DELETE FROM requests WHERE (user_id, key) IN (
    SELECT user_id, key FROM requests WHERE created_at < now() - make_interval(hours => $1) LIMIT $2)
"""


async def delete_old_requests(conn: Connection, *, hours: int, limit: int) -> int:
    """Forget up to `limit` requests older than that; how many."""
    return int((await conn.execute(DELETE_OLD_REQUESTS, hours, limit)).rsplit(" ", 1)[1])
