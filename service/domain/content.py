"""The only two doors for bytes: `store` and `deliver`.

A body goes spooled -> claimed -> hashed and synced -> placed -> committed -> answered.  A crash before the commit
leaves garbage at most, a crash after it leaves the file.  No database connection is held while a client sends.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import structlog

from service import names
from service.db import blobs, files, users, versions
from service.db.pool import Connection, Database
from service.db.uploads import Upload
from service.domain import requests
from service.domain.audit import current, record
from service.domain.group_commit import GroupCommit
from service.domain.places import Place, Target, free_name, get, make_folders, resolve_target, size_at
from service.domain.writability import Writability
from service.errors import (
    DiskFailed, InvalidPath, IsAFolder, NotFound, PreconditionFailed, QuotaExceeded, ServiceError, StorageFull,
    TooLarge, Unavailable,
)
from service.model import (
    BlobKey, Caller, Conditions, Delivery, File, FileId, Folder, Staged, UserId, Version, VersionId, new_uuid,
)
from service.storage.base import SMALL_BYTES, BlobStore, Claim, Writer

P = ParamSpec("P")
T = TypeVar("T")

UNANNOUNCED_BYTES = 2**30  # what a body of unknown length has to find room for, unless no file may be so large
MIN_FREE_FILES = 64  # of those that the file system can still make; nginx and a form take some for each upload
log = structlog.get_logger()

Also = Callable[[Connection], Awaitable[None]]


@requests.kept
@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What an upload came to."""

    file: File
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What uploads may take: bytes of one file, the disk's free space never to be touched, versions kept of a file."""

    max_upload_bytes: int
    min_free_bytes: int
    versions_keep: int = 0


