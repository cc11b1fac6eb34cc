"""Lists: what is in a folder or below it, whole or in pages.

A page begins behind a position (sort key and id), never after a number of entries: whatever is made, renamed or deleted
between two pages, an entry that is there throughout and keeps its sort key is met exactly once.
"""

import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from service.db import listing
from service.db.listing import Order, Position, Scope
from service.db.pool import Connection, Database
from service.domain.places import Place, get
from service.errors import NotAFolder, ServiceError
from service.model import Caller, File, FileId, Folder, Kind, Page, Sort, UserId
from service.security.cursors import Cursors

Write = Callable[[Kind, bytes], Coroutine[Any, Any, None]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which entries, in which order.

    `part`: what names contain, in NFC, or None.  `with_folders`: folders are entries too, before all files.
    """

    place: Place = ()
    is_recursive: bool = True
    with_folders: bool = False
    part: str | None = None
    sort: Sort = "path"
    is_descending: bool = False

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of entries, in their order."""
        return ("folder", "file") if self.with_folders else ("file",)

    @property
    def order(self) -> Order:
        """The order within each kind."""
        return Order(sort=self.sort, is_descending=self.is_descending)


class Listing:
    """What an account has, as lists."""

    def __init__(self, database: Database, cursors: Cursors) -> None:
        self._database = database
        self._cursors = cursors

    async def write(self, caller: Caller, selection: Selection, write: Write) -> None:
        """Write each entry as a line of JSON, one kind after the other, in constant memory.

        Raises NotFound and NotAFolder before anything is written.
        """
        async with self._database.lane(caller.share), self._database.snapshot() as conn:
            scope = await _scope(conn, caller.user_id, selection)
            for kind in selection.kinds:
                await listing.copy_list(conn, kind, scope, selection.order, functools.partial(write, kind))

    async def page(self, caller: Caller, selection: Selection, *, limit: int, cursor: str | None) -> Page:
        """At most `limit` entries; raise NotFound, NotAFolder, and InvalidField for a cursor of another list."""
        context = _context(caller.user_id, selection)
        begin, position = self._open(cursor, context, selection.sort) if cursor else (selection.kinds[0], None)
        found: list[File | Folder] = []
        async with self._database.snapshot() as conn:
            scope = await _scope(conn, caller.user_id, selection)
            for kind in selection.kinds[selection.kinds.index(begin):]:
                room = limit - len(found)
                # one more than there is room for, to know whether there is a next page
                rows = await listing.list_page(conn, kind, scope, selection.order, position, limit=room + 1)
                found += (row.entry for row in rows[:room])
                if len(rows) > room:
                    # without room for even one of this kind, the next page begins as this query did
                    return _page(found, self._seal(kind, rows[room - 1].position if room else position, context))
                position = None
        return _page(found, None)

    def _seal(self, kind: Kind, position: Position | None, context: bytes) -> str:
        key = position.key if position else None
        if isinstance(key, datetime):
            key = (key - _EPOCH) // _MICROSECOND
        return self._cursors.seal(orjson.dumps([kind, key, str(position.id) if position else None]), context=context)

    def _open(self, cursor: str, context: bytes, sort: Sort) -> tuple[Kind, Position | None]:
        kind, key, file_id = orjson.loads(self._cursors.open(cursor, context=context))
        if file_id is None:
            return kind, None
        if sort in ("created_at", "updated_at"):
            key = _EPOCH + key * _MICROSECOND
        return kind, Position(key=key, id=FileId(UUID(file_id)))


def _context(user_id: UserId, selection: Selection) -> bytes:
    """What a cursor is good for: this account, this list, this order."""
    return orjson.dumps({
        "user": str(user_id), "place": selection.place if isinstance(selection.place, tuple) else str(selection.place),
        "recursive": selection.is_recursive, "folders": selection.with_folders, "part": selection.part,
        "descending": selection.is_descending, "sort": selection.sort})


def _page(found: list[File | Folder], cursor: str | None) -> Page:
    return Page(folders=[entry for entry in found if isinstance(entry, Folder)],
                files=[entry for entry in found if isinstance(entry, File)], cursor=cursor)


async def _scope(conn: Connection, user_id: UserId, selection: Selection) -> Scope:
    try:
        found = await get(conn, user_id, selection.place)
    except ServiceError as error:
        error.field = "folder"
        raise
    if isinstance(found, File):
        raise NotAFolder("The path is that of a file.", field="folder")
    return Scope(folder_id=found.id, prefix=found.path.removesuffix("/") + "/", is_recursive=selection.is_recursive,
                 pattern=None if selection.part is None else _pattern(selection.part))


def _pattern(part: str) -> str:
    """What LIKE takes for "contains this", whatever is in it."""
    for special in ("\\", "%", "_"):
        part = part.replace(special, f"\\{special}")
    return f"%{part}%"
