"""One fsync of a folder serves many placements: but only those whose link was there before it began."""

import asyncio
import errno
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from service.model import BlobKey, Staged, new_uuid
from service.errors import DiskFailed
from service.storage import local
from service.storage.local import LocalStore
from tests.storage.conftest import EPOCH, found_in

PLACEMENTS = 200
FOLDERS = ("00", "ff")
LINKS_DURING_A_SYNC = 5


@dataclass
class Ledger:
    """When each thing happened, by one clock that only counts."""

    clock: Iterator[int] = field(default_factory=itertools.count)
    links: dict[str, int] = field(default_factory=dict)
    syncs: list[tuple[str, int, int]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def uncovered(self) -> list[str]:
        """Blobs that were answered for without an fsync of their folder that began after their link."""
        return [key for key, answered in self.answers.items()
                if not any(folder == key[-2:] and self.links[key] < begun and ended < answered
                           for folder, begun, ended in self.syncs)]


class ObservedStore(LocalStore):
    """Notes in a ledger what it does; a sync of a folder goes on until some more links were made during it."""

    def __init__(self, root: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        self.ledger = ledger
        self.linked = asyncio.Semaphore(0)
        sync, link = local._sync_folder, self._link
        loop = asyncio.get_running_loop()

        def slow_sync(folder: Path) -> None:
            begun = next(ledger.clock)
            with ledger.changed:
                enough = min(PLACEMENTS, len(ledger.links) + LINKS_DURING_A_SYNC)
                ledger.changed.wait_for(lambda: len(ledger.links) >= enough)
            sync(folder)
            ledger.syncs.append((folder.name, begun, next(ledger.clock)))

        def noted_link(source: Path, target: Path) -> None:
            link(source, target)
            with ledger.changed:
                ledger.links[target.name] = next(ledger.clock)
                ledger.changed.notify_all()
            loop.call_soon_threadsafe(self.linked.release)

        self.open(EPOCH)
        monkeypatch.setattr(local, "_sync_folder", slow_sync)
        monkeypatch.setattr(self, "_link", noted_link)

    async def place(self, staged: Staged) -> None:
        """Place, and note when that was answered."""
        await super().place(staged)
        self.ledger.answers[str(staged.key)] = next(self.ledger.clock)


class JoiningStore(ObservedStore):
    """The mutant: whoever comes during a sync is content with it."""

    async def _sync_folder_once(self, folder: Path) -> None:
        running = self._syncs.get(folder)
        if running is None:
            running = asyncio.ensure_future(self.run(local._sync_folder, folder))
            self._syncs[folder] = running
            running.add_done_callback(lambda _: self._syncs.pop(folder, None))
        await asyncio.shield(running)


class ForgetfulStore(ObservedStore):
    """The mutant: no sync of the folder at all."""

    async def _sync_folder_once(self, folder: Path) -> None:
        pass


def stage_for(store: LocalStore, root: Path, folder: str) -> Staged:
    """A staged blob whose key leads to the folder."""
    key = BlobKey(UUID(new_uuid().hex[:-2] + folder))
    (root / "staging" / str(key)).write_bytes(b"x")
    return Staged(key=key, size_bytes=1, sha256=bytes(32))


async def place_many(store: ObservedStore, root: Path) -> Ledger:
    """Many placements into few folders, each begun when the one before it has its link: so syncs are always running."""
    tasks = []
    for number in range(PLACEMENTS):
        staged = stage_for(store, root, FOLDERS[number % len(FOLDERS)])
        tasks.append(asyncio.create_task(store.place(staged)))
        await store.linked.acquire()
    await asyncio.gather(*tasks)
    store.close()
    assert len(store.ledger.answers) == len(found_in(root / "blobs")) == PLACEMENTS
    return store.ledger


async def test_every_placement_is_followed_by_a_sync_that_began_after_its_link(
        root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = await place_many(ObservedStore(root, Ledger(), monkeypatch), root)
    assert ledger.uncovered() == []
    assert len(ledger.syncs) < PLACEMENTS / 2, "nothing was grouped"


@pytest.mark.mutant("M2", "an fsync of the folder that began before the link, or none")
@pytest.mark.parametrize("mutant", [JoiningStore, ForgetfulStore])
async def test_store_that_answers_too_early_is_found_out(
        root: Path, monkeypatch: pytest.MonkeyPatch, mutant: type[ObservedStore]) -> None:
    assert (await place_many(mutant(root, Ledger(), monkeypatch), root)).uncovered()


# --- step by step ---

class SteppedStore(LocalStore):
    """Says when a placement begins to wait for its folder; its syncs end when and as the test says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        self.open(EPOCH)
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.outcomes: "asyncio.Queue[OSError | None]" = asyncio.Queue()
        self.begun = 0
        loop = asyncio.get_running_loop()

        def stepped_sync(folder: Path) -> None:
            self.begun += 1
            error = asyncio.run_coroutine_threadsafe(self.outcomes.get(), loop).result()
            if error is not None:
                raise error

        monkeypatch.setattr(local, "_sync_folder", stepped_sync)

    async def _sync_folder_once(self, folder: Path) -> None:
        self.arrived.put_nowait(folder.name)
        await super()._sync_folder_once(folder)

    async def begin(self, root: Path) -> "tuple[Staged, asyncio.Task[None]]":
        """Start a placement and return when it waits."""
        staged = stage_for(self, root, "00")
        task = asyncio.create_task(self.place(staged))
        await self.arrived.get()
        return staged, task


@pytest.fixture
async def stepped(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SteppedStore]:
    """A store whose syncs wait for the test."""
    store = SteppedStore(root, monkeypatch)
    yield store
    for _ in range(10):  # a test that failed may have left some waiting
        store.outcomes.put_nowait(None)
    await asyncio.to_thread(store.close)


async def test_placement_during_a_sync_waits_for_the_next_one(stepped: SteppedStore, root: Path) -> None:
    _, first = await stepped.begin(root)
    _, second = await stepped.begin(root)
    _, third = await stepped.begin(root)
    stepped.outcomes.put_nowait(None)
    await first
    assert not second.done() and not third.done()
    stepped.outcomes.put_nowait(None)
    await asyncio.gather(second, third)
    assert stepped.begun == 2


async def test_failed_sync_fails_all_whose_links_it_may_have_lost(stepped: SteppedStore, root: Path) -> None:
    """The kernel reports a failed write-back once: a later fsync that succeeds would say nothing about it."""
    first, second = await stepped.begin(root), await stepped.begin(root)
    stepped.outcomes.put_nowait(OSError(errno.EIO, "injected"))
    stepped.outcomes.put_nowait(None)
    outcomes = await asyncio.gather(first[1], second[1], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DiskFailed, DiskFailed], outcomes
    assert found_in(root / "blobs") == {}
    staged, task = await stepped.begin(root)
    stepped.outcomes.put_nowait(None)
    await task
    assert list(found_in(root / "blobs")) == [stepped.locate(staged.key)]


async def test_cancelled_placement_does_not_take_the_sync_of_others_with_it(
        stepped: SteppedStore, root: Path) -> None:
    _, first = await stepped.begin(root)
    _, second = await stepped.begin(root)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    stepped.outcomes.put_nowait(None)
    stepped.outcomes.put_nowait(None)
    await second
    assert stepped.begun == 2
