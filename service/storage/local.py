"""Blobs as files under one data root.

    MARKER            which database the root belongs to
    blobs/00..ff/     placed blobs, named by their keys; all folders are made at the first start
    staging/          bodies on their way
    spool/<start>/    where nginx puts request bodies

All on one file system, since a body is placed by a link.  The order of a placement is: bytes forced to the disk, link,
folder forced to the disk; only then may a row name the blob.
"""

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar, cast
from uuid import UUID

from service.errors import BadRequest, DiskFailed, IncompleteBody, Unavailable
from service.model import BlobKey, Staged, new_uuid
from service.storage import small
from service.storage.base import Claim, Room, StoreError, explain
from service.storage.durable import make_folder
from service.storage.small import MemoryWriter
from service.storage.threads import Threads

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

P = ParamSpec("P")
T = TypeVar("T")

MARKER = "MARKER"
PIECE_BYTES = 2**20
_WORTH_A_THREAD_BYTES = 2**17
# relative to the spool: <start of nginx>/body/<digit>/<two digits>/<number>
_SPOOLED = re.compile(r"/([0-9a-f]{32}/body/[0-9]/[0-9]{2}/[0-9]{10})\Z")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _punch(descriptor: int, offset: int, length: int) -> None:
    """fallocate(2), FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE; a file system without it keeps the bytes."""
    if _LIBC.fallocate(descriptor, 0x01 | 0x02, offset, length) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(number, os.strerror(number))


