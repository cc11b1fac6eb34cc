"""Lists of files and folders: pages that cost the same wherever they are, and whole lists streamed as JSON."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import asyncpg

from service.db.pool import Connection
from service.model import BlobKey, File, FileId, Folder, Kind, Sort, VersionId

Sink = Callable[[bytes], Coroutine[Any, Any, None]]
Key = str | int | datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a list is of: a folder's direct children, or all below it; `pattern` is one of LIKE or None.

    `prefix` is the folder's path with a slash at its end.
    """

    folder_id: FileId
    prefix: str
    is_recursive: bool
    pattern: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """In which order."""

    sort: Sort
    is_descending: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Behind which entry a page begins: its sort key, and its id, as two entries may have the same key.

    The key of an order by path is relative to the listed folder, which may be moved between two pages.
    """

    key: Key
    id: FileId


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An entry of a page, and where the next page begins if this entry is the last one of its page."""

    entry: File | Folder
    position: Position


# --- pages in any order ----------------------------------------------------------------------------------------------

# Queries are put together from the constants of this file: with one query for all, and conditions such as
# `$4 IS NULL OR ...` in it, no index would be used.  tests/db/test_listing.py prepares each of them.
_SOURCES: dict[bool, str] = {False: """
-- a folder's children, along an index of this order
SELECT files.*, $2::text || name AS path
FROM files
WHERE parent_id = $1
""", True: """
-- all below a folder: the folders first, which are few
WITH RECURSIVE folders AS (
    SELECT $1::uuid AS id, '' COLLATE "C" AS path
    UNION ALL
    SELECT child.id, folders.path || child.name || '/'
    FROM folders JOIN files AS child ON child.parent_id = folders.id
    WHERE child.is_folder AND child.deleted_at IS NULL
)
SELECT files.*, $2::text || folders.path || name AS path, folders.path || name AS path_key
FROM folders JOIN files ON files.parent_id = folders.id
WHERE true
"""}
_KEYS: dict[Sort, tuple[str, str]] = {
    "name": ("name", "text"), "path": ("path_key", "text"), "size": ("head_bytes", "bigint"),
    "created_at": ("created_at", "timestamptz"), "updated_at": ("updated_at", "timestamptz"),
}
_KINDS: dict[Kind, str] = {"file": "NOT is_folder", "folder": "is_folder"}
_SHAPES = {"page": """
-- a page of a list
SELECT files.id, files.name, is_folder, path, files.created_at, updated_at, versions.id AS version_id, number,
       content_type, blob_id, head_bytes, sha256, sort_key
FROM (SELECT found.*, {key} AS sort_key FROM ({source}) AS found WHERE true {after}
      ORDER BY {key} {direction}, id {direction} LIMIT $3) AS files
LEFT JOIN versions ON versions.id = head_id
LEFT JOIN blobs ON blobs.id = blob_id
ORDER BY sort_key {direction}, files.id {direction}
""", "copy": """
-- a whole list: sorted while its rows are short, then written; OFFSET 0 keeps to_char from being called for each use
SELECT {json} FROM (
    SELECT *, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created,
           to_char(updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS updated
    FROM (
        SELECT files.id, name, path, files.created_at, updated_at {columns} FROM ({source}) AS files {joins}
        ORDER BY files.{key} {direction}, files.id {direction}
    ) AS sorted
    OFFSET 0
) AS written
"""}


def _key_of(kind: Kind, order: Order, scope: Scope) -> tuple[str, str]:
    if order.sort == "size" and kind == "folder":
        return _KEYS["name"]  # a folder has no size of its own
    if order.sort == "path" and not scope.is_recursive:
        return _KEYS["name"]  # the same order, and there is an index for it
    return _KEYS[order.sort]


@cache
def _source(kind: Kind, is_recursive: bool, pattern_at: int) -> str:
    pattern = f"AND fold_case(name) LIKE fold_case(${pattern_at})" if pattern_at else ""
    return f"{_SOURCES[is_recursive]} AND {_KINDS[kind]} AND deleted_at IS NULL {pattern}"


@cache
def _page_query(kind: Kind, is_recursive: bool, key: tuple[str, str], is_descending: bool, has_position: bool,
                has_pattern: bool) -> str:
    name, type_ = key
    after = f"AND ({name}, id) {'<' if is_descending else '>'} ($4::{type_}, $5::uuid)" if has_position else ""
    source = _source(kind, is_recursive, (6 if has_position else 4) if has_pattern else 0)
    return _SHAPES["page"].format(key=name, direction="DESC" if is_descending else "ASC", after=after, source=source)


