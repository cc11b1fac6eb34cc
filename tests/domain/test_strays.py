"""Files without a row: seen twice, fenced, set aside, kept for days, and never removed on suspicion."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from service.db import damage, strays
from service.db.pool import Connection
from service.domain.check import Check
from service.domain.content import Stored
from service.domain.strays import Done, Strays, TooManyStrays
from service.errors import Unavailable
from service.model import BlobKey, Caller, new_uuid
from service.storage.base import Pace
from service.storage.inspection import LocalInspector
from tests.domain.failpoints import Failpoints, Point, raise_os_error, raise_surprise
from tests.domain.scenarios import outcome_of
from tests.invariants import check_all, nothing_removed_before_its_fence, take_snapshot
from tests.world import World

WAITS_FOR_A_ROW = "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def inspector(world: World) -> Iterator[LocalInspector]:
    """Those who look after the world's files."""
    opened = LocalInspector(world.root)
    yield opened
    opened.close()


@pytest.fixture
def sweeper(world: World, inspector: LocalInspector) -> Strays:
    """As the service has it, without waiting for uploads to settle: these tests hold them up."""
    return Strays(world.database, inspector, quarantine_days=7, settle_seconds=0)


@pytest.fixture
def eager(world: World, inspector: LocalInspector) -> Strays:
    """Without any grace: what is seen is set aside at once, and removed at once."""
    return Strays(world.database, inspector, quarantine_days=0, grace_seconds=0, settle_seconds=0)


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account."""
    return await world.new_caller()


async def run(sweeper: Strays) -> Done:
    """A whole round."""
    walk = await sweeper.walk()
    await sweeper.note(walk)
    return await sweeper.treat(walk)


def litter(world: World, data: bytes = b"stray", *, shelf: str = "") -> BlobKey:
    """A file that no row names."""
    key = BlobKey(new_uuid())
    while not key.hex.endswith(shelf):
        key = BlobKey(new_uuid())
    world.store.path(key).write_bytes(data)
    return key


async def age(world: World, column: str, hours: float) -> None:
    """So much time goes by."""
    await world.observer.execute(f"UPDATE strays SET {column} = {column} - make_interval(secs => $1)", hours * 3600.0)


def in_quarantine(world: World) -> set[UUID]:
    """What was set aside."""
    return {UUID(file.name) for file in (world.root / "quarantine").glob("*")}


# --- a life ---

async def test_stray_is_seen_twice_fenced_set_aside_and_removed_after_its_days(
        world: World, caller: Caller, sweeper: Strays) -> None:
    keep = (await world.put(caller, "/a", b"keep")).file.blob_key
    key = litter(world)
    for hours in (0, 23.9):
        await age(world, "first_seen_at", hours)
        assert await run(sweeper) == Done()
        assert world.blobs() == {keep, key}
    await age(world, "first_seen_at", 0.2)
    assert await run(sweeper) == Done(set_aside=[key])
    assert world.blobs() == {keep} and in_quarantine(world) == {key}
    row = await world.observer.fetchrow("SELECT referable, size_bytes FROM blobs WHERE id = $1", key)
    assert row is not None and tuple(row) == (False, 5)
    for hours in (0, 7 * 24 - 0.1):  # no sweep takes it before its days are over
        await age(world, "quarantined_at", hours)
        assert await world.housekeeping.sweep(grace_seconds=0) == 0
        assert await run(sweeper) == Done()
        assert in_quarantine(world) == {key}
    await age(world, "quarantined_at", 0.2)
    assert await run(sweeper) == Done(removed=[key])
    assert in_quarantine(world) == set()
    assert await world.observer.fetch("SELECT FROM strays") == []
    await check_all(world.dsn, world.root)


async def test_setting_aside_and_removal_are_logged_before_they_happen(
        world: World, sweeper: Strays, inspector: LocalInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    key = litter(world)
    seen: dict[str, list[Any]] = {}

    def watch(name: str, file: Path) -> None:
        act = getattr(inspector, name)

        async def look_first(key: BlobKey) -> object:
            if file.exists():  # what is aside already is asked for again, in case it is not
                seen[name] = list(logs)
                logs.clear()
            return await act(key)

        monkeypatch.setattr(inspector, name, look_first)

    watch("set_aside", world.store.path(key))
    watch("remove_quarantined", world.root / "quarantine" / str(key))
    with capture_logs() as logs:
        await run(sweeper)
        await age(world, "first_seen_at", 25)
        assert await run(sweeper) == Done(set_aside=[key])
        await age(world, "quarantined_at", 8 * 24)
        assert await run(sweeper) == Done(removed=[key])
    line = {"log_level": "warning", "blob": str(key), "size": len(b"stray"), "count": 1}
    assert seen == {
        "set_aside": [line | {"event": "stray.quarantined", "reason": "no row for a day"}],
        "remove_quarantined": [line | {"event": "stray.removed", "reason": "its days in quarantine are over"}]}


async def test_what_was_seen_long_ago_and_is_gone_has_to_be_seen_twice_again(world: World, sweeper: Strays) -> None:
    key = litter(world)
    await run(sweeper)
    await age(world, "first_seen_at", 48)
    world.store.path(key).unlink()
    assert await run(sweeper) == Done()
    assert await world.observer.fetch("SELECT FROM strays") == []
    world.store.path(key).write_bytes(b"again")
    assert await run(sweeper) == Done()
    assert world.blobs() == {key}


async def test_stray_that_was_seen_in_the_future_is_seen_now(
        world: World, sweeper: Strays, inspector: LocalInspector) -> None:
    """PostgreSQL's clock was ahead, and was set right: its day begins anew, and nothing else is held up."""
    key = litter(world)
    await run(sweeper)
    for column in ("last_seen_at", "first_seen_at"):
        await age(world, column, -9000)
    assert await run(sweeper) == Done()
    assert await world.observer.fetchval("SELECT first_seen_at <= now() AND last_seen_at <= now() FROM strays")
    for column in ("last_seen_at", "first_seen_at"):
        await age(world, column, -9000)
    report = await Check(world.database, inspector, settle_seconds=0).run(repairs=True)
    assert [finding.kind for finding in report.findings] == ["stray"]
    await age(world, "first_seen_at", 25)
    assert await run(sweeper) == Done(set_aside=[key])


