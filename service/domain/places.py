"""Places: what names a file or folder in a request, and what is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service import names
from service.db import files, folders, links
from service.db.pool import Connection, Database
from service.errors import Conflict, InvalidPath, IsAFolder, NotAFolder, NotFound, ServiceError
from service.model import Caller, File, FileId, Folder, UserId, new_uuid

Place = tuple[str, ...] | FileId
MAX_LOOKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an upload goes.

    `place`: a path or an id.  `in_folder`: the place has to be a folder (it ended in a slash).  `own_name`: the name
    for a file that goes into a folder; None if the upload has none.  `never_replaces`: if the name is taken, the file
    gets another one, `name (2).ext`.
    """

    place: Place
    in_folder: bool = False
    own_name: str | None = None
    never_replaces: bool = False


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Where a request has two paths, or calls one otherwise: say which one an error is about."""
    try:
        yield
    except ServiceError as error:
        if error.field == "path" or (error.field is None and isinstance(error, NotFound)):
            error.field = field
        raise


async def get(conn: Connection, user_id: UserId, place: Place) -> File | Folder:
    """The file or folder of the account at the place; raise NotFound."""
    if isinstance(place, tuple):
        found = await files.get_by_path(conn, user_id, place)
    else:
        found = await files.get_by_id(conn, user_id, place)
    if found is None:
        raise NotFound()
    return found


async def get_locked(conn: Connection, user_id: UserId, place: Place) -> File | Folder:
    """What is at the place, a file locked, so that it stays there until the transaction ends.

    Behind the lock it may be elsewhere, and another file in its place: then that is meant.  Raises NotFound, and
    Conflict if it is another one each time.
    """
    found = await get(conn, user_id, place)
    for _ in range(MAX_LOOKS):
        if isinstance(found, Folder):
            return found
        await files.lock_file(conn, found.id)
        locked_id, found = found.id, await get(conn, user_id, place)
        if found.id == locked_id:
            return found
    raise Conflict()


async def is_folder(database: Database, caller: Caller, place: Place) -> bool:
    """Whether a change of this place needs the account's tree for itself; the change finds out what is there then.

    Nothing may be there: then this may be the second time that the change is asked for (see `requests.once`).
    """
    async with database.connection() as conn:
        try:
            return isinstance(await get(conn, caller.user_id, place), Folder)
        except NotFound:
            return False


async def size_at(conn: Connection, user_id: UserId, place: Place) -> int:
    """The size of the file at the place; 0 if there is none."""
    try:
        found = await get(conn, user_id, place)
    except NotFound:
        return 0
    return found.size_bytes if isinstance(found, File) else 0


async def resolve_target(conn: Connection, user_id: UserId, target: Target) -> tuple[str, ...]:
    """The full path of what an upload, a move or a copy makes or replaces."""
    place = target.place
    if not isinstance(place, tuple):
        found = await get(conn, user_id, place)
        path, is_folder = names.split_path(found.path), isinstance(found, Folder)
    else:
        reached = await files.walk(conn, user_id, place)
        if reached is None:
            raise NotFound()
        if reached.depth < len(place) and not reached.is_folder:
            raise NotAFolder(field="path")
        path, is_folder = place, reached.is_folder and reached.depth == len(place)
        if reached.depth == len(place) and target.in_folder and not is_folder:
            raise NotAFolder("The path ends in a slash, but there is a file.", field="path")
    if not (is_folder or target.in_folder):
        return path
    if target.own_name is None:
        if is_folder:
            raise IsAFolder(field="path")
        raise InvalidPath("The path ends in a slash: a file needs a name.", field="path")
    path = (*path, names.check_name(target.own_name))
    names.check_path(path)
    return path


async def free_name(conn: Connection, parent_id: FileId, path: tuple[str, ...]) -> str:
    """The last name of the path, or the first of its numbered forms that nothing in the folder has.

    Raises InvalidPath if a number would make the path too long, Conflict if too many are taken.
    """
    folder, name = path[:-1], path[-1]
    max_bytes = min(names.MAX_NAME_BYTES, names.MAX_PATH_BYTES - len(names.join_path((*folder, "")).encode()))
    for first, last in ((1, 8), (9, 100), (101, 1000), (1001, 9999)):
        candidates = [name if number == 1 else names.numbered(name, number, max_bytes=max_bytes)
                      for number in range(first, last + 1)]
        if (found := await links.find_free_name(conn, parent_id, candidates)) is not None:
            names.check_path((*folder, found))
            return found
    raise Conflict("Too many files in the folder have this name.")


async def check_room_below(conn: Connection, folder_id: FileId, old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Raise InvalidPath if something below the folder, whose path was `old`, would get too long a path at `new`."""
    new_bytes = len(names.join_path(new).encode())
    if len(new) <= len(old) and new_bytes <= len(names.join_path(old).encode()):
        return  # nothing gets longer
    depth, more_bytes = await folders.get_extent_of_folders(conn, folder_id)
    if _is_allowed(len(new) + depth + 1, new_bytes + more_bytes + 1 + names.MAX_NAME_BYTES):
        return  # even if the deepest folder had the longest of all names in it
    depth, more_bytes = await folders.get_extent(conn, folder_id)
    if not _is_allowed(len(new) + depth, new_bytes + more_bytes):
        raise InvalidPath(f"A path in the folder would have more than {names.MAX_DEPTH} levels or "
                          f"{names.MAX_PATH_BYTES} bytes.", field="path")


def _is_allowed(depth: int, size_bytes: int) -> bool:
    return depth <= names.MAX_DEPTH and size_bytes <= names.MAX_PATH_BYTES


async def make_folders(conn: Connection, user_id: UserId, path: tuple[str, ...]) -> FileId:
    """The folder at the path; what is missing is made."""
    reached = await files.walk(conn, user_id, path)
    if reached is None:
        raise NotFound()
    if not reached.is_folder:
        raise NotAFolder(field="path")
    parent_id = reached.id
    for name in path[reached.depth:]:
        parent_id, is_folder = await files.insert_folder(conn, folder_id=FileId(new_uuid()), user_id=user_id,
                                                         parent_id=parent_id, name=name)
        if not is_folder:
            raise NotAFolder(field="path")
    return parent_id
