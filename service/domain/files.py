"""The tree: look, list, delete."""

from dataclasses import replace

from service.db import blobs, files, folders, trash, users
from service.db.pool import Connection, Database
from service.domain.audit import record
from service.domain.content import check_conditions
from service.domain.places import Place, get, get_locked, is_folder
from service.domain.requests import once
from service.errors import Conflict, InvalidPath
from service.model import Caller, Conditions, File, Folder, Usage, UserId


class Files:
    """What an account has."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def info(self, caller: Caller, place: Place) -> File | Folder:
        """The file or folder there; raise NotFound."""
        async with self._database.connection() as conn:
            return await get(conn, caller.user_id, place)

    async def look(self, caller: Caller, place: Place) -> File | Folder:
        """The same, a folder with what is below it; raise Unavailable if the account counts too many at once."""
        found = await self.info(caller, place)
        if isinstance(found, File):
            return found
        async with self._database.lane(caller.share), self._database.snapshot() as conn:
            found = await get(conn, caller.user_id, place)
            if isinstance(found, Folder):
                return replace(found, contents=await folders.get_contents(conn, found.id))
            return found

    async def usage(self, caller: Caller) -> Usage:
        """What the account holds."""
        async with self._database.connection() as conn:
            return await users.get_usage(conn, caller.user_id)

    async def delete(self, caller: Caller, place: Place, conditions: Conditions = Conditions(), *,
                     permanent: bool = False) -> None:
        """Put a file, or a folder with all that is in it, into the trash; or delete it for good.

        Raises NotFound, PreconditionFailed, and InvalidPath for the root folder.
        """
        # only for a folder does everybody else have to wait; the answer may have changed when the lock is there
        has_tree = await is_folder(self._database, caller, place)

        async def work(conn: Connection) -> None:
            lock = files.lock_tree if has_tree else files.lock_tree_shared
            await lock(conn, caller.user_id)
            await delete(conn, caller.user_id, place, conditions, permanent=permanent, has_tree=has_tree)

        await once(self._database, caller, work)


async def delete(conn: Connection, user_id: UserId, place: Place, conditions: Conditions, *, permanent: bool,
                 has_tree: bool) -> None:
    """Delete within a transaction that has locked the tree; `has_tree`: alone, as a folder needs."""
    found = await get_locked(conn, user_id, place)
    if isinstance(found, File):
        check_conditions(conditions, found.etag)
    elif has_tree:
        _check_folder(user_id, found, conditions)
    else:
        raise Conflict()  # a folder took the place of the file
    await (purge if permanent else discard)(conn, user_id, found)


def _check_folder(user_id: UserId, folder: Folder, conditions: Conditions) -> None:
    if folder.id == user_id:
        raise InvalidPath("The root folder cannot be deleted.", field="path")
    check_conditions(conditions, None)


async def discard(conn: Connection, user_id: UserId, found: File | Folder) -> None:
    """Into the trash: one row, whatever is below it.  The tree is locked, and a file's row."""
    held = await trash.sum_tree(conn, found.id)
    await trash.update_trashed(conn, found.id, found.path)
    await record(conn, user_id, "trash", file_id=found.id, path=found.path, files=held.file_count)
    await users.update_usage(conn, user_id, files_bytes=-held.files_bytes, versions_bytes=-held.versions_bytes,
                             trash_bytes=held.files_bytes + held.versions_bytes, file_count=-held.file_count)


async def purge(conn: Connection, user_id: UserId, found: File | Folder) -> None:
    """For good, a live file or folder.  The tree is locked, and a file's row."""
    held = await trash.sum_tree(conn, found.id)
    await blobs.release_blobs(conn, await files.delete_tree(conn, found.id))
    await record(conn, user_id, "delete", file_id=found.id, path=found.path, files=held.file_count)
    await users.update_usage(conn, user_id, files_bytes=-held.files_bytes, versions_bytes=-held.versions_bytes,
                             file_count=-held.file_count)