async def test_stray_that_got_its_row_is_forgotten(world: World, caller: Caller, sweeper: Strays,
                                                   failpoints: Failpoints) -> None:
    async with failpoints.paused("store.place after", world.put(caller, "/a", b"slow")) as upload:
        await run(sweeper)
        assert await world.observer.fetchval("SELECT count(*) FROM strays") == 1
        await age(world, "first_seen_at", 48)
    stored = await upload
    assert await run(sweeper) == Done()
    assert world.blobs() == {stored.file.blob_key}
    assert await world.observer.fetch("SELECT FROM strays") == []
    await check_all(world.dsn, world.root)


async def test_fence_of_a_sweep_is_not_a_stray(world: World, caller: Caller, eager: Strays) -> None:
    """A file whose row is fenced is the sweep's: it has a row."""
    await world.put(caller, "/a", b"old")
    await world.delete(caller, "/a")
    await world.observer.execute("UPDATE blobs SET referable = false, fenced_at = now()")
    assert await run(eager) == Done()
    assert len(world.blobs()) == 1 and in_quarantine(world) == set()
    assert await world.housekeeping.sweep(grace_seconds=0) == 1
    await check_all(world.dsn, world.root)


async def test_what_is_no_blob_is_left_alone(world: World, eager: Strays) -> None:
    key = BlobKey(new_uuid())
    names = ["x", str(key).upper(), f"{key}.tmp"]
    wrong_folder = f"{(int(key.hex[-2:], 16) + 1) % 256:02x}"
    paths = [world.root / "blobs" / key.hex[-2:] / name for name in names]
    paths.append(world.root / "blobs" / wrong_folder / str(key))
    for path in paths:
        path.write_bytes(b"?")
    walk = await eager.walk()
    assert sorted(walk.foreign) == sorted(str(path.relative_to(world.root)) for path in paths)
    assert walk.strays == {} and await run(eager) == Done()
    for path in paths:
        path.unlink()


# --- a late upload ---


