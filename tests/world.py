"""The layers below HTTP put together for a test: a database of its own, a store in a folder, the domain on top."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from service.db import files, users
from service.db.instance import get_epoch
from service.db.pool import Connection, Database
from service.domain import content
from service.domain.content import Content, Stored
from service.domain.files import Files
from service.domain.housekeeping import Housekeeping
from service.domain.places import Target
from service.model import BlobKey, Caller, Conditions, SessionId, Staged, Usage, UserId, new_uuid
from service.names import split_path
from service.storage.local import LocalStore

MAX_UPLOAD_BYTES = 10_000_000
LISTING = """
WITH RECURSIVE tree AS (
    SELECT id, '' COLLATE "C" AS path, head_id FROM files WHERE id = $1
    UNION ALL
    SELECT files.id, tree.path || '/' || name, files.head_id
    FROM tree JOIN files ON files.parent_id = tree.id AND deleted_at IS NULL
)
SELECT path, sha256 FROM tree JOIN versions ON versions.id = head_id JOIN blobs ON blobs.id = blob_id ORDER BY path
"""


if TYPE_CHECKING:  # the class takes no type arguments at run time
    Observer = asyncpg.Pool[asyncpg.Record]
else:
    Observer = asyncpg.Pool


class WatchedStore(LocalStore):
    """Looks into the database before each deletion: bytes whose row may still be referred to must never go (I6)."""

    def __init__(self, root: Path, observer: Observer) -> None:
        super().__init__(root)
        self.violations: list[BlobKey] = []
        self.deleted: list[BlobKey] = []
        self._observer = observer

    async def delete(self, key: BlobKey) -> None:
        """Remove a placed blob, and note it if it was not fenced."""
        is_fenced = await self._observer.fetchval("SELECT NOT referable FROM blobs WHERE id = $1", key)
        if is_fenced is False:  # None: there is no such row, the upload was refused
            self.violations.append(key)
        self.deleted.append(key)
        await super().delete(key)


@dataclass
class World:
    """One service without its HTTP."""

    dsn: str
    root: Path
    observer: Observer
    database: Database
    store: WatchedStore
    limits: content.Limits
    content: Content
    files: Files
    housekeeping: Housekeeping

    async def new_caller(self, quota_bytes: int | None = None) -> Caller:
        """An account, without the cost of a password."""
        user_id = UserId(new_uuid())

        async def work(conn: Connection) -> None:
            await users.insert_user(conn, user_id=user_id, username=f"user-{user_id.hex}", password_hash="x",
                                    quota_bytes=quota_bytes)
            await files.insert_root(conn, user_id)

        await self.database.in_transaction(work)
        return Caller(user_id=user_id, session_id=SessionId(new_uuid()))

    def keep_versions(self, count: int) -> None:
        """From now on, so many former versions of each file."""
        self.content = Content(self.database, self.store, replace(self.limits, versions_keep=count))

    def stage(self, data: bytes) -> Staged:
        """A body that has come in."""
        writer = self.store.writer()
        writer.write(data)
        return writer.finish()

    async def put(self, caller: Caller, path: str, data: bytes = b"", *, conditions: Conditions = Conditions(),
                  content_type: str = "application/octet-stream", own_name: str | None = None) -> Stored:
        """Upload to a path."""
        target = Target(place=split_path(path), in_folder=path.endswith("/"), own_name=own_name)
        return await self.content.store(caller, target, await asyncio.to_thread(self.stage, data),
                                        content_type=content_type, conditions=conditions)

    async def get(self, caller: Caller, path: str) -> bytes:
        """Download; the digest, the size and the bytes have to agree."""
        delivery = await self.content.deliver(caller, split_path(path))
        data = await asyncio.to_thread(self.store.path(delivery.key).read_bytes)
        assert len(data) == delivery.size_bytes
        return data

    async def delete(self, caller: Caller, path: str) -> None:
        """Delete for good."""
        await self.files.delete(caller, split_path(path), permanent=True)

    async def listing(self, caller: Caller) -> dict[str, str]:
        """Every live file of the account with the digest of its content, as the rows have it."""
        rows = await self.observer.fetch(LISTING, caller.user_id)
        return {row["path"]: row["sha256"].hex() for row in rows}

    async def usage(self, caller: Caller) -> Usage:
        """What the account holds."""
        return await self.files.usage(caller)

    def staged(self) -> list[str]:
        """What lies in staging."""
        return sorted(file.name for file in (self.root / "staging").iterdir())

    def blobs(self) -> set[UUID]:
        """What lies among the blobs."""
        return {UUID(file.name) for file in (self.root / "blobs").glob("*/*")}


Change = Callable[[World], None]


@asynccontextmanager
async def open_world(dsn: str, root: Path, *, direct_dsn: str | None = None, pool_size: int = 15,
                     versions_keep: int = 0) -> AsyncIterator[World]:
    """Open everything on a migrated database; `direct_dsn` is for those who look on, if `dsn` leads over a detour."""
    # connections of those who look on: what happens to the service's own does not happen to them
    observer = await asyncpg.create_pool(direct_dsn or dsn, min_size=1, max_size=4)
    database = await Database.open(dsn, size=pool_size)
    store = WatchedStore(root, observer)
    async with database.connection() as conn:
        store.open(await get_epoch(conn))
    limits = content.Limits(max_upload_bytes=MAX_UPLOAD_BYTES, min_free_bytes=0, versions_keep=versions_keep)
    world = World(direct_dsn or dsn, root, observer, database, store, limits, Content(database, store, limits),
                  Files(database), Housekeeping(database, store))
    try:
        yield world
        await world.content.drain()
    finally:
        await database.close()
        await observer.close()
        store.close()
