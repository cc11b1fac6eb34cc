"""Whether the rows agree with each other: what accounts hold, trees, versions, the sweep's list; and making it good."""

from service.db import blobs, consistency, files
from service.db.consistency import Drift, Fault
from service.db.pool import Connection, Database
from service.domain.findings import Finding
from service.model import BlobKey, UserId

MARKS_PER_ROUND = 1000
_NAMES = ("bytes of files", "bytes in the trash", "bytes of former versions", "files")


class Consistency:
    """Counts everything anew, in one snapshot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self) -> list[Finding]:
        """Whatever does not agree; raises Unavailable."""
        async with self._database.snapshot() as conn:
            drifts = await consistency.list_drift(conn)
            in_tree = await consistency.list_tree_faults(conn)
            of_versions = await consistency.list_version_faults(conn)
            marks = await consistency.list_wrong_marks(conn, limit=MARKS_PER_ROUND)
        return [*(_describe_drift(drift) for drift in drifts),
                *(_describe_fault("tree", fault) for fault in in_tree),
                *(_describe_fault("version", fault) for fault in of_versions),
                *(Finding(kind="unmarked", subject=str(key), detail=(
                    "nothing refers to it, and no sweep would find it" if is_garbage
                    else "it is on the sweep's list, and something refers to it"))
                  for key, is_garbage in marks.items())]

    async def repair_usage(self, user_id: UserId) -> None:
        """Make an account's sums what counting gives, while nothing of the account changes."""
        async def work(conn: Connection) -> None:
            await files.lock_tree(conn, user_id)
            await consistency.update_counted_usage(conn, user_id)

        await self._database.in_transaction(work)

    async def repair_marks(self) -> int:
        """Put garbage that was forgotten on the sweep's list, and take off what does not belong there; how many."""
        repaired = 0
        while True:
            async with self._database.connection() as conn:
                keys = list(await consistency.list_wrong_marks(conn, limit=MARKS_PER_ROUND))
            await self._repair(keys)
            repaired += len(keys)
            if len(keys) < MARKS_PER_ROUND:
                return repaired

    async def _repair(self, keys: list[BlobKey]) -> None:
        async def work(conn: Connection) -> None:
            await blobs.lock_blobs(conn, keys)
            await consistency.update_marks(conn, keys)

        await self._database.in_transaction(work)


def _describe_drift(drift: Drift) -> Finding:
    wrong = [f"{name}: recorded {recorded}, counted {counted}" for name, recorded, counted
             in zip(_NAMES, drift.recorded, drift.counted, strict=True) if recorded != counted]
    return Finding(kind="usage", subject=str(drift.user_id), detail=f"account {drift.username!r}: {'; '.join(wrong)}")


def _describe_fault(kind: str, fault: Fault) -> Finding:
    return Finding(kind="tree" if kind == "tree" else "version", subject=str(fault.file_id),
                   detail=f"account {fault.user_id}: {fault.what}")
