"""Sweeping: what nothing refers to leaves the disk after its grace, behind the fence, and nothing else ever does."""

import asyncio
from uuid import UUID

import asyncpg
import pytest
from structlog.testing import capture_logs

from service.domain import housekeeping
from service.errors import Unavailable
from service.model import BlobKey, Caller
from tests.domain.failpoints import Failpoints
from tests.domain.scenarios import refer_again
from tests.invariants import check_all
from tests.world import World


WAITS_FOR_A_ROW = """
SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account."""
    return await world.new_caller()


async def litter(world: World, caller: Caller, count: int = 1) -> list[BlobKey]:
    """Blobs that nothing refers to any more."""
    keys = []
    for _ in range(count):
        keys.append((await world.put(caller, "/litter", b"litter")).file.blob_key)
        await world.delete(caller, "/litter")
    return keys


async def rows(world: World, query: str, *values: object) -> list[asyncpg.Record]:
    """What the database says."""
    connection = await asyncpg.connect(world.dsn)
    found = await connection.fetch(query, *values)
    await connection.close()
    return list(found)


async def test_sweep_of_a_healthy_world_removes_nothing(world: World, caller: Caller) -> None:
    keep = (await world.put(caller, "/a", b"keep")).file.blob_key
    assert await world.housekeeping.sweep(grace_seconds=0) == 0
    assert world.blobs() == {keep}


async def test_replaced_and_deleted_bytes_go_and_current_ones_stay(world: World, caller: Caller) -> None:
    await world.put(caller, "/a", b"old")
    keep = (await world.put(caller, "/a", b"new")).file.blob_key
    await litter(world, caller, 3)
    assert await world.housekeeping.sweep(grace_seconds=0) == 4
    assert world.blobs() == {keep}
    assert await world.housekeeping.sweep(grace_seconds=0) == 0
    await check_all(world.dsn, world.root)


async def test_bytes_stay_for_the_time_of_grace(world: World, caller: Caller) -> None:
    """A download that was decided before the deletion has to find them still."""
    [key] = await litter(world, caller)
    assert await world.housekeeping.sweep() == 0
    assert world.blobs() == {key}
    await rows(world, "UPDATE blobs SET unref_since = now() - make_interval(secs => $1)", 3599.0)
    assert await world.housekeeping.sweep() == 0
    await rows(world, "UPDATE blobs SET unref_since = now() - make_interval(secs => $1)", 3601.0)
    assert await world.housekeeping.sweep() == 1
    assert world.blobs() == set()


async def test_more_than_a_batch_goes_in_one_sweep(world: World, caller: Caller,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 3)
    await litter(world, caller, 10)
    assert await world.housekeeping.sweep(grace_seconds=0) == 10
    await check_all(world.dsn, world.root)


async def test_two_sweeps_at_once_do_no_harm(world: World, caller: Caller) -> None:
    keep = (await world.put(caller, "/keep", b"keep")).file.blob_key
    await litter(world, caller, 20)
    await asyncio.gather(*(world.housekeeping.sweep(grace_seconds=0) for _ in range(4)))
    assert world.blobs() == {keep}
    await check_all(world.dsn, world.root)


async def test_bytes_that_are_gone_already_are_no_reason_to_stop(world: World, caller: Caller) -> None:
    [key, _] = await litter(world, caller, 2)
    world.store.path(key).unlink()
    assert await world.housekeeping.sweep(grace_seconds=0) == 2
    await check_all(world.dsn, world.root)