async def late_upload(world: World, failpoints: Failpoints, sweep: Callable[[], Awaitable[object]]) -> None:
    """Its bytes are taken for garbage between their placement and the commit: it is refused, or they are there."""
    caller = await world.new_caller()
    await world.put(caller, "/a", b"before")
    failpoints.reset()
    async with failpoints.paused("store.place after", outcome_of(world.put(caller, "/a", b"late"))) as upload:
        await sweep()
        await sweep()
    outcome = await upload
    assert isinstance(outcome, Stored | Unavailable)
    now = await take_snapshot(world.dsn, world.root)
    nothing_removed_before_its_fence(now)
    assert await world.get(caller, "/a") == (b"late" if isinstance(outcome, Stored) else b"before")


async def test_late_upload_is_refused_once_its_bytes_were_fenced(
        world: World, failpoints: Failpoints, sweeper: Strays, eager: Strays) -> None:
    sweeper._grace_seconds = 0.0
    await late_upload(world, failpoints, lambda: run(sweeper))
    assert len(in_quarantine(world)) == 1
    await run(eager)
    await check_all(world.dsn, world.root)


async def test_late_upload_goes_on_while_its_bytes_are_only_suspected(
        world: World, failpoints: Failpoints, sweeper: Strays) -> None:
    await late_upload(world, failpoints, lambda: run(sweeper))
    assert in_quarantine(world) == set()
    await check_all(world.dsn, world.root)


async def test_upload_that_is_committing_wins_against_the_fence(
        world: World, caller: Caller, failpoints: Failpoints, eager: Strays) -> None:
    """Both insert the same key; the fence waits for the other transaction, and then has nothing to do."""
    failpoints.reset()
    await world.put(caller, "/probe", b"probe")
    last: Point = [point for point in failpoints.passed() if point[0].endswith(" after")][-1]
    failpoints.reset()
    async with failpoints.paused(last, world.put(caller, "/a", b"in time")) as upload:
        sweeping = asyncio.ensure_future(run(eager))
        while not await world.observer.fetchval(WAITS_FOR_A_ROW):
            assert not sweeping.done()
    await upload
    assert await sweeping == Done()
    assert await world.get(caller, "/a") == b"in time"
    await check_all(world.dsn, world.root)


async def test_uploads_among_sweepers_without_any_grace_are_stored_or_refused(
        world: World, eager: Strays) -> None:
    """Strays and garbage are removed the moment they are seen: whatever was acknowledged is there, whole."""
    is_over = asyncio.Event()
    known: dict[tuple[Caller, str], bytes] = {}

    async def write(number: int) -> int:
        own, refused = await world.new_caller(), 0
        for count in range(25):
            path, data = f"/{count % 4}", bytes([number, count])
            outcome = await outcome_of(world.put(own, path, data))
            assert isinstance(outcome, Stored | Unavailable), outcome
            if isinstance(outcome, Stored):
                known[own, path] = data
            refused += isinstance(outcome, Unavailable)
        return refused

    async def sweep() -> None:
        while not is_over.is_set():
            await run(eager)
            await world.housekeeping.sweep(grace_seconds=0)

    sweeping = asyncio.ensure_future(sweep())
    await asyncio.gather(*(write(number) for number in range(8)))
    is_over.set()
    await sweeping
    for (own, path), data in known.items():
        assert await world.get(own, path) == data
    await run(eager)
    await run(eager)
    await check_all(world.dsn, world.root)


@pytest.mark.mutant("M6", "files without a row are removed by their age alone")
async def test_m6_removal_by_age_alone_is_caught(world: World, failpoints: Failpoints, sweeper: Strays) -> None:
    async def remove_old() -> None:
        for key in (await sweeper.walk()).strays:  # of any age: it is time that a mutant trusts
            world.store.path(key).unlink()

    with pytest.raises(AssertionError, match="was removed without a fence"):
        await late_upload(world, failpoints, remove_old)


