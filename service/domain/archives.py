"""A folder as one zip: its length is known before its first byte, and any part of it can be sent.

First a plan is written to a scratch file: a line for each entry, which takes one query and no byte of any file.  From
the plan follows where every byte of the archive is; the same tree gives the same archive, so a download can be resumed.
"""

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO
from uuid import UUID

from service import names
from service.db import archives, blobs
from service.db.archives import Row
from service.db.pool import Connection, Database
from service.domain import zip64
from service.domain.places import Place, get
from service.domain.throttle import Slots
from service.errors import ContentUnavailable, NotAFolder
from service.model import BlobKey, Caller, File, FileId, Folder
from service.storage.base import BlobStore, explain

PIECE_BYTES = 2**19
# Archives under way in each worker: a plan stays on the disk until its client has the whole archive.
OF_ACCOUNT = OF_LINK = 32
OF_LINKS = 64  # of all links of an account, so that visitors of one are not in the way of others, nor of their owner
_LINE = struct.Struct("<16sQIqQH")  # key (zeros for a folder), size, CRC-32, time, offset, length of the name


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An archive that could be sent; `close` gives up its scratch file."""

    name: str
    etag: str
    size_bytes: int
    count: int
    directory_offset: int
    directory_bytes: int
    lines: BinaryIO

    def close(self) -> None:
        """Forget it."""
        self.lines.close()


class Archives:
    """Folders as archives."""

    def __init__(self, database: Database, store: BlobStore) -> None:
        self._database = database
        self._store = store
        self._slots = Slots()

    def under_way(self, caller: Caller) -> AbstractContextManager[None]:
        """Around an archive, from before its plan until it is sent; raise TooManyRequests."""
        if caller.link_id is None:
            return self._slots.take([(caller.share, OF_ACCOUNT)])
        return self._slots.take([(caller.link_id, OF_LINK), (caller.share, OF_LINKS)])

    async def plan(self, caller: Caller, place: Place) -> Plan:
        """Lay out the archive of a folder; raise NotFound, NotAFolder.  The plan has to be closed."""
        async with self._database.connection() as conn:
            folder = await get(conn, caller.user_id, place)
        if isinstance(folder, File):
            raise NotAFolder("Only a folder has an archive; download the file.", field="path")
        return await self.plan_folder(caller, folder)

    async def plan_folder(self, caller: Caller, folder: Folder) -> Plan:
        """Lay out the archive of a folder that somebody may read; raise StorageFull, DiskFailed."""
        scratch = await self._store.run(self._store.scratch)
        planner = _Planner(folder, "files" if folder.id == caller.user_id else folder.name, scratch)

        async def work(conn: Connection) -> None:
            planner.begin()
            async for rows in archives.list_tree(conn, folder.id):
                await self._store.run(planner.add, [await self._summed(conn, row) for row in rows])

        try:
            async with self._database.lane(caller.share):
                await self._database.in_transaction(work)
            return await self._store.run(planner.finish)
        except BaseException as error:  # also when the client leaves: the scratch file is nobody else's to close
            with contextlib.suppress(OSError):  # what it has still to write may be what the disk did not take
                scratch.close()
            if isinstance(error, OSError):
                raise explain(error) from error
            raise

    async def _summed(self, conn: Connection, row: Row) -> Row:
        """The row with its checksum: blobs from before checksums were kept are read now, once."""
        if row.crc32 is not None or row.blob_key is None:
            return row
        try:
            crc32 = await self._store.crc32(row.blob_key)
        except OSError as error:
            raise ContentUnavailable() from error
        await blobs.update_crc32(conn, row.blob_key, crc32)
        return Row(id=row.id, parent_id=row.parent_id, name=row.name, updated_at=row.updated_at,
                   blob_key=row.blob_key, size_bytes=row.size_bytes, crc32=crc32)

    def pieces(self, plan: Plan, first: int, length: int) -> Iterator[bytes]:
        """That part of the archive, in pieces of about half a MiB; blocks, so go through it with `run`."""
        return _joined(_cut(self._parts(plan), first, length), self._read)

    def _read(self, part: "_Part") -> Iterator[bytes]:
        if isinstance(part, bytes):
            yield part
            return
        key, offset, left = part
        with self._store.path(key).open("rb", buffering=0) as file:
            file.seek(offset)
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    raise EOFError(f"the blob {key} is shorter than its row says")
                yield piece
                left -= len(piece)

    def _parts(self, plan: Plan) -> Iterator["_Part"]:
        for key, entry in _read_lines(plan):
            yield zip64.local_header(entry)
            if key is not None and entry.size_bytes:
                yield key, 0, entry.size_bytes
        for _, entry in _read_lines(plan):
            yield zip64.central_header(entry)
        yield zip64.end_of_directory(plan.count, plan.directory_bytes, plan.directory_offset)

    async def next_piece(self, pieces: Iterator[bytes]) -> bytes:
        """The next piece, from one of the store's threads; empty at the end."""
        return await self._store.run(next, pieces, b"")


