"""The commands `backup` and `restore`."""

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

import psycopg

from service.config import Config
from service.db.pool import Database
from service.domain.backup import Backup, Report, Tally
from service.domain.check import Check
from service.domain.findings import Finding
from service.domain.restore import Restore
from service.errors import ServiceError
from service.run import database, folders, migrate as migrations, postgres
from service.run.folders import Folders
from service.run.migrate import MigrationError
from service.run.postgres import EmbeddedPostgres
from service.run.progress import Progress, format_bytes, printable
from service.storage.backup import BackupFolder
from service.storage.inspection import LocalInspector
from service.storage.known import KnownFolders
from service.storage.local import LocalStore
from service.storage.restoring import RestoredRoot, read_marker
from service.storage.snapshots import BackupError, Missing

P = ParamSpec("P")

DONE = 0
FAILED = 1
INCOMPLETE = 3  # 2 is for wrong settings


def _told(command: Callable[P, int]) -> Callable[P, int]:
    """A command whose failures are one sentence on standard error."""
    @functools.wraps(command)
    def told(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except (BackupError, ServiceError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
        except psycopg.Error as error:
            print(f"error: the database cannot be reached: {postgres.in_one_line(error)}", file=sys.stderr)
        return FAILED

    return told


@_told
def backup(config: Config, path: Path, *, keep: int | None = None, verify: bool = False, anew: bool = False) -> int:
    """Make a backup in a folder and tell about it; the exit code.  `anew`: see --new.

    0: all is saved.  1 (or StartError): no backup was made.  3: one was made, but what is named on standard error is
    not in it, or old ones could not be removed.
    """
    os.umask(0o077)
    root = config.data_root.resolve()
    _keep_apart(root, path.resolve())
    read_marker(root)  # before anything is started there
    if not anew:
        KnownFolders(root).refuse_other(BackupFolder(path))
    with _opened(BackupFolder(path), BackupFolder.open_to_write) as folder, \
            database.reached(config, gives_way=True) as dsn:
        _remember(KnownFolders(root), folder)
        postgres.check_server(dsn)
        migrations.check_applied(dsn)
        store = LocalStore(root)
        try:
            with _shown("saved") as show:
                report = asyncio.run(Backup(dsn, root, store, folder).run(verify=verify, anew=anew, progress=show))
        finally:
            store.close()
        print(_describe(report))
        _complain(report.missing, "could not be saved")
        return _prune(folder, keep, report)


def _remember(known: KnownFolders, folder: BackupFolder) -> None:
    try:
        known.add(folder)
    except OSError as error:  # a disk that takes nothing any more has to be saved all the more
        print(f"warning: if {folder.path} is not mounted some day, nobody will notice: it could not be noted in the "
              f"data root: {error.strerror or error}", file=sys.stderr)


def _prune(folder: BackupFolder, keep: int | None, report: Report) -> int:
    if keep is not None:
        try:
            snapshots, blobs = folder.prune(keep, made=report.snapshot)
        except (BackupError, OSError) as error:
            print(f"error: no old backup was removed: {error}", file=sys.stderr)
            return INCOMPLETE
        print(f"removed {snapshots} older backups and {blobs} blobs that no other one names")
    return INCOMPLETE if report.missing else DONE


@_told
def restore(config: Config, path: Path, *, name: str | None = None) -> int:
    """Fill an empty data root and an empty database from a backup; the exit code.

    0: all is there again.  1 (or StartError, MigrationError): it is not; run again, it goes on where it ended.  3: all
    is there but what is named on standard error.
    """
    os.umask(0o077)
    root = config.data_root.resolve()
    _keep_apart(root, path.resolve())
    with _opened(BackupFolder(path), BackupFolder.open_to_read) as folder:
        snapshot = folder.snapshot(name)
        snapshot.verify()
        manifest = snapshot.manifest
        if unknown := sorted(set(manifest.migrations) - {migration.id for migration in migrations.read()}):
            raise MigrationError(f"the backup is newer than this version of the service, which does not know "
                                 f"{', '.join(unknown)}")
        with folders.locked(config.data_root) as places:
            restoring = Restore(folder, snapshot, RestoredRoot(places.root))
            restoring.begin()
            with _server(config, places) as dsn:
                missing = _restore(restoring, dsn, manifest.migrations, is_embedded=config.database_url is None)
                findings = asyncio.run(_check(config, dsn, places.root))
    print(f"{snapshot.name} is restored: {sum(table.rows for table in manifest.tables)} rows and "
          f"{manifest.blobs.count - len(missing)} of {manifest.blobs.count} blobs; everybody has to log in again")
    _complain(missing, "could not be restored")
    for finding in findings:
        print(f"error: the check says: {finding.kind}: {finding.subject}: {printable(finding.detail)}", file=sys.stderr)
        for affected in finding.affected:
            print(f"    of {affected.username}: {printable(affected.path)}, version {affected.version}",
                  file=sys.stderr)
    return INCOMPLETE if missing or findings else DONE


def _restore(restoring: Restore, dsn: str, schema: Iterable[str], *, is_embedded: bool) -> list[Missing]:
    try:
        postgres.check_server(dsn)
        is_loaded = asyncio.run(restoring.find_loaded(dsn))
    except BaseException:  # Ctrl-C too: nothing was restored yet, so the data root must not look as if
        if not is_embedded:
            restoring.withdraw()
        raise
    with _shown("restored") as show:
        missing = restoring.copy_blobs(show)
    if not is_loaded:
        # what a service has put into its new database is the schema, unless it came to more in all that time
        migrations.renew(dsn, schema, lambda: restoring.confirm_empty(dsn))
        asyncio.run(restoring.load(dsn))
    migrations.apply(dsn)
    asyncio.run(restoring.finish(dsn))
    return missing


async def _check(config: Config, dsn: str, root: Path) -> list[Finding]:
    """Compare every row with the others and with the disk; the bytes were read already."""
    db = await Database.open(dsn, size=2)
    inspector = LocalInspector(root)
    try:
        report = await Check(db, inspector, quarantine_days=config.quarantine_days).run(reads=False)
    finally:
        inspector.close()
        await db.close()
    return report.findings


@contextmanager
def _server(config: Config, places: Folders) -> Iterator[str]:
    """The address of the database of a data root that is ours alone."""
    if config.database_url:
        yield config.database_url.get_secret_value()
        return
    with EmbeddedPostgres(places.postgres, places.sockets) as server:
        server.ensure_database()
        yield server.dsn()


@contextmanager
def _opened(folder: BackupFolder, how: Callable[[BackupFolder], None]) -> Iterator[BackupFolder]:
    how(folder)
    try:
        yield folder
    finally:
        folder.close()


@contextmanager
def _shown(what: str) -> Iterator[Callable[[Tally], None]]:
    line = Progress(what)
    try:
        yield lambda tally: line.show(tally.blobs, tally.total_blobs, tally.size_bytes, tally.total_bytes)
    finally:
        line.clear()


def _keep_apart(root: Path, path: Path) -> None:
    if path == root or path in root.parents or root in path.parents:
        raise BackupError(f"the backups in {path} and the data root {root} have to be apart")


def _describe(report: Report) -> str:
    return (f"{report.snapshot}: {report.tables} tables with {report.rows} rows, {report.blobs} blobs with "
            f"{format_bytes(report.size_bytes)}, of which {report.copied} with {format_bytes(report.copied_bytes)} "
            "were copied now")


def _complain(missing: Iterable[Missing], what: str) -> None:
    for blob in missing:
        print(f"error: blob {blob.key} ({blob.size_bytes} bytes) {what}: it {blob.reason}", file=sys.stderr)
        for file in blob.files:
            print(f"    {printable(file)}", file=sys.stderr)