@pytest.mark.mutant("M5", "files without a row are set aside without a fence")
async def test_m5_setting_aside_without_a_fence_is_caught(
        world: World, failpoints: Failpoints, sweeper: Strays, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fence_nothing(conn: Connection, key: BlobKey, size_bytes: int) -> bool:
        return True

    sweeper._grace_seconds = 0.0
    monkeypatch.setattr(strays, "insert_fence", fence_nothing)
    with pytest.raises(AssertionError, match="was removed without a fence"):
        await late_upload(world, failpoints, lambda: run(sweeper))


@pytest.mark.mutant("M5", "the sweep forgets the fence of a file that is set aside")
async def test_m5_fence_that_is_forgotten_too_early_is_caught(
        world: World, failpoints: Failpoints, sweeper: Strays) -> None:
    async def sweep() -> None:
        await run(sweeper)
        await world.observer.execute("DELETE FROM blobs WHERE NOT referable")

    sweeper._grace_seconds = 0.0
    with pytest.raises(AssertionError, match="was removed without a fence"):
        await late_upload(world, failpoints, sweep)


# --- back into its place ---

async def test_bytes_whose_row_is_there_after_all_go_back(
        world: World, caller: Caller, inspector: LocalInspector, sweeper: Strays) -> None:
    """As when a newer database is restored than the one that set them aside."""
    key = (await world.put(caller, "/a", b"mine")).file.blob_key
    assert await inspector.set_aside(key)
    assert await run(sweeper) == Done(put_back=[key])
    assert await world.get(caller, "/a") == b"mine"
    await check_all(world.dsn, world.root)


async def test_wrong_bytes_do_not_go_back(
        world: World, caller: Caller, inspector: LocalInspector, sweeper: Strays) -> None:
    key = (await world.put(caller, "/a", b"mine")).file.blob_key
    await inspector.set_aside(key)
    aside = world.root / "quarantine" / str(key)
    aside.write_bytes(b"mind")
    assert await run(sweeper) == Done()
    aside.write_bytes(b"mine")
    async with world.database.connection() as conn:
        await damage.insert_damage(conn, key, "missing")
    assert await run(sweeper) == Done(put_back=[key])
    assert await world.observer.fetch("SELECT FROM damaged_blobs") == []


async def test_file_in_quarantine_that_nobody_knows_of_stays_for_all_its_days(world: World, sweeper: Strays) -> None:
    """As beside a database that is older than the quarantine."""
    key = litter(world)
    await run(sweeper)
    await age(world, "first_seen_at", 48)
    await run(sweeper)
    await world.observer.execute("DELETE FROM strays; DELETE FROM blobs")
    assert await run(sweeper) == Done()
    await age(world, "quarantined_at", 7 * 24 - 0.1)
    assert await run(sweeper) == Done()
    assert in_quarantine(world) == {key}
    await age(world, "quarantined_at", 0.2)
    assert await run(sweeper) == Done(removed=[key])
    await check_all(world.dsn, world.root)


# --- kill-switches ---

async def test_too_many_strays_mean_that_nothing_is_touched(
        world: World, caller: Caller, eager: Strays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.domain.strays.MIN_LIMIT", 2)
    keep = (await world.put(caller, "/a", b"keep")).file.blob_key
    keys = {litter(world) for _ in range(3)}
    with pytest.raises(TooManyStrays, match="3 files seem to have no row, beside 1 blobs"):
        await run(eager)
    assert world.blobs() == {keep, *keys} and in_quarantine(world) == set()
    assert await world.observer.fetch("SELECT FROM blobs WHERE NOT referable") == []
    world.store.path(keys.pop()).unlink()
    assert len((await run(eager)).set_aside) == 2


async def test_a_thousandth_of_many_blobs_is_not_too_many(
        world: World, eager: Strays, monkeypatch: pytest.MonkeyPatch) -> None:
    async def count_blobs(conn: Connection) -> tuple[int, int]:
        return 3999, 0

    monkeypatch.setattr("service.domain.strays.MIN_LIMIT", 2)
    monkeypatch.setattr(damage, "count_blobs", count_blobs)
    for _ in range(4):
        litter(world)
    with pytest.raises(TooManyStrays):
        await run(eager)
    monkeypatch.setattr("service.domain.strays.MIN_LIMIT", 4)
    assert len((await run(eager)).set_aside) == 4


async def test_folder_that_cannot_be_read_ends_the_round_before_anything_is_touched(
        world: World, eager: Strays) -> None:
    key = litter(world)
    folder = world.root / "blobs" / "7f"
    folder.rename(world.root / "blobs.7f")
    with pytest.raises(FileNotFoundError):
        await run(eager)
    folder.write_bytes(b"not a folder")
    with pytest.raises(NotADirectoryError):
        await run(eager)
    folder.unlink()
    (world.root / "blobs.7f").rename(folder)
    assert key in world.blobs() and await world.observer.fetch("SELECT FROM strays") == []


async def test_question_that_fails_ends_the_round_before_anything_is_touched(
        world: World, eager: Strays, failpoints: Failpoints) -> None:
    key = litter(world)
    for point in ("strays.list_unknown before", "strays.insert_sightings before", "strays.list_ripe before",
                  "strays.list_strays after"):
        failpoints.reset()
        failpoints.arm(point, raise_surprise)
        with pytest.raises(ZeroDivisionError):
            await run(eager)
        assert failpoints.was_hit, point
        assert world.blobs() == {key}
        assert await world.observer.fetch("SELECT FROM blobs") == []


# --- faults ---

async def test_fault_at_any_step_is_made_good_by_the_next_round(
        world: World, caller: Caller, eager: Strays, inspector: LocalInspector, failpoints: Failpoints,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "shelves", lambda: iter([0x7f]))  # all others take their time and have nothing
    keep = (await world.put(caller, "/a", b"keep")).file.blob_key
    litter(world, shelf="7f")
    failpoints.reset()
    assert len((await run(eager)).removed) == 1
    points = failpoints.passed()
    assert len(points) > 20
    for point, action in zip(points, itertools.cycle([raise_os_error, failpoints.end_backend, raise_surprise])):
        litter(world, shelf="7f")
        failpoints.reset()
        failpoints.arm(point, action)
        with contextlib.suppress(Unavailable, ZeroDivisionError, OSError):
            await run(eager)
        assert failpoints.was_hit, point
        nothing_removed_before_its_fence(await take_snapshot(world.dsn, world.root))
        await run(eager)
        assert (world.blobs(), in_quarantine(world)) == ({keep}, set()), point
    await check_all(world.dsn, world.root)


async def test_move_that_did_not_happen_is_made_up_for(
        world: World, sweeper: Strays, inspector: LocalInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fence is committed, then the disk says no: the file is fenced, in its old place, and moves the next time."""
    key = litter(world)
    sweeper._grace_seconds = 0.0

    async def fail(key: BlobKey) -> bool:
        raise OSError("injected")

    monkeypatch.setattr(inspector, "set_aside", fail)
    assert await run(sweeper) == Done()
    assert await world.housekeeping.sweep(grace_seconds=0) == 0
    assert world.blobs() == {key}
    monkeypatch.undo()
    await run(sweeper)
    assert world.blobs() == set() and in_quarantine(world) == {key}


async def test_file_that_cannot_be_read_does_not_keep_the_others(
        world: World, caller: Caller, eager: Strays, inspector: LocalInspector,
        monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/a", "/b"):
        await inspector.set_aside((await world.put(caller, path, path.encode())).file.blob_key)
    stray = litter(world)
    bad = sorted(in_quarantine(world))[0]
    read = inspector.hash

    async def fail(key: BlobKey, pace: Pace, *, aside: bool = False) -> bytes | None:
        if key == bad:
            raise OSError("injected")
        return await read(key, pace, aside=aside)

    monkeypatch.setattr(inspector, "hash", fail)
    done = await run(eager)
    assert (len(done.put_back), done.removed) == (1, [stray]) and in_quarantine(world) == {bad}
    monkeypatch.undo()
    assert (await run(eager)).put_back == [bad]
    await check_all(world.dsn, world.root)


async def test_other_file_of_the_same_key_in_quarantine_is_never_replaced(
        world: World, sweeper: Strays) -> None:
    key = litter(world, b"one")
    sweeper._grace_seconds = 0.0
    await run(sweeper)
    world.store.path(key).write_bytes(b"two")
    await run(sweeper)
    assert world.store.path(key).read_bytes() == b"two"
    assert (world.root / "quarantine" / str(key)).read_bytes() == b"one"
