"""The trash: files and folders that were deleted and can come back."""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from service.db.pool import Connection, refuse_unfit_name
from service.model import FileId, TrashItem, UserId

SUM_TREE = """
-- what a file, or a folder with everything below it, holds: current and former versions apart
WITH RECURSIVE tree AS (
    SELECT id, is_folder, head_id FROM files WHERE id = $1
    UNION ALL
    SELECT files.id, files.is_folder, files.head_id FROM tree JOIN files ON files.parent_id = tree.id
)
SELECT coalesce(sum(size_bytes) FILTER (WHERE versions.id = tree.head_id), 0)::bigint AS files_bytes,
       coalesce(sum(size_bytes) FILTER (WHERE versions.id <> tree.head_id), 0)::bigint AS versions_bytes,
       count(*) FILTER (WHERE versions.id = tree.head_id) AS file_count
FROM tree
LEFT JOIN versions ON versions.file_id = tree.id
LEFT JOIN blobs ON blobs.id = versions.blob_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a file or a folder holds."""

    files_bytes: int
    versions_bytes: int
    file_count: int


async def sum_tree(conn: Connection, file_id: FileId) -> Held:
    """What there is at and below a file or folder."""
    row = await conn.fetchrow(SUM_TREE, file_id, timeout=600)
    assert row is not None
    return Held(**dict(row))


UPDATE_TRASHED = """
-- into the trash: out of its folder, below the root, where no path leads
UPDATE files SET deleted_at = now(), trashed_from = $2, trashed_parent_id = parent_id, parent_id = user_id
WHERE id = $1 AND deleted_at IS NULL
"""


async def update_trashed(conn: Connection, file_id: FileId, path: str) -> None:
    """Put a live file or folder into the trash; `path` is where it was."""
    await conn.execute(UPDATE_TRASHED, file_id, path)


LIST_TRASH = """
-- newest first; a page begins behind the last item of the one before
SELECT files.id, is_folder, name, trashed_from, trashed_parent_id, deleted_at, held.size_bytes, held.file_count
FROM (SELECT * FROM files WHERE user_id = $1 AND deleted_at IS NOT NULL
          AND ($2::timestamptz IS NULL OR (deleted_at, id) < ($2, $3))
      ORDER BY deleted_at DESC, id DESC LIMIT $4) AS files
CROSS JOIN LATERAL (
    WITH RECURSIVE tree AS (
        SELECT files.id, files.is_folder
        UNION ALL
        SELECT child.id, child.is_folder FROM tree JOIN files AS child ON child.parent_id = tree.id
    )
    SELECT coalesce(sum(blobs.size_bytes), 0)::bigint AS size_bytes,
           count(DISTINCT tree.id) FILTER (WHERE NOT tree.is_folder) AS file_count
    FROM tree LEFT JOIN versions ON versions.file_id = tree.id LEFT JOIN blobs ON blobs.id = versions.blob_id
) AS held
ORDER BY deleted_at DESC, files.id DESC
"""


async def list_trash(conn: Connection, user_id: UserId, *, after: tuple[datetime, FileId] | None,
                     limit: int) -> list[TrashItem]:
    """A page of the account's trash."""
    deleted_at, file_id = after or (None, None)
    return [_item(row) for row in await conn.fetch(LIST_TRASH, user_id, deleted_at, file_id, limit, timeout=120)]


LOCK_TRASHED = """
-- an item of the account's trash, locked against a second restoration; with a time only if it was put there at that
SELECT id, is_folder, name, trashed_from, trashed_parent_id, deleted_at, 0::bigint AS size_bytes,
       0::bigint AS file_count
FROM files WHERE id = $2 AND user_id = $1 AND deleted_at IS NOT NULL
  AND ($3::timestamptz IS NULL OR deleted_at = $3) FOR UPDATE
"""


async def lock_trashed(conn: Connection, user_id: UserId, file_id: FileId, *,
                       deleted_at: datetime | None = None) -> TrashItem | None:
    """Lock an item of the account's trash (its sizes are not counted here); None if there is none of that id.

    With `deleted_at` there is none either if it was restored and put there again since.
    """
    row = await conn.fetchrow(LOCK_TRASHED, user_id, file_id, deleted_at)
    return None if row is None else _item(row)


def _item(row: asyncpg.Record) -> TrashItem:
    return TrashItem(
        id=FileId(row["id"]), is_folder=row["is_folder"], name=row["name"], path=row["trashed_from"],
        parent_id=None if row["trashed_parent_id"] is None else FileId(row["trashed_parent_id"]),
        size_bytes=row["size_bytes"], file_count=row["file_count"], deleted_at=row["deleted_at"])


UPDATE_RESTORED = """
-- out of the trash, into a folder that has no such name
UPDATE files SET deleted_at = NULL, trashed_from = NULL, trashed_parent_id = NULL, parent_id = $2, name = $3
WHERE id = $1
"""


async def update_restored(conn: Connection, file_id: FileId, *, parent_id: FileId, name: str) -> None:
    """Bring a locked item of the trash back; the name has to be free, which the tree's lock keeps so."""
    with refuse_unfit_name("to"):
        await conn.execute(UPDATE_RESTORED, file_id, parent_id, name)


LIST_EXPIRED_TRASH = """
-- what has been in the trash for too long, but for what could not be deleted
SELECT user_id, id, deleted_at FROM files WHERE deleted_at < now() - make_interval(secs => $1) AND id <> ALL($2::uuid[])
ORDER BY deleted_at LIMIT $3
"""


async def list_expired_trash(conn: Connection, *, age_seconds: float, skip: list[FileId],
                             limit: int) -> list[tuple[UserId, FileId, datetime]]:
    """Accounts and items whose time in the trash is over, and when they were put there."""
    return [(UserId(row["user_id"]), FileId(row["id"]), row["deleted_at"])
            for row in await conn.fetch(LIST_EXPIRED_TRASH, age_seconds, skip, limit)]


IS_NAME_TAKEN = """
-- whether a folder has a live file or folder of that name
SELECT true FROM files WHERE parent_id = $1 AND name = $2 AND deleted_at IS NULL
"""


async def is_name_taken(conn: Connection, parent_id: FileId, name: str) -> bool:
    """Whether the name is taken; holds only under the tree's lock."""
    return await conn.fetchval(IS_NAME_TAKEN, parent_id, name) is not None
