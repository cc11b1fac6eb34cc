"""Folders: what is below one."""

from service.db.pool import Connection
from service.model import Contents, FileId

GET_CONTENTS = """
-- what is below a folder: the folders first, which are few, then their files from an index
WITH RECURSIVE folders AS (
    SELECT $1::uuid AS id
    UNION ALL
    SELECT child.id FROM folders JOIN files AS child ON child.parent_id = folders.id
    WHERE child.is_folder AND child.deleted_at IS NULL
)
SELECT (SELECT count(*) - 1 FROM folders) AS folder_count, count(head_bytes) AS file_count,
       coalesce(sum(head_bytes), 0)::bigint AS size_bytes
FROM folders JOIN files ON files.parent_id = folders.id
WHERE NOT is_folder AND deleted_at IS NULL
"""


async def get_contents(conn: Connection, folder_id: FileId) -> Contents:
    """Count what is below a folder, at any depth."""
    row = await conn.fetchrow(GET_CONTENTS, folder_id)
    assert row is not None
    return Contents(**dict(row))


GET_EXTENT = """
-- how far down the tree goes below a folder, in levels and in bytes of the longest path
WITH RECURSIVE below AS (
    SELECT $1::uuid AS id, 0 AS depth, 0 AS size_bytes
    UNION ALL
    SELECT child.id, below.depth + 1, below.size_bytes + 1 + octet_length(child.name)
    FROM below JOIN files AS child ON child.parent_id = below.id
    WHERE child.deleted_at IS NULL
)
SELECT max(depth) AS depth, max(size_bytes) AS size_bytes FROM below
"""


async def get_extent(conn: Connection, folder_id: FileId) -> tuple[int, int]:
    """Levels, and bytes that the longest path below the folder has more than the folder's own."""
    row = await conn.fetchrow(GET_EXTENT, folder_id)
    assert row is not None
    return row["depth"], row["size_bytes"]


GET_EXTENT_OF_FOLDERS = """
-- the same of the folders alone, which are few
WITH RECURSIVE below AS (
    SELECT $1::uuid AS id, 0 AS depth, 0 AS size_bytes
    UNION ALL
    SELECT child.id, below.depth + 1, below.size_bytes + 1 + octet_length(child.name)
    FROM below JOIN files AS child ON child.parent_id = below.id
    WHERE child.is_folder AND child.deleted_at IS NULL
)
SELECT max(depth) AS depth, max(size_bytes) AS size_bytes FROM below
"""


async def get_extent_of_folders(conn: Connection, folder_id: FileId) -> tuple[int, int]:
    """Levels and bytes as above, without the files in the folders."""
    row = await conn.fetchrow(GET_EXTENT_OF_FOLDERS, folder_id)
    assert row is not None
    return row["depth"], row["size_bytes"]
