"""What goes into the archive of a folder."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from service.db.pool import Connection
from service.model import BlobKey, FileId

LIST_TREE = """
-- everything below a folder, folder by folder, each one before what is in it
WITH RECURSIVE folders AS (
    SELECT id, '/' COLLATE "C" AS path FROM files WHERE id = $1
    UNION ALL
    SELECT child.id, folders.path || child.name || '/'
    FROM folders JOIN files AS child ON child.parent_id = folders.id
    WHERE child.is_folder AND child.deleted_at IS NULL
)
SELECT files.id, parent_id, name, is_folder, updated_at, blob_id, blob_bytes, crc32
FROM folders
JOIN files ON files.parent_id = folders.id AND deleted_at IS NULL
LEFT JOIN versions ON versions.id = head_id
LEFT JOIN blobs ON blobs.id = blob_id
ORDER BY path, name
"""
ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A file or folder below the folder; a folder has no blob."""

    id: FileId
    parent_id: FileId
    name: str
    updated_at: datetime
    blob_key: BlobKey | None
    size_bytes: int
    crc32: int | None


async def list_tree(conn: Connection, folder_id: FileId) -> AsyncIterator[list[Row]]:
    """Everything below a folder, in one snapshot and constant memory; inside a transaction."""
    cursor = await conn.cursor(LIST_TREE, folder_id, timeout=600)
    while rows := await cursor.fetch(ROWS_AT_ONCE):
        yield [Row(id=FileId(row["id"]), parent_id=FileId(row["parent_id"]), name=row["name"],
                   updated_at=row["updated_at"], blob_key=None if row["is_folder"] else BlobKey(row["blob_id"]),
                   size_bytes=row["blob_bytes"] or 0, crc32=0 if row["is_folder"] else row["crc32"]) for row in rows]
