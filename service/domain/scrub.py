"""Reading back what is stored: whether each blob is there, of the right size, and has the bytes of its SHA-256.

Nothing is ever removed here.  What is found damaged is noted for the operator, and its bytes are set aside, so that no
door, nginx's own included, gives out wrong bytes as if they were right: a download then says that it cannot be had.
"""

import asyncio
from collections.abc import AsyncIterator

import structlog

from service import metrics
from service.db import damage
from service.db.damage import Affected, Expected
from service.db.pool import Database
from service.domain.findings import Finding
from service.model import BlobKey, Damage, new_uuid
from service.storage.base import Inspector, Pace

log = structlog.get_logger()

PAGE = 1000
BATCH = 50
# how much may be read again after a crash
UNNOTED_BYTES = 2**26
VERIFY_SECONDS = 7 * 86400.0
MIN_LIMIT = 100  # beyond this, and a thousandth of all blobs, the reading is to be doubted and nothing is set aside

MOST_NOTED = 1000  # by one look for all blobs

DETAILS: dict[Damage, str] = {
    "missing": "its bytes are gone", "size": "it has another size", "digest": "it has other bytes",
    "unreadable": "it cannot be read"}


class Throttle:
    """So many bytes in a second, on the average; a `Pace`."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._next_at = 0.0

    async def __call__(self, length: int) -> None:
        """Wait until so many more bytes may be read; counts them."""
        metrics.VERIFIED.labels("scrub").inc(length)
        now = asyncio.get_running_loop().time()
        self._next_at = max(now, self._next_at) + length / self._rate
        if self._next_at - now > 0.01:
            await asyncio.sleep(self._next_at - now)


class Scrub:
    """Compares blobs with their rows."""

    def __init__(self, database: Database, inspector: Inspector) -> None:
        self._database = database
        self._inspector = inspector

    # --- looking ---

    async def expected(self) -> AsyncIterator[list[Expected]]:
        """All blobs that there should be, page by page."""
        after: BlobKey | None = None
        while True:
            async with self._database.connection() as conn:
                page = await damage.list_expected(conn, after=after, limit=PAGE)
            if not page:
                return
            yield page
            after = page[-1].key

    async def look_at(self, page: list[Expected], pace: Pace | None) -> AsyncIterator[tuple[Expected, Damage | None]]:
        """Each of these, and what is wrong with it.

        With a `pace` all bytes are read; without, only those of blobs that were damaged and may be whole again.
        """
        try:
            sizes = await self._inspector.measure([blob.key for blob in page])
        except OSError:  # then one by one, to know which
            sizes = {}
        for blob in page:
            if pace is None and blob.damage is None and sizes.get(blob.key) == blob.size_bytes:
                yield blob, None
            else:
                yield blob, await self.look(blob, pace or (unpaced if blob.damage else None))

    async def look(self, blob: Expected, pace: Pace | None) -> Damage | None:
        """What is wrong with a blob: looked at twice, and counted only if its row is still there afterwards.

        Bytes are removed only after their row was fenced, so what is missed before the row is looked at is missing.
        With a `pace` the bytes are read.  None: it is whole, or nothing has to be there any more.
        """
        if await self._look_once(blob, pace) is None or (kind := await self._look_once(blob, pace)) is None:
            return None
        async with self._database.connection() as conn:
            return kind if await damage.get_expected(conn, blob.key) else None

    async def _look_once(self, blob: Expected, pace: Pace | None) -> Damage | None:
        try:
            size = (await self._inspector.measure([blob.key]))[blob.key]
            if size is None:
                return await self._why_missing(blob)
            if size != blob.size_bytes:
                return "size"
            if pace is None:
                return None
            digest = await self._inspector.hash(blob.key, pace)
        except OSError as error:
            log.warning("blob.unreadable", blob=str(blob.key), error=str(error))
            return "unreadable"
        if digest is None:
            return "missing"
        return None if digest == blob.sha256 else "digest"

    async def _why_missing(self, blob: Expected) -> Damage:
        """What was set aside as damaged stays what it was."""
        if blob.damage in ("size", "digest"):
            if (await self._inspector.measure([blob.key], aside=True))[blob.key] is not None:
                return blob.damage
        return "missing"

    async def describe(self, blob: Expected, kind: Damage) -> Finding:
        """A damaged blob, for people: whose files are concerned."""
        return Finding(kind=kind, subject=str(blob.key), detail=f"{DETAILS[kind]} (should be {blob.size_bytes} bytes)",
                       affected=tuple(await self._affected(blob.key)))

    async def _affected(self, key: BlobKey) -> list[Affected]:
        async with self._database.connection() as conn:
            return await damage.list_affected(conn, key)

    # --- noting ---

    async def note(self, blob: Expected, kind: Damage | None, *, may_move: bool) -> None:
        """Write down what was found out about a blob; set wrong bytes aside."""
        if kind is None:
            if blob.damage is not None:
                log.warning("blob.whole_again", blob=str(blob.key), was=blob.damage)
                async with self._database.connection() as conn:
                    await damage.update_unverified(conn, blob.key)
                    await damage.delete_damage(conn, [blob.key])
            return
        if kind != blob.damage:
            log.error("blob.damaged", blob=str(blob.key), kind=kind, size=blob.size_bytes,
                      versions=len(await self._affected(blob.key)))
            async with self._database.connection() as conn:
                await damage.insert_damage(conn, blob.key, kind)
        if kind in ("size", "digest") and may_move and not await self._too_many():
            await self._set_aside(blob, kind)

    async def _too_many(self) -> bool:
        async with self._database.connection() as conn:
            damaged = sum((await damage.count_damage(conn)).values())
            if damaged <= MIN_LIMIT:
                return False
            count, _ = await damage.count_blobs(conn)
        return damaged > max(MIN_LIMIT, count // 1000)

    async def _set_aside(self, blob: Expected, kind: Damage) -> None:
        try:
            if (await self._inspector.measure([blob.key]))[blob.key] is None:
                return  # it is already
            log.error("blob.set_aside", blob=str(blob.key), size=blob.size_bytes, reason=kind)
            try:
                await self._inspector.set_aside(blob.key)
            except FileExistsError:  # of a former time, and it stays: a good copy, put there since, has rotted too
                await self._set_aside_again(blob.key)
        except OSError as error:
            log.error("blob.stuck", blob=str(blob.key), error=str(error))

    async def _set_aside_again(self, key: BlobKey) -> None:
        """Under a key that no row has: `Strays` finds it like anybody's there, and it goes after its days."""
        as_key = BlobKey(new_uuid())
        log.error("blob.set_aside_again", blob=str(key), under=str(as_key))
        await self._inspector.set_aside(key, as_key=as_key)

    # --- rounds of the service ---

    async def check_sizes(self, *, may_move: bool) -> int:
        """Look for every blob, and note what is wrong; how many are.

        If so many are that a whole disk must be gone, only the first are noted one by one.
        """
        found = 0
        async for page in self.expected():
            async for blob, kind in self.look_at(page, None):
                if kind is None or found < MOST_NOTED:
                    await self.note(blob, kind, may_move=may_move)
                found += kind is not None
        if found > MOST_NOTED:
            log.error("blobs.damaged", count=found, noted=MOST_NOTED)
        return found

    async def verify_due(self, pace: Pace, *, may_move: bool, age_seconds: float = VERIFY_SECONDS) -> int:
        """Read back a batch of those whose turn it is; how many that were, 0: nothing is due."""
        async with self._database.connection() as conn:
            due = await damage.list_unverified(conn, age_seconds=age_seconds, limit=BATCH)
        done: list[BlobKey] = []
        unnoted = 0
        for blob in due:
            await self.note(blob, await self.look(blob, pace), may_move=may_move)
            done.append(blob.key)
            unnoted += blob.size_bytes
            if unnoted >= UNNOTED_BYTES or blob is due[-1]:
                async with self._database.connection() as conn:
                    await damage.update_verified(conn, done)
                done, unnoted = [], 0
        return len(due)


async def unpaced(length: int) -> None:
    """A `Pace` that never waits."""
