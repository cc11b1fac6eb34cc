"""Versions: what a file held and holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from service.db.pool import Connection
from service.model import BlobKey, FileId, UserId, Version, VersionId

GET_VERSION = """
-- a version of a file by its id
SELECT versions.id, number, size_bytes, sha256, content_type, blob_id, versions.created_at,
       replaced_at IS NULL AS is_current
FROM versions JOIN blobs ON blobs.id = blob_id WHERE versions.id = $1
"""


async def get_version(conn: Connection, version_id: VersionId) -> Version:
    """A version that is there, since its file's row is locked."""
    row = await conn.fetchrow(GET_VERSION, version_id)
    assert row is not None
    return _version(row)


GET_NUMBERED = """
-- a version of a file by its number
SELECT versions.id, number, size_bytes, sha256, content_type, blob_id, versions.created_at,
       replaced_at IS NULL AS is_current
FROM versions JOIN blobs ON blobs.id = blob_id WHERE file_id = $1 AND number = $2
"""


async def get_numbered(conn: Connection, file_id: FileId, number: int) -> Version | None:
    """The version of that number, or None."""
    row = await conn.fetchrow(GET_NUMBERED, file_id, number)
    return None if row is None else _version(row)


LIST_VERSIONS = """
-- all of a file, newest first
SELECT versions.id, number, size_bytes, sha256, content_type, blob_id, versions.created_at,
       replaced_at IS NULL AS is_current
FROM versions JOIN blobs ON blobs.id = blob_id WHERE file_id = $1 ORDER BY number DESC
"""


async def list_versions(conn: Connection, file_id: FileId) -> list[Version]:
    """What the file held and holds."""
    return [_version(row) for row in await conn.fetch(LIST_VERSIONS, file_id)]


def _version(row: asyncpg.Record) -> Version:
    return Version(id=VersionId(row["id"]), number=row["number"], size_bytes=row["size_bytes"], sha256=row["sha256"],
                   content_type=row["content_type"], blob_key=BlobKey(row["blob_id"]), created_at=row["created_at"],
                   is_current=row["is_current"])


INSERT_VERSION = """
-- the new content of a file
INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type)
VALUES ($1, $2, $3, $4, (SELECT size_bytes FROM blobs WHERE id = $4), $5)
"""


async def insert_version(conn: Connection, *, version_id: VersionId, file_id: FileId, number: int, blob_key: BlobKey,
                         content_type: str) -> None:
    """Add a version; the blob's row has to be there."""
    await conn.execute(INSERT_VERSION, version_id, file_id, number, blob_key, content_type)


UPDATE_REPLACED = """
-- it was the current version until now
UPDATE versions SET replaced_at = now() WHERE id = $1
"""


async def update_replaced(conn: Connection, version_id: VersionId) -> None:
    """Make the current version a former one; the head has to move in the same transaction."""
    await conn.execute(UPDATE_REPLACED, version_id)


@dataclass(slots=True, kw_only=True)
class Pruned:
    """What a deletion of former versions freed."""

    blob_keys: list[BlobKey] = field(default_factory=list)
    size_bytes: int = 0


DELETE_FORMER = """
-- former versions of files but for the newest few of each
DELETE FROM versions WHERE id IN (
    SELECT former.id FROM unnest($1::uuid[]) AS file (id)
    CROSS JOIN LATERAL (SELECT versions.id FROM versions WHERE file_id = file.id AND replaced_at IS NOT NULL
        ORDER BY number DESC OFFSET $2) AS former)
RETURNING file_id, blob_id, blob_bytes
"""


async def delete_former(conn: Connection, file_ids: Sequence[FileId], *, keep: int) -> Mapping[FileId, Pruned]:
    """Forget all but the newest `keep` former versions of each; `blobs.release_blobs` and a charge follow."""
    pruned: dict[FileId, Pruned] = {file_id: Pruned() for file_id in file_ids}
    for row in await conn.fetch(DELETE_FORMER, file_ids, keep):
        found = pruned[FileId(row["file_id"])]
        found.blob_keys.append(BlobKey(row["blob_id"]))
        found.size_bytes += row["blob_bytes"]
    return pruned


DELETE_NUMBERED = """
-- one former version
DELETE FROM versions WHERE file_id = $1 AND number = $2 AND replaced_at IS NOT NULL RETURNING blob_id, blob_bytes
"""


async def delete_numbered(conn: Connection, file_id: FileId, number: int) -> Pruned:
    """Forget one former version, if it is one; the same has to follow."""
    return _pruned(await conn.fetch(DELETE_NUMBERED, file_id, number))


LIST_FILES_WITH_OLD = """
-- files that have versions which were replaced too long ago, but for those that would not go; what is itself in the
-- trash goes with that
SELECT DISTINCT user_id, file_id FROM versions JOIN files ON files.id = file_id
WHERE replaced_at < now() - make_interval(secs => $1) AND deleted_at IS NULL AND file_id <> ALL($2::uuid[]) LIMIT $3
"""


async def list_files_with_old(conn: Connection, *, age_seconds: float, skip: list[FileId],
                              limit: int) -> list[tuple[UserId, FileId]]:
    """Accounts and their files with versions that were replaced longer ago than that."""
    return [(UserId(row["user_id"]), FileId(row["file_id"]))
            for row in await conn.fetch(LIST_FILES_WITH_OLD, age_seconds, skip, limit)]


DELETE_OLD = """
-- former versions of a file that were replaced too long ago
DELETE FROM versions WHERE file_id = $1 AND replaced_at < now() - make_interval(secs => $2)
RETURNING blob_id, blob_bytes
"""


async def delete_old(conn: Connection, file_id: FileId, *, age_seconds: float) -> Pruned:
    """Forget versions replaced longer ago than that; the same has to follow."""
    return _pruned(await conn.fetch(DELETE_OLD, file_id, age_seconds))


def _pruned(rows: list[asyncpg.Record]) -> Pruned:
    return Pruned(blob_keys=[BlobKey(row["blob_id"]) for row in rows],
                  size_bytes=sum(row["blob_bytes"] for row in rows))