_Part = bytes | tuple[BlobKey, int, int]  # bytes as they are, or: blob, first byte, length


def _length(part: _Part) -> int:
    return len(part) if isinstance(part, bytes) else part[2]


def _cut(parts: Iterator[_Part], first: int, length: int) -> Iterator[_Part]:
    """What of the parts lies in the window."""
    position, end = 0, first + length
    for part in parts:
        size = _length(part)
        skip, keep = max(0, first - position), min(size, end - position)
        position += size
        if skip >= keep:
            if position >= end:
                return
            continue
        yield part[skip:keep] if isinstance(part, bytes) else (part[0], part[1] + skip, keep - skip)


def _joined(parts: Iterator[_Part], read: Callable[[_Part], Iterator[bytes]]) -> Iterator[bytes]:
    """The bytes of the parts, small ones put together."""
    pending: list[bytes] = []
    size = 0
    for part in parts:
        for piece in read(part):
            pending.append(piece)
            size += len(piece)
            if size >= PIECE_BYTES:
                yield b"".join(pending)
                pending, size = [], 0
    if pending:
        yield b"".join(pending)


def _read_lines(plan: Plan) -> Iterator[tuple[BlobKey | None, zip64.Entry]]:
    plan.lines.seek(0)
    while head := plan.lines.read(_LINE.size):
        key, size_bytes, crc32, modified, offset, name_length = _LINE.unpack(head)
        yield (BlobKey(UUID(bytes=key)) if any(key) else None), zip64.Entry(
            name=plan.lines.read(name_length), size_bytes=size_bytes, crc32=crc32, modified=modified, offset=offset)


class _Planner:
    """Writes the lines of a plan; blocks."""

    def __init__(self, folder: Folder, name: str, scratch: BinaryIO) -> None:
        self._folder = folder
        self._name = name
        self._scratch = scratch

    def begin(self) -> None:
        """Begin (again: a transaction may be repeated)."""
        self._scratch.seek(0)
        self._scratch.truncate()
        self._digest = hashlib.sha256()
        self._offset = self._directory_bytes = self._count = 0
        self._folders: dict[FileId, str] = {self._folder.id: names.portable(self._name) + "/"}
        self._parent_id: FileId | None = None
        self._taken: set[str] = set()
        self._write(b"", self._folders[self._folder.id], 0, 0, int(self._folder.updated_at.timestamp()))

    def add(self, rows: list[Row]) -> None:
        """Lines for rows that come folder by folder."""
        for row in rows:
            if row.parent_id != self._parent_id:
                self._parent_id, self._taken = row.parent_id, set()
            path = self._folders[row.parent_id] + self._free(names.portable(row.name))
            if row.blob_key is None:
                self._folders[row.id] = path = f"{path}/"
            self._write(row.blob_key.bytes if row.blob_key else b"", path, row.size_bytes, row.crc32 or 0,
                        int(row.updated_at.timestamp()))

    def _free(self, name: str) -> str:
        """A name that no other entry of the folder has, also where case does not matter."""
        candidate, number = name, 2
        while candidate.casefold() in self._taken:
            candidate, number = names.numbered(name, number), number + 1
        self._taken.add(candidate.casefold())
        return candidate

    def _write(self, key: bytes, path: str, size_bytes: int, crc32: int, modified: int) -> None:
        name = path.encode()
        entry = zip64.Entry(name=name, size_bytes=size_bytes, crc32=crc32, modified=modified, offset=self._offset)
        line = _LINE.pack(key, size_bytes, crc32, modified, self._offset, len(name)) + name
        self._scratch.write(line)
        self._digest.update(line)
        self._offset += zip64.local_length(entry) + size_bytes
        self._directory_bytes += zip64.central_length(entry)
        self._count += 1

    def finish(self) -> Plan:
        """The plan."""
        self._scratch.flush()
        end = zip64.end_of_directory(self._count, self._directory_bytes, self._offset)
        return Plan(name=f"{self._name}.zip", etag=f'"{self._digest.hexdigest()[:32]}"', count=self._count,
                    size_bytes=self._offset + self._directory_bytes + len(end), directory_offset=self._offset,
                    directory_bytes=self._directory_bytes, lines=self._scratch)
