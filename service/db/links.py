"""Public links: found by the digest of their token, used up by a counter."""

from dataclasses import replace
from datetime import datetime
from typing import cast

import asyncpg

from service.db.pool import Connection
from service.model import FileId, Link, LinkChild, LinkId, LinkKind, UserId

LOCK_LINKS = """
-- one new link of an account at a time: or those made at once would get past the bound together
SELECT pg_advisory_xact_lock(hashtextextended($1::uuid::text, 2))
"""


async def lock_links(conn: Connection, user_id: UserId) -> None:
    """Let nobody else make a link of the account until the transaction ends."""
    await conn.execute(LOCK_LINKS, user_id)


MAKE_ROOM = """
-- at the bound links that expired go before their time, the oldest first; skipped: what somebody just revokes
WITH gone AS (
    DELETE FROM links WHERE id IN (
        SELECT id FROM links WHERE user_id = $1 AND expires_at < now() ORDER BY expires_at
        LIMIT greatest(0, (SELECT count(*) FROM links WHERE user_id = $1) - $2::integer + 1) FOR UPDATE SKIP LOCKED)
    RETURNING id
)
SELECT (SELECT count(*) FROM links WHERE user_id = $1) - (SELECT count(*) FROM gone) < $2
"""


async def make_room(conn: Connection, user_id: UserId, *, bound: int) -> bool:
    """Whether the account may have another link; it stays so only under `lock_links`."""
    return bool(await conn.fetchval(MAKE_ROOM, user_id, bound))


INSERT_LINK = """
-- a new link; the clock is the database's, as in the comparison later
INSERT INTO links (id, user_id, file_id, is_folder, kind, token_sha256, password_hash, max_downloads, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9))
RETURNING created_at, expires_at
"""


async def insert_link(conn: Connection, link: Link, *, token_sha256: bytes, expires_in_seconds: int | None) -> Link:
    """Keep a new link; the link with its times.  The file has to be there, or its key is violated."""
    row = await conn.fetchrow(INSERT_LINK, link.id, link.user_id, link.file_id, link.is_folder, link.kind, token_sha256,
                              link.password_hash, link.max_downloads, expires_in_seconds)
    assert row is not None
    return replace(link, created_at=row["created_at"], expires_at=row["expires_at"])


GET_LINK = """
-- a link that has not expired; whether its file is still there is another question
SELECT id, user_id, file_id, is_folder, kind, password_hash, max_downloads, downloads, created_at, expires_at,
       NULL AS path
FROM links WHERE token_sha256 = $1 AND (expires_at IS NULL OR expires_at > now())
"""


async def get_link(conn: Connection, token_sha256: bytes) -> Link | None:
    """The link of a token, also a used-up one; None if it is unknown, revoked or expired."""
    row = await conn.fetchrow(GET_LINK, token_sha256)
    return None if row is None else _link(row)


LIST_LINKS = """
-- links of an account, or of one of its files, with the paths that lead to them now; NULL: in the trash
WITH RECURSIVE page AS MATERIALIZED (
    SELECT * FROM links
    WHERE user_id = $1 AND ($2::uuid IS NULL OR file_id = $2)
      AND ($3::timestamptz IS NULL OR (created_at, id) > ($3, $4::uuid))
    ORDER BY created_at, id LIMIT $5
), up AS (  -- once for each file, however many links it has
    SELECT id AS file_id, parent_id, name, deleted_at, 0 AS level
    FROM files WHERE id IN (SELECT file_id FROM page)
    UNION ALL
    SELECT up.file_id, parent.parent_id, parent.name, parent.deleted_at, up.level + 1
    FROM up JOIN files AS parent ON parent.id = up.parent_id
), paths AS (
    SELECT file_id, CASE WHEN NOT bool_and(deleted_at IS NULL) OR NOT bool_or(parent_id IS NULL) THEN NULL
                         WHEN count(*) = 1 THEN '/' ELSE string_agg(name, '/' ORDER BY level DESC) END AS path
    FROM up GROUP BY file_id
)
SELECT id, user_id, file_id, is_folder, kind, password_hash, max_downloads, downloads, created_at, expires_at, path
FROM page JOIN paths USING (file_id)
ORDER BY created_at, id
"""


async def list_links(conn: Connection, user_id: UserId, *, file_id: FileId | None,
                     after: tuple[datetime, LinkId] | None = None, limit: int | None = None) -> list[Link]:
    """Links of the account, expired and used-up ones too, the oldest first; or those of one file or folder."""
    created_at, link_id = after or (None, None)
    return [_link(row) for row in await conn.fetch(LIST_LINKS, user_id, file_id, created_at, link_id, limit)]


DELETE_LINK = """
-- revoke
DELETE FROM links WHERE id = $2 AND user_id = $1 RETURNING true
"""


async def delete_link(conn: Connection, user_id: UserId, link_id: LinkId) -> bool:
    """Revoke a link of the account; whether there was one."""
    return await conn.fetchval(DELETE_LINK, user_id, link_id) is not None


