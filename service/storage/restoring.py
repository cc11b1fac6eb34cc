"""A data root that is being filled from a backup: it says so, and nothing starts on it, until all of it is there."""

import os
import threading
from pathlib import Path
from uuid import UUID

from service.storage.copying import BadBlob, NamedBlob, check_blob, copy_blob, sync_folder, write_durably
from service.storage.local import MARKER
from service.storage.snapshots import BackupError

MODE = 0o700
RESTORING = "restoring"
_OWN = {Path(".lock"), Path(f".{MARKER}.new")}  # of the command itself, the second if it was killed
_FOLDERS = [f"{number:02x}" for number in range(256)]


def read_marker(root: Path) -> str:
    """The epoch of the database that a data root belongs to, as text; raise BackupError if it has none."""
    try:
        return (root / MARKER).read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise BackupError(f"{root / MARKER} cannot be read: {error.strerror}; "
                          "is this the data root, and did the service ever run on it?") from None


class RestoredRoot:
    """The data root; its methods block."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._staging = root / "staging"

    def begin(self, snapshot: str, epoch: UUID) -> UUID:
        """Mark the root as unfinished; the epoch that it gets, which is an earlier one if that restore is gone on with.

        Raises BackupError if anything else is in it.
        """
        marker = self._root / MARKER
        if marker.exists():
            words = marker.read_text(encoding="ascii", errors="replace").split()
            if words[:2] == [RESTORING, snapshot]:
                return UUID(words[2])
            if words[:1] == [RESTORING]:
                raise BackupError(f"a restore of the snapshot {' '.join(words[1:2])} into {self._root} has begun; "
                                  "end that one, or empty the folder")
        if found := self._find_file():
            raise BackupError(f"the data root {self._root} is not empty, there is {found.relative_to(self._root)}; "
                              "a restore needs an empty one")
        self._staging.mkdir(mode=MODE, exist_ok=True)
        self._blobs.mkdir(mode=MODE, exist_ok=True)
        for name in _FOLDERS:
            (self._blobs / name).mkdir(mode=MODE, exist_ok=True)
        write_durably(marker, f"{RESTORING} {snapshot} {epoch}\n".encode("ascii"))
        return epoch

    def _find_file(self) -> Path | None:
        """Anything but empty folders."""
        for folder, _, names in os.walk(self._root):
            for name in names:
                if Path(folder, name).relative_to(self._root) not in _OWN:
                    return Path(folder, name)
        return None

    def withdraw(self) -> None:
        """Nothing was restored after all: the root is as empty as it was."""
        (self._root / MARKER).unlink()

    def add(self, blob: NamedBlob, source: Path, stop: threading.Event) -> None:
        """Copy a blob from the backup, or verify what an earlier run has copied; raise BadBlob, Stopped or OSError."""
        target = self._blobs / blob.folder / str(blob.key)
        if target.exists():
            try:
                return check_blob(blob, target, stop)
            except BadBlob:
                pass  # copied again
        copy_blob(blob, source, self._staging / str(blob.key), target, stop)

    def add_secret(self, name: str, data: bytes) -> None:
        """Write a secret, for its owner only."""
        write_durably(self._root / name, data)

    def sync(self) -> None:
        """Force the names of all blobs to the disk."""
        for name in _FOLDERS:
            if os.listdir(self._blobs / name):
                sync_folder(self._blobs / name)
        sync_folder(self._blobs)
        sync_folder(self._root)

    def finish(self, epoch: UUID) -> None:
        """Now it is the data root of the database with this epoch."""
        write_durably(self._root / MARKER, f"{epoch}\n".encode("ascii"))