async def list_page(conn: Connection, kind: Kind, scope: Scope, order: Order, position: Position | None, *,
                    limit: int) -> list[Row]:
    """At most `limit` entries of one kind behind a position (None: from the beginning)."""
    if scope.is_recursive and scope.pattern is None and kind == "file" and order.sort == "path":
        return await _list_by_path(conn, scope, position, is_descending=order.is_descending, limit=limit)
    sql = _page_query(kind, scope.is_recursive, _key_of(kind, order, scope), order.is_descending,
                      position is not None, scope.pattern is not None)
    after = (position.key, position.id) if position else ()
    pattern = (scope.pattern,) if scope.pattern is not None else ()
    return [_row(row) for row in await conn.fetch(sql, scope.folder_id, scope.prefix, limit, *after, *pattern)]


def _row(row: asyncpg.Record) -> Row:
    file_id = FileId(row["id"])
    entry: File | Folder
    if row["is_folder"]:
        entry = Folder(id=file_id, name=row["name"], path=row["path"], created_at=row["created_at"],
                       updated_at=row["updated_at"])
    else:
        entry = File(
            id=file_id, name=row["name"], path=row["path"], size_bytes=row["head_bytes"], sha256=row["sha256"],
            content_type=row["content_type"], version=row["number"], version_id=VersionId(row["version_id"]),
            blob_key=BlobKey(row["blob_id"]), created_at=row["created_at"], updated_at=row["updated_at"])
    return Row(entry=entry, position=Position(key=row["sort_key"], id=file_id))


# --- files in the order of their paths -------------------------------------------------------------------------------

LIST_FOLDERS_ON = """
-- the folders on the way along some names, as far as they are there
WITH RECURSIVE walk AS (
    SELECT $1::uuid AS id, 0 AS depth, ($2::text[])[1] AS next_name
    UNION ALL
    SELECT child.id, walk.depth + 1, ($2::text[])[walk.depth + 2]
    FROM walk
    CROSS JOIN LATERAL (SELECT id FROM files
        WHERE parent_id = walk.id AND name = next_name AND deleted_at IS NULL AND is_folder LIMIT 1) AS child
    WHERE walk.depth < cardinality($2::text[])
)
SELECT id FROM walk ORDER BY depth
"""


async def list_folders_on(conn: Connection, folder_id: FileId, names: list[str]) -> list[FileId]:
    """The folder and those that a path leads through below it, as far as they are there."""
    return [FileId(row["id"]) for row in await conn.fetch(LIST_FOLDERS_ON, folder_id, names)]


# {compare} and {direction} are those of the two queries below
_STEPS = ("""
-- step by step through the tree: from where a step ends, the next child of the deepest folder that has one left; `ids`
-- are the folders on the way, `keys` the last step in each
WITH RECURSIVE walk AS (
    SELECT $1::uuid[] AS ids, $2::text[] COLLATE "C" AS keys, NULL::uuid AS id, 0 AS step, 0 AS found
    UNION ALL
    SELECT CASE WHEN is_folder THEN walk.ids[:level] || next.id ELSE walk.ids[:level] END,
           CASE WHEN is_folder THEN walk.keys[:level - 1] || key || $4::text ELSE walk.keys[:level - 1] || key END,
           CASE WHEN is_folder THEN NULL ELSE next.id END,
           walk.step + 1, walk.found + CASE WHEN is_folder THEN 0 ELSE 1 END
    FROM walk
    CROSS JOIN LATERAL (
        SELECT level, child.*
        FROM generate_series(1, cardinality(walk.ids)) AS level
        CROSS JOIN LATERAL (
            SELECT files.id, is_folder, name || CASE WHEN is_folder THEN '/' ELSE '' END AS key FROM files
            WHERE parent_id = walk.ids[level] AND deleted_at IS NULL
              AND (name || CASE WHEN is_folder THEN '/' ELSE '' END) {compare} walk.keys[level]
            ORDER BY name || CASE WHEN is_folder THEN '/' ELSE '' END {direction} LIMIT 1
        ) AS child
        ORDER BY level DESC LIMIT 1
    ) AS next
    WHERE walk.found < $3
)
SELECT files.id, files.name, is_folder, $5::text || array_to_string(keys, '') AS path, files.created_at, updated_at,
       versions.id AS version_id, number, content_type, blob_id, head_bytes, sha256,
       array_to_string(keys, '') AS sort_key
FROM walk
JOIN files ON files.id = walk.id
JOIN versions ON versions.id = head_id
JOIN blobs ON blobs.id = blob_id
ORDER BY step
""",)
LIST_STEPS = _STEPS[0].format(compare=">", direction="ASC")


