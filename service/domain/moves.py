"""Moves, renames and copies of files and whole folders.

A change of a folder has the account's tree alone.  Changes of files go side by side: they lock the rows that they need,
in one order, and look again behind the lock.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from service import names
from service.db import blobs, files, moves, users
from service.db.pool import Connection, Database
from service.domain.audit import record
from service.domain.content import check_conditions
from service.domain.files import discard
from service.domain.places import (
    Place, Target, check_room_below, get, is_folder, make_folders, naming, resolve_target,
)
from service.domain.requests import once
from service.errors import Conflict, InvalidField, InvalidPath, NameTaken, NotFound
from service.model import Caller, Conditions, File, FileId, Folder, UserId, new_uuid

MAX_COPIED = 200_000  # some half a minute of the database


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What goes where; `target` is a full path, or a folder to go into under its own name."""

    source: Place
    target: Target
    overwrite: bool = False
    conditions: Conditions = Conditions()


class Allowance:
    """How many files and folders the copies of one request may still make.

    A few copies of copies are millions, and empty ones are nothing to the quota.
    """

    def __init__(self) -> None:
        self.left = MAX_COPIED

    def spend(self, entry_count: int) -> None:
        """Raise InvalidField for more than is left."""
        self.left -= entry_count
        if self.left < 0:
            raise InvalidField(f"A request may copy at most {MAX_COPIED} files and folders; copy parts of this one by "
                               "one.", field="from")


Perform = Callable[[Connection, UserId, Change], Awaitable[File | Folder]]


class Moves:
    """Changes of places in an account's tree, each all or nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def move(self, caller: Caller, change: Change) -> File | Folder:
        """Move or rename; what is below a folder comes along.

        Raises NotFound, NotAFolder, NameTaken, Conflict (into itself), InvalidPath, PreconditionFailed.
        """
        return await self._perform(caller, change, move)

    async def copy(self, caller: Caller, change: Change) -> File | Folder:
        """Copy the current versions; no bytes are moved.  Raises the same, QuotaExceeded, InvalidField (too many)."""
        async def perform(conn: Connection, user_id: UserId, change: Change) -> File | Folder:
            return await copy(conn, user_id, change, Allowance())

        return await self._perform(caller, change, perform)

    async def _perform(self, caller: Caller, change: Change, perform: Perform) -> File | Folder:
        # only for a folder does everybody else have to wait; the answer may have changed when the lock is there
        has_tree = await is_folder(self._database, caller, change.source)

        async def work(conn: Connection) -> File | Folder:
            await (files.lock_tree if has_tree else files.lock_tree_shared)(conn, caller.user_id)
            found = await perform(conn, caller.user_id, change)
            if isinstance(found, Folder) and not has_tree:
                raise Conflict()  # a folder took the place of the file
            return found

        return await once(self._database, caller, work)


async def move(conn: Connection, user_id: UserId, change: Change) -> File | Folder:
    """Move within a transaction that has locked the tree: alone if a folder may be moved."""
    found, path, existing = await _prepare(conn, user_id, change)
    if existing is not None and existing.id == found.id:
        return found
    parent_id = await _make_room(conn, user_id, path, existing, is_file=isinstance(found, File), change=change)
    with _lost_races(change):
        await moves.update_place(conn, found.id, parent_id=parent_id, name=path[-1])
    await record(conn, user_id, "move", file_id=found.id, path=names.join_path(path), source=found.path)
    return await get(conn, user_id, found.id)


async def copy(conn: Connection, user_id: UserId, change: Change, allowance: Allowance) -> File | Folder:
    """Copy within a transaction that has locked the tree: alone if a folder may be copied."""
    found, path, existing = await _prepare(conn, user_id, change)
    if existing is not None and existing.id == found.id:
        raise NameTaken("This would be a copy onto itself.", field="to")
    parent_id = await _make_room(conn, user_id, path, existing, is_file=isinstance(found, File), change=change)
    new_id = FileId(new_uuid())
    with _lost_races(change):
        copied = await moves.copy_tree(conn, found.id, user_id=user_id, new_id=new_id, parent_id=parent_id,
                                       name=path[-1], at_most=allowance.left)
    allowance.spend(copied.entry_count)
    await blobs.keep_blobs(conn, copied.blob_keys)
    await record(conn, user_id, "copy", file_id=new_id, path=names.join_path(path), source=found.path,
                 files=copied.file_count)
    await users.update_usage(conn, user_id, files_bytes=copied.size_bytes, file_count=copied.file_count)
    return await get(conn, user_id, new_id)


@contextmanager
def _lost_races(change: Change) -> Iterator[None]:
    """Whoever allowed to overwrite is not told that the name is taken, but to try again."""
    try:
        yield
    except NameTaken:
        if change.overwrite:
            raise Conflict() from None
        raise


Prepared = tuple[File | Folder, tuple[str, ...], File | Folder | None]


async def _prepare(conn: Connection, user_id: UserId, change: Change) -> Prepared:
    """What is moved or copied, its new path, and what is there now; the files among them are locked."""
    found, path, existing = await _look(conn, user_id, change)
    if file_ids := [entry.id for entry in (found, existing) if isinstance(entry, File)]:
        await moves.lock_files(conn, file_ids)
        locked = {entry.id for entry in (found, existing) if entry}
        found, path, existing = await _look(conn, user_id, change)
        # what is in the way needs its lock only if it is to be replaced
        if found.id not in locked or (change.overwrite and existing is not None and existing.id not in locked):
            raise Conflict()
    check_conditions(change.conditions, found.etag if isinstance(found, File) else None)
    if isinstance(found, Folder):
        await _check_folder(conn, found, path)
    return found, path, existing


async def _look(conn: Connection, user_id: UserId, change: Change) -> Prepared:
    with naming("from"):
        found = await get(conn, user_id, change.source)
        if found.id == user_id:
            raise InvalidPath("The root folder cannot be moved or copied.", field="path")
    with naming("to"):
        path = await resolve_target(conn, user_id, replace(change.target, own_name=found.name))
        try:
            return found, path, await get(conn, user_id, path)
        except NotFound:
            return found, path, None


async def _check_folder(conn: Connection, folder: Folder, path: tuple[str, ...]) -> None:
    """Raise Conflict for a folder into itself, InvalidPath if something below it would get too long a path."""
    source = names.split_path(folder.path)
    if path[:len(source)] == source:
        raise Conflict("A folder cannot be moved or copied into itself.", field="to")
    with naming("to"):
        await check_room_below(conn, folder.id, source, path)


async def _make_room(conn: Connection, user_id: UserId, path: tuple[str, ...], existing: File | Folder | None, *,
                     is_file: bool, change: Change) -> FileId:
    """The folder of the new place, made if need be; what is in the way goes the way of a deletion, or NameTaken."""
    with naming("to"):
        parent_id = await make_folders(conn, user_id, path[:-1])
    if existing is not None:
        if not (change.overwrite and is_file and isinstance(existing, File)):
            raise NameTaken(field="to")
        await discard(conn, user_id, existing)
    return parent_id
