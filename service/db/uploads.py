"""Files, many at once: what a group of uploads comes to in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.db.pool import Connection
from service.model import FileId, SessionId, Staged, UserId, VersionId

LOCK_ACCOUNTS = """
-- of these accounts those that have room for so many bytes and whose folders stay where they are from now on; whoever
-- has a tree alone, or waits for that, is not waited for.  What follows in this transaction is planned once for all:
-- PostgreSQL would plan again for each number of files, at more than the cost of storing them.  What is planned when
-- nothing is known yet must not read every file later
SELECT users.id
FROM set_config('plan_cache_mode', 'force_generic_plan', true) AS once
CROSS JOIN set_config('enable_seqscan', 'off', true) AS by_index
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
class Upload:
    """A file to be written: its content with the line in the trail; the names of `folder` lead from the root.

    `file_id` is for the case that the file is new.
    """

    user_id: UserId
    folder: tuple[str, ...]
    name: str
    file_id: FileId
    version_id: VersionId
    staged: Staged
    content_type: str
    session_id: SessionId | None
    network: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an upload came to; `replaced_bytes` is the size of what was there, None if nothing was."""

    file_id: FileId
    number: int
    created_at: datetime
    updated_at: datetime
    replaced_bytes: int | None


PUT_FILES = """
-- what has a free name in a folder that is there, and what replaces a file that nobody else is changing; the rest is
-- left out.  New rows are made in the order of their names, so that two of these never wait for each other, and for a
-- row that is there nobody waits
WITH RECURSIVE wanted AS (
    SELECT *, string_to_array(folder, '/') AS names
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::uuid[], $7::bigint[], $8::bytea[],
                $9::bigint[], $10::text[], $11::uuid[], $12::text[], $13::text[])
        AS wanted (user_id, folder, name, file_id, version_id, blob_id, size_bytes, sha256,
                   crc32, content_type, session_id, network, request_id)
), walk AS (
    SELECT DISTINCT user_id, folder, names, user_id AS id, 0 AS depth, names[1] AS next_name FROM wanted
    UNION ALL
    SELECT user_id, folder, names, child.id, depth + 1, names[depth + 2]
    FROM walk
    -- as in `files.WALK`
    CROSS JOIN LATERAL (SELECT id FROM files
        WHERE parent_id = walk.id AND name = next_name AND is_folder AND deleted_at IS NULL LIMIT 1) AS child
    WHERE depth < cardinality(names)
), found AS MATERIALIZED (
    SELECT wanted.*, walk.id AS parent_id, taken.id AS taken_id
    FROM wanted JOIN walk USING (user_id, folder)
    LEFT JOIN LATERAL (SELECT id FROM files WHERE parent_id = walk.id AND files.name = wanted.name
        AND deleted_at IS NULL LIMIT 1) AS taken ON true
    WHERE depth = cardinality(walk.names)
), made AS (
    INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes)
    SELECT file_id, user_id, parent_id, name, false, version_id, size_bytes
    FROM found WHERE taken_id IS NULL AND name IS NFC NORMALIZED
    ORDER BY parent_id, name
    ON CONFLICT (parent_id, name) WHERE deleted_at IS NULL DO NOTHING
    RETURNING id, head_id, created_at, updated_at
), former AS MATERIALIZED (
    -- a version that was made since this statement began is not seen by it: such a file is left out
    SELECT found.version_id, locked.id, versions.id AS head_id, versions.number, versions.blob_bytes
    FROM found
    CROSS JOIN LATERAL (SELECT id, head_id FROM files
        WHERE files.id = taken_id AND files.parent_id = found.parent_id AND files.name = found.name
            AND NOT is_folder AND deleted_at IS NULL
        FOR NO KEY UPDATE SKIP LOCKED) AS locked
    JOIN versions ON versions.id = locked.head_id
), kept AS (
    UPDATE versions SET replaced_at = now() FROM former WHERE versions.id = former.head_id
), moved AS (
    -- the time is that of the lock, not of the transaction's begin, so that a later version never has an earlier one
    UPDATE files SET head_id = found.version_id, head_bytes = found.size_bytes,
        updated_at = greatest(clock_timestamp(), updated_at)
    FROM former JOIN found USING (version_id)
    WHERE files.id = former.id
    RETURNING files.id, files.head_id, created_at, updated_at
), written AS MATERIALIZED (
    SELECT made.*, 1 AS number, NULL::bigint AS replaced_bytes FROM made
    UNION ALL
    SELECT moved.*, former.number + 1, former.blob_bytes FROM moved JOIN former USING (id)
), blob AS (
    INSERT INTO blobs (id, size_bytes, sha256, crc32)
    SELECT blob_id, size_bytes, sha256, crc32 FROM written JOIN wanted ON version_id = head_id
), version AS (
    INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type)
    SELECT version_id, id, number, blob_id, size_bytes, content_type FROM written JOIN wanted ON version_id = head_id
), line AS (
    INSERT INTO audit (user_id, action, outcome, session_id, network, request_id, file_id, path, details)
    SELECT user_id, 'upload', 'ok', session_id, network, request_id, id,
        concat_ws('/', '', nullif(folder, ''), name), jsonb_build_object('version', number, 'size', size_bytes)
    FROM written JOIN wanted ON version_id = head_id
)
SELECT head_id, id, number, created_at, updated_at, replaced_bytes FROM written
"""


async def put_files(conn: Connection, uploads: Sequence[Upload]) -> dict[VersionId, Written]:
    """Write files, each with blob, version and line in the trail; what became of those that were written.

    The trees have to be locked.  Of files that were replaced `versions.delete_former` has to follow, and of all
    `users.update_usages`.  No two may have the same place.
    """
    columns = zip(*((upload.user_id, "/".join(upload.folder), upload.name, upload.file_id, upload.version_id,
                     upload.staged.key, upload.staged.size_bytes, upload.staged.sha256, upload.staged.crc32,
                     upload.content_type, upload.session_id, upload.network, upload.request_id)
                    for upload in uploads), strict=True)
    rows = await conn.fetch(PUT_FILES, *map(list, columns))
    return {VersionId(row["head_id"]): Written(
        file_id=FileId(row["id"]), number=row["number"], created_at=row["created_at"], updated_at=row["updated_at"],
        replaced_bytes=row["replaced_bytes"]) for row in rows}