async def list_steps(conn: Connection, scope: Scope, ids: list[FileId], keys: list[str], *, limit: int) -> list[Row]:
    """Files behind the step `keys[-1]` in the folder `ids[-1]`, and behind those of the folders above it."""
    return [_row(row) for row in await conn.fetch(LIST_STEPS, ids, keys, limit, "", scope.prefix)]


LIST_STEPS_BACKWARDS = _STEPS[0].format(compare="<", direction="DESC")
_BEHIND_ALL = (chr(0x10FFFF) * 64,)  # 256 bytes: greater than any name


async def list_steps_backwards(conn: Connection, scope: Scope, ids: list[FileId], keys: list[str], *,
                               limit: int) -> list[Row]:
    """The same, the other way."""
    return [_row(row) for row in await conn.fetch(LIST_STEPS_BACKWARDS, ids, keys, limit, _BEHIND_ALL[0],
                                                  scope.prefix)]


async def _list_by_path(conn: Connection, scope: Scope, position: Position | None, *, is_descending: bool,
                        limit: int) -> list[Row]:
    """Files below a folder in the order of their paths, in a time that depends on the page alone."""
    ids, keys = [scope.folder_id], [_BEHIND_ALL[0] if is_descending else ""]
    if position is not None:
        names = str(position.key).split("/")
        ids = await list_folders_on(conn, scope.folder_id, names[:-1])
        # where a folder is gone, the rest of the path as a whole says what comes behind it
        keys = [f"{name}/" for name in names[:len(ids) - 1]] + ["/".join(names[len(ids) - 1:])]
    steps = list_steps_backwards if is_descending else list_steps
    return await steps(conn, scope, ids, keys, limit=limit)


# --- whole lists as JSON ---------------------------------------------------------------------------------------------

# Put together as text: json_build_object takes half as long again, and adds spaces.  Only names, paths and media types
# can hold what JSON has to escape.
_JSON: dict[Kind, str] = {"file": """
    '{"type":"file","id":"' || id || '","name":' || to_json(name) || ',"path":' || to_json(path)
    || ',"size":' || head_bytes || ',"sha256":"' || encode(sha256, 'hex')
    || '","content_type":' || to_json(content_type) || ',"version":' || number
    || ',"etag":"\\"' || replace(version_id::text, '-', '') || '\\""'
    || ',"created_ad":"' || created || '","created_at":"' || created || '","updated_at":"' || updated || '"}'
""", "folder": """
    '{"type":"folder","id":"' || id || '","name":' || to_json(name) || ',"path":' || to_json(path)
    || ',"created_at":"' || created || '","updated_at":"' || updated || '"}'
"""}
_COLUMNS: dict[Kind, str] = {
    "file": ", head_bytes, sha256, content_type, number, versions.id AS version_id", "folder": ""}
_JOINS: dict[Kind, str] = {
    "file": "JOIN versions ON versions.id = head_id JOIN blobs ON blobs.id = blob_id", "folder": ""}


async def copy_list(conn: Connection, kind: Kind, scope: Scope, order: Order, write: Sink) -> None:
    """Write all entries of one kind, each as a line of JSON (the shapes of `api/rest/schema.py`).

    PostgreSQL makes the JSON and sends it as it is: JSON has no raw control characters, so in this dialect of CSV
    nothing is ever quoted, and memory does not grow with the list.
    """
    key, _ = _key_of(kind, order, scope)
    direction = "DESC" if order.is_descending else "ASC"
    source = _source(kind, scope.is_recursive, 3 if scope.pattern is not None else 0)
    sql = _SHAPES["copy"].format(json=_JSON[kind], columns=_COLUMNS[kind], source=source, joins=_JOINS[kind], key=key,
                                 direction=direction)
    pattern = (scope.pattern,) if scope.pattern is not None else ()
    await conn.copy_from_query(sql, scope.folder_id, scope.prefix, *pattern, output=write, format="csv",
                               delimiter="\x01", quote="\x02", timeout=600)