class Content:
    """Bytes in, bytes out."""

    def __init__(self, database: Database, store: BlobStore, limits: Limits) -> None:
        self._database = database
        self._store = store
        self._limits = limits
        self._groups = GroupCommit(database, keep=limits.versions_keep)
        self._commits: set[asyncio.Task[Stored]] = set()
        self.writability = Writability(store)

    # --- before and while bytes come in ---

    async def admit(self, caller: Caller, size_bytes: int | None, place: Place | None, *,
                    key: str | None = None) -> None:
        """Refuse an upload before its first byte; None is what is not known yet.

        A first look only: the quota is decided by the transaction.  With the key of an upload that was stored before
        nothing is needed but its answer.  Raises TooLarge, QuotaExceeded, StorageFull, ReadOnly.
        """
        size = size_bytes or 0
        self.check_size(size)
        try:
            await self._check_room(caller, size_bytes, place)
        except (QuotaExceeded, StorageFull):
            if key is None or not await requests.is_done(self._database, caller, key):
                raise

    async def _check_room(self, caller: Caller, size_bytes: int | None, place: Place | None) -> None:
        size = size_bytes or 0
        self._check_disk(size_bytes)
        if size_bytes is not None and size <= SMALL_BYTES:
            return  # the transaction will tell; to ask twice would cost more than the bytes
        async with self._database.connection() as conn:
            usage = await users.get_usage(conn, caller.user_id)
            if usage.available_bytes is None or size <= usage.available_bytes:
                return
            # what this upload replaces makes room for it; if that is not known, it may be anything
            freed = usage.files_bytes if place is None else await size_at(conn, caller.user_id, place)
        # and so do former versions, which an overwrite may drop
        if size > usage.available_bytes + freed + usage.versions_bytes:
            raise QuotaExceeded()

    def _check_disk(self, size_bytes: int | None) -> None:
        self.writability.check()
        with self.writability.watched():
            room = self._store.room()
        if room.is_read_only:
            self.writability.found_read_only()
        spare = room.free_bytes - self._limits.min_free_bytes
        if size_bytes is None and spare < min(self._limits.max_upload_bytes, UNANNOUNCED_BYTES):
            raise StorageFull("The disk has no room for a body of unknown length; send it with its Content-Length.")
        if spare < (size_bytes or 0):
            raise StorageFull()
        if room.free_files is not None and room.free_files < MIN_FREE_FILES:
            raise StorageFull("The disk has no room for another file; nothing was stored.")

    def may_put_aside(self, size_bytes: int) -> bool:
        """Whether the disk has room for what is no upload, and keeps what is to stay free; not if it does not say."""
        try:
            return self._store.room().free_bytes - size_bytes >= self._limits.min_free_bytes
        except DiskFailed:
            return False

    def check_size(self, size_bytes: int) -> None:
        """Raise TooLarge for more than one file may have."""
        if size_bytes > self._limits.max_upload_bytes:
            raise TooLarge()

    def claim(self, spooled: str, size_bytes: int | None) -> Claim:
        """Take a body that nginx spooled; no await happens here."""
        with self.writability.watched():
            return self._store.claim(spooled, size_bytes)

    def release(self, key: BlobKey) -> None:
        """Throw away a claimed or staged body that was not stored; one that cannot be is left for the next start."""
        try:
            self._store.discard(key)
        except OSError as error:
            log.warning("body_left_behind", blob=str(key), reason=str(error))

    def consume(self, claim: Claim) -> Iterator[bytes]:
        """The claimed bytes, piece by piece, once."""
        return self._store.consume(claim)

    async def adopt(self, claim: Claim) -> Staged:
        """Hash a claimed body and make it durable."""
        with self.writability.watched():
            return await self._store.adopt(claim)

    def writer(self) -> Writer:
        """Begin a body that comes piece by piece; its methods go through `run`."""
        return self._store.writer()

    def small_writer(self, key: BlobKey | None) -> Writer:
        """Begin a small body, whose methods need no `run`; with a `key` no other body of that key can be stored."""
        return self._store.small_writer(key)

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work on bytes off the event loop."""
        return await self.run_through(0, work, *args, **kwargs)

    async def run_through(self, size_bytes: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for work that goes through so many of them in one go."""
        with self.writability.watched():
            return await self._store.run_through(size_bytes, work, *args, **kwargs)

    # --- the door in ---

    async def store(self, caller: Caller, target: Target, staged: Staged, *, content_type: str | None,
                    conditions: Conditions = Conditions(), also: Also | None = None) -> Stored:
        """Make the staged bytes the content of a file; whatever happens, the staged body is used up.

        Without a `content_type` the file's name decides.  `also` belongs to the same transaction: if it refuses,
        nothing is stored.
        Raises NotFound, NotAFolder, IsAFolder, InvalidPath, PreconditionFailed, QuotaExceeded, TooLarge, Unavailable.
        """
        try:
            self.check_size(staged.size_bytes)
            with self.writability.watched():
                await self._store.place(staged)
        except BaseException:  # also when the request is cancelled: nothing names these bytes yet
            self.release(staged.key)
            raise
        # from here on a client that goes away changes nothing: the transaction runs to its end
        task = asyncio.create_task(self._commit(caller, target, staged, content_type, conditions, also))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        return await asyncio.shield(task)

    async def _commit(self, caller: Caller, target: Target, staged: Staged, content_type: str | None,
                      conditions: Conditions, also: Also | None) -> Stored:
        """Write the rows.  Bytes that no row names, nor ever will, are removed."""
        try:
            stored = await self._write_rows(caller, target, staged, content_type, conditions, also)
        except ServiceError as error:
            # if COMMIT was sent, a row may name the bytes after all: whatever was heard of it since then, they stay
            if not isinstance(error, Unavailable) or error.nothing_committed:
                await self._discard(staged.key)
            raise
        if stored.file.blob_key != staged.key:  # it was stored before, with other bytes of the same digest
            await self._discard(staged.key)
        return stored

    async def _write_rows(self, caller: Caller, target: Target, staged: Staged, content_type: str | None,
                          conditions: Conditions, also: Also | None) -> Stored:
        if also is None and conditions == Conditions() and not requests.is_keyed():
            upload = _for_group(caller.user_id, target, staged, content_type)
            if upload is not None and (file := await self._groups.store(upload)) is not None:
                return Stored(file=file, is_new=file.version == 1)

        async def work(conn: Connection) -> Stored:
            stored = await _write(conn, caller.user_id, target, staged, content_type, conditions,
                                  keep=self._limits.versions_keep)
            if also is not None:
                await also(conn)
            return stored

        requests.describe(target.place, target.in_folder, target.own_name, staged.sha256, content_type)
        return await requests.once(self._database, caller, work)

    async def _discard(self, key: BlobKey) -> None:
        """Remove bytes that no row names, nor ever will."""
        with contextlib.suppress(OSError):  # left for the sweeper
            await self._store.delete(key)

    async def drain(self) -> None:
        """Wait for the transactions of uploads that are under way."""
        while self._commits:
            await asyncio.wait(self._commits)

    # --- the door out ---

    async def deliver(self, caller: Caller, place: Place, version: int | None = None) -> Delivery:
        """Decide to send a file, or what it was in a former version; raise NotFound or IsAFolder."""
        async with self._database.connection() as conn:
            file = await get(conn, caller.user_id, place)
            if isinstance(file, Folder):
                raise IsAFolder("The path is that of a folder; only files can be downloaded.", field="path")
            if version is not None and version != file.version:
                found = await versions.get_numbered(conn, file.id, version)
                if found is None:
                    raise no_such_version()
                return Delivery(key=found.blob_key, name=file.name, content_type=found.content_type,
                                size_bytes=found.size_bytes, sha256=found.sha256, etag=found.etag,
                                modified_at=found.created_at)
        return Delivery(key=file.blob_key, name=file.name, content_type=file.content_type, size_bytes=file.size_bytes,
                        sha256=file.sha256, etag=file.etag, modified_at=file.updated_at)

    async def deliver_blob(self, key: BlobKey, *, name: str, content_type: str) -> Delivery:
        """Send what a signed address stands for, whose signature the caller has checked; raise NotFound.

        The bytes may belong to a version that was deleted less than the sweeper's grace ago.
        """
        async with self._database.connection() as conn:
            blob = await blobs.get_blob(conn, key)
        if blob is None:
            raise NotFound("There is nothing here any more.")
        return Delivery(key=key, name=name, content_type=content_type, size_bytes=blob.size_bytes, sha256=blob.sha256,
                        etag=f'"{key.hex}"', modified_at=blob.created_at)


