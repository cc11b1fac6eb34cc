"""Whether the rows agree with each other: sums of what accounts hold, trees, current versions.

Everything is counted anew from the files and versions; the queries of one look belong into one snapshot.
"""

from dataclasses import dataclass

from service.db.pool import Connection
from service.model import BlobKey, FileId, UserId

LONG_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What an account's row says it holds, and what counting gives: bytes of files, trash, versions; files."""

    user_id: UserId
    username: str
    recorded: tuple[int, int, int, int]
    counted: tuple[int, int, int, int]


LIST_DRIFT = """
-- accounts whose sums are not what counting gives
WITH RECURSIVE trashed AS (
    SELECT id FROM files WHERE deleted_at IS NOT NULL
    UNION
    SELECT files.id FROM trashed JOIN files ON files.parent_id = trashed.id
), held AS (
    SELECT user_id,
           coalesce(sum(size_bytes) FILTER (WHERE trashed.id IS NULL AND versions.id = head_id), 0) AS files_bytes,
           coalesce(sum(size_bytes) FILTER (WHERE trashed.id IS NOT NULL), 0) AS trash_bytes,
           coalesce(sum(size_bytes) FILTER (WHERE trashed.id IS NULL AND versions.id <> head_id), 0) AS versions_bytes,
           count(*) FILTER (WHERE trashed.id IS NULL AND versions.id = head_id) AS file_count
    FROM versions
    JOIN files ON files.id = file_id
    JOIN blobs ON blobs.id = blob_id
    LEFT JOIN trashed ON trashed.id = file_id
    GROUP BY user_id
), counted AS (
    SELECT id, username, users.files_bytes, users.trash_bytes, users.versions_bytes, users.file_count,
           coalesce(held.files_bytes, 0)::bigint AS held_files_bytes,
           coalesce(held.trash_bytes, 0)::bigint AS held_trash_bytes,
           coalesce(held.versions_bytes, 0)::bigint AS held_versions_bytes,
           coalesce(held.file_count, 0)::bigint AS held_file_count
    FROM users LEFT JOIN held ON held.user_id = users.id
)
SELECT * FROM counted
WHERE (files_bytes, trash_bytes, versions_bytes, file_count)
   <> (held_files_bytes, held_trash_bytes, held_versions_bytes, held_file_count)
ORDER BY username
"""


async def list_drift(conn: Connection) -> list[Drift]:
    """Accounts with wrong sums."""
    return [Drift(user_id=UserId(row["id"]), username=row["username"],
                  recorded=(row["files_bytes"], row["trash_bytes"], row["versions_bytes"], row["file_count"]),
                  counted=(row["held_files_bytes"], row["held_trash_bytes"], row["held_versions_bytes"],
                           row["held_file_count"]))
            for row in await conn.fetch(LIST_DRIFT, timeout=LONG_SECONDS)]


UPDATE_COUNTED_USAGE = """
-- what counting gives; nobody else may be changing the account's tree
WITH RECURSIVE trashed AS (
    SELECT id FROM files WHERE user_id = $1 AND deleted_at IS NOT NULL
    UNION
    SELECT files.id FROM trashed JOIN files ON files.parent_id = trashed.id
), held AS (
    SELECT coalesce(sum(size_bytes) FILTER (WHERE trashed.id IS NULL AND versions.id = head_id), 0) AS files_bytes,
           coalesce(sum(size_bytes) FILTER (WHERE trashed.id IS NOT NULL), 0) AS trash_bytes,
           coalesce(sum(size_bytes) FILTER (WHERE trashed.id IS NULL AND versions.id <> head_id), 0) AS versions_bytes,
           count(*) FILTER (WHERE trashed.id IS NULL AND versions.id = head_id) AS file_count
    FROM versions
    JOIN files ON files.id = file_id
    JOIN blobs ON blobs.id = blob_id
    LEFT JOIN trashed ON trashed.id = file_id
    WHERE user_id = $1
)
UPDATE users SET files_bytes = held.files_bytes, trash_bytes = held.trash_bytes, versions_bytes = held.versions_bytes,
    file_count = held.file_count
FROM held WHERE id = $1
"""


