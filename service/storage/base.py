"""What a store of bytes can do.  Blobs are immutable and named by fresh keys; nothing is ever written twice."""

import errno
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ParamSpec, Protocol, TypeVar

from service.errors import DiskFailed, StorageFull, Unavailable
from service.model import BlobKey, Staged

P = ParamSpec("P")
T = TypeVar("T")


SMALL_BYTES = 64 * 1024
"""A body up to this size stays in memory until it is placed (nginx/nginx.conf.template has the same number)."""

ASIDE_BYTES = 2**27
"""So much of a long answer nginx puts aside on the disk for a client that reads slowly."""

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_FAILED = frozenset({errno.EIO, errno.EROFS, errno.EUCLEAN, errno.ENXIO, errno.ENODEV, errno.ESHUTDOWN,
                     errno.EREMOTEIO, errno.ESTALE})


def explain(error: OSError) -> Exception:
    """The domain's error for one of the system; the error itself if there is none."""
    if error.errno in _NO_ROOM:
        return StorageFull()
    if error.errno in _NO_FILES:
        return Unavailable("Too many files are open; try again.", retry_after_seconds=1)
    if error.errno in _FAILED:
        return DiskFailed(retry_after_seconds=5)
    return error


class StoreError(Exception):
    """The store cannot be used as it is: a start-up refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the disk has to spare; `free_files` None: it does not count them."""

    free_bytes: int
    free_files: int | None
    is_read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A spooled request body that now belongs to this request alone."""

    key: BlobKey
    size_bytes: int


class Writer(Protocol):
    """Takes one body piece by piece; its methods block, so call them through `BlobStore.run`."""

    @property
    def size_bytes(self) -> int:
        """How much has been written."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append and hash; raises StorageFull or OSError."""

    def finish(self) -> Staged:
        """Force the bytes to the disk; after this only `place` or `discard` may follow."""

    def abort(self) -> None:
        """Throw away what was written; harmless after `finish` or twice."""


class BlobStore(Protocol):
    """The bytes of all files."""

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work that is soon done on one of the store's threads."""

    async def run_through(self, size_bytes: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work that goes through so many bytes in one go; nothing short waits for it."""

    def writer(self) -> Writer:
        """Begin a new blob."""

    def small_writer(self, key: BlobKey | None) -> Writer:
        """Begin a new blob that stays in memory until it is placed; its methods do not block.

        Two bodies with one `key` cannot both be placed; None makes a fresh one.
        """

    def claim(self, spooled: str, size_bytes: int | None) -> Claim:
        """Take a body that nginx spooled, without a single await, so that nobody else can get at it.

        Raises BadRequest if this is not a spooled body, IncompleteBody if its size is not the announced one.
        """

    def consume(self, claim: Claim) -> Iterator[bytes]:
        """The claimed bytes, piece by piece and once only: what has been read may be gone from the disk."""

    async def adopt(self, claim: Claim) -> Staged:
        """Hash a claimed body and force it to the disk."""

    async def place(self, staged: Staged) -> None:
        """Give the staged bytes their final place, durably; raises Unavailable if a small body has this key already."""

    def discard(self, key: BlobKey) -> None:
        """Remove what is staged under the key, if it still is; never a placed blob."""

    async def delete(self, key: BlobKey) -> None:
        """Remove a placed blob; only after its row is fenced.  A missing one is fine."""

    def locate(self, key: BlobKey) -> str:
        """The place of a blob relative to the blobs' folder: `<2 hex>/<uuid>`."""

    def path(self, key: BlobKey) -> Path:
        """The file of a placed blob, for when this process sends it itself."""

    async def crc32(self, key: BlobKey) -> int:
        """Read a placed blob for its checksum (CRC-32 as in zip)."""

    def scratch(self) -> BinaryIO:
        """A file without a name, for what is too much for memory; it is gone when it is closed."""

    def room(self) -> Room:
        """What is left on the disk; raises OSError if it does not say."""

    def probe(self) -> None:
        """Write a little and force it to the disk, as an upload is; raises OSError.  Blocks."""

    async def ping(self) -> None:
        """Return when the disk has answered; raise OSError if it does not."""

    def close(self) -> None:
        """End the threads."""


Pace = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What lies in a folder of blobs; `foreign`: names that no blob could have there."""

    keys: list[BlobKey]
    foreign: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A body that an upload has left behind; its name is relative to the data root."""

    name: str
    size_bytes: int
    age_seconds: float


class Inspector(Protocol):
    """The same bytes for those who look after them: never in a hurry, and never in the way of a request."""

    def shelves(self) -> Iterator[int]:
        """The numbers of the folders that `list_shelf` knows."""

    async def list_shelf(self, number: int) -> Listing:
        """What lies in one of the blobs' folders; raises OSError if that cannot be said for certain."""

    async def list_quarantine(self) -> Listing:
        """What was set aside; raises OSError."""

    async def measure(self, keys: list[BlobKey], *, aside: bool = False) -> dict[BlobKey, int | None]:
        """The sizes of files in bytes, None for what is not there; raises OSError for what cannot be looked at."""

    async def hash(self, key: BlobKey, pace: Pace, *, aside: bool = False) -> bytes | None:
        """The SHA-256 of a file as it is on the disk; None if it is not there.  Raises OSError."""

    async def set_aside(self, key: BlobKey, *, as_key: BlobKey | None = None) -> bool:
        """Move a file from the blobs into quarantine, durably; False if it is not there (any more).

        It lies there under its own key, or under `as_key`.  Raises FileExistsError if another file of that key lies
        there, and OSError.
        """

    async def put_back(self, key: BlobKey) -> bool:
        """Move a file from quarantine to its place among the blobs, durably; the same."""

    async def remove_quarantined(self, key: BlobKey) -> None:
        """Remove a file from quarantine for good; only behind its fence.  A missing one is fine."""

    async def list_leftovers(self, age_seconds: float) -> list[Leftover]:
        """Bodies on their way that nobody has touched for so long; raises OSError."""

    async def remove_leftover(self, name: str) -> None:
        """Remove one of those that `list_leftovers` gave; a missing one is fine."""

    async def read_epoch(self) -> str | None:
        """What the MARKER says; None if there is none."""

    async def read_high_water(self) -> str | None:
        """What was last written by `write_high_water`; None if nothing ever was."""

    async def write_high_water(self, text: str) -> None:
        """Replace it, durably and as a whole."""

    def close(self) -> None:
        """End what it runs on."""
