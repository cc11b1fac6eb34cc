"""The trash: look, bring back, empty."""

import functools
from datetime import datetime
from uuid import UUID

from service import names
from service.db import blobs, files, trash, users
from service.db.pool import Connection, Database
from service.domain.attempts import Attempts
from service.domain.audit import record
from service.domain.places import Place, check_room_below, free_name, get, make_folders, naming
from service.domain.requests import begun, once
from service.errors import InvalidPath, NameTaken, NotAFolder, NotFound
from service.model import Caller, File, FileId, Folder, TrashItem, UserId

BATCH = 100
_LAST = FileId(UUID(int=2**128 - 1))


class Trash:
    """What an account deleted and can have back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, caller: Caller, *, after: tuple[datetime, FileId] | None, limit: int) -> list[TrashItem]:
        """A page, newest first; `after` is the last item of the page before."""
        async with self._database.connection() as conn:
            return await trash.list_trash(conn, caller.user_id, after=after, limit=limit)

    async def restore(self, caller: Caller, item_id: FileId, to: Place | None = None, *,
                      in_folder: bool = False) -> File | Folder:
        """Bring an item back: where it was, or to a place (a folder, or a full path).

        Without a place nothing stands in its way: a folder that is gone is made again, a name that is taken gets a
        number, and what would get too long a path there comes back into the root.  Raises NotFound, with a place
        NameTaken and NotAFolder, and InvalidPath for too long a path.
        """
        async def work(conn: Connection) -> File | Folder:
            await files.lock_tree(conn, caller.user_id)
            item = await trash.lock_trashed(conn, caller.user_id, item_id)
            if item is None:
                raise NotFound()
            if to is None:
                parent_id, path = await _old_place(conn, caller.user_id, item)
            else:
                with naming("to"):
                    parent_id, path = await _new_place(conn, caller.user_id, item, to, in_folder)
            held = await trash.sum_tree(conn, item.id)
            await trash.update_restored(conn, item.id, parent_id=parent_id, name=path[-1])
            found = await get(conn, caller.user_id, item.id)
            await record(conn, caller.user_id, "trash_restore", file_id=item.id, path=found.path, files=held.file_count)
            await users.update_usage(conn, caller.user_id, files_bytes=held.files_bytes,
                                     versions_bytes=held.versions_bytes, file_count=held.file_count,
                                     trash_bytes=-held.files_bytes - held.versions_bytes)
            return found

        return await once(self._database, caller, work)

    async def purge(self, caller: Caller, item_id: FileId) -> None:
        """Delete an item of the trash for good; raise NotFound."""
        async def work(conn: Connection) -> None:
            if not await _purge(conn, caller.user_id, item_id):
                raise NotFound()

        await once(self._database, caller, work)

    async def empty(self, caller: Caller) -> None:
        """Delete everything in the trash for good, item by item; what comes into it meanwhile stays."""
        async def end(conn: Connection) -> None:
            pass

        begun_at = await begun(self._database, caller.user_id)
        after = None if begun_at is None else (begun_at, _LAST)
        while after is not None and (items := await self.list(caller, after=after, limit=BATCH)):
            for item in items:
                await self._purge(caller.user_id, item.id, item.deleted_at)
            after = (items[-1].deleted_at, items[-1].id)
        await once(self._database, caller, end)

    async def purge_expired(self, *, age_seconds: float, attempts: Attempts) -> int:
        """Delete what has been in anybody's trash for too long; how many items.  What cannot go is passed over."""
        purged = 0
        stuck: list[FileId] = []
        while True:
            async with self._database.connection() as conn:
                expired = await trash.list_expired_trash(conn, age_seconds=age_seconds, skip=stuck, limit=BATCH)
            for user_id, item_id, deleted_at in expired:
                is_gone = await attempts.make_for(user_id, functools.partial(self._purge, user_id, item_id, deleted_at),
                                                  part="trash", item=str(item_id))
                if is_gone is None:
                    stuck.append(item_id)
                purged += bool(is_gone)
            if len(expired) < BATCH:
                return purged

    async def _purge(self, user_id: UserId, item_id: FileId, deleted_at: datetime) -> bool:
        return await self._database.in_transaction(lambda conn: _purge(conn, user_id, item_id, deleted_at),
                                                   share=user_id)


async def _purge(conn: Connection, user_id: UserId, item_id: FileId, deleted_at: datetime | None = None) -> bool:
    """Delete an item for good; False if it is not in the trash, or not since `deleted_at` any more."""
    await files.lock_tree(conn, user_id)  # what is summed must be what is deleted
    item = await trash.lock_trashed(conn, user_id, item_id, deleted_at=deleted_at)
    if item is None:
        return False
    held = await trash.sum_tree(conn, item_id)
    await blobs.release_blobs(conn, await files.delete_tree(conn, item_id))
    await record(conn, user_id, "trash_delete", file_id=item_id, path=item.path, files=held.file_count)
    await users.update_usage(conn, user_id, trash_bytes=-held.files_bytes - held.versions_bytes)
    return True


Names = tuple[str, ...]


async def _old_place(conn: Connection, user_id: UserId, item: TrashItem) -> tuple[FileId, Names]:
    """Where the item was: its folder, and its path there under a name that is free; if not there, below the root."""
    try:
        return await _place_in(conn, item, *await _old_folder(conn, user_id, item))
    except InvalidPath:  # the folder was moved to where paths are longer
        return await _place_in(conn, item, FileId(user_id), ())


async def _place_in(conn: Connection, item: TrashItem, folder_id: FileId, folder: Names) -> tuple[FileId, Names]:
    names.check_path((*folder, item.name))
    path = (*folder, await free_name(conn, folder_id, (*folder, item.name)))
    await _check_room(conn, item, path)
    return folder_id, path


async def _old_folder(conn: Connection, user_id: UserId, item: TrashItem) -> tuple[FileId, Names]:
    """Where the item was: the same folder, wherever that is now, or one made again, or the root."""
    if item.parent_id is not None:
        try:
            found = await get(conn, user_id, item.parent_id)
        except NotFound:
            pass
        else:
            return found.id, names.split_path(found.path)
    path = names.split_path(item.path)[:-1]
    try:
        return await make_folders(conn, user_id, path), path
    except NotAFolder:  # a file has the name of a folder that was there
        return FileId(user_id), ()


async def _new_place(conn: Connection, user_id: UserId, item: TrashItem, to: Place,
                     in_folder: bool) -> tuple[FileId, Names]:
    """The folder and the path that a place means."""
    try:
        found = await get(conn, user_id, to)
    except NotFound:
        if not isinstance(to, tuple):
            raise
        path = (*to, item.name) if in_folder else to
        names.check_path(path)
        await _check_room(conn, item, path)
        return await make_folders(conn, user_id, path[:-1]), path
    if isinstance(found, File) or await trash.is_name_taken(conn, found.id, item.name):
        raise NameTaken(field="to")
    path = (*names.split_path(found.path), item.name)
    names.check_path(path)
    await _check_room(conn, item, path)
    return found.id, path


async def _check_room(conn: Connection, item: TrashItem, path: Names) -> None:
    """Raise InvalidPath if something in the item, which may be a folder, would get too long a path."""
    if item.is_folder:
        await check_room_below(conn, item.id, names.split_path(item.path), path)
