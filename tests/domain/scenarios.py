"""What is done to a world, and what must hold: the real service passes each of these, a mutant of it must not."""

import asyncio
import hashlib
from collections.abc import Awaitable
from pathlib import Path

import asyncpg

from service.domain.content import Stored
from service.errors import OutcomeUnknown, QuotaExceeded
from service.model import Caller, File, VersionId, new_uuid
from service.names import split_path
from tests.domain.commit_proxy import Moment, open_proxy
from tests.domain.failpoints import Action, Failpoints, Point, raise_refusal
from tests.invariants import check_all
from tests.world import Change, World, open_world

OLD, NEW = b"what was there", b"what comes instead"


async def outcome_of(work: Awaitable[Stored]) -> Stored | Exception:
    """What a client gets to know."""
    try:
        return await work
    except Exception as error:
        return error


async def run_fault(world: World, failpoints: Failpoints, path: str, point: Point, action: Action) -> None:
    """One upload with one fault: the client is told an error and nothing changed, or success and it is there."""
    caller = await world.new_caller()
    await world.put(caller, "/existing", OLD)
    await world.content.drain()  # for the mutant that answers too early
    before = await world.listing(caller)
    failpoints.reset()
    failpoints.arm(point, action)
    outcome = await outcome_of(world.put(caller, path, NEW))
    await world.content.drain()
    assert failpoints.was_hit, point
    now = await world.listing(caller)
    if isinstance(outcome, Exception):
        assert now == before, f"an error was reported, but something changed: {point}"
    else:
        assert now.get(path) == hashlib.sha256(NEW).hexdigest(), f"what was acknowledged is not there: {point}"
        assert await world.get(caller, path) == NEW
    assert world.staged() == [], point


async def fault_at_every_step_of_an_upload(world: World, failpoints: Failpoints, action: Action) -> int:
    """For a new file and for an overwrite, at each step from the placement on; how many faults there were."""
    strays = faults = 0
    for path in ("/new/folder/file", "/existing"):
        caller = await world.new_caller()
        await world.put(caller, "/existing", OLD)
        await world.content.drain()
        failpoints.reset()
        await world.put(caller, path, NEW)
        await world.content.drain()
        for point in failpoints.passed():
            if point[0].startswith("store.") and action == failpoints.end_backend:
                continue
            await run_fault(world, failpoints, path, point, action)
            faults += 1
            # only a refusal, or an error before the placement, is known to have had no effect
            is_known = action is raise_refusal and not point[0].startswith("store.")
            strays += not (is_known or point[0] == "store.place before")
    failpoints.reset()
    await check_all(world.dsn, world.root, strays=strays)
    return faults


async def connection_lost_around_the_commit(dsn: str, root: Path, moment: Moment,
                                            change: Change = lambda world: None) -> None:
    """PostgreSQL is asked what happened; if it did not, it is done again: stored once, as if nothing had been."""
    async with open_proxy(dsn) as (proxy, address), open_world(address, root, direct_dsn=dsn, versions_keep=9) as world:
        change(world)
        caller = await world.new_caller()
        await world.put(caller, "/existing", OLD)
        for path, number in (("/new/file", 1), ("/existing", 2)):
            await world.content.drain()
            proxy.arm(moment)
            outcome = await outcome_of(world.put(caller, path, NEW))
            await asyncio.wait_for(world.content.drain(), 30)
            assert isinstance(outcome, Stored), f"the outcome could be known, but was {outcome!r}"
            file = await world.files.info(caller, split_path(path))
            assert file == outcome.file and outcome.file.version == number, "it was not stored exactly once"
            assert await world.get(caller, path) == NEW
        assert proxy.lost == 2
        await check_all(dsn, root)


async def database_lost_around_the_commit(dsn: str, root: Path, moment: Moment,
                                          change: Change = lambda world: None) -> None:
    """Nobody can say what happened: so does the service, and keeps the bytes; trying again makes it good."""
    async with open_proxy(dsn) as (proxy, address), open_world(address, root, direct_dsn=dsn) as world:
        change(world)
        caller = await world.new_caller()
        proxy.arm(moment, then_shuts=True)
        outcome = await outcome_of(world.put(caller, "/new/file", NEW))
        await asyncio.wait_for(world.content.drain(), 30)
        proxy.open()
        is_there = (await world.listing(caller)).get("/new/file") == hashlib.sha256(NEW).hexdigest()
        assert not isinstance(outcome, Stored) or is_there, "what was acknowledged is not there"
        assert is_there == (moment == "after")
        assert isinstance(outcome, OutcomeUnknown) and outcome.retry_after_seconds
        assert not is_there or await world.get(caller, "/new/file") == NEW
        await world.put(caller, "/new/file", NEW)
        assert await world.get(caller, "/new/file") == NEW
        assert proxy.lost == 1
        await check_all(dsn, root, strays=int(not is_there))


FITTING, UPLOADS, FILE_BYTES = 10, 50, 7
TOGETHER = 5  # so many come to the decision at the same time


async def uploads_at_the_edge_of_the_quota(world: World, failpoints: Failpoints) -> None:
    """Of many uploads at once exactly as many succeed as fit."""
    caller = await world.new_caller(quota_bytes=FITTING * FILE_BYTES + FILE_BYTES - 1)
    failpoints.reset()
    together = asyncio.Barrier(TOGETHER)

    async def meet(conn: object) -> None:
        await together.wait()

    for number in range(UPLOADS):
        failpoints.arm(("users.update_usage before", number), meet)
    uploads = [outcome_of(world.put(caller, f"/{number}", b"x" * FILE_BYTES)) for number in range(UPLOADS)]
    outcomes = await asyncio.gather(*uploads)
    stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    assert len(stored) == FITTING, f"{len(stored)} uploads were taken where {FITTING} fit"
    assert all(isinstance(outcome, Stored | QuotaExceeded) for outcome in outcomes)
    await check_all(world.dsn, world.root)


async def refer_again(world: World, caller: Caller, file: File, blob: File) -> bool:
    """Make the blob of a version that is gone a former version of a file, as a copy would; whether that could be."""
    try:
        async with world.observer.acquire() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type, replaced_at) "
                "VALUES ($1, $2, 0 + (SELECT min(number) - 1 FROM versions WHERE file_id = $2), $3, $4, 'x/y', now())",
                VersionId(new_uuid()), file.id, blob.blob_key, blob.size_bytes)
            await connection.execute("UPDATE users SET versions_bytes = versions_bytes + $2 WHERE id = $1",
                                     caller.user_id, blob.size_bytes)
    except asyncpg.ForeignKeyViolationError as error:
        assert error.constraint_name == "versions_blob_id_fkey"
        return False
    return True


async def reference_added_while_sweeping(world: World, failpoints: Failpoints) -> None:
    """Somebody refers to a blob again just when its bytes are about to be removed: one of the two is refused."""
    caller = await world.new_caller()
    old = (await world.put(caller, "/a", OLD)).file
    new = (await world.put(caller, "/a", NEW)).file
    failpoints.reset()
    outcome = []

    async def refer(conn: object) -> None:
        outcome.append(await refer_again(world, caller, new, old))

    failpoints.arm("store.delete before", refer)
    await world.housekeeping.sweep(grace_seconds=0)
    assert failpoints.was_hit and len(outcome) == 1
    assert await world.get(caller, "/a") == NEW
    await check_all(world.dsn, world.root)
    assert world.store.violations == [], "bytes were removed without a fence"
    found = await world.content.deliver(caller, split_path("/a"))
    assert found.key == new.blob_key
