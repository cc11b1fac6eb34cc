"""The audit trail: what was done to an account; the oldest rows have the lowest ids."""

from typing import cast
from uuid import UUID

import asyncpg
import orjson

from service.db.pool import Connection
from service.model import Action, AuditEntry, FileId, Outcome, SessionId, UserId

INSERT_AUDIT = """
-- in the transaction of what it tells of
INSERT INTO audit (user_id, action, outcome, session_id, network, request_id, file_id, path, details)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb)
"""


async def insert_audit(conn: Connection, *, user_id: UserId, action: Action, outcome: Outcome,
                       session_id: SessionId | None, network: str | None, request_id: str | None,
                       file_id: UUID | None, path: str | None, details: dict[str, object]) -> None:
    """Add a line to the account's trail."""
    text = orjson.dumps(details).decode() if details else None
    await conn.execute(INSERT_AUDIT, user_id, action, outcome, session_id, network, request_id, file_id, path, text)


LIST_AUDIT = """
-- a page, newest first
SELECT id, at, action, outcome, session_id, network, request_id, file_id, path, details
FROM audit WHERE user_id = $1 AND ($2::bigint IS NULL OR id < $2) ORDER BY id DESC LIMIT $3
"""


async def list_audit(conn: Connection, user_id: UserId, *, before: int | None, limit: int) -> list[AuditEntry]:
    """The account's newest lines, or those older than the line of that id."""
    return [_entry(row) for row in await conn.fetch(LIST_AUDIT, user_id, before, limit)]


def _entry(row: asyncpg.Record) -> AuditEntry:
    return AuditEntry(
        id=row["id"], at=row["at"], action=cast(Action, row["action"]), outcome=cast(Outcome, row["outcome"]),
        session_id=None if row["session_id"] is None else SessionId(row["session_id"]), network=row["network"],
        request_id=row["request_id"], file_id=None if row["file_id"] is None else FileId(row["file_id"]),
        path=row["path"], details={} if row["details"] is None else orjson.loads(row["details"]))


DELETE_OLD_AUDIT = """
-- the oldest rows have the lowest ids; one that is a little out of order goes with the next round
DELETE FROM audit WHERE id IN (
    SELECT id FROM (SELECT id, at FROM audit ORDER BY id LIMIT $2) AS oldest
    WHERE at < now() - make_interval(days => $1))
"""


async def delete_old_audit(conn: Connection, *, days: int, limit: int) -> int:
    """Forget up to `limit` of the oldest lines, if they are older than that; how many."""
    return int((await conn.execute(DELETE_OLD_AUDIT, days, limit)).rsplit(" ", 1)[1])
