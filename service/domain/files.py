"""The tree: look, list, delete."""

from service.db import blobs, files, users
from service.db.files import Sink
from service.db.pool import Connection, Database
from service.domain.content import Place, check_conditions, etag_of, get
from service.errors import Conflict, InvalidPath, NotFound
from service.model import Caller, Conditions, File, Folder, Usage


class Files:
    """What an account has."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def info(self, caller: Caller, place: Place) -> File | Folder:
        """The file or folder there; raise NotFound."""
        async with self._database.connection() as conn:
            return await get(conn, caller.user_id, place)

    async def write_list(self, caller: Caller, write: Sink) -> None:
        """Write every file as a line of JSON, in the order of their paths, in constant memory."""
        async with self._database.connection() as conn:
            await files.copy_list(conn, caller.user_id, write)

    async def usage(self, caller: Caller) -> Usage:
        """What the account holds."""
        async with self._database.connection() as conn:
            return await users.get_usage(conn, caller.user_id)

    async def delete(self, caller: Caller, place: Place, conditions: Conditions = Conditions()) -> None:
        """Delete for good: a file, or a folder with all that is in it.

        Raises NotFound, PreconditionFailed, and InvalidPath for the root folder.
        """
        # only for a folder does everybody else have to wait; the answer may have changed when the lock is there
        is_folder = isinstance(await self.info(caller, place), Folder)

        async def work(conn: Connection) -> None:
            lock = files.lock_tree if is_folder else files.lock_tree_shared
            await lock(conn, caller.user_id)
            found = await get(conn, caller.user_id, place)
            if isinstance(found, File):
                await self._delete_file(conn, caller, found, conditions)
            elif is_folder:
                await self._delete_folder(conn, caller, found, conditions)
            else:
                raise Conflict()  # a folder took the place of the file

        await self._database.in_transaction(work)

    async def _delete_file(self, conn: Connection, caller: Caller, file: File, conditions: Conditions) -> None:
        head_id = await files.lock_file(conn, file.id)
        if head_id is None:
            raise NotFound()
        check_conditions(conditions, etag_of(head_id))
        await self._delete_tree(conn, caller, file)

    async def _delete_folder(self, conn: Connection, caller: Caller, folder: Folder, conditions: Conditions) -> None:
        if folder.id == caller.user_id:
            raise InvalidPath("The root folder cannot be deleted.", field="path")
        check_conditions(conditions, None)
        await self._delete_tree(conn, caller, folder)

    @staticmethod
    async def _delete_tree(conn: Connection, caller: Caller, found: File | Folder) -> None:
        deleted = await files.delete_tree(conn, found.id)
        await blobs.release_blobs(conn, deleted.blob_keys)
        await users.update_usage(conn, caller.user_id, files_bytes=-deleted.size_bytes, file_count=-deleted.file_count)
