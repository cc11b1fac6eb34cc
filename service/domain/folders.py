"""Folders: make them, and what is in them."""

from service.db import files
from service.db.pool import Connection, Database
from service.domain.audit import record
from service.domain.places import Place, get, make_folders
from service.domain.requests import once
from service.errors import NotAFolder, NotFound
from service.model import Caller, Folder


class Folders:
    """The folders of an account."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, caller: Caller, place: Place) -> tuple[Folder, bool]:
        """The folder at the place, made with all that is missing above it, and whether it is new.

        Raises NotAFolder, and NotFound for an id that is not there.
        """
        async def work(conn: Connection) -> tuple[Folder, bool]:
            await files.lock_tree_shared(conn, caller.user_id)
            is_new = False
            folder_id: Place = place
            if isinstance(place, tuple):
                reached = await files.walk(conn, caller.user_id, place)
                if reached is None:
                    raise NotFound()
                is_new = reached.depth < len(place)
                folder_id = await make_folders(conn, caller.user_id, place)
            found = await get(conn, caller.user_id, folder_id)
            if not isinstance(found, Folder):
                raise NotAFolder("There is a file at the path.", field="path")
            if is_new:
                await record(conn, caller.user_id, "folder_create", file_id=found.id, path=found.path)
            return found, is_new

        return await once(self._database, caller, work)
