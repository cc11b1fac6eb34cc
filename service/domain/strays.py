"""Files among the blobs that no row names: seen, seen again, fenced, set aside, and only then removed.

Such a file may be an upload between its placement and its commit, the bytes of an upload whose end nobody could know,
or a file of a database that is newer than this one.  So a list of files is a suspicion and no more.  A stray that was
seen twice, a day apart, gets a fenced row under its key: a late upload cannot commit any more.  Then it is moved into
quarantine, where it stays for days; if its row is there after all, it goes back to its place.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from service.db import damage, strays
from service.db.pool import Connection, Database
from service.domain.findings import Finding, Progress, no_progress
from service.domain.scrub import unpaced
from service.model import BlobKey
from service.storage.base import Inspector

log = structlog.get_logger()

GRACE_SECONDS = 86400.0
# An upload that has placed its bytes commits them, or gives up, within this time, but for the busiest moments: it waits
# for its share, for a connection and for a lock (ACQUIRE_SECONDS twice and lock_timeout, db/pool.py).
SETTLE_SECONDS = 20.0
LOOK_SECONDS = 0.25
PAGE = 1000
MIN_LIMIT = 100  # more suspects than this, and than a thousandth of all blobs, mean that something else is wrong
DAY_SECONDS = 86400.0


class TooManyStrays(Exception):
    """So many files seem to have no row that the rows are to be doubted, not the files."""


@dataclass(slots=True, kw_only=True)
class Walk:
    """What a walk along all folders of blobs met; sizes in bytes."""

    strays: dict[BlobKey, int] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    quarantined: list[BlobKey] = field(default_factory=list)
    files: int = 0


@dataclass(slots=True, kw_only=True)
class Done:
    """What was done about strays."""

    set_aside: list[BlobKey] = field(default_factory=list)
    put_back: list[BlobKey] = field(default_factory=list)
    removed: list[BlobKey] = field(default_factory=list)


class Strays:
    """Finds them, and deals with them."""

    def __init__(self, database: Database, inspector: Inspector, *, quarantine_days: int,
                 grace_seconds: float = GRACE_SECONDS, settle_seconds: float = SETTLE_SECONDS) -> None:
        self._database = database
        self._inspector = inspector
        self._quarantine_seconds = quarantine_days * DAY_SECONDS
        self._grace_seconds = grace_seconds
        self._settle_seconds = settle_seconds

    # --- looking ---

    async def walk(self, progress: Progress = no_progress) -> Walk:
        """Look into every folder; changes nothing.  Raises OSError and Unavailable if it could not see everything."""
        found = Walk()
        suspects: list[BlobKey] = []
        shelves = list(self._inspector.shelves())
        for done, number in enumerate(shelves, start=1):
            listing = await self._inspector.list_shelf(number)
            found.files += len(listing.keys)
            found.foreign += [f"blobs/{name}" for name in listing.foreign]
            suspects += await self._without_row(listing.keys)
            progress("folders", done, len(shelves))
        found.strays = await self._settle(suspects)
        listing = await self._inspector.list_quarantine()
        found.quarantined = listing.keys
        found.foreign += listing.foreign
        return found

    async def _settle(self, suspects: list[BlobKey]) -> dict[BlobKey, int]:
        """Those that are still there, and without a row, when the uploads of now have ended; with their sizes."""
        waited = 0.0
        while True:
            sizes = await self._inspector.measure(await self._without_row(suspects))
            found = {key: size for key, size in sizes.items() if size is not None}
            if not found or waited >= self._settle_seconds:
                return found
            await asyncio.sleep(LOOK_SECONDS)
            waited += LOOK_SECONDS

    async def _without_row(self, keys: list[BlobKey]) -> list[BlobKey]:
        found = []
        for begin in range(0, len(keys), PAGE):
            async with self._database.connection() as conn:
                found += await strays.list_unknown(conn, keys[begin:begin + PAGE])
        return found

    async def describe(self, walk: Walk) -> list[Finding]:
        """What a walk met, for people; changes nothing."""
        async with self._database.connection() as conn:
            known = await strays.list_strays(conn)
        findings = [Finding(kind="stray", subject=str(key), detail=f"{size} bytes without a row; " + (
            f"first seen {known[key].first_seen_at:%Y-%m-%d %H:%M} UTC" if key in known else "not seen before"))
                    for key, size in walk.strays.items()]
        findings += [Finding(kind="foreign", subject=name, detail="does not belong here; it is left alone")
                     for name in walk.foreign]
        return findings

    async def find_objection(self) -> str | None:
        """Why nothing may be removed: so many files have no row that the rows are to be doubted.  None: all is well."""
        async with self._database.connection() as conn:
            return await _doubt(conn, await strays.count_suspects(conn))

    # --- acting ---

    async def note(self, walk: Walk) -> None:
        """Write down which strays were seen, and forget those of earlier walks that were not."""
        items = list(walk.strays.items())
        for begin in range(0, len(items), PAGE):
            async with self._database.connection() as conn:
                await strays.insert_sightings(conn, dict(items[begin:begin + PAGE]))
        async with self._database.connection() as conn:
            await strays.delete_other_sightings(conn, list(walk.strays))

    async def treat(self, walk: Walk, *, takes_many: bool = False) -> Done:
        """Set aside what was seen before, put back what has a row, remove what was aside for its days.

        Raises TooManyStrays before anything was done, unless it `takes_many`; OSError and Unavailable: the next round
        goes on.
        """
        done = Done()
        async with self._database.connection() as conn:
            ripe = await strays.list_ripe(conn, list(walk.strays), grace_seconds=self._grace_seconds)
            known = await strays.list_strays(conn)
        unlisted = [key for key in walk.quarantined if key not in known or known[key].quarantined_at is None]
        orphans = await self._without_row(unlisted)
        suspects = len(walk.strays) + len(orphans)
        async with self._database.connection() as conn:
            if (doubt := await _doubt(conn, suspects)) is not None and not takes_many:
                raise TooManyStrays(doubt)
        for stray in known.values():
            if stray.quarantined_at is not None and stray.is_fenced:  # a crash between the fence and the move
                await self._move(self._inspector.set_aside, stray.key)
        for key, size_bytes in ripe:
            if await self._set_aside(key, size_bytes, suspects=suspects):
                done.set_aside.append(key)
        for key, size in (await self._inspector.measure(orphans, aside=True)).items():
            if size is not None:  # set aside by a database that is gone: its days begin anew
                await self._fence(key, size)
        done.put_back = await self._put_back(walk.quarantined)
        done.removed = await self._remove_expired()
        return done

    async def _fence(self, key: BlobKey, size_bytes: int) -> bool:
        async def work(conn: Connection) -> bool:
            if not await strays.insert_fence(conn, key, size_bytes):
                await strays.delete_stray(conn, key)  # its row came after all
                return False
            await strays.set_quarantined(conn, key, size_bytes)
            return True

        return await self._database.in_transaction(work)

    async def _set_aside(self, key: BlobKey, size_bytes: int, *, suspects: int) -> bool:
        if not await self._fence(key, size_bytes):
            log.info("stray.adopted", blob=str(key))
            return False
        log.warning("stray.quarantined", blob=str(key), size=size_bytes, reason="no row for a day", count=suspects)
        return await self._move(self._inspector.set_aside, key)

    @staticmethod
    async def _move(move: Callable[[BlobKey], Awaitable[bool]], key: BlobKey) -> bool:
        """One file that the disk does not let go, or another one in its way, does not keep the others."""
        try:
            return await move(key)
        except OSError as error:
            log.error("stray.stuck", blob=str(key), error=str(error))
            return False

    async def _put_back(self, keys: list[BlobKey]) -> list[BlobKey]:
        """What is named by a row and not in its place, and whole, goes back."""
        back = []
        for key in keys:
            if await self.belongs_back(key):
                log.warning("stray.put_back", blob=str(key), reason="its row is there, its bytes are not")
                if not await self._move(self._inspector.put_back, key):
                    continue
                back.append(key)
                async with self._database.connection() as conn:
                    await strays.delete_stray(conn, key)
                    await damage.delete_damage(conn, [key])
        return back

    async def belongs_back(self, key: BlobKey) -> bool:
        """Whether a file in quarantine is, whole, what a row names and the disk lacks."""
        async with self._database.connection() as conn:
            expected = await damage.get_expected(conn, key)
        if expected is None or (await self._inspector.measure([key]))[key] is not None:
            return False
        if expected.damage in ("size", "digest"):  # that is why it was set aside
            return False
        try:
            return await self._inspector.hash(key, unpaced, aside=True) == expected.sha256
        except OSError as error:
            log.error("stray.unreadable", blob=str(key), error=str(error))
            return False

    async def _remove_expired(self) -> list[BlobKey]:
        async with self._database.connection() as conn:
            expired = await strays.list_expired_strays(conn, age_seconds=self._quarantine_seconds)
        removed = []
        for key, size_bytes in expired:
            log.warning("stray.removed", blob=str(key), size=size_bytes, reason="its days in quarantine are over",
                        count=len(expired))
            if not await self._move(self._remove, key):
                continue
            removed.append(key)

            async def forget(conn: Connection, key: BlobKey = key) -> None:
                await strays.delete_fence(conn, key)
                await strays.delete_stray(conn, key)

            await self._database.in_transaction(forget)
        return removed

    async def _remove(self, key: BlobKey) -> bool:
        await self._inspector.remove_quarantined(key)
        return True


async def _doubt(conn: Connection, suspects: int) -> str | None:
    if suspects <= MIN_LIMIT:
        return None
    count, _ = await damage.count_blobs(conn)
    if suspects <= max(MIN_LIMIT, count // 1000):
        return None
    return f"{suspects} files seem to have no row, beside {count} blobs that have: the rows are to be doubted"