def _pieces(path: Path) -> Iterator[memoryview]:
    """The bytes of a file; each piece is only there until the next one."""
    buffer = bytearray(PIECE_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(buffer):
            yield view[:length]


class LocalWriter:
    """One body on its way into staging."""

    def __init__(self, staging: Path, hashers: ThreadPoolExecutor) -> None:
        self._key = BlobKey(new_uuid())
        self._path = staging / str(self._key)
        self._hash = hashlib.sha256()
        self._crc32 = 0
        self._hashers = hashers
        self._size_bytes = 0
        try:
            self._file: BinaryIO | None = self._path.open("xb", buffering=0)
        except OSError as error:
            raise explain(error) from error

    @property
    def size_bytes(self) -> int:
        """How much has been written."""
        return self._size_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append and hash, both at once: neither needs the interpreter's lock for large pieces."""
        if len(data) >= _WORTH_A_THREAD_BYTES:
            hashed = self._hashers.submit(self._hash.update, data)
            try:
                self._append(memoryview(data))
            finally:
                hashed.result()
        else:
            self._append(memoryview(data))
            self._hash.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._size_bytes += len(data)

    def _append(self, rest: memoryview) -> None:
        assert self._file is not None
        try:
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as error:
            raise explain(error) from error

    def finish(self) -> Staged:
        """Force the bytes to the disk.  A failed fsync is never tried again: the kernel may have dropped the pages."""
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain(error) from error
        self._file.close()
        self._file = None
        return Staged(key=self._key, size_bytes=self._size_bytes, sha256=self._hash.digest(),
                      crc32=self._crc32)

    def abort(self) -> None:
        """Throw away what was written; what `finish` gave out is left alone."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # on a disk that has failed it is left, for the next start to remove
                self._file.close()
                self._path.unlink(missing_ok=True)
            self._file = None


class LocalStore:
    """The store on a local file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._staging = root / "staging"
        self._spool = root / "spool"
        self._threads = Threads()
        self._syncs: dict[Path, asyncio.Future[None]] = {}

    def open(self, epoch: UUID) -> None:
        """Make or check the folders; raise StoreError if they cannot be used or belong to another database."""
        try:
            make_folder(self._root)
            for folder in (self._blobs, self._staging, self._spool):
                folder.mkdir(mode=0o700, exist_ok=True)
            if len({folder.stat().st_dev for folder in (self._blobs, self._staging, self._spool)}) > 1:
                raise StoreError(f"blobs, staging and spool under {self._root} have to be on one file system")
            # their own durability must not depend on the first upload into each
            for number in range(256):
                (self._blobs / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            _sync_folder(self._blobs)
            self._check_marker(epoch)
            _sync_folder(self._root)
        except OSError as error:
            raise StoreError(f"the data root {self._root} cannot be used: {error}") from error

    def _check_marker(self, epoch: UUID) -> None:
        """The marker is there whole or not at all, so that a crash cannot leave one that fits any database."""
        marker = self._root / MARKER
        if not marker.exists():
            draft = self._staged(BlobKey(new_uuid()))
            try:
                with draft.open("xb") as file:
                    file.write(f"{epoch}\n".encode("ascii"))
                    file.flush()
                    os.fsync(file.fileno())
                os.link(draft, marker)
            except FileExistsError:
                pass  # another worker was faster
            finally:
                draft.unlink(missing_ok=True)
        found = marker.read_bytes().strip().decode("ascii", "replace")
        if found.startswith("restoring "):
            raise StoreError(f"the restore of a backup into {self._root} did not end; run it again")
        if found != str(epoch):
            raise StoreError(
                f"the data root {self._root} belongs to another database (its {MARKER} says {found!r}, the database "
                f"says {epoch}); if a dump was restored on purpose, write that id into the file")

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work that is soon done on one of the store's threads."""
        return await self._threads.run(work, *args, **kwargs)

    async def run_through(self, size_bytes: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work that goes through so many bytes; nothing short waits for it."""
        return await self._threads.run_through(size_bytes, work, *args, **kwargs)

    def writer(self) -> LocalWriter:
        """Begin a new blob."""
        return LocalWriter(self._staging, self._threads.hashers)

    def small_writer(self, key: BlobKey | None) -> MemoryWriter:
        """Begin a new blob that stays in memory until it is placed."""
        return MemoryWriter(key or BlobKey(new_uuid()))

    def claim(self, spooled: str, size_bytes: int | None) -> Claim:
        """Take a body that nginx spooled.

        nginx unlinks its own name when the request ends, so the body gets a second name, and the inode is compared in
        case the first one meant another file by then.
        """
        match = _SPOOLED.search(spooled)
        if match is None:
            raise BadRequest("This is not a spooled body.")
        source = self._spool / match[1]
        key = BlobKey(new_uuid())
        staged = self._staged(key)
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise Unavailable("The body was withdrawn while it was handed over; try again.",
                              retry_after_seconds=1) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise Unavailable("The body was withdrawn while it was handed over; try again.", retry_after_seconds=1)
            if size_bytes is not None and status.st_size != size_bytes:
                raise IncompleteBody()
            self._adopt_name(source, staged, status.st_ino)
        except OSError as error:
            raise explain(error) from error
        finally:
            os.close(descriptor)
        return Claim(key=key, size_bytes=status.st_size)

    @staticmethod
    def _adopt_name(source: Path, staged: Path, inode: int) -> None:
        os.link(source, staged, follow_symlinks=False)
        try:
            if os.lstat(staged).st_ino != inode:
                raise Unavailable("The body was withdrawn while it was handed over; try again.", retry_after_seconds=1)
        except BaseException:
            staged.unlink()
            raise

    def _staged(self, key: BlobKey) -> Path:
        return self._staging / str(key)

    def consume(self, claim: Claim) -> Iterator[bytes]:
        """The claimed bytes, once.

        Each piece is punched out of the file behind the reader: whoever copies the body then needs the room for one
        body, not two, on the disk and in the page cache, and the kernel never writes out what is about to be deleted.
        """
        try:
            with self._staged(claim.key).open("r+b", buffering=0) as file:
                done = 0
                while piece := file.read(PIECE_BYTES):
                    yield piece
                    _punch(file.fileno(), done, len(piece))
                    done += len(piece)
        except OSError as error:
            raise explain(error) from error

    async def adopt(self, claim: Claim) -> Staged:
        """Hash a claimed body and force it to the disk, both at once: one is for the processor, one for the disk."""
        path = self._staged(claim.key)
        try:
            sha256, crc32, _ = await asyncio.gather(self.run_through(claim.size_bytes, self._hash_file, path),
                                                    self.run_through(claim.size_bytes, self._sum_file, path),
                                                    self.run_through(claim.size_bytes, self._sync_file, path))
        except OSError as error:
            raise explain(error) from error
        return Staged(key=claim.key, size_bytes=claim.size_bytes, sha256=sha256, crc32=crc32)

    @staticmethod
    def _hash_file(path: Path) -> bytes:
        digest = hashlib.sha256()
        for piece in _pieces(path):
            digest.update(piece)
        return digest.digest()

    @staticmethod
    def _sum_file(path: Path) -> int:
        value = 0
        for piece in _pieces(path):
            value = zlib.crc32(piece, value)
        return value

    async def crc32(self, key: BlobKey) -> int:
        """Read a placed blob for its checksum."""
        path = self.path(key)
        return await self.run_through((await self.run(path.stat)).st_size, self._sum_file, path)

    def scratch(self) -> BinaryIO:
        """A file without a name, for what is too much for memory; it is gone when it is closed."""
        try:
            return cast(BinaryIO, tempfile.TemporaryFile(dir=self._staging, buffering=2**16))
        except OSError as error:
            raise explain(error) from error

    @staticmethod
    def _sync_file(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    async def place(self, staged: Staged) -> None:
        """Link the staged bytes to their final place and force the folder to the disk."""
        target = self.path(staged.key)
        if staged.data is not None:
            try:
                return await self.run(small.place, staged.data, self._staging, target.parent, target.name)
            except FileExistsError as error:
                raise Unavailable("This upload has come twice; send it again.", retry_after_seconds=1) from error
            except OSError as error:
                raise explain(error) from error
        try:
            await self.run(self._link, self._staged(staged.key), target)
        except OSError as error:
            raise explain(error) from error
        try:
            await self._sync_folder_once(target.parent)
        except OSError as error:
            # nothing names these bytes yet, and nobody can say whether they would survive: this copy is dropped
            with contextlib.suppress(OSError):
                await self.delete(staged.key)
            raise explain(error) from error

    @staticmethod
    def _link(source: Path, target: Path) -> None:
        os.link(source, target)  # unlike a rename this fails if the name is taken
        try:
            source.unlink()
        except OSError:
            target.unlink()
            raise

    async def _sync_folder_once(self, folder: Path) -> None:
        """One fsync serves all that were waiting before it began."""
        running = self._syncs.get(folder)
        if running is not None:
            # It may have begun before our link: wait, then see whether somebody has begun the next.  If it fails, so do
            # we: our link may be in what it lost, and the kernel reports that once, to nobody who comes later.
            await asyncio.wait([running])  # unlike awaiting it, never goes on before a sync that has ended is forgotten
            if (error := running.exception()) is not None:
                raise error
            running = self._syncs.get(folder)
        if running is None:
            running = asyncio.ensure_future(self.run(_sync_folder, folder))
            self._syncs[folder] = running
            running.add_done_callback(lambda _: self._syncs.pop(folder, None))
        await asyncio.shield(running)

    def discard(self, key: BlobKey) -> None:
        """Remove what is staged under the key."""
        self._staged(key).unlink(missing_ok=True)

    async def delete(self, key: BlobKey) -> None:
        """Remove a placed blob."""
        await self.run(self.path(key).unlink, missing_ok=True)

    def locate(self, key: BlobKey) -> str:
        """`<2 hex>/<uuid>`; the last digits of a key are random, the first are its time."""
        return f"{key.hex[-2:]}/{key}"

    def path(self, key: BlobKey) -> Path:
        """The file of a placed blob."""
        return self._blobs / self.locate(key)

    def room(self) -> Room:
        """What this user may still take; raises DiskFailed if the disk does not say, or is not there any more."""
        try:
            status = os.statvfs(self._staging)
        except OSError as error:
            raise DiskFailed(retry_after_seconds=5) from error
        return Room(free_bytes=status.f_bavail * status.f_frsize,
                    free_files=status.f_favail if status.f_files else None,
                    is_read_only=bool(status.f_flag & os.ST_RDONLY))

    def probe(self) -> None:
        """Write a little and force it to the disk, folder included."""
        path = self._staged(BlobKey(new_uuid()))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, path.name.encode("ascii"))
            os.fsync(descriptor)
            _sync_folder(self._staging)
        finally:
            os.close(descriptor)
            path.unlink()

    async def ping(self) -> None:
        """Read the marker, which touches the file system."""
        await self.run((self._root / MARKER).read_bytes)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()
