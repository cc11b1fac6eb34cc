"""Looking after the files of a data root: what lies there, whether it is whole, setting aside what should not.

    quarantine/   files that were set aside, under their keys; what is set aside again: under keys that no row has
    HIGH_WATER    how far the database had counted when something was last removed (domain/pairing.py)

Everything runs on one thread of its own, so that it never stands in the way of an upload.
"""

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID

from service.model import BlobKey
from service.storage.base import Leftover, Listing, Pace

P = ParamSpec("P")
T = TypeVar("T")

SHELVES = 256
HIGH_WATER = "HIGH_WATER"
PIECE_BYTES = 2**22


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _scan(folder: Path, is_right: Callable[[BlobKey], bool]) -> Listing:
    """What lies in a folder of blobs; raises OSError, FileNotFoundError too."""
    keys, foreign = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                key = BlobKey(UUID(entry.name))
            except ValueError:
                key = None
            if key is None or str(key) != entry.name or not is_right(key) or not entry.is_file(follow_symlinks=False):
                foreign.append(f"{folder.name}/{entry.name}")
            else:
                keys.append(key)
    return Listing(keys=keys, foreign=foreign)


class _Reader:
    """Reads a file from the disk, not from the page cache, and leaves nothing of it there."""

    def __init__(self, path: Path, buffer: bytearray) -> None:
        self._view = memoryview(buffer)
        self._hash = hashlib.sha256()
        self._done = 0
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        self._drop()

    def _drop(self) -> None:
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self) -> int:
        """Hash the next piece; how many bytes it had.  Fewer than the buffer has: that was the end."""
        filled = 0
        while filled < len(self._view):
            length = os.preadv(self._descriptor, [self._view[filled:]], self._done + filled)
            if not length:
                break
            filled += length
        self._hash.update(self._view[:filled])
        self._done += filled
        return filled

    def digest(self) -> bytes:
        """The SHA-256 of what was read."""
        return self._hash.digest()

    def close(self) -> None:
        """Let go of the file."""
        try:
            self._drop()
        finally:
            os.close(self._descriptor)


