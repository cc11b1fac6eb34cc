"""Group commit: uploads that come at the same time share one transaction, and one wait for the disk.

It takes what is most common, a new file in a folder that is there, and decides nothing else: whatever does not fit (a
name that is taken, a folder that is missing, a quota without room, somebody who moves folders) it leaves as it was, for
a transaction of its own that gives the right answer.  So no upload makes another one fail, nor wait for long.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import structlog

from service.db import uploads, users
from service.db.pool import Connection, Database, mark_changed
from service.db.uploads import NewFile
from service.errors import ServiceError, Unavailable
from service.model import File, FileId, UserId
from service.names import join_path

log = structlog.get_logger()

MAX_GROUP = 64  # so many share the fate of one COMMIT

_Place = tuple[UserId, tuple[str, ...], str]


class _NothingMade(Exception):
    """There is nothing to be committed."""


class GroupCommit:
    """Commits what is waiting, group by group."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[_Place, tuple[NewFile, asyncio.Future[File | None]]] = {}
        self._leader: asyncio.Task[None] | None = None

    async def store(self, wanted: NewFile) -> File | None:
        """Make the file; None if it was left alone, and nothing was changed for it.  Raises Unavailable."""
        place = wanted.user_id, wanted.folder, wanted.name
        if place in self._waiting:  # one of the two will replace the other
            return None
        done: asyncio.Future[File | None] = asyncio.get_running_loop().create_future()
        self._waiting[place] = wanted, done
        if self._leader is None:
            self._leader = asyncio.create_task(self._lead())
        return await done

    async def _lead(self) -> None:
        """Commit group after group until nobody waits; who comes meanwhile belongs to the next group."""
        while self._waiting:
            group = [self._waiting.pop(place) for place in list(self._waiting)[:MAX_GROUP]]
            try:
                made = await self._commit([wanted for wanted, _ in group])
            except Unavailable as error:
                for _, done in group:
                    if not done.done():  # whoever waited may have been cancelled
                        done.set_exception(error)
            else:
                for wanted, done in group:
                    if not done.done():
                        done.set_result(made.get(wanted.id))
        self._leader = None

    async def _commit(self, group: Sequence[NewFile]) -> dict[FileId, File]:
        """What was made of the group; raise Unavailable if it is not known, or if nobody could do better."""
        refused = False

        async def work(conn: Connection) -> dict[FileId, File]:
            nonlocal refused
            try:
                if made := await _store(conn, group):
                    return made
            except ServiceError:
                refused = True
                raise
            raise _NothingMade

        try:
            return await self._database.in_transaction(work)
        except _NothingMade:
            pass
        except Unavailable:
            if not refused:
                raise
        except Exception as error:  # each finds out by itself, in a transaction of its own, whether it is the reason
            log.warning("group_commit.failed", size=len(group), error=type(error).__name__)
        return {}


async def _store(conn: Connection, group: Sequence[NewFile]) -> dict[FileId, File]:
    sizes: dict[UserId, int] = {}
    for wanted in group:
        sizes[wanted.user_id] = sizes.get(wanted.user_id, 0) + wanted.staged.size_bytes
    locked = await uploads.lock_accounts(conn, sizes)
    fitting = [wanted for wanted in group if wanted.user_id in locked]
    times = await uploads.insert_files(conn, fitting) if fitting else {}
    made = {wanted.id: _file_of(wanted, *times[wanted.id]) for wanted in fitting if wanted.id in times}
    charges: dict[UserId, tuple[int, int]] = {}
    for wanted in fitting:
        if wanted.id in made:
            mark_changed(wanted.user_id)
            size_bytes, count = charges.get(wanted.user_id, (0, 0))
            charges[wanted.user_id] = size_bytes + wanted.staged.size_bytes, count + 1
    if charges:
        await users.update_usages(conn, charges)
    return made


def _file_of(wanted: NewFile, created_at: datetime, updated_at: datetime) -> File:
    return File(id=wanted.id, name=wanted.name, path=join_path((*wanted.folder, wanted.name)),
                size_bytes=wanted.staged.size_bytes, sha256=wanted.staged.sha256, content_type=wanted.content_type,
                version=1, version_id=wanted.version_id, blob_key=wanted.staged.key, created_at=created_at,
                updated_at=updated_at)
