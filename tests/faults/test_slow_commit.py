"""A database that is slow around a COMMIT while files without a row are cleared away at once (F19).

Whoever is first, the upload or the fence: no upload is acknowledged whose bytes are gone.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.db import strays as rows
from service.db.pool import Database
from service.domain.strays import Strays
from service.storage.inspection import LocalInspector
from tests.client import Api, Reply, new_account
from tests.domain.commit_proxy import CommitProxy
from tests.faults.degraded import through_proxy
from tests.faults.recorder import Recorder
from tests.faults.sites import OwnPostgres
from tests.invariants import (
    no_dangling_reference, nothing_removed_before_its_fence, take_snapshot, tree_is_whole, usage_is_the_sum,
    versions_belong_together,
)

PATIENCE_SECONDS = 20.0
SIZES = {"small, in a group": 1000, "large": 2 * 2**16}
# what the service says when it has placed the bytes and is about to name them, and at the end of that; and for how many
# seconds that is kept back at most, if the sweep takes so long, which waits for a row that is not committed
MOMENTS = {"before the row": (b"BEGIN;", 20.0), "before COMMIT, briefly": (b"COMMIT;", 0.5),
           "before COMMIT": (b"COMMIT;", 20.0)}


class Sweeper:
    """Looks for files without a row, and clears them away without waiting for anything."""

    def __init__(self, database: Database, inspector: LocalInspector) -> None:
        self._strays = Strays(database, inspector, quarantine_days=1, grace_seconds=0, settle_seconds=0)
        self.set_aside = 0

    async def run(self) -> None:
        """Twice, so that what the first round saw has been dealt with."""
        for _ in range(2):
            walk = await self._strays.walk()
            await self._strays.note(walk)
            self.set_aside += len((await self._strays.treat(walk, takes_many=True)).set_aside)


@asynccontextmanager
async def open_sweeper(dsn: str, root: Path) -> AsyncIterator[Sweeper]:
    """One that reaches the database directly."""
    database, inspector = await Database.open(dsn, size=2), LocalInspector(root)
    try:
        yield Sweeper(database, inspector)
    finally:
        inspector.close()
        await database.close()


@dataclass
class Met:
    """An upload that a sweep met: its answer, what can be read then, and whether the fence was first."""

    reply: Reply
    found: Reply
    was_fenced: bool


async def upload_while_swept(api: Api, proxy: CommitProxy, sweeper: Sweeper, path: str, moment: tuple[bytes, float],
                             size: int) -> Met:
    """The database is slow at that moment of the upload, for as long as the sweep takes."""
    before = sweeper.set_aside
    piece, seconds = moment
    proxy.keep_back(piece)
    storing = asyncio.create_task(api.put(path, bytes(size), expect=None))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await proxy.is_keeping.wait()
    # which may have to wait for a row that is not committed; the upload is answered even so
    sweeping = asyncio.create_task(sweeper.run())
    await asyncio.wait([sweeping, storing], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    proxy.pass_on()
    reply = await storing
    found = await api.get(path, expect=None)
    await sweeping
    return Met(reply, found, sweeper.set_aside > before)


async def slow_commits(recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, root: Path) -> None:
    """All sizes and moments, a few times each; every 201 can be read."""
    async with through_proxy(server, root, WORKERS="1") as (stack, proxy, dsn):
        api = await new_account(session, stack)
        await api.put("/warm", b"warm")
        async with open_sweeper(dsn, root) as sweeper:
            for moment, (piece, seconds) in MOMENTS.items():
                for kind, size in SIZES.items():
                    line = recorder.line("F19 slow PostgreSQL and a sweep without grace", f"{moment}, {kind}")
                    fences = 0
                    for number in range(3):
                        path = f"/{moment}, {kind} {number}"
                        await api.get("/warm")  # the session is known: the next thing said is the upload's
                        met = await upload_while_swept(api, proxy, sweeper, path, (piece, seconds), size)
                        fences += met.was_fenced
                        is_stored = met.reply.status == 201
                        line.injected += 1
                        line.acknowledged += is_stored
                        line.dangling += is_stored and met.found.body != bytes(size)
                        assert not line.dangling, f"an acknowledged upload has no bytes: {path}: {met.found}"
                        assert met.reply.status in (201, 503), met.reply.body
                        assert met.found.status == (200 if is_stored else 404)
                    line.note = f"the fence was first {fences} times"
                    assert moment != "before the row" or fences, "the sweep never met an upload"
                    assert moment != "before COMMIT, briefly" or line.acknowledged, "no upload was ever the first"
        now = await take_snapshot(dsn, root)
        # all but I5: what is set aside keeps its fenced row for a day, and nothing refers to that
        for holds in (tree_is_whole, versions_belong_together, no_dangling_reference, nothing_removed_before_its_fence,
                      usage_is_the_sum):
            holds(now)


async def test_slow_commit_beside_a_sweep_never_loses_what_is_acknowledged(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path) -> None:
    await slow_commits(recorder, session, server, tmp_path / "data")


@pytest.mark.mutant("M5", "a slow upload beside a sweep that sets files aside without a fence")
async def test_m5_sweep_without_a_fence_is_caught_beside_slow_commits(
        session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fence_nothing(conn: Any, key: Any, *more: Any, **others: Any) -> bool:
        return True

    monkeypatch.setattr(rows, "insert_fence", fence_nothing)
    with pytest.raises(AssertionError, match="an acknowledged upload has no bytes"):
        await slow_commits(Recorder(), session, server, tmp_path / "data")
