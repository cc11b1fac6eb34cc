"""Group commit: uploads that come at the same time share one transaction, and one wait for the disk.

It takes what is most common, a new file in a folder that is there or new content of a file, and decides nothing else:
whatever does not fit (a name that is a folder's, a folder that is missing, a file that somebody else is changing, a
quota without room, somebody who moves folders) it leaves as it was, for a transaction of its own that gives the right
answer.  So no upload makes another one fail, nor wait for long.
"""

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from service.db import blobs, uploads, users, versions
from service.db.pool import Connection, Database, mark_changed
from service.db.uploads import Upload, Written
from service.db.users import Charge
from service.errors import ServiceError, Unavailable
from service.model import File, UserId, VersionId
from service.names import join_path

log = structlog.get_logger()

MAX_GROUP = 64  # so many share the fate of one COMMIT

_Place = tuple[UserId, tuple[str, ...], str]


class _NothingMade(Exception):
    """There is nothing to be committed."""


class GroupCommit:
    """Commits what is waiting, group by group."""

    def __init__(self, database: Database, *, keep: int) -> None:
        self._database = database
        self._keep = keep
        self._waiting: dict[_Place, tuple[Upload, asyncio.Future[File | None]]] = {}
        self._leader: asyncio.Task[None] | None = None

    async def store(self, upload: Upload) -> File | None:
        """Write the file; None if it was left alone, and nothing was changed for it.  Raises Unavailable."""
        place = upload.user_id, upload.folder, upload.name
        if place in self._waiting:  # one of the two replaces the other
            return None
        done: asyncio.Future[File | None] = asyncio.get_running_loop().create_future()
        self._waiting[place] = upload, done
        if self._leader is None:
            self._leader = asyncio.create_task(self._lead())
        return await done

    async def _lead(self) -> None:
        """Commit group after group until nobody waits; who comes meanwhile belongs to the next group."""
        while self._waiting:
            group = [self._waiting.pop(place) for place in list(self._waiting)[:MAX_GROUP]]
            try:
                written = await self._commit([upload for upload, _ in group])
            except Unavailable as error:
                for _, done in group:
                    if not done.done():  # whoever waited may have been cancelled
                        done.set_exception(error)
            else:
                for upload, done in group:
                    if not done.done():
                        done.set_result(written.get(upload.version_id))
        self._leader = None

    async def _commit(self, group: Sequence[Upload]) -> dict[VersionId, File]:
        """What was made of the group; raise Unavailable if it is not known, or if nobody could do better."""
        refused = False

        async def work(conn: Connection) -> dict[VersionId, File]:
            nonlocal refused
            try:
                if written := await _store(conn, group, keep=self._keep):
                    return written
            except ServiceError:
                refused = True
                raise
            raise _NothingMade

        try:
            return await self._database.in_transaction(work)
        except _NothingMade:
            pass
        except Unavailable as error:
            if not (refused and error.nothing_committed):
                raise
        except Exception as error:  # each finds out by itself, in a transaction of its own, whether it is the reason
            log.warning("group_commit.failed", size=len(group), error=type(error).__name__)
        return {}


async def _store(conn: Connection, group: Sequence[Upload], *, keep: int) -> dict[VersionId, File]:
    sizes: dict[UserId, int] = {}
    for upload in group:
        sizes[upload.user_id] = sizes.get(upload.user_id, 0) + upload.staged.size_bytes
    locked = await uploads.lock_accounts(conn, sizes)
    fitting = [upload for upload in group if upload.user_id in locked]
    written = await uploads.put_files(conn, fitting) if fitting else {}
    if not written:
        return {}
    fitting = [upload for upload in fitting if upload.version_id in written]
    await users.update_usages(conn, await _charges(conn, fitting, written, keep=keep))
    return {upload.version_id: _file_of(upload, written[upload.version_id]) for upload in fitting}


async def _charges(conn: Connection, group: Sequence[Upload], written: Mapping[VersionId, Written], *,
                   keep: int) -> dict[UserId, Charge]:
    """What the accounts owe; of what was replaced the former versions go that are not kept."""
    replaced = [file.file_id for file in written.values() if file.replaced_bytes is not None]
    pruned = await versions.delete_former(conn, replaced, keep=keep) if replaced else {}
    await blobs.release_blobs(conn, [key for freed in pruned.values() for key in freed.blob_keys])
    charges: dict[UserId, Charge] = {}
    for upload in group:
        mark_changed(upload.user_id)
        charge = charges.setdefault(upload.user_id, Charge())
        file = written[upload.version_id]
        if file.replaced_bytes is None:
            charge.files_bytes += upload.staged.size_bytes
            charge.file_count += 1
        else:
            charge.files_bytes += upload.staged.size_bytes - file.replaced_bytes
            charge.versions_bytes += file.replaced_bytes - pruned[file.file_id].size_bytes
    return charges


def _file_of(upload: Upload, written: Written) -> File:
    return File(id=written.file_id, name=upload.name, path=join_path((*upload.folder, upload.name)),
                size_bytes=upload.staged.size_bytes, sha256=upload.staged.sha256, content_type=upload.content_type,
                version=written.number, version_id=upload.version_id, blob_key=upload.staged.key,
                created_at=written.created_at, updated_at=written.updated_at)
