"""What a store of bytes can do.  Blobs are immutable and named by fresh keys; nothing is ever written twice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ParamSpec, Protocol, TypeVar

from service.model import BlobKey, Staged

P = ParamSpec("P")
T = TypeVar("T")


class StoreError(Exception):
    """The store cannot be used as it is: a start-up refusal."""


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
        """Do blocking work on one of the store's threads."""

    def writer(self) -> Writer:
        """Begin a new blob."""

    def claim(self, spooled: str, size_bytes: int | None) -> Claim:
        """Take a body that nginx spooled, without a single await, so that nobody else can get at it.

        Raises BadRequest if this is not a spooled body, IncompleteBody if its size is not the announced one.
        """

    def consume(self, claim: Claim) -> Iterator[bytes]:
        """The claimed bytes, piece by piece and once only: what has been read may be gone from the disk."""

    async def adopt(self, claim: Claim) -> Staged:
        """Hash a claimed body and force it to the disk."""

    async def place(self, staged: Staged) -> None:
        """Give the staged bytes their final place, durably."""

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

    def free_bytes(self) -> int:
        """Room on the disk."""

    async def ping(self) -> None:
        """Return when the disk has answered; raise OSError if it does not."""

    def close(self) -> None:
        """End the threads."""
