"""One dated snapshot in a folder of backups: what it is made of, written once and verified whenever it is read."""

import gzip
import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.model import BlobKey
from service.storage.copying import NamedBlob, private, sync_folder, write_durably

MANIFEST = "manifest.json"
BLOBS = "blobs.gz"
_READ_BYTES = 2**20
_LINE = re.compile(rb"([0-9a-f]{64}) ([0-9]{1,19}) ([0-9a-f-]{36})\n")


class BackupError(Exception):
    """There is no backup, or none to restore; the message is a sentence for the operator."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Value):
    """One file of a snapshot, as it lies on the disk."""

    size_bytes: int
    sha256: str


class TablePart(Part):
    """The rows of a table."""

    name: str = Field(pattern=r"^[a-z_][a-z0-9_]*$")
    columns: tuple[str, ...]
    rows: int

    @property
    def file(self) -> str:
        """Where it is in the snapshot."""
        return f"tables/{self.name}.gz"


class BlobsPart(Part):
    """The list of blobs: a line `<SHA-256> <size> <key>` for each, by the folders of the pool."""

    count: int
    total_bytes: int


class SecretPart(Part):
    """A secret that lies under the data root."""

    name: str = Field(pattern=r"^[a-z_]+$")

    @property
    def file(self) -> str:
        """Where it is in the snapshot."""
        return f"secrets/{self.name}"


class Missing(_Value):
    """A blob that could not be saved, and whose files are concerned: `of <username>: <path>, version <number>`."""

    key: UUID
    size_bytes: int
    reason: str
    files: tuple[str, ...] = ()


class Manifest(_Value):
    """What a snapshot is made of; its own SHA-256 is in its file."""

    service: str
    taken_at: datetime
    epoch: UUID
    migrations: tuple[str, ...]
    tables: tuple[TablePart, ...]
    sequences: dict[str, int]
    blobs: BlobsPart
    secrets: tuple[SecretPart, ...]
    missing: tuple[Missing, ...]

    def to_json(self) -> bytes:
        """The file: the fields, and the SHA-256 of the same without it."""
        fields = self.model_dump(mode="json")
        return _to_json(fields | {"sha256": hashlib.sha256(_to_json(fields)).hexdigest()})

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Raises ValueError for what `to_json` did not give."""
        fields = orjson.loads(data)
        if not isinstance(fields, dict) or fields.pop("sha256", None) != hashlib.sha256(_to_json(fields)).hexdigest():
            raise ValueError("its SHA-256 is another one")
        return cls.model_validate_json(_to_json(fields))


def _to_json(fields: dict[str, object]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


class PartWriter:
    """Writes one compressed file of a snapshot and hashes what lands on the disk; its methods block."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", opener=private)
        self._digest = hashlib.sha256()
        self._packer = zlib.compressobj(1, wbits=31)  # as gzip

    def write(self, data: bytes) -> None:
        """Append; raises OSError."""
        self._put(self._packer.compress(data))

    def finish(self) -> Part:
        """Force it to the disk."""
        self._put(self._packer.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        size_bytes = self._file.tell()
        self.close()
        return Part(size_bytes=size_bytes, sha256=self._digest.hexdigest())

    def close(self) -> None:
        """Give the file up; harmless twice."""
        self._file.close()

    def _put(self, packed: bytes) -> None:
        self._digest.update(packed)
        self._file.write(packed)


def write_secret(folder: Path, name: str, data: bytes) -> SecretPart:
    """Write a secret into a snapshot, for its owner only."""
    part = SecretPart(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    write_durably(folder / part.file, data)
    return part


class Snapshot:
    """One snapshot that is there: its manifest and its files."""

    def __init__(self, folder: Path) -> None:
        """Raises BackupError for a manifest that is not as it was written."""
        self.folder = folder
        try:
            self.manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
        except (OSError, ValueError, ValidationError) as error:
            raise BackupError(f"the manifest of the snapshot {folder.name} cannot be used: "
                              f"{'it is malformed' if isinstance(error, ValidationError) else error}") from None

    @property
    def name(self) -> str:
        """The time it was taken at."""
        return self.folder.name

    def verify(self) -> None:
        """Read every file of it; raise BackupError for the first that is not as it was written."""
        for table in self.manifest.tables:
            self._verify(table.file, table)
        for secret in self.manifest.secrets:
            self._verify(secret.file, secret)
        self.verify_blobs()

    def verify_blobs(self) -> None:
        """The same for the list of blobs alone."""
        self._verify(BLOBS, self.manifest.blobs)

    def _verify(self, file: str, part: Part) -> None:
        digest = hashlib.sha256()
        try:
            with (self.folder / file).open("rb") as opened:
                while piece := opened.read(_READ_BYTES):
                    digest.update(piece)
        except OSError as error:
            raise BackupError(f"{self.folder / file} cannot be read: {error.strerror}") from None
        if digest.hexdigest() != part.sha256:
            raise BackupError(f"{self.folder / file} is not what the backup wrote: its SHA-256 is another one")

    def remove(self) -> None:
        """The manifest first: what is left of it then is not taken for a backup."""
        (self.folder / MANIFEST).unlink()
        sync_folder(self.folder)
        shutil.rmtree(self.folder)

    def rows(self, table: TablePart) -> Iterator[bytes]:
        """What COPY gave, in pieces."""
        with _unpacked(self.folder / table.file) as file:
            while piece := file.read(_READ_BYTES):
                yield piece

    def secret(self, part: SecretPart) -> bytes:
        """A secret."""
        return (self.folder / part.file).read_bytes()

    def blobs(self) -> Iterator[NamedBlob]:
        """Every blob that it names, folder by folder."""
        return read_blobs(self.folder)


def read_blobs(folder: Path) -> Iterator[NamedBlob]:
    """The list of blobs of a snapshot, which need not be finished."""
    with _unpacked(folder / BLOBS) as file:
        for line in file:
            if (match := _LINE.fullmatch(line)) is None:
                raise BackupError(f"{folder / BLOBS} has a line that is none")
            yield NamedBlob(key=BlobKey(UUID(match[3].decode())), size_bytes=int(match[2]),
                            sha256=bytes.fromhex(match[1].decode()))


@contextmanager
def _unpacked(path: Path) -> Iterator[gzip.GzipFile]:
    try:
        with gzip.open(path) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise BackupError(f"{path} cannot be unpacked: {error}") from error


def blob_line(blob: NamedBlob) -> bytes:
    """A line of the list of blobs."""
    return f"{blob.sha256.hex()} {blob.size_bytes} {blob.key}\n".encode("ascii")
