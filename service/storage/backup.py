"""A folder of backups: dated snapshots of the database over one pool of blobs.

    FORMAT               that it is such a folder, and by which rules
    ID                   which one it is
    .lock                held by the one backup that writes; restores share it
    blobs/00..ff/<key>   the pool: each blob once, however many snapshots name it
    incoming/            what is being copied
    snapshots/<time>/    tables/<name>.gz (COPY as text), blobs.gz, secrets/<name> and, last of all, manifest.json

A snapshot without a manifest was not finished: the next backup takes its place.  A blob gets its name in the pool
after it was verified and forced to the disk, so a backup that died is gone on with.
"""

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

from service.model import BlobKey
from service.storage.copying import NamedBlob, copy_blob, sync_folder, write_durably
from service.storage.snapshots import MANIFEST, BackupError, Manifest, Snapshot

FORMAT = b"file-storage backup 1\n"
MODE = 0o700
_KEY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FOLDERS = [f"{number:02x}" for number in range(256)]


class BackupFolder:
    """The folder, locked as long as it is open; its methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._incoming = path / "incoming"
        self._pool = path / "blobs"
        self._snapshots = path / "snapshots"
        self._lock: int | None = None
        self._unfinished: list[Path] = []
        self._touched: set[str] = set()  # folders of the pool with names that may not be on the disk yet

    def open_to_write(self) -> None:
        """Make it if need be, and go on with what an earlier backup did not finish; raise BackupError."""
        try:
            self.path.mkdir(mode=MODE, parents=True, exist_ok=True)
            is_new = not self.is_there()
            if is_new and set(os.listdir(self.path)) - {"lost+found", ".FORMAT.new"}:
                raise BackupError(f"{self.path} is neither empty nor a folder of backups; choose another one")
            if is_new:
                write_durably(self.path / "FORMAT", FORMAT)
            self._take_lock(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
            if self.read_id() is None:  # it is new, or was made by an earlier version
                write_durably(self.path / "ID", f"{uuid4()}\n".encode("ascii"))
            for folder in (self._pool, self._snapshots, self._incoming, *(self._pool / name for name in _FOLDERS)):
                folder.mkdir(mode=MODE, exist_ok=True)
            for draft in self._incoming.iterdir():
                draft.unlink()
            self._unfinished = [folder for folder in self._snapshots.iterdir() if not (folder / MANIFEST).exists()]
            if self._unfinished:
                self._touched.update(_FOLDERS)
        except OSError as error:
            self.close()
            raise self.unusable(error) from error

    def open_to_read(self) -> None:
        """Nothing is written, so it may be on a medium that cannot be; raise BackupError."""
        try:
            self._take_lock(os.O_RDONLY, fcntl.LOCK_SH)
        except OSError as error:
            self.close()
            raise BackupError(f"{self.path} is not a folder of backups: {error.strerror}") from error

    def is_there(self) -> bool:
        """Whether it was made, and its disk is mounted."""
        return (self.path / "FORMAT").exists()

    def read_id(self) -> str | None:
        """Which folder of backups it is; None if there is none, or one that has no id yet.  Raises BackupError."""
        try:
            if not self.is_there():
                return None
            found = (self.path / "ID").read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.unusable(error) from error
        if not _KEY.fullmatch(found):
            raise BackupError(f"{self.path / 'ID'} is malformed; without it the folder gets another id")
        return found

    def unusable(self, error: OSError) -> BackupError:
        """What a failure of the folder's disk means."""
        return BackupError(f"the backup folder {self.path} cannot be used: {error.strerror or error}")

    def _take_lock(self, flags: int, mode: int) -> None:
        if (self.path / "FORMAT").read_bytes() != FORMAT:
            raise BackupError(f"{self.path} is not a folder of backups that this version can use")
        self._lock = os.open(self.path / ".lock", flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"{self.path} is in use by another backup or restore") from None

    def close(self) -> None:
        """Let others use it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- snapshots ---

    def names(self) -> list[str]:
        """The finished snapshots, oldest first."""
        if not self._snapshots.is_dir():
            return []
        return sorted(folder.name for folder in self._snapshots.iterdir() if (folder / MANIFEST).exists())

    def snapshot(self, name: str | None = None) -> Snapshot:
        """The one of this name, or the last one if all are of one service; raise BackupError."""
        names = self.names()
        if not names:
            raise BackupError(f"there is no finished backup in {self.path}")
        if name is not None and name not in names:
            raise BackupError(f"there is no snapshot {name} in {self.path}; there are: {', '.join(names)}")
        if name is None and len(last := {found.manifest.epoch: found.name for found in self._readable(names)}) > 1:
            raise BackupError(f"the backups in {self.path} are of {len(last)} services, and the last ones of each are "
                              f"{', '.join(sorted(last.values()))}: choose with --snapshot")
        return Snapshot(self._snapshots / (name or names[-1]))

    def refuse_others(self, epoch: UUID) -> None:
        """Raise BackupError if the last backup in it is of another service than the one with this epoch."""
        last = next(self._readable(reversed(self.names())), None)
        if last is not None and last.manifest.epoch != epoch:
            raise BackupError(
                f"the last backup in {self.path}, {last.name}, is of another service, or of this one before a restore; "
                "if that one has ended, --new goes on in its folder, else choose another folder")

    def _readable(self, names: Iterable[str]) -> Iterator[Snapshot]:
        """Those of which it can be told what they are."""
        for name in names:
            with contextlib.suppress(BackupError):
                yield Snapshot(self._snapshots / name)

    def begin(self, taken_at: datetime) -> Path:
        """The folder of a new snapshot, named by its time in UTC, with the place of its tables and secrets."""
        name = taken_at.strftime("%Y%m%dT%H%M%S.%fZ")
        folder = self._snapshots / name
        for made in (folder, folder / "tables", folder / "secrets"):
            made.mkdir(mode=MODE)
        return folder

    def seal(self, folder: Path, manifest: Manifest) -> None:
        """Force all names to the disk, then write the manifest: now it is a backup, and what was not can go."""
        for name in self._touched:
            sync_folder(self._pool / name)
        for made in (folder / "tables", folder / "secrets", folder, self._pool, self._snapshots, self.path):
            sync_folder(made)
        write_durably(folder / MANIFEST, manifest.to_json())
        for unfinished in self._unfinished:
            shutil.rmtree(unfinished)
        self._unfinished.clear()
        self._touched.clear()

    # --- the pool ---

    def place(self, blob: NamedBlob) -> Path:
        """Where a blob is, or would be."""
        return self._pool / blob.folder / str(blob.key)

    def holds(self, blob: NamedBlob) -> bool:
        """Whether it is there; what has a name there was verified when it came."""
        try:
            return self.place(blob).stat().st_size == blob.size_bytes
        except FileNotFoundError:
            return False

    def add(self, blob: NamedBlob, source: Path, stop: threading.Event) -> None:
        """Copy a blob; raise BadBlob, Stopped, or OSError if it is this folder that fails."""
        self._touched.add(blob.folder)
        copy_blob(blob, source, self._incoming / str(blob.key), self.place(blob), stop)

    def prune(self, keep: int, *, made: str) -> tuple[int, int]:
        """Remove snapshots older than the last `keep` whole ones, and what then is named by none; how many of each.

        The one that was just `made` stays, whatever the clocks say, and so do those of other services.  Nothing at all
        is removed if any list of what remains cannot be read (BackupError).
        """
        snapshots = [Snapshot(self._snapshots / name) for name in reversed(self.names())]
        epoch = next(found.manifest.epoch for found in snapshots if found.name == made)
        own = [found for found in snapshots if found.manifest.epoch == epoch]
        kept = list(itertools.islice((number for number, found in enumerate(own) if not found.manifest.missing), keep))
        doomed = [found for found in own[kept[-1] + 1:] if found.name != made] if len(kept) == keep else []
        remaining = [found for found in snapshots if found not in doomed]
        for found in remaining:
            found.verify_blobs()
        for found in doomed:
            found.remove()
        return len(doomed), self._remove_blobs([_Walk(found) for found in remaining])

    def _remove_blobs(self, walks: list["_Walk"]) -> int:
        """Remove what none of them comes by; how many."""
        removed = 0
        for name in _FOLDERS:
            named = {str(key) for walk in walks for key in walk.enter(name)}
            for entry in os.listdir(self._pool / name):
                if _KEY.fullmatch(entry) and entry not in named:
                    (self._pool / name / entry).unlink()
                    removed += 1
        return removed


class _Walk:
    """Goes through the blobs of a snapshot folder by folder, so that only those of one folder are in memory."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._name = snapshot.name
        self._blobs = snapshot.blobs()
        self._next = next(self._blobs, None)

    def enter(self, folder: str) -> Iterator[BlobKey]:
        """The keys in a folder; folders have to be entered in order, all of them."""
        while self._next is not None and self._next.folder <= folder:
            if self._next.folder < folder:
                raise BackupError(f"the list of blobs of the snapshot {self._name} is not in order")
            yield self._next.key
            self._next = next(self._blobs, None)