async def update_counted_usage(conn: Connection, user_id: UserId) -> None:
    """Make an account's sums what they are; `files.lock_tree` comes before, in the same transaction."""
    await conn.execute(UPDATE_COUNTED_USAGE, user_id, timeout=LONG_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A file or folder, or an account without either, that is not as the schema means it to be."""

    user_id: UserId
    file_id: FileId
    what: str


LIST_TREE_FAULTS = """
-- what no constraint can see: circles, and accounts without a root; and names, in case the database has learned better
WITH RECURSIVE reached AS (
    SELECT id, user_id FROM files WHERE parent_id IS NULL AND id = user_id AND deleted_at IS NULL
    UNION ALL
    SELECT files.id, files.user_id FROM reached JOIN files ON files.parent_id = reached.id
)
SELECT user_id, id, 'not reached from the root folder of its account' AS what
FROM files WHERE NOT EXISTS (SELECT FROM reached WHERE reached.id = files.id AND reached.user_id = files.user_id)
UNION ALL
SELECT id, id, 'the account has no root folder' FROM users
WHERE NOT EXISTS (SELECT FROM files WHERE files.id = users.id AND parent_id IS NULL)
UNION ALL
SELECT user_id, id, 'its name is not in the normal form C' FROM files
WHERE parent_id IS NOT NULL AND name IS NOT NFC NORMALIZED
UNION ALL
SELECT user_id, min(id::text)::uuid, 'another one in the same folder has its name' FROM files
WHERE deleted_at IS NULL AND parent_id IS NOT NULL GROUP BY user_id, parent_id, name HAVING count(*) > 1
"""


async def list_tree_faults(conn: Connection) -> list[Fault]:
    """Files and folders that are in no tree, or wrong in it."""
    return [Fault(user_id=UserId(row["user_id"]), file_id=FileId(row["id"]), what=row["what"])
            for row in await conn.fetch(LIST_TREE_FAULTS, timeout=LONG_SECONDS)]


LIST_VERSION_FAULTS = """
-- the current version of a file is its own, its newest, and the only one that was not replaced; each has its blob
SELECT user_id, files.id, 'it has no current version of its own' AS what
FROM files LEFT JOIN versions ON versions.id = head_id AND file_id = files.id
WHERE NOT is_folder AND (versions.id IS NULL OR head_bytes <> blob_bytes)
UNION ALL
SELECT user_id, files.id, format('version %s is taken for a former one, and is not', number)
FROM files JOIN versions ON versions.id = head_id AND file_id = files.id WHERE replaced_at IS NOT NULL
UNION ALL
SELECT user_id, files.id, format('version %s should be the current one, or a former one', other.number)
FROM files
JOIN versions AS head ON head.id = head_id
JOIN versions AS other ON other.file_id = files.id AND other.id <> head_id
WHERE other.replaced_at IS NULL OR other.number >= head.number
UNION ALL
SELECT user_id, files.id, format('version %s has no blob that may be referred to', number)
FROM versions JOIN files ON files.id = file_id LEFT JOIN blobs ON blobs.id = blob_id
WHERE blobs.id IS NULL OR NOT referable OR blobs.size_bytes <> blob_bytes
"""


async def list_version_faults(conn: Connection) -> list[Fault]:
    """Files whose versions do not belong together."""
    return [Fault(user_id=UserId(row["user_id"]), file_id=FileId(row["id"]), what=row["what"])
            for row in await conn.fetch(LIST_VERSION_FAULTS, timeout=LONG_SECONDS)]


LIST_WRONG_MARKS = """
-- garbage that no sweep would find, and what is on its list although something refers to it
SELECT id, unref_since IS NULL AS is_garbage FROM blobs
WHERE referable AND (unref_since IS NULL) <> EXISTS (SELECT FROM versions WHERE versions.blob_id = blobs.id)
ORDER BY id LIMIT $1
"""


async def list_wrong_marks(conn: Connection, *, limit: int) -> dict[BlobKey, bool]:
    """Blobs that are not on the sweep's list and should be (True), or are and should not be."""
    return {BlobKey(row["id"]): row["is_garbage"]
            for row in await conn.fetch(LIST_WRONG_MARKS, limit, timeout=LONG_SECONDS)}


UPDATE_MARKS = """
-- as it is now that nobody can change it; a statement of its own, since that of the lock may have seen less
UPDATE blobs SET unref_since = CASE WHEN unref_since IS NULL THEN now() END
WHERE id = ANY($1::uuid[]) AND referable
  AND (unref_since IS NULL) <> EXISTS (SELECT FROM versions WHERE versions.blob_id = blobs.id)
"""


async def update_marks(conn: Connection, keys: list[BlobKey]) -> None:
    """Put blobs on the sweep's list, or take them off; `blobs.lock_blobs` comes before."""
    await conn.execute(UPDATE_MARKS, keys)
