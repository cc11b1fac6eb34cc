"""Which folders of backups were used from a data root: where one was, an empty place is a disk that is not mounted.

    saved-to/<id>        for each folder of backups by its id: the paths that it was found at, each ended by NUL

It is no part of a backup: a restored data root has not saved anything yet.
"""

import os
from pathlib import Path

from service.storage.backup import BackupFolder
from service.storage.copying import write_durably
from service.storage.durable import make_folder
from service.storage.snapshots import BackupError

NAME = "saved-to"


class KnownFolders:
    """What one data root remembers; its methods block, and raise BackupError if that cannot be read."""

    def __init__(self, root: Path) -> None:
        self._folder = root / NAME

    def refuse_other(self, folder: BackupFolder) -> None:
        """Raise BackupError if another folder of backups was at this place; nothing is made."""
        known, found = self._read(), folder.read_id()
        if found not in known and any(_bytes(folder) in paths for paths in known.values()):
            what = "another one is there" if folder.is_there() else "nothing is there"
            raise BackupError(f"the folder of backups that was at {folder.path} is gone, {what}: is its disk mounted?  "
                              "--new goes on with what is there now")

    def add(self, folder: BackupFolder) -> None:
        """Remember a folder that is open to write; raise OSError too."""
        identity = folder.read_id()
        assert identity is not None
        paths = self._read().get(identity, set())
        if _bytes(folder) not in paths:
            make_folder(self._folder)
            write_durably(self._folder / identity, b"".join(sorted(path + b"\0" for path in {*paths, _bytes(folder)})))

    def _read(self) -> dict[str | None, set[bytes]]:
        try:
            return {file.name: set(file.read_bytes().split(b"\0")[:-1])
                    for file in self._folder.iterdir() if not file.name.startswith(".")}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise BackupError(f"{self._folder} cannot be read: {error.strerror}") from error


def _bytes(folder: BackupFolder) -> bytes:
    return os.fsencode(folder.path.resolve())