async def test_blob_is_fenced_and_committed_when_its_bytes_go(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    [key] = await litter(world, caller)
    seen = []

    async def look(conn: object) -> None:
        seen.extend(await rows(world, "SELECT referable, fenced_at FROM blobs WHERE id = $1", key))
        assert world.store.path(key).exists()

    failpoints.reset()
    failpoints.arm("store.delete before", look)
    await world.housekeeping.sweep(grace_seconds=0)
    [row] = seen
    assert row["referable"] is False and row["fenced_at"] is not None
    assert await rows(world, "SELECT FROM blobs WHERE id = $1", key) == []


async def test_each_removal_is_logged_before_it_happens(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    keys = await litter(world, caller, 2)
    moments = []

    async def look(conn: object) -> None:
        moments.append((logs[-1:], world.blobs()))

    failpoints.reset()
    for number in range(2):
        failpoints.arm(("store.delete before", number), look)
    with capture_logs() as logs:
        assert await world.housekeeping.sweep(grace_seconds=0) == 2
    for [line], there in moments:
        key = UUID(line["blob"])
        assert line == {"event": "blob.removed", "log_level": "info", "blob": str(key), "size": len(b"litter"),
                        "reason": "unreferenced", "count": 2}
        assert key in there
        keys.remove(BlobKey(key))
    assert keys == [] and world.blobs() == set()


async def test_blob_that_is_referred_to_again_stays(world: World, caller: Caller) -> None:
    """As by a copy, between the deletion and the sweep."""
    old = (await world.put(caller, "/a", b"old")).file
    new = (await world.put(caller, "/a", b"new")).file
    assert await refer_again(world, caller, new, old)
    assert await world.housekeeping.sweep(grace_seconds=0) == 0
    assert world.blobs() == {old.blob_key, new.blob_key}
    await check_all(world.dsn, world.root)


async def test_blob_that_is_being_referred_to_is_left_for_the_next_sweep(world: World, caller: Caller) -> None:
    """A reference that is not committed yet must neither be broken nor be waited for without end."""
    old = (await world.put(caller, "/a", b"old")).file
    new = (await world.put(caller, "/a", b"new")).file
    connection = await asyncpg.connect(world.dsn)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT FROM blobs WHERE id = $1 FOR KEY SHARE", old.blob_key)  # as a foreign key does
    assert await world.housekeeping.sweep(grace_seconds=0) == 0
    assert world.blobs() == {old.blob_key, new.blob_key}
    await transaction.rollback()
    await connection.close()
    assert await world.housekeeping.sweep(grace_seconds=0) == 1
    await check_all(world.dsn, world.root)


async def test_reference_that_comes_while_the_fence_goes_up_is_refused(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    old = (await world.put(caller, "/a", b"old")).file
    new = (await world.put(caller, "/a", b"new")).file
    failpoints.reset()
    sweep = world.housekeeping.sweep(grace_seconds=0)
    async with failpoints.paused("blobs.lock_unreferenced after", sweep) as sweeping:
        referring = asyncio.create_task(refer_again(world, caller, new, old))
        while not await world.observer.fetchval(WAITS_FOR_A_ROW):
            pass
    assert await sweeping == 1 and not await referring
    await check_all(world.dsn, world.root)


async def test_reference_that_came_just_before_the_fence_is_seen(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    """Between its transaction's begin and its lock: no error of a foreign key, only one blob less to fence."""
    old = (await world.put(caller, "/a", b"old")).file
    new = (await world.put(caller, "/a", b"new")).file
    failpoints.reset()
    sweep = world.housekeeping.sweep(grace_seconds=0)
    async with failpoints.paused("blobs.lock_unreferenced before", sweep) as sweeping:
        assert await refer_again(world, caller, new, old)
    assert await sweeping == 0
    await check_all(world.dsn, world.root)


async def test_file_without_a_row_is_never_removed_on_suspicion(world: World, caller: Caller) -> None:
    """It may be an upload between its placement and its commit."""
    staged = world.stage(b"on its way")
    await world.store.place(staged)
    await world.housekeeping.sweep(grace_seconds=0)
    assert world.blobs() == {staged.key}


async def test_upload_between_placement_and_commit_survives_every_sweep(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    steps = {"store.place after": "/a", "uploads.put_files after": "/a", "users.update_usages after": "/a",
             "blobs.insert_blob after": "/new/a", "users.update_usage after": "/newer/a"}
    for step, path in steps.items():
        failpoints.reset()
        async with failpoints.paused(step, world.put(caller, path, step.encode())) as upload:
            for _ in range(3):
                await world.housekeeping.sweep(grace_seconds=0)
        await upload
        assert await world.get(caller, path) == step.encode()
        await check_all(world.dsn, world.root)


@pytest.mark.parametrize("step", ["uploads.put_files before", "blobs.insert_blob before"])
async def test_upload_that_was_taken_for_garbage_is_refused_and_leaves_nothing(
        world: World, caller: Caller, failpoints: Failpoints, step: str) -> None:
    """A fence row under its key, however it came there: the insertion of the blob must lose."""
    before = await world.listing(caller)

    async def fence(conn: object) -> None:
        [key] = world.blobs()
        await rows(world, "INSERT INTO blobs (id, size_bytes, referable, fenced_at) VALUES ($1, 0, false, now())", key)

    failpoints.reset()
    failpoints.arm(step, fence)
    with pytest.raises(Unavailable):
        await world.put(caller, "/a" if "uploads" in step else "/new/a", b"late")
    assert await world.listing(caller) == before
    await check_all(world.dsn, world.root)


async def test_sessions_are_forgotten_a_day_after_they_expired(world: World, caller: Caller) -> None:
    for hours in (-1, 1, 25):
        await rows(world, "INSERT INTO sessions (id, user_id, refresh_sha256, expires_at) VALUES "
                          "(gen_random_uuid(), $1, sha256('x'), now() - make_interval(hours => $2))",
                   caller.user_id, hours)
    await world.housekeeping.run()
    assert len(await rows(world, "SELECT FROM sessions")) == 2
