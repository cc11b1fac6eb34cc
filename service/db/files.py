"""The tree: files and folders by path and by id."""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from service.db.pool import Connection, refuse_unfit_name
from service.errors import IsAFolder
from service.model import BlobKey, File, FileId, Folder, UserId, VersionId

LOCK_TREE_SHARED = """
-- changes of single files go side by side; they only wait for a change of the folders' structure
SELECT pg_advisory_xact_lock_shared(hashtextextended($1::uuid::text, 1))
"""


async def lock_tree_shared(conn: Connection, user_id: UserId) -> None:
    """Keep the account's folders where they are until the transaction ends."""
    await conn.execute(LOCK_TREE_SHARED, user_id)


LOCK_TREE = """
-- a folder is about to be deleted or moved: nobody may be on the way through it
SELECT pg_advisory_xact_lock(hashtextextended($1::uuid::text, 1))
"""


async def lock_tree(conn: Connection, user_id: UserId) -> None:
    """Have the account's tree alone until the transaction ends."""
    await conn.execute(LOCK_TREE, user_id)


INSERT_ROOT = """
-- the root folder of a new account has the account's own id
INSERT INTO files (id, user_id, name, is_folder) VALUES ($1, $1, '', true)
"""


async def insert_root(conn: Connection, user_id: UserId) -> None:
    """Give a new account its tree."""
    await conn.execute(INSERT_ROOT, user_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How far a path exists: the deepest file or folder on it, and how many names led there."""

    id: FileId
    is_folder: bool
    depth: int


WALK = """
-- from the root along the names, as far as there is something
WITH RECURSIVE walk AS (
    SELECT id, is_folder, 0 AS depth, ($2::text[])[1] AS next_name FROM files WHERE id = $1
    UNION ALL
    SELECT child.id, child.is_folder, walk.depth + 1, ($2::text[])[walk.depth + 2]
    FROM walk
    -- this is planned when nothing is known yet.  As a join, which the limit keeps it from, it would read every file;
    -- with an expression for the name the whole folder, since its index seems to cost more then
    CROSS JOIN LATERAL (SELECT id, is_folder FROM files
        WHERE parent_id = walk.id AND name = next_name AND deleted_at IS NULL LIMIT 1) AS child
    WHERE walk.depth < cardinality($2::text[])
)
SELECT id, is_folder, depth FROM walk ORDER BY depth DESC LIMIT 1
"""


async def walk(conn: Connection, user_id: UserId, path: tuple[str, ...]) -> Reached | None:
    """How far the path exists; None if the account does not."""
    row = await conn.fetchrow(WALK, user_id, path)
    return None if row is None else Reached(id=FileId(row["id"]), is_folder=row["is_folder"], depth=row["depth"])


GET_BY_PATH = """
-- the file or folder at the end of a path, with its current version
WITH RECURSIVE walk AS (
    SELECT id, 0 AS depth, ($2::text[])[1] AS next_name FROM files WHERE id = $1
    UNION ALL
    SELECT child.id, walk.depth + 1, ($2::text[])[walk.depth + 2]
    FROM walk
    CROSS JOIN LATERAL (SELECT id FROM files
        WHERE parent_id = walk.id AND name = next_name AND deleted_at IS NULL LIMIT 1) AS child
    WHERE walk.depth < cardinality($2::text[])
)
SELECT files.id, files.name, is_folder, files.created_at, updated_at, '/' || array_to_string($2::text[], '/') AS path,
       versions.id AS version_id, number, content_type, blob_id, size_bytes, sha256
FROM walk
JOIN files ON files.id = walk.id
LEFT JOIN versions ON versions.id = files.head_id
LEFT JOIN blobs ON blobs.id = blob_id
WHERE walk.depth = cardinality($2::text[])
"""


async def get_by_path(conn: Connection, user_id: UserId, path: tuple[str, ...]) -> File | Folder | None:
    """The file or folder at the path, or None."""
    row = await conn.fetchrow(GET_BY_PATH, user_id, path)
    return None if row is None else _file_or_folder(row)


GET_BY_ID = """
-- a file or folder of the account by its id; its path from the names upwards, all of which have to be live
WITH RECURSIVE up AS (
    SELECT id, parent_id, name, deleted_at, 0 AS level FROM files WHERE id = $2 AND user_id = $1
    UNION ALL
    SELECT parent.id, parent.parent_id, parent.name, parent.deleted_at, up.level + 1
    FROM up JOIN files AS parent ON parent.id = up.parent_id
), path AS (
    SELECT CASE count(*) WHEN 1 THEN '/' ELSE string_agg(name, '/' ORDER BY level DESC) END AS path
    FROM up HAVING bool_and(deleted_at IS NULL) AND bool_or(parent_id IS NULL)
)
SELECT files.id, files.name, is_folder, files.created_at, updated_at, path,
       versions.id AS version_id, number, content_type, blob_id, size_bytes, sha256
FROM path
CROSS JOIN files
LEFT JOIN versions ON versions.id = files.head_id
LEFT JOIN blobs ON blobs.id = blob_id
WHERE files.id = $2
"""


async def get_by_id(conn: Connection, user_id: UserId, file_id: FileId) -> File | Folder | None:
    """The account's file or folder with that id, or None: also for another account's."""
    row = await conn.fetchrow(GET_BY_ID, user_id, file_id)
    return None if row is None else _file_or_folder(row)


def _file_or_folder(row: asyncpg.Record) -> File | Folder:
    if row["is_folder"]:
        return Folder(id=FileId(row["id"]), name=row["name"], path=row["path"], created_at=row["created_at"],
                      updated_at=row["updated_at"])
    return File(
        id=FileId(row["id"]), name=row["name"], path=row["path"], size_bytes=row["size_bytes"], sha256=row["sha256"],
        content_type=row["content_type"], version=row["number"], version_id=VersionId(row["version_id"]),
        blob_key=BlobKey(row["blob_id"]), created_at=row["created_at"], updated_at=row["updated_at"])


INSERT_FOLDER = """
-- make a folder, or find the one that somebody else made a moment ago
INSERT INTO files (id, user_id, parent_id, name, is_folder) VALUES ($1, $2, $3, $4, true)
ON CONFLICT (parent_id, name) WHERE deleted_at IS NULL DO UPDATE SET name = excluded.name
RETURNING id, is_folder
"""


async def insert_folder(conn: Connection, *, folder_id: FileId, user_id: UserId, parent_id: FileId,
                        name: str) -> tuple[FileId, bool]:
    """Make a folder; the id of what has that name now, and whether that is a folder."""
    with refuse_unfit_name("path"):
        row = await conn.fetchrow(INSERT_FOLDER, folder_id, user_id, parent_id, name)
    assert row is not None
    return FileId(row["id"]), row["is_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A file's row, locked: `head_id` is its version before this change, or the new one if the file is new."""

    id: FileId
    head_id: VersionId
    created_at: datetime
    updated_at: datetime


CLAIM_FILE = """
-- make the file or lock the one that is there; nothing is returned if the name is a folder's.  The time is that of the
-- lock, not of the transaction's begin, so that a later version never has an earlier one
INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes) VALUES ($1, $2, $3, $4, false, $5, $6)
ON CONFLICT (parent_id, name) WHERE deleted_at IS NULL
    DO UPDATE SET updated_at = greatest(clock_timestamp(), files.updated_at) WHERE NOT files.is_folder
RETURNING id, head_id, created_at, updated_at
"""


async def claim_file(conn: Connection, *, file_id: FileId, user_id: UserId, parent_id: FileId, name: str,
                     version_id: VersionId, size_bytes: int) -> Claimed:
    """Make a file whose version follows in this transaction, or lock the one of that name; raise IsAFolder."""
    with refuse_unfit_name("path"):
        row = await conn.fetchrow(CLAIM_FILE, file_id, user_id, parent_id, name, version_id, size_bytes)
    if row is None:
        raise IsAFolder(field="path")
    return Claimed(id=FileId(row["id"]), head_id=VersionId(row["head_id"]), created_at=row["created_at"],
                   updated_at=row["updated_at"])


UPDATE_HEAD = """
-- readers see the new version from the commit on
UPDATE files SET (head_id, head_bytes) = (SELECT id, blob_bytes FROM versions WHERE id = $2),
    updated_at = greatest(now(), updated_at)
WHERE id = $1
"""


async def update_head(conn: Connection, file_id: FileId, version_id: VersionId) -> None:
    """Point a file at its new version."""
    await conn.execute(UPDATE_HEAD, file_id, version_id)


LOCK_FILE = """
-- whoever changes this file waits
SELECT head_id FROM files WHERE id = $1 AND deleted_at IS NULL FOR UPDATE
"""


async def lock_file(conn: Connection, file_id: FileId) -> VersionId | None:
    """Lock a file; its current version, or None if it is gone (or a folder)."""
    head_id = await conn.fetchval(LOCK_FILE, file_id)
    return None if head_id is None else VersionId(head_id)


DELETE_TREE = """
-- a file, or a folder with everything below it; the versions follow by their foreign key; for each row PostgreSQL looks
-- whether anything is in it: planned for this account, of which the statistics may know nothing yet, it would take the
-- few rows of an unknown account for granted, and read all of them each time
WITH RECURSIVE doomed AS (
    SELECT id FROM files WHERE id = $1
    UNION ALL
    SELECT files.id FROM doomed JOIN files ON files.parent_id = doomed.id
), held AS (
    SELECT DISTINCT blob_id FROM doomed JOIN versions ON versions.file_id = doomed.id
), deleted AS (
    DELETE FROM files USING doomed, set_config('plan_cache_mode', 'force_generic_plan', true) AS plan,
                            set_config('enable_bitmapscan', 'off', true) AS scan
    WHERE files.id = doomed.id
)
SELECT blob_id FROM held
"""


async def delete_tree(conn: Connection, file_id: FileId) -> list[BlobKey]:
    """Delete for good; the blobs that were held.

    `trash.sum_tree` has to come before, `blobs.release_blobs` and `users.update_usage` have to follow.
    """
    return [BlobKey(row["blob_id"]) for row in await conn.fetch(DELETE_TREE, file_id, timeout=600)]