COUNT_USE = """
-- decide and count in one statement, so that a limit is exact however many come at once
UPDATE links SET downloads = downloads + 1
WHERE id = $1 AND (max_downloads IS NULL OR downloads < max_downloads) AND (expires_at IS NULL OR expires_at > now())
RETURNING true
"""


async def count_use(conn: Connection, link_id: LinkId) -> bool:
    """Use the link once; False if it is used up, expired or revoked."""
    return await conn.fetchval(COUNT_USE, link_id) is not None


DO_NOT_WAIT_FOR_DISK = """
-- a mere statistic may be lost in a crash: this transaction does not wait for the log to reach the disk
SELECT set_config('synchronous_commit', 'off', true)
"""


async def do_not_wait_for_disk(conn: Connection) -> None:
    """Let the commit of this transaction return before it is durable."""
    await conn.execute(DO_NOT_WAIT_FOR_DISK)


DELETE_EXPIRED_LINKS = """
-- long of no use to anybody; until then their makers see them in the list
DELETE FROM links WHERE expires_at < now() - interval '30 days'
"""


async def delete_expired_links(conn: Connection) -> None:
    """Forget links thirty days after they expired."""
    await conn.execute(DELETE_EXPIRED_LINKS)


LIST_CHILD_FOLDERS = """
-- what a visitor sees of a folder: the folders in it by name, from a name on
SELECT name, is_folder, updated_at, NULL AS size_bytes, NULL AS content_type
FROM files WHERE parent_id = $1 AND deleted_at IS NULL AND is_folder AND name > $2
ORDER BY name LIMIT $3
"""


async def list_child_folders(conn: Connection, folder_id: FileId, *, after: str, limit: int) -> list[LinkChild]:
    """The folders directly in a folder, after that name."""
    return [_child(row) for row in await conn.fetch(LIST_CHILD_FOLDERS, folder_id, after, limit)]


LIST_CHILD_FILES = """
-- what a visitor sees of a folder: the files in it by name, from a name on
SELECT name, is_folder, updated_at, size_bytes, content_type
FROM files JOIN versions ON versions.id = head_id JOIN blobs ON blobs.id = blob_id
WHERE parent_id = $1 AND deleted_at IS NULL AND NOT is_folder AND name > $2
ORDER BY name LIMIT $3
"""


async def list_child_files(conn: Connection, folder_id: FileId, *, after: str, limit: int) -> list[LinkChild]:
    """The files directly in a folder, after that name."""
    return [_child(row) for row in await conn.fetch(LIST_CHILD_FILES, folder_id, after, limit)]


def _child(row: asyncpg.Record) -> LinkChild:
    return LinkChild(name=row["name"], is_folder=row["is_folder"], updated_at=row["updated_at"],
                     size_bytes=row["size_bytes"] or 0, content_type=row["content_type"] or "")


FIND_FREE_NAME = """
-- the first of these names that nothing in the folder has
SELECT wanted.name FROM unnest($2::text[]) WITH ORDINALITY AS wanted (name, position)
-- the limit keeps this from becoming a join, which is planned when nothing is known yet and then reads the whole folder
LEFT JOIN LATERAL (SELECT id FROM files WHERE parent_id = $1 AND files.name = wanted.name AND deleted_at IS NULL
    LIMIT 1) AS taken ON true
WHERE taken.id IS NULL
ORDER BY position LIMIT 1
"""


async def find_free_name(conn: Connection, folder_id: FileId, names: list[str]) -> str | None:
    """The first name that is free; it stays so only under `files.lock_tree`."""
    name = await conn.fetchval(FIND_FREE_NAME, folder_id, names)
    return None if name is None else str(name)


FIND_BELOW = """
-- from a folder along the names; no name means "up" or "here", so there is no way out of the folder
WITH RECURSIVE walk AS (
    SELECT $1::uuid AS id, 0 AS depth, ($2::text[])[1] AS next_name
    UNION ALL
    SELECT child.id, walk.depth + 1, ($2::text[])[walk.depth + 2]
    FROM walk
    CROSS JOIN LATERAL (SELECT id FROM files
        WHERE parent_id = walk.id AND name = next_name AND deleted_at IS NULL LIMIT 1) AS child
    WHERE walk.depth < cardinality($2::text[])
)
SELECT id FROM walk WHERE depth = cardinality($2::text[])
"""


async def find_below(conn: Connection, folder_id: FileId, path: tuple[str, ...]) -> FileId | None:
    """What the path leads to from the folder; None if there is nothing."""
    found = await conn.fetchval(FIND_BELOW, folder_id, path)
    return None if found is None else FileId(found)


def _link(row: asyncpg.Record) -> Link:
    return Link(id=LinkId(row["id"]), user_id=UserId(row["user_id"]), file_id=FileId(row["file_id"]),
                is_folder=row["is_folder"], kind=cast(LinkKind, row["kind"]), path=row["path"],
                password_hash=row["password_hash"], max_downloads=row["max_downloads"], downloads=row["downloads"],
                created_at=row["created_at"], expires_at=row["expires_at"])
