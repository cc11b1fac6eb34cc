"""A backup of everything, beside the running service: the tables of one moment, then the bytes that they name.

What is fenced is all that ever leaves the disk.  The backup holds the fences from before its snapshot until the last
blob is copied, so no time is argued with: what the snapshot refers to was not fenced before it and cannot be after it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from service import __version__
from service.db import backup, damage, instance
from service.db.pool import Connection
from service.model import BlobKey
from service.security.addresses import SECRET_FILE
from service.storage.backup import BackupFolder
from service.storage.base import BlobStore
from service.storage.copying import COPIERS, BadBlob, NamedBlob, check_blob, in_turn
from service.storage.restoring import read_marker
from service.storage.snapshots import (
    BackupError, BlobsPart, Manifest, Missing, PartWriter, SecretPart, TablePart, blob_line, read_blobs, write_secret,
)

# With it, addresses that were signed go on working.  The key of access tokens is not kept: a restore ends all sessions.
SECRETS = (SECRET_FILE,)


@dataclass(slots=True)
class Tally:
    """How far it is; all of it is counted, what was there already too."""

    blobs: int = 0
    total_blobs: int = 0
    size_bytes: int = 0
    total_bytes: int = 0


Progress = Callable[[Tally], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a backup came to."""

    snapshot: str
    tables: int
    rows: int
    blobs: int
    size_bytes: int
    copied: int
    copied_bytes: int
    missing: tuple[Missing, ...]


@dataclass(slots=True)
class _Copies:
    count: int = 0
    size_bytes: int = 0
    missing: list[Missing] = field(default_factory=list)


