"""Blobs as they should be on the disk, and which of them are not."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from service.db.pool import Connection
from service.model import BlobKey, Damage, UserId

COUNT_BLOBS = """
-- how much there is to look at
SELECT count(*) AS count, coalesce(sum(size_bytes), 0)::bigint AS size_bytes FROM blobs WHERE referable
"""


async def count_blobs(conn: Connection) -> tuple[int, int]:
    """How many blobs there are that may be referred to, and how many bytes they have."""
    row = await conn.fetchrow(COUNT_BLOBS, timeout=600)
    assert row is not None
    return row["count"], row["size_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What has to be on the disk under a key; `damage`: what was wrong with it when somebody looked last."""

    key: BlobKey
    size_bytes: int
    sha256: bytes
    damage: Damage | None


LIST_EXPECTED = """
-- in the order of the keys, behind one of them
SELECT id, size_bytes, sha256, kind FROM blobs LEFT JOIN damaged_blobs ON blob_id = id
WHERE referable AND id > $1 ORDER BY id LIMIT $2
"""


async def list_expected(conn: Connection, *, after: BlobKey | None, limit: int) -> list[Expected]:
    """A page of all blobs that may be referred to."""
    return [_expected(row) for row in await conn.fetch(LIST_EXPECTED, after or UUID(int=0), limit)]


LIST_UNVERIFIED = """
-- whose bytes were not read back for too long; what never was comes first, what was by a clock that was ahead comes
-- last.  Three ranges of one index
SELECT id, size_bytes, sha256, kind
FROM ((SELECT * FROM blobs WHERE referable AND verified_at IS NULL LIMIT $2)
      UNION ALL
      (SELECT * FROM blobs WHERE referable AND verified_at <= now() - make_interval(secs => $1)
       ORDER BY verified_at LIMIT $2)
      UNION ALL
      (SELECT * FROM blobs WHERE referable AND verified_at > now() ORDER BY verified_at LIMIT $2)) AS due
LEFT JOIN damaged_blobs ON blob_id = id
ORDER BY verified_at NULLS FIRST LIMIT $2
"""


async def list_unverified(conn: Connection, *, age_seconds: float, limit: int) -> list[Expected]:
    """The blobs that are due to be read back."""
    return [_expected(row) for row in await conn.fetch(LIST_UNVERIFIED, age_seconds, limit)]


GET_EXPECTED = """
-- a blob that may be referred to, now
SELECT id, size_bytes, sha256, kind FROM blobs LEFT JOIN damaged_blobs ON blob_id = id WHERE id = $1 AND referable
"""


async def get_expected(conn: Connection, key: BlobKey) -> Expected | None:
    """What has to be on the disk under the key; None if nothing has to be."""
    row = await conn.fetchrow(GET_EXPECTED, key)
    return None if row is None else _expected(row)


def _expected(row: asyncpg.Record) -> Expected:
    return Expected(key=BlobKey(row["id"]), size_bytes=row["size_bytes"], sha256=row["sha256"], damage=row["kind"])


UPDATE_VERIFIED = """
-- looked at, whatever came of it: others have their turn now
UPDATE blobs SET verified_at = now() WHERE id = ANY($1::uuid[]) AND referable
"""


async def update_verified(conn: Connection, keys: list[BlobKey]) -> None:
    """Note that the bytes of these blobs were read back."""
    await conn.execute(UPDATE_VERIFIED, keys)


UPDATE_UNVERIFIED = """
-- its turn comes first
UPDATE blobs SET verified_at = NULL WHERE id = $1 AND referable
"""


async def update_unverified(conn: Connection, key: BlobKey) -> None:
    """Have the bytes of a blob read back soon."""
    await conn.execute(UPDATE_UNVERIFIED, key)


INSERT_DAMAGE = """
-- the last look counts; if the blob is removed meanwhile there is nothing to note
INSERT INTO damaged_blobs (blob_id, kind) SELECT id, $2 FROM blobs WHERE id = $1 AND referable
ON CONFLICT (blob_id) DO UPDATE SET kind = excluded.kind
"""


async def insert_damage(conn: Connection, key: BlobKey, kind: Damage) -> None:
    """Note what is wrong with a blob."""
    await conn.execute(INSERT_DAMAGE, key, kind)


DELETE_DAMAGE = """
-- whole again
DELETE FROM damaged_blobs WHERE blob_id = ANY($1::uuid[])
"""


async def delete_damage(conn: Connection, keys: list[BlobKey]) -> None:
    """Note that these blobs are as they should be."""
    await conn.execute(DELETE_DAMAGE, keys)


COUNT_DAMAGE = """
-- for the operator
SELECT kind, count(*) AS count FROM damaged_blobs JOIN blobs ON blobs.id = blob_id WHERE referable GROUP BY kind
"""


async def count_damage(conn: Connection) -> dict[Damage, int]:
    """How many blobs are damaged in which way."""
    return {row["kind"]: row["count"] for row in await conn.fetch(COUNT_DAMAGE)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """A version of somebody's file."""

    user_id: UserId
    username: str
    path: str
    version: int
    is_current: bool
    is_trashed: bool
    created_at: datetime


LIST_AFFECTED = """
-- every version that holds a blob, with its owner and where its file is, or was before it went to the trash
SELECT user_id, username, path, number, replaced_at IS NULL AS is_current, is_trashed, versions.created_at
FROM versions
JOIN files ON files.id = file_id
JOIN users ON users.id = user_id
CROSS JOIN LATERAL (
    WITH RECURSIVE above AS (
        SELECT files.parent_id, files.deleted_at, files.trashed_from, files.name, '' COLLATE "C" AS below, 1 AS depth
        UNION ALL
        SELECT parent.parent_id, parent.deleted_at, parent.trashed_from, parent.name,
               '/' || above.name || above.below, depth + 1
        FROM above JOIN files AS parent ON parent.id = above.parent_id AND above.deleted_at IS NULL
        WHERE parent.parent_id IS NOT NULL AND depth < 4096
    )
    SELECT coalesce(trashed_from, '/' || name) || below AS path, deleted_at IS NOT NULL AS is_trashed
    FROM above ORDER BY depth DESC LIMIT 1
) AS place
WHERE blob_id = $1 ORDER BY username, path, number
"""


async def list_affected(conn: Connection, key: BlobKey) -> list[Affected]:
    """Whose files are concerned if the blob is lost."""
    return [Affected(user_id=UserId(row["user_id"]), username=row["username"], path=row["path"], version=row["number"],
                     is_current=row["is_current"], is_trashed=row["is_trashed"], created_at=row["created_at"])
            for row in await conn.fetch(LIST_AFFECTED, key)]
