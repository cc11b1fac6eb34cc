"""New files, many at once: what a group of uploads comes to in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.db.pool import Connection
from service.model import FileId, SessionId, Staged, UserId, VersionId

LOCK_ACCOUNTS = """
-- of these accounts those that have room for so many bytes and whose folders stay where they are from now on; whoever
-- has a tree alone, or waits for that, is not waited for.  What follows in this transaction is planned once for all:
-- PostgreSQL would plan again for each number of files, at more than the cost of storing them
SELECT users.id
FROM set_config('plan_cache_mode', 'force_generic_plan', true)
CROSS JOIN unnest($1::uuid[], $2::bigint[]) AS wanted (id, bytes) JOIN users ON users.id = wanted.id
WHERE (quota_bytes IS NULL OR files_bytes + versions_bytes + trash_bytes + bytes <= quota_bytes)
  AND pg_try_advisory_xact_lock_shared(hashtextextended(wanted.id::text, 1))
"""


async def lock_accounts(conn: Connection, sizes: Mapping[UserId, int]) -> set[UserId]:
    """As `files.lock_tree_shared`, without ever waiting; for which accounts it succeeded.

    `sizes`: the bytes that each is about to be charged.  Room for them is a first look only.
    """
    rows = await conn.fetch(LOCK_ACCOUNTS, list(sizes), list(sizes.values()))
    return {UserId(row["id"]) for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file to be made, with its first version and its line in the trail; the names of `folder` lead from the root."""

    user_id: UserId
    folder: tuple[str, ...]
    name: str
    id: FileId
    version_id: VersionId
    staged: Staged
    content_type: str
    session_id: SessionId | None
    network: str | None
    request_id: str | None


INSERT_FILES = """
-- what has a free name in a folder that is there; the rest is left out.  Rows are made in the order of their names, so
-- that two of these never wait for each other
WITH RECURSIVE wanted AS (
    SELECT *, string_to_array(folder, '/') AS names
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::uuid[], $7::bigint[], $8::bytea[],
                $9::bigint[], $10::text[], $11::uuid[], $12::text[], $13::text[])
        AS wanted (user_id, folder, name, file_id, version_id, blob_id, size_bytes, sha256,
                   crc32, content_type, session_id, network, request_id)
), walk AS (
    SELECT DISTINCT user_id, folder, names, user_id AS id, 0 AS depth FROM wanted
    UNION ALL
    SELECT user_id, folder, names, child.id, depth + 1
    FROM walk
    -- the limit keeps this from becoming a join, which is planned when nothing is known yet and then reads every file
    CROSS JOIN LATERAL (SELECT id FROM files WHERE parent_id = walk.id AND name = names[depth + 1] AND is_folder
        AND deleted_at IS NULL LIMIT 1) AS child
    WHERE depth < cardinality(names)
), made AS (
    INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes)
    SELECT file_id, user_id, walk.id, name, false, version_id, size_bytes
    FROM wanted JOIN walk USING (user_id, folder)
    WHERE depth = cardinality(walk.names) AND name IS NFC NORMALIZED
    ORDER BY walk.id, name
    ON CONFLICT (parent_id, name) WHERE deleted_at IS NULL DO NOTHING
    RETURNING id, created_at, updated_at
), blob AS (
    INSERT INTO blobs (id, size_bytes, sha256, crc32)
    SELECT blob_id, size_bytes, sha256, crc32 FROM made JOIN wanted ON file_id = made.id
), version AS (
    INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type)
    SELECT version_id, file_id, 1, blob_id, size_bytes, content_type FROM made JOIN wanted ON file_id = made.id
), line AS (
    INSERT INTO audit (user_id, action, outcome, session_id, network, request_id, file_id, path, details)
    SELECT user_id, 'upload', 'ok', session_id, network, request_id, file_id,
        concat_ws('/', '', nullif(folder, ''), name), jsonb_build_object('version', 1, 'size', size_bytes)
    FROM made JOIN wanted ON file_id = made.id
)
SELECT id, created_at, updated_at FROM made
"""


async def insert_files(conn: Connection, wanted: Sequence[NewFile]) -> dict[FileId, tuple[datetime, datetime]]:
    """Make files, each with blob, version and line in the trail; of those that were made, `created_at`, `updated_at`.

    The trees have to be locked, and `users.update_usages` has to follow.  No two may have the same place.
    """
    columns = zip(*((file.user_id, "/".join(file.folder), file.name, file.id, file.version_id, file.staged.key,
                     file.staged.size_bytes, file.staged.sha256, file.staged.crc32, file.content_type, file.session_id,
                     file.network, file.request_id) for file in wanted), strict=True)
    rows = await conn.fetch(INSERT_FILES, *map(list, columns))
    return {FileId(row["id"]): (row["created_at"], row["updated_at"]) for row in rows}