class Backup:
    """Makes backups of one data root and its database in one folder, which is open to write."""

    def __init__(self, dsn: str, root: Path, store: BlobStore, folder: BackupFolder) -> None:
        self._dsn = dsn
        self._root = root
        self._store = store
        self._folder = folder
        self._stop = threading.Event()

    async def run(
            self, *, verify: bool = False, anew: bool = False, progress: Progress = lambda _: None) -> Report:
        """Make one; `verify` reads what the pool holds already, `anew` goes on after the backups of another service.

        Blobs that cannot be saved are named in the report.  Raises BackupError or Unavailable if there is no new
        backup; what was copied stays for the next one.
        """
        try:
            async with backup.fences_held(self._dsn) as hold:
                folder, manifest = await self._dump(anew)
                copies = await asyncio.to_thread(self._copy_all, manifest, folder, verify, progress)
                was_held = await hold.release()
            if copies.missing and not was_held:
                raise BackupError("the connection to the database was lost while blobs were copied, and "
                                  f"{len(copies.missing)} of them may have been removed since; run it again")
            missing = tuple([blob async for blob in self._name_files(copies.missing)])
            manifest = manifest.model_copy(update={"missing": missing})
            await asyncio.to_thread(self._folder.seal, folder, manifest)
        except OSError as error:
            raise self._folder.unusable(error) from error
        finally:
            self._stop.set()
        return Report(
            snapshot=folder.name, tables=len(manifest.tables), rows=sum(table.rows for table in manifest.tables),
            blobs=manifest.blobs.count, size_bytes=manifest.blobs.total_bytes, copied=copies.count,
            copied_bytes=copies.size_bytes, missing=manifest.missing)

    async def _name_files(self, missing: list[Missing]) -> AsyncIterator[Missing]:
        """Who has to be told of a blob that is not there: whose files hold it now."""
        if not missing:
            return
        async with backup.connected(self._dsn) as conn:
            for blob in missing:
                files = [f"of {found.username}: {found.path}, version {found.version}"
                         for found in await damage.list_affected(conn, BlobKey(blob.key))]
                yield blob.model_copy(update={"files": tuple(files)})

    # --- the tables ---

    async def _dump(self, anew: bool) -> tuple[Path, Manifest]:
        """Write every table as of one moment."""
        async with backup.connected(self._dsn) as conn:
            async with conn.transaction(isolation="repeatable_read", readonly=True):
                epoch = await self._check_epoch(conn)
                if not anew:
                    await asyncio.to_thread(self._folder.refuse_others, epoch)
                folder = await asyncio.to_thread(self._folder.begin, await backup.get_moment(conn))
                manifest = await self._write_parts(conn, folder, epoch)
            # a migration that rewrites a table hides its rows from older snapshots (PostgreSQL, "MVCC caveats")
            if tuple(await backup.list_applied(conn)) != manifest.migrations:
                raise BackupError("the schema was changed while its tables were copied; run it again")
        return folder, manifest

    async def _check_epoch(self, conn: Connection) -> UUID:
        epoch = await instance.get_epoch(conn)
        if (found := read_marker(self._root)) != str(epoch):
            raise BackupError(f"the data root {self._root} belongs to another database: its MARKER says {found!r}, "
                              f"the database says {epoch}")
        return epoch

    async def _write_parts(self, conn: Connection, folder: Path, epoch: UUID) -> Manifest:
        tables = [await self._write_table(conn, folder, table) for table in await backup.list_tables(conn)]
        return Manifest(
            service=__version__, taken_at=await backup.get_moment(conn), epoch=epoch,
            migrations=tuple(await backup.list_applied(conn)), tables=tuple(tables),
            sequences=await backup.list_sequences(conn), blobs=await self._write_blobs(conn, folder),
            secrets=tuple(self._write_secrets(folder)), missing=())

    @staticmethod
    async def _write_table(conn: Connection, folder: Path, table: backup.Table) -> TablePart:
        writer = PartWriter(folder / "tables" / f"{table.name}.gz")

        async def write(data: bytes) -> None:
            writer.write(data)

        try:
            rows = await backup.copy_out(conn, table, write)
            part = writer.finish()
        finally:
            writer.close()
        return TablePart(name=table.name, columns=table.columns, rows=rows, **part.model_dump())

    @staticmethod
    async def _write_blobs(conn: Connection, folder: Path) -> BlobsPart:
        writer = PartWriter(folder / "blobs.gz")
        count = total_bytes = 0
        try:
            async for key, size_bytes, sha256 in backup.list_referred_blobs(conn):
                writer.write(blob_line(NamedBlob(key=key, size_bytes=size_bytes, sha256=sha256)))
                count += 1
                total_bytes += size_bytes
            part = writer.finish()
        finally:
            writer.close()
        return BlobsPart(count=count, total_bytes=total_bytes, **part.model_dump())

    def _write_secrets(self, folder: Path) -> Iterator[SecretPart]:
        for name in SECRETS:
            if (self._root / name).exists():
                yield write_secret(folder, name, (self._root / name).read_bytes())

    # --- the bytes ---

    def _copy_all(self, manifest: Manifest, folder: Path, verify: bool, progress: Progress) -> _Copies:
        copies = _Copies()
        tally = Tally(total_blobs=manifest.blobs.count, total_bytes=manifest.blobs.total_bytes)

        def save(blob: NamedBlob) -> tuple[NamedBlob, bool | str]:
            return blob, self._save(blob, verify)

        with ThreadPoolExecutor(COPIERS, thread_name_prefix="backup") as pool:
            try:
                for blob, outcome in in_turn(pool, save, read_blobs(folder)):
                    tally.blobs += 1
                    tally.size_bytes += blob.size_bytes
                    if isinstance(outcome, str):
                        copies.missing.append(Missing(key=blob.key, size_bytes=blob.size_bytes, reason=outcome))
                    elif outcome:
                        copies.count += 1
                        copies.size_bytes += blob.size_bytes
                    progress(tally)
            except OSError as error:
                raise BackupError(f"{self._folder.unusable(error)}; {tally.blobs} of {tally.total_blobs} blobs are "
                                  "there, and the next backup does not copy them again") from error
            finally:
                self._stop.set()  # those that are still under way are not waited for
        return copies

    def _save(self, blob: NamedBlob, verify: bool) -> bool | str:
        """Have a blob in the pool: whether it had to be copied, or why that cannot be done."""
        if self._folder.holds(blob):
            if not verify:
                return False
            try:
                check_blob(blob, self._folder.place(blob), self._stop)
                return False
            except BadBlob:
                pass  # a good copy takes its place, if there is one
        try:
            self._folder.add(blob, self._store.path(blob.key), self._stop)
        except BadBlob as problem:
            return str(problem)
        return True
