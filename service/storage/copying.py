"""Copies of blobs that are proven to be what they should be: hashed on the way, forced to the disk, then named."""

import fcntl
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from service.model import BlobKey

T = TypeVar("T")
R = TypeVar("R")

COPIERS = 8  # the disk forces several files at once in little more than the time of one
WINDOW = 64
PIECE_BYTES = 2**20
_FICLONE = 0x40049409  # <linux/fs.h>


class BadBlob(Exception):
    """The bytes to be copied are missing, unreadable or damaged; the message says which."""


class Stopped(Exception):
    """Whoever asked for a copy does not want it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedBlob:
    """What a snapshot says of a blob."""

    key: BlobKey
    size_bytes: int
    sha256: bytes

    @property
    def folder(self) -> str:
        """Which of 256 folders it lies in, below the data root and in a backup alike."""
        return self.key.hex[-2:]


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Put a small file in its place, whole or not at all, for its owner only; replaces what is there."""
    draft = path.with_name(f".{path.name}.new")
    with open(draft, "wb", opener=private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


def private(path: str, flags: int) -> int:
    """For `open`: a new file is its owner's alone."""
    return os.open(path, flags, 0o600)


def in_turn(pool: ThreadPoolExecutor, work: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """Results in the order of the things, which are taken from their source as they are worked on."""
    under_way: deque[Future[R]] = deque()
    for thing in things:
        under_way.append(pool.submit(work, thing))
        if len(under_way) >= WINDOW:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def copy_blob(blob: NamedBlob, source: Path, draft: Path, target: Path, stop: threading.Event) -> None:
    """Copy to `draft`, verify, force to the disk, move to `target`; to force the name to the disk is for the caller.

    Raises BadBlob, Stopped, or OSError if it is the target that fails.  Where the file system can (btrfs, XFS) the copy
    shares its blocks with the source until either is changed; then the copy is what is read and verified.
    """
    try:
        with _opened(source) as reader, open(draft, "w+b", buffering=0, opener=private) as writer:
            if _clone(reader, writer):
                _compare(blob, _pieces(writer, stop))
            else:
                _compare(blob, _appended(_pieces(reader, stop), writer))
            os.fsync(writer.fileno())
            os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # nobody reads it soon
        os.replace(draft, target)
    except BaseException:  # Ctrl-C too: half a copy is of no use
        draft.unlink(missing_ok=True)
        raise


def check_blob(blob: NamedBlob, path: Path, stop: threading.Event) -> None:
    """Read a file and raise BadBlob if it is not this blob."""
    with _opened(path) as file:
        _compare(blob, _pieces(file, stop))


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise BadBlob("is missing") from None
    except OSError as error:
        raise BadBlob(f"cannot be read: {error.strerror}") from error


def _clone(reader: BinaryIO, writer: BinaryIO) -> bool:
    """ioctl_ficlone(2); False where that is not possible, whatever the reason: a plain copy tells more."""
    try:
        fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except OSError:
        return False
    return True


def _pieces(file: BinaryIO, stop: threading.Event) -> Iterator[memoryview]:
    """The bytes of a file; each piece is only there until the next one."""
    view = memoryview(bytearray(PIECE_BYTES))
    while True:
        if stop.is_set():
            raise Stopped
        try:
            # BinaryIO does not promise it; what `open` gives for "rb" has it
            length = file.readinto(view)  # type: ignore[attr-defined]
        except OSError as error:
            raise BadBlob(f"cannot be read: {error.strerror}") from error
        if not length:
            return
        yield view[:length]


def _appended(pieces: Iterable[memoryview], writer: BinaryIO) -> Iterator[memoryview]:
    for piece in pieces:
        rest = piece
        while rest:
            rest = rest[writer.write(rest):]
        yield piece


def _compare(blob: NamedBlob, pieces: Iterable[memoryview]) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size_bytes += len(piece)
    if size_bytes != blob.size_bytes:
        raise BadBlob(f"is damaged: it has {size_bytes} bytes instead of {blob.size_bytes}")
    if digest.digest() != blob.sha256:
        raise BadBlob("is damaged: its SHA-256 is another one")