class LocalInspector:
    """The files of a data root on a local file system, for those who look after them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._quarantine = root / "quarantine"
        self._staging = root / "staging"
        self._spool = root / "spool"
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="inspection")
        self._buffer = bytearray(PIECE_BYTES)  # of the thread

    async def _run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, functools.partial(work, *args, **kwargs))

    def _path(self, key: BlobKey, *, aside: bool) -> Path:
        return self._quarantine / str(key) if aside else self._blobs / key.hex[-2:] / str(key)

    # --- what is there ---

    def shelves(self) -> Iterator[int]:
        """The numbers of the folders that `list_shelf` knows."""
        return iter(range(SHELVES))

    async def list_shelf(self, number: int) -> Listing:
        """What lies in one of the blobs' folders; raises OSError if that cannot be said for certain."""
        name = f"{number:02x}"
        return await self._run(_scan, self._blobs / name, lambda key: key.hex.endswith(name))

    async def list_quarantine(self) -> Listing:
        """What was set aside; raises OSError."""
        try:
            return await self._run(_scan, self._quarantine, lambda key: True)
        except FileNotFoundError:  # nothing ever was
            return Listing(keys=[], foreign=[])

    async def measure(self, keys: list[BlobKey], *, aside: bool = False) -> dict[BlobKey, int | None]:
        """The sizes of files in bytes, None for what is not there; raises OSError for what cannot be looked at."""
        return await self._run(self._measure, keys, aside)

    def _measure(self, keys: list[BlobKey], aside: bool) -> dict[BlobKey, int | None]:
        sizes: dict[BlobKey, int | None] = {}
        for key in keys:
            try:
                status = os.lstat(self._path(key, aside=aside))
            except FileNotFoundError:
                sizes[key] = None
            else:
                sizes[key] = status.st_size if stat.S_ISREG(status.st_mode) else None
        return sizes

    async def hash(self, key: BlobKey, pace: Pace, *, aside: bool = False) -> bytes | None:
        """The SHA-256 of a file as it is on the disk; None if it is not there.  Raises OSError.

        After each piece `pace` is awaited with its bytes.
        """
        try:
            reader, length = await self._run(self._begin, self._path(key, aside=aside))
        except FileNotFoundError:
            return None
        try:
            while length:
                await pace(length)
                length = await self._run(reader.read) if length == PIECE_BYTES else 0
            return reader.digest()
        finally:
            self._executor.submit(reader.close)  # behind a read that is still going on if this was cancelled

    def _begin(self, path: Path) -> tuple[_Reader, int]:
        reader = _Reader(path, self._buffer)
        try:
            return reader, reader.read()
        except BaseException:
            reader.close()
            raise

    # --- setting aside ---

    async def set_aside(self, key: BlobKey, *, as_key: BlobKey | None = None) -> bool:
        """Move a file from the blobs into quarantine, durably; False if it is not there (any more).

        It lies there under its own key, or under `as_key`.  Raises FileExistsError if another file of that key lies
        there, and OSError.
        """
        return await self._run(self._move, self._path(key, aside=False), self._path(as_key or key, aside=True))

    async def put_back(self, key: BlobKey) -> bool:
        """Move a file from quarantine to its place among the blobs, durably; the same."""
        return await self._run(self._move, self._path(key, aside=True), self._path(key, aside=False))

    def _move(self, source: Path, target: Path) -> bool:
        """Link and unlink, since a rename would replace; a crash in between is repaired by doing it again."""
        if not self._quarantine.is_dir():
            self._quarantine.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(self._root)
        try:
            os.link(source, target, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except FileExistsError:
            if not os.path.samestat(os.lstat(source), os.lstat(target)):
                raise
        _sync_folder(target.parent)
        source.unlink()
        _sync_folder(source.parent)
        return True

    async def remove_quarantined(self, key: BlobKey) -> None:
        """Remove a file from quarantine for good; a missing one is fine."""
        await self._run(self._path(key, aside=True).unlink, missing_ok=True)

    # --- what uploads left behind ---

    async def list_leftovers(self, age_seconds: float) -> list[Leftover]:
        """Bodies in staging and spool that nobody has touched for so long; raises OSError."""
        return await self._run(self._list_leftovers, age_seconds)

    def _list_leftovers(self, age_seconds: float) -> list[Leftover]:
        # by the clock that the file system writes into the files, which need not be this process's
        with tempfile.TemporaryFile(dir=self._root) as probe:
            now = os.fstat(probe.fileno()).st_ctime
        found = []
        for folder, inside in ((self._staging, "*"), (self._spool, "*/body/**/*")):
            for path in folder.glob(inside):
                with contextlib.suppress(FileNotFoundError):  # just claimed, placed or removed
                    status = path.lstat()
                    # a spooled body with a second name is being worked on under that
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and now - status.st_ctime >= age_seconds:
                        found.append(Leftover(name=str(path.relative_to(self._root)), size_bytes=status.st_size,
                                              age_seconds=now - status.st_ctime))
        return found

    async def remove_leftover(self, name: str) -> None:
        """Remove one of those that `list_leftovers` gave; a missing one is fine."""
        await self._run((self._root / name).unlink, missing_ok=True)

    # --- which database this is for ---

    async def read_epoch(self) -> str | None:
        """What the MARKER says; None if there is none."""
        return await self._run(self._read_text, self._root / "MARKER")

    async def read_high_water(self) -> str | None:
        """What was last written by `write_high_water`; None if nothing ever was."""
        return await self._run(self._read_text, self._root / HIGH_WATER)

    async def write_high_water(self, text: str) -> None:
        """Replace it, durably and as a whole."""
        await self._run(self._write_high_water, text)

    @staticmethod
    def _read_text(path: Path) -> str | None:
        try:
            return path.read_bytes().strip().decode("ascii", "replace")
        except FileNotFoundError:
            return None

    def _write_high_water(self, text: str) -> None:
        line = f"{text}\n".encode("ascii")
        draft = self._root / f".{HIGH_WATER}.{os.getpid()}"
        try:
            with draft.open("wb") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._root / HIGH_WATER)
            _sync_folder(self._root)
        except OSError as error:
            draft.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            try:
                self._overwrite_high_water(line)
            except FileNotFoundError:
                raise error from None

    def _overwrite_high_water(self, line: bytes) -> None:
        """For a full disk, where nothing can be removed before this is written: in place, which takes no room.

        It fits into one sector; one that is torn all the same cannot be read, so nothing would be removed by it.
        """
        descriptor = os.open(self._root / HIGH_WATER, os.O_WRONLY)
        try:
            os.pwrite(descriptor, line, 0)
            os.ftruncate(descriptor, len(line))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=True)
