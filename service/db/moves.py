"""Moves and copies: a move is one row, a copy is two statements, however much there is below a folder."""

from dataclasses import dataclass

import asyncpg

from service.db.pool import Connection, refuse_unfit_name
from service.errors import Conflict, NameTaken
from service.model import BlobKey, FileId, UserId

LOCK_FILES = """
-- always in this order, so that two changes of the same files wait for each other and not in a circle
SELECT id FROM files WHERE id = ANY($1::uuid[]) AND deleted_at IS NULL ORDER BY id FOR UPDATE
"""


async def lock_files(conn: Connection, file_ids: list[FileId]) -> None:
    """Have these files alone until the transaction ends; what they are may have changed meanwhile."""
    await conn.execute(LOCK_FILES, file_ids)


UPDATE_PLACE = """
-- everything below a folder comes along; a file's time is that of its content
UPDATE files SET parent_id = $2, name = $3, updated_at = CASE WHEN is_folder THEN now() ELSE updated_at END
WHERE id = $1
"""


async def update_place(conn: Connection, file_id: FileId, *, parent_id: FileId, name: str) -> None:
    """Give a file or folder another place; raise NameTaken."""
    try:
        with refuse_unfit_name("to"):
            await conn.execute(UPDATE_PLACE, file_id, parent_id, name)
    except asyncpg.UniqueViolationError:
        raise NameTaken(field="to") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy made."""

    blob_keys: list[BlobKey]
    size_bytes: int
    file_count: int
    entry_count: int


COPY_TREE = """
-- a file, or a folder with everything below it: new files whose only version refers to the blob of the current one;
-- their ids begin like that of the copy itself, with its time, so that all go into the same corner of each index
WITH RECURSIVE tree AS (
    SELECT is_folder, head_id, head_bytes, id, $2::uuid AS new_id, $3::uuid AS new_parent_id,
           $4::text COLLATE "C" AS new_name
    FROM files WHERE id = $1
    UNION ALL
    SELECT child.is_folder, child.head_id, child.head_bytes, child.id,
           (left($2::text, 15) || substr(gen_random_uuid()::text, 16))::uuid, tree.new_id, child.name
    FROM tree JOIN files AS child ON child.parent_id = tree.id AND child.deleted_at IS NULL
), source AS MATERIALIZED (
    SELECT * FROM tree LIMIT $6
), copied AS (
    INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes)
    SELECT new_id, $5, new_parent_id, new_name, is_folder, CASE WHEN NOT is_folder THEN new_id END, head_bytes
    FROM source
), held AS (
    INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type)
    SELECT new_id, new_id, 1, blob_id, blob_bytes, content_type
    FROM source JOIN versions ON versions.id = source.head_id
    RETURNING blob_id
)
SELECT ARRAY(SELECT DISTINCT blob_id FROM held) AS blob_ids, coalesce(sum(head_bytes), 0)::bigint AS size_bytes,
       count(head_id) AS file_count, count(*) AS entry_count
FROM source
"""


async def copy_tree(conn: Connection, source_id: FileId, *, user_id: UserId, new_id: FileId, parent_id: FileId,
                    name: str, at_most: int) -> Copied:
    """Copy; `blobs.keep_blobs` and `users.update_usage` have to follow.

    Of a tree with more than `at_most` files and folders as many are copied, and one: the transaction has to end then.
    Raises NameTaken, and Conflict if a blob was fenced meanwhile, which the foreign key of versions notices.
    """
    try:
        with refuse_unfit_name("to"):
            row = await conn.fetchrow(COPY_TREE, source_id, new_id, parent_id, name, user_id, at_most + 1,
                                      timeout=600)
    except asyncpg.UniqueViolationError:
        raise NameTaken(field="to") from None
    except asyncpg.ForeignKeyViolationError:
        raise Conflict() from None
    assert row is not None
    return Copied(blob_keys=row["blob_ids"], size_bytes=row["size_bytes"], file_count=row["file_count"],
                  entry_count=row["entry_count"])
