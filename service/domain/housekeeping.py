"""What has to be done from time to time: empty old trash, forget old versions, sweep.

Sweeping: bytes that nothing refers to any more leave the disk, behind the fence.
"""

from dataclasses import dataclass

import structlog

from service import metrics
from service.db import audit, backup, blobs, links, requests, sessions
from service.db.pool import Connection, Database
from service.domain.attempts import Attempts
from service.domain.trash import Trash
from service.domain.versions import Versions
from service.model import BlobKey
from service.storage.base import BlobStore

log = structlog.get_logger()

GRACE_SECONDS = 3600.0  # a download that was decided before the deletion has long opened its file by then
BATCH = 200
AUDIT_BATCH = 10_000
REQUEST_HOURS = 24  # a client that has not asked again by then has long given up
DAY_SECONDS = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """How long things are kept, in days; 0: for ever."""

    trash_days: int = 0
    versions_days: int = 0
    audit_days: int = 0


class Housekeeping:
    """What has to be done from time to time; safe to run anywhere, at any time, twice at once."""

    def __init__(self, database: Database, store: BlobStore, ages: Ages = Ages()) -> None:
        self._database = database
        self._store = store
        self._ages = ages

    async def run(self, *, by_age: bool = True) -> None:
        """One round of everything: each part by itself, and in what goes by its age each item.

        Without `by_age` nothing goes but bytes that nothing refers to.  Raises Incomplete at the end if something
        failed, Unavailable at once if the database is gone.
        """
        attempts = Attempts(self._database)
        if by_age and self._ages.trash_days:
            await attempts.make(lambda: self._expire_trash(attempts), part="trash")
        if by_age and self._ages.versions_days:
            await attempts.make(lambda: self._expire_versions(attempts), part="versions")
        if by_age and self._ages.audit_days:
            await attempts.make(self._expire_audit, part="audit")
        if by_age:
            metrics.SWEPT.labels("requests").inc(await attempts.make(self.forget_requests, part="requests") or 0)
            await attempts.make(self._forget_expired, part="expired")
        metrics.SWEPT.labels("blobs").inc(await attempts.make(self.sweep, part="blobs") or 0)
        attempts.end()

    async def _expire_trash(self, attempts: Attempts) -> None:
        age_seconds = self._ages.trash_days * DAY_SECONDS
        items = await Trash(self._database).purge_expired(age_seconds=age_seconds, attempts=attempts)
        metrics.SWEPT.labels("trash").inc(items)
        log.info("trash.expired", items=items)

    async def _expire_versions(self, attempts: Attempts) -> None:
        age_seconds = self._ages.versions_days * DAY_SECONDS
        files = await Versions(self._database, keep=0).forget_old(age_seconds=age_seconds, attempts=attempts)
        metrics.SWEPT.labels("versions").inc(files)
        log.info("versions.expired", files=files)

    async def _expire_audit(self) -> None:
        lines = await self._forget_audit()
        metrics.SWEPT.labels("audit").inc(lines)
        log.info("audit.expired", lines=lines)

    async def forget_requests(self, *, hours: int = REQUEST_HOURS) -> int:
        """Forget requests with a key, and so their answers, a part in each transaction; how many."""
        forgotten = 0
        while True:
            async with self._database.connection() as conn:
                count = await requests.delete_old_requests(conn, hours=hours, limit=BATCH)
            forgotten += count
            if count < BATCH:
                return forgotten

    async def _forget_audit(self) -> int:
        """Forget old lines of all trails, a part in each transaction; how many."""
        forgotten = 0
        while True:
            async with self._database.connection() as conn:
                count = await audit.delete_old_audit(conn, days=self._ages.audit_days, limit=AUDIT_BATCH)
            forgotten += count
            if count < AUDIT_BATCH:
                return forgotten

    async def _forget_expired(self) -> None:
        async with self._database.connection() as conn:
            await sessions.delete_expired_sessions(conn)
            await links.delete_expired_links(conn)

    async def sweep(self, *, grace_seconds: float = GRACE_SECONDS) -> int:
        """Remove the bytes of blobs unreferenced for the grace time; how many.

        Fence (commit), remove, forget: a crash anywhere is repaired by the next run.  What the disk does not let go is
        logged and left for the next run too.
        """
        removed = 0
        stuck: list[BlobKey] = []
        while fenced := await self._fence_batch(grace_seconds, skip=stuck):
            gone = [key for key, size_bytes in fenced if await self._remove(key, size_bytes, len(fenced))]
            stuck += [key for key, _ in fenced if key not in gone]
            async with self._database.connection() as conn:
                await blobs.delete_fenced(conn, gone)
            removed += len(gone)
        return removed

    async def _fence_batch(self, grace_seconds: float, *, skip: list[BlobKey]) -> list[tuple[BlobKey, int]]:
        async def fence(conn: Connection) -> list[tuple[BlobKey, int]]:
            if await backup.may_fence(conn):
                keys = await blobs.lock_unreferenced(conn, grace_seconds=grace_seconds, limit=BATCH)
                await blobs.fence_blobs(conn, keys)
            else:  # what is fenced already, a backup does not need
                log.info("sweep.held", reason="a backup is copying blobs, or another sweep is at work")
            return await blobs.list_fenced(conn, skip=skip, limit=BATCH)

        return await self._database.in_transaction(fence)

    async def _remove(self, key: BlobKey, size_bytes: int, count: int) -> bool:
        log.info("blob.removed", blob=str(key), size=size_bytes, reason="unreferenced", count=count)
        try:
            await self._store.delete(key)
        except OSError as error:
            log.error("blob.stuck", blob=str(key), error=str(error))
            return False
        return True