def check_conditions(conditions: Conditions, etag: str | None) -> None:
    """Raise PreconditionFailed (RFC 9110, sections 13.1.1 and 13.1.2); `etag` None means there is no file.

    If-Match compares strongly, If-None-Match weakly.
    """
    if conditions.if_match and not _matches(conditions.if_match, etag):
        raise PreconditionFailed()
    weak = tuple(tag.removeprefix("W/") for tag in conditions.if_none_match)
    if weak and _matches(weak, etag):
        raise PreconditionFailed()


def _matches(tags: tuple[str, ...], etag: str | None) -> bool:
    return etag is not None and ("*" in tags or etag in tags)


def no_such_version() -> NotFound:
    """To raise for a file that is there."""
    return NotFound("The file has no such version.", field="version")


def etag_of(version_id: VersionId) -> str:
    """The entity tag of a version, quotes included."""
    return f'"{version_id.hex}"'


def _for_group(user_id: UserId, target: Target, staged: Staged, content_type: str | None) -> Upload | None:
    """The upload as one of a group, if its target is the path of a file, whatever is there."""
    path = target.place
    if not isinstance(path, tuple) or target.never_replaces:
        return None
    if target.in_folder and target.own_name is not None:
        try:
            path = (*path, names.check_name(target.own_name))
            names.check_path(path)
        except InvalidPath:
            return None
    elif target.in_folder or not path:
        return None
    source = current()
    return Upload(user_id=user_id, folder=path[:-1], name=path[-1], file_id=FileId(new_uuid()),
                  version_id=VersionId(new_uuid()), staged=staged,
                  content_type=content_type or names.media_type_of(path[-1]), session_id=source.session_id,
                  network=source.network, request_id=source.request_id)


async def _write(conn: Connection, user_id: UserId, target: Target, staged: Staged, content_type: str | None,
                 conditions: Conditions, *, keep: int) -> Stored:
    """The transaction of an upload: resolve, claim the row, add blob and version, move the head, charge the account."""
    # a name that is free has to stay so until it is taken
    await (files.lock_tree if target.never_replaces else files.lock_tree_shared)(conn, user_id)
    path = await resolve_target(conn, user_id, target)
    parent_id = await make_folders(conn, user_id, path[:-1])
    if target.never_replaces:
        path = (*path[:-1], await free_name(conn, parent_id, path))
    version_id = VersionId(new_uuid())
    claimed = await files.claim_file(conn, file_id=FileId(new_uuid()), user_id=user_id, parent_id=parent_id,
                                     name=path[-1], version_id=version_id, size_bytes=staged.size_bytes)
    content_type = content_type or names.media_type_of(path[-1])
    is_new = claimed.head_id == version_id
    check_conditions(conditions, None if is_new else etag_of(claimed.head_id))
    old = None if is_new else await versions.get_version(conn, claimed.head_id)
    number = 1 if old is None else old.number + 1
    await blobs.insert_blob(conn, staged)
    await versions.insert_version(conn, version_id=version_id, file_id=claimed.id, number=number, blob_key=staged.key,
                                  content_type=content_type)
    await record(conn, user_id, "upload", file_id=claimed.id, path=names.join_path(path), version=number,
                 size=staged.size_bytes)
    if old is None:
        await users.update_usage(conn, user_id, files_bytes=staged.size_bytes, file_count=1)
    else:
        await supersede(conn, user_id, claimed.id, old, version_id, size_bytes=staged.size_bytes, keep=keep)
    file = File(id=claimed.id, name=path[-1], path=names.join_path(path), size_bytes=staged.size_bytes,
                sha256=staged.sha256, content_type=content_type, version=number, version_id=version_id,
                blob_key=staged.key, created_at=claimed.created_at, updated_at=claimed.updated_at)
    return Stored(file=file, is_new=is_new)


async def supersede(conn: Connection, user_id: UserId, file_id: FileId, old: Version, new_id: VersionId, *,
                    size_bytes: int, keep: int) -> None:
    """Make a version, which is there, the file's current one, and charge for it and for the history that is kept.

    History gives way: where there is no room for both, all of the file's former versions go.  Raises QuotaExceeded.
    """
    await files.update_head(conn, file_id, new_id)
    await versions.update_replaced(conn, old.id)
    kept_bytes = old.size_bytes
    for limit in (keep, 0):
        pruned = (await versions.delete_former(conn, [file_id], keep=limit))[file_id]
        await blobs.release_blobs(conn, pruned.blob_keys)
        kept_bytes -= pruned.size_bytes
        try:
            await users.update_usage(conn, user_id, files_bytes=size_bytes - old.size_bytes, versions_bytes=kept_bytes)
            return
        except QuotaExceeded:
            if not limit:
                raise
