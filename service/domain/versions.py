"""Former versions of files: look, bring back, forget.  Sending one is `Content.deliver`."""

import functools

from service.db import blobs, files, users, versions
from service.db.pool import Connection, Database
from service.domain.attempts import Attempts
from service.domain.audit import record
from service.domain.content import check_conditions, no_such_version, supersede
from service.domain.places import Place, get, get_locked
from service.domain.requests import once
from service.errors import Conflict, IsAFolder
from service.model import Caller, Conditions, File, FileId, Folder, UserId, Version, VersionId, new_uuid

BATCH = 100


class Versions:
    """The history of files; `keep` former versions of each."""

    def __init__(self, database: Database, *, keep: int) -> None:
        self._database = database
        self._keep = keep

    async def list(self, caller: Caller, place: Place) -> list[Version]:
        """All versions of a file, newest first; raise NotFound, IsAFolder."""
        async with self._database.connection() as conn:
            return await versions.list_versions(conn, _as_file(await get(conn, caller.user_id, place)).id)

    async def restore(self, caller: Caller, place: Place, number: int,
                      conditions: Conditions = Conditions()) -> File:
        """Make what a file was in a version its newest version; no bytes move.

        Raises NotFound, IsAFolder, PreconditionFailed, QuotaExceeded.
        """
        async def work(conn: Connection) -> File:
            await files.lock_tree_shared(conn, caller.user_id)
            file = _as_file(await get_locked(conn, caller.user_id, place))
            wanted = await versions.get_numbered(conn, file.id, number)
            if wanted is None:
                raise no_such_version()
            head = await versions.get_version(conn, file.version_id)
            check_conditions(conditions, head.etag)
            new_id = VersionId(new_uuid())
            # first the new reference, then the pruning that may drop the old one: the blob is never unreferenced
            await versions.insert_version(conn, version_id=new_id, file_id=file.id, number=head.number + 1,
                                          blob_key=wanted.blob_key, content_type=wanted.content_type)
            await record(conn, caller.user_id, "version_restore", file_id=file.id, path=file.path, version=number,
                         size=wanted.size_bytes)
            await supersede(conn, caller.user_id, file.id, head, new_id, size_bytes=wanted.size_bytes, keep=self._keep)
            found = await get(conn, caller.user_id, file.id)
            assert isinstance(found, File)
            return found

        return await once(self._database, caller, work)

    async def forget(self, caller: Caller, place: Place, number: int | None) -> None:
        """Forget one former version of a file, or all of them; raise NotFound, IsAFolder, Conflict for the current."""
        async def work(conn: Connection) -> None:
            await files.lock_tree_shared(conn, caller.user_id)
            file = _as_file(await get_locked(conn, caller.user_id, place))
            if number is None:
                pruned = (await versions.delete_former(conn, [file.id], keep=0))[file.id]
            else:
                found = await versions.get_numbered(conn, file.id, number)
                if found is None:
                    raise no_such_version()
                if found.is_current:
                    raise Conflict("This is the current version; delete the file instead.", field="version")
                pruned = await versions.delete_numbered(conn, file.id, number)
            await blobs.release_blobs(conn, pruned.blob_keys)
            await record(conn, caller.user_id, "version_delete", file_id=file.id, path=file.path, version=number,
                         size=pruned.size_bytes)
            await users.update_usage(conn, caller.user_id, versions_bytes=-pruned.size_bytes)

        await once(self._database, caller, work)

    async def forget_old(self, *, age_seconds: float, attempts: Attempts) -> int:
        """Forget everybody's versions that were replaced longer ago than that; of how many files.

        What cannot go is passed over.
        """
        done = 0
        stuck: list[FileId] = []
        while True:
            async with self._database.connection() as conn:
                found = await versions.list_files_with_old(conn, age_seconds=age_seconds, skip=stuck, limit=BATCH)
            for user_id, file_id in found:
                if await attempts.make_for(user_id, functools.partial(self._forget_old, user_id, file_id, age_seconds),
                                           part="versions", item=str(file_id)):
                    done += 1
                else:
                    stuck.append(file_id)
            if len(found) < BATCH:
                return done

    async def _forget_old(self, user_id: UserId, file_id: FileId, age_seconds: float) -> bool:
        async def work(conn: Connection) -> None:
            await files.lock_tree_shared(conn, user_id)
            if await files.lock_file(conn, file_id) is None:
                return
            is_live = await files.get_by_id(conn, user_id, file_id) is not None
            pruned = await versions.delete_old(conn, file_id, age_seconds=age_seconds)
            await blobs.release_blobs(conn, pruned.blob_keys)
            if is_live:
                await users.update_usage(conn, user_id, versions_bytes=-pruned.size_bytes)
            else:
                await users.update_usage(conn, user_id, trash_bytes=-pruned.size_bytes)

        await self._database.in_transaction(work)
        return True


def _as_file(found: File | Folder) -> File:
    """Raise IsAFolder for a folder."""
    if isinstance(found, Folder):
        raise IsAFolder("A folder has no versions.", field="path")
    return found
