"""Blobs: one row for each file of bytes under the data root."""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from service.db.pool import Connection
from service.errors import Unavailable
from service.model import BlobKey, Staged, UserId

INSERT_BLOB = """
-- bytes that are placed and durable
INSERT INTO blobs (id, size_bytes, sha256, crc32) VALUES ($1, $2, $3, $4)
"""


async def insert_blob(conn: Connection, staged: Staged) -> None:
    """Name a placed blob; raise Unavailable if it was taken for garbage and fenced in the meantime."""
    try:
        await conn.execute(INSERT_BLOB, staged.key, staged.size_bytes, staged.sha256, staged.crc32)
    except asyncpg.UniqueViolationError as error:
        raise Unavailable("The upload took too long; send it again.", retry_after_seconds=1) from error


GET_BLOB = """
-- bytes that may be sent: once fenced they are about to go
SELECT size_bytes, sha256, created_at FROM blobs WHERE id = $1 AND referable
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """What is known of bytes without a name."""

    size_bytes: int
    sha256: bytes
    created_at: datetime


async def get_blob(conn: Connection, key: BlobKey) -> Blob | None:
    """The blob, or None if there is none or it is being removed."""
    row = await conn.fetchrow(GET_BLOB, key)
    return None if row is None else Blob(size_bytes=row["size_bytes"], sha256=row["sha256"],
                                         created_at=row["created_at"])


UPDATE_CRC32 = """
-- found out afterwards
UPDATE blobs SET crc32 = $2 WHERE id = $1
"""


async def update_crc32(conn: Connection, key: BlobKey, crc32: int) -> None:
    """Write down the checksum of a blob that was stored without it."""
    await conn.execute(UPDATE_CRC32, key, crc32)


LOCK_BLOBS = """
-- of two transactions that delete the last two references, or delete one and add one, the second sees what the first
-- did: a new version locks its blob as well (by its foreign key)
SELECT FROM blobs WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE
"""


async def lock_blobs(conn: Connection, keys: list[BlobKey]) -> None:
    """Keep others from referring to these blobs, and from letting go of them, until the transaction ends."""
    await conn.execute(LOCK_BLOBS, keys, timeout=600)


RELEASE_BLOBS = """
-- mark what no version refers to any more; its bytes are removed later, behind the fence
UPDATE blobs SET unref_since = now()
WHERE id = ANY($1::uuid[]) AND NOT EXISTS (SELECT FROM versions WHERE versions.blob_id = blobs.id)
"""


async def release_blobs(conn: Connection, keys: list[BlobKey]) -> None:
    """Let go of blobs whose versions were deleted in this transaction."""
    if not keys:
        return
    await lock_blobs(conn, keys)
    await conn.execute(RELEASE_BLOBS, keys, timeout=600)


RELEASE_USER = """
-- mark what only this account's versions refer to, which are about to be deleted
UPDATE blobs SET unref_since = now()
WHERE id IN (SELECT blob_id FROM files JOIN versions ON versions.file_id = files.id WHERE user_id = $1)
  AND NOT EXISTS (SELECT FROM versions JOIN files ON files.id = versions.file_id
                  WHERE versions.blob_id = blobs.id AND user_id <> $1)
"""


async def release_user(conn: Connection, user_id: UserId) -> None:
    """Let go of all blobs of an account, which is deleted in this transaction."""
    await conn.execute(RELEASE_USER, user_id, timeout=600)


KEEP_BLOBS = """
-- referred to again, by versions of this transaction
UPDATE blobs SET unref_since = NULL WHERE id = ANY($1::uuid[]) AND unref_since IS NOT NULL
"""


async def keep_blobs(conn: Connection, keys: list[BlobKey]) -> None:
    """Take blobs that are referred to again off the list of garbage."""
    await conn.execute(KEEP_BLOBS, keys)


LOCK_UNREFERENCED = """
-- what nothing has referred to for the grace time; while it is locked nothing can begin to
SELECT id FROM blobs WHERE referable AND unref_since < now() - make_interval(secs => $1)
ORDER BY unref_since LIMIT $2 FOR UPDATE SKIP LOCKED
"""


async def lock_unreferenced(conn: Connection, *, grace_seconds: float, limit: int) -> list[BlobKey]:
    """Lock candidates for `fence_blobs`; those that somebody is about to refer to are passed over."""
    return [BlobKey(row["id"]) for row in await conn.fetch(LOCK_UNREFERENCED, grace_seconds, limit)]


FENCE_BLOBS = """
-- after this commits no version can refer to them: the foreign key of versions refuses.  A statement of its own, since
-- that of the lock does not see a reference that was committed while it ran
UPDATE blobs SET referable = false, fenced_at = now()
WHERE id = ANY($1::uuid[]) AND NOT EXISTS (SELECT FROM versions WHERE versions.blob_id = blobs.id)
"""


async def fence_blobs(conn: Connection, keys: list[BlobKey]) -> None:
    """Fence locked blobs, but for those that something refers to after all."""
    await conn.execute(FENCE_BLOBS, keys)


LIST_FENCED = """
-- what may be removed from the disk, but for what could not be, and for strays, which are set aside for their days
SELECT id, size_bytes FROM blobs WHERE NOT referable AND id <> ALL($1::uuid[])
  AND NOT EXISTS (SELECT FROM strays WHERE blob_id = id AND quarantined_at IS NOT NULL)
ORDER BY fenced_at LIMIT $2
"""


async def list_fenced(conn: Connection, *, skip: list[BlobKey], limit: int) -> list[tuple[BlobKey, int]]:
    """Keys and sizes of fenced blobs."""
    return [(BlobKey(row["id"]), row["size_bytes"]) for row in await conn.fetch(LIST_FENCED, skip, limit)]


DELETE_FENCED = """
-- their bytes are gone
DELETE FROM blobs WHERE id = ANY($1::uuid[]) AND NOT referable
"""


async def delete_fenced(conn: Connection, keys: list[BlobKey]) -> None:
    """Forget fenced blobs whose bytes were removed."""
    await conn.execute(DELETE_FENCED, keys)
