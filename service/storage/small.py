"""Small bodies: they stay in memory until they are placed, and get to the disk in one go."""

import errno
import hashlib
import os
import zlib
from pathlib import Path

from service.model import BlobKey, Staged

# what these file systems say that cannot make a file without a name
_NO_UNNAMED_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR})


class MemoryWriter:
    """One small body on its way; whoever calls it sees to it that it is small."""

    def __init__(self, key: BlobKey) -> None:
        self._key = key
        self._data = bytearray()

    @property
    def size_bytes(self) -> int:
        """How much has been written."""
        return len(self._data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append."""
        self._data += data

    def finish(self) -> Staged:
        """Hash; nothing of it is on the disk before `place`."""
        data = bytes(self._data)
        return Staged(key=self._key, size_bytes=len(data), sha256=hashlib.sha256(data).digest(),
                      crc32=zlib.crc32(data), data=data)

    def abort(self) -> None:
        """Nothing is left but memory."""
        self._data.clear()


def place(data: bytes, staging: Path, shelf: Path, name: str) -> None:
    """Write the bytes, force them to the disk, give them their name on the shelf, force that to the disk.

    Until then the file has no name at all, so a crash leaves nothing; where the file system insists on one, it has it
    in `staging`.  A failed fsync is never tried again.  Raises FileExistsError.
    """
    folder = os.open(shelf, os.O_RDONLY | os.O_DIRECTORY)
    try:
        file = _open_unnamed(staging)
        if file is None:
            _place_named(data, staging / name, shelf / name)
        else:
            try:
                _write(file, data)
                # AT_SYMLINK_FOLLOW, which is what makes this a link to the file itself, needs a folder in the call
                os.link(f"/proc/self/fd/{file}", name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                os.close(file)
        try:
            os.fsync(folder)
        except OSError:
            # nothing names these bytes yet, and nobody can say whether they would survive: this copy is dropped
            os.unlink(name, dir_fd=folder)
            raise
    finally:
        os.close(folder)


def _open_unnamed(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            raise
        return None


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest):]
    os.fsync(file)


def _place_named(data: bytes, staged: Path, target: Path) -> None:
    file = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _write(file, data)
        os.link(staged, target)
    finally:
        os.close(file)
        staged.unlink()
