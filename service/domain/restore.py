"""A backup becomes a service again: an empty data root and an empty database are filled and given a new epoch.

The order is such that a restore that died is gone on with: the root is marked as unfinished, then come the bytes, the
tables in one transaction together with the epoch, and the mark becomes the epoch.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from graphlib import CycleError, TopologicalSorter
from uuid import uuid4

from service.db import backup, instance
from service.db.pool import Connection
from service.domain.backup import Progress, Tally
from service.storage.backup import BackupFolder
from service.storage.copying import COPIERS, BadBlob, NamedBlob, in_turn
from service.storage.restoring import RestoredRoot
from service.storage.snapshots import BackupError, Missing, Snapshot


class Restore:
    """One snapshot on its way into a data root and a database.

    The caller migrates in between: `begin`, `find_loaded`, `copy_blobs`, `confirm_empty`, the schema of the backup,
    `load`, the newest schema, `finish`.  Everything raises BackupError, or Unavailable for the database.
    """

    def __init__(self, folder: BackupFolder, snapshot: Snapshot, root: RestoredRoot) -> None:
        self._folder = folder
        self._snapshot = snapshot
        self._root = root
        self._epoch = uuid4()
        self._is_new = False
        self._stop = threading.Event()

    def begin(self) -> None:
        """Mark the data root, which has to be empty or marked by an earlier run."""
        epoch = self._root.begin(self._snapshot.name, self._epoch)
        self._is_new, self._epoch = epoch == self._epoch, epoch

    def withdraw(self) -> None:
        """Take the mark away if `begin` has made it: nothing was restored after all."""
        if self._is_new:
            self._root.withdraw()

    async def find_loaded(self, dsn: str) -> bool:
        """Whether an earlier run has filled the database; BackupError if it is in use by anything else."""
        async with backup.connected(dsn) as conn:
            names = {table.name for table in await backup.list_tables(conn)}
            if "instance" in names and await instance.get_epoch(conn) == self._epoch:
                return True
            if "users" in names:
                await _refuse_accounts(conn)
            if await backup.is_served(conn):
                raise BackupError("a service is connected to the database; a restore needs it stopped")
            if names and "users" not in names:
                raise BackupError(f"the database has tables of something else ({', '.join(sorted(names))}); "
                                  "a restore needs an empty one")
        return False

    def confirm_empty(self, dsn: str) -> None:
        """Look again, right before the database is emptied.  Blocks."""
        asyncio.run(self.find_loaded(dsn))

    def copy_blobs(self, progress: Progress = lambda _: None) -> list[Missing]:
        """Copy and verify all bytes and the secrets; what is not there, or not as it was.  Blocks."""
        manifest = self._snapshot.manifest
        tally = Tally(total_blobs=manifest.blobs.count, total_bytes=manifest.blobs.total_bytes)
        missing = []
        with ThreadPoolExecutor(COPIERS, thread_name_prefix="restore") as pool:
            try:
                for secret in manifest.secrets:
                    self._root.add_secret(secret.name, self._snapshot.secret(secret))
                for blob, reason in in_turn(pool, self._copy, self._snapshot.blobs()):
                    tally.blobs += 1
                    tally.size_bytes += blob.size_bytes
                    if reason is not None:
                        missing.append(Missing(key=blob.key, size_bytes=blob.size_bytes, reason=reason))
                    progress(tally)
                self._root.sync()
            except OSError as error:
                raise BackupError(f"the data root cannot be used: {error.strerror or error}; {tally.blobs} of "
                                  f"{tally.total_blobs} blobs are there, and the next try goes on with them") from error
            finally:
                self._stop.set()  # those that are still under way are not waited for
        return missing

    def _copy(self, blob: NamedBlob) -> tuple[NamedBlob, str | None]:
        try:
            self._root.add(blob, self._folder.place(blob), self._stop)
        except BadBlob as problem:
            return blob, str(problem)
        return blob, None

    async def load(self, dsn: str) -> None:
        """Fill the tables, which have the schema of the backup: all of it or nothing."""
        async with backup.connected(dsn, is_patient=True) as conn, conn.transaction():
            await self._fill(conn)
            await backup.delete_unreferred_blobs(conn)
            await backup.end_all_sessions(conn)
            for name, last_value in self._snapshot.manifest.sequences.items():
                await backup.set_sequence(conn, name, last_value)
            await backup.set_epoch(conn, self._epoch)

    async def _fill(self, conn: Connection) -> None:
        parts = {part.name: part for part in self._snapshot.manifest.tables}
        names = [table.name for table in await backup.list_tables(conn)]
        if names != sorted(parts):
            raise BackupError(f"the tables of this schema ({', '.join(names)}) are not those of the backup "
                              f"({', '.join(sorted(parts))})")
        await backup.lock_users(conn)
        await _refuse_accounts(conn)
        await backup.empty_tables(conn, names)
        await backup.defer_constraints(conn)
        for name in _in_order(names, await backup.list_references(conn)):
            part = parts[name]
            rows = await backup.copy_in(conn, backup.Table(name=name, columns=part.columns), self._rows(name))
            if rows != part.rows:
                raise BackupError(f"the table {name} had {part.rows} rows, and {rows} came back")
        await backup.check_constraints(conn)

    async def _rows(self, name: str) -> AsyncIterator[bytes]:
        part = next(part for part in self._snapshot.manifest.tables if part.name == name)
        for piece in self._snapshot.rows(part):
            yield piece

    async def finish(self, dsn: str) -> None:
        """Forget what was known of the old data root, and make the new one fit the database; the newest schema."""
        async with backup.connected(dsn) as conn:
            await backup.forget_data_root(conn)
        await asyncio.to_thread(self._root.finish, self._epoch)


async def _refuse_accounts(conn: Connection) -> None:
    if await backup.has_accounts(conn):
        raise BackupError("the database has accounts in it; a restore needs an empty one")


def _in_order(names: list[str], references: list[tuple[str, str]]) -> list[str]:
    """Each table after those that its rows need."""
    needed: dict[str, set[str]] = {name: set() for name in names}
    for referring, referred in references:
        needed[referring].add(referred)
    try:
        return list(TopologicalSorter(needed).static_order())
    except CycleError as error:
        raise BackupError(f"the tables {', '.join(error.args[1])} need each other at once; one of their foreign keys "
                          "has to be deferrable") from None
