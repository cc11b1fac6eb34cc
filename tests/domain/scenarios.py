"""What is done to a world, and what must hold: the real service passes each of these, a mutant of it must not."""

import asyncio
import hashlib
from collections.abc import Awaitable
from pathlib import Path

import asyncpg

from service.domain.content import Content, Stored
from service.domain.places import Target
from service.errors import OutcomeUnknown, QuotaExceeded
from service.model import Caller, Conditions, File, VersionId, new_uuid
from service.names import split_path
from tests.domain.commit_proxy import Moment, open_proxy
from tests.domain.failpoints import Action, Failpoints, Point, raise_surprise
from tests.invariants import check_all
from tests.world import Change, World, open_world

OLD, NEW = b"what was there", b"what comes instead"


async def outcome_of(work: Awaitable[Stored]) -> Stored | Exception:
    """What a client gets to know."""
    try:
        return await work
    except Exception as error:
        return error


async def run_fault(world: World, failpoints: Failpoints, path: str, point: Point, action: Action) -> bool:
    """One upload with one fault: the client is told an error and nothing changed, or success and it is there.

    Whether it was an error.
    """
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
    return isinstance(outcome, Exception)


async def fault_at_every_step_of_an_upload(world: World, failpoints: Failpoints, action: Action) -> int:
    """At each step from the placement on, for a new file with and without new folders, and for an overwrite.

    How many faults there were.
    """
    strays = faults = 0
    for path in ("/new/folder/file", "/new", "/existing"):
        caller = await world.new_caller()
        await world.put(caller, "/existing", OLD)
        await world.content.drain()
        failpoints.reset()
        await world.put(caller, path, NEW)
        await world.content.drain()
        for point in failpoints.passed():
            if point[0].startswith("store.") and action == failpoints.end_backend:
                continue
            was_told = await run_fault(world, failpoints, path, point, action)
            faults += 1
            # what is refused or lost before its COMMIT was sent, or before the placement, has certainly had no effect
            is_known = action is not raise_surprise and not point[0].startswith("store.")
            strays += was_told and not (is_known or point[0] == "store.place before")
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
        for path, number in (("/new/file", 1), ("/new/in a group", 1), ("/existing", 2)):
            await world.content.drain()
            proxy.arm(moment)
            outcome = await outcome_of(world.put(caller, path, NEW))
            await asyncio.wait_for(world.content.drain(), 30)
            assert isinstance(outcome, Stored), f"the outcome could be known, but was {outcome!r}"
            file = await world.files.info(caller, split_path(path))
            assert file == outcome.file and outcome.file.version == number, "it was not stored exactly once"
            assert await world.get(caller, path) == NEW
        assert proxy.lost == 3
        await check_all(dsn, root)


async def database_lost_around_the_commit(dsn: str, root: Path, moment: Moment,
                                          change: Change = lambda world: None, *, path: str = "/new/file") -> None:
    """Nobody can say what happened: so does the service, and keeps the bytes; trying again makes it good."""
    async with open_proxy(dsn) as (proxy, address), open_world(address, root, direct_dsn=dsn) as world:
        change(world)
        caller = await world.new_caller()
        proxy.arm(moment, then_shuts=True)
        outcome = await outcome_of(world.put(caller, path, NEW))
        await asyncio.wait_for(world.content.drain(), 30)
        proxy.open()
        is_there = (await world.listing(caller)).get(path) == hashlib.sha256(NEW).hexdigest()
        assert not isinstance(outcome, Stored) or is_there, "what was acknowledged is not there"
        assert is_there == (moment == "after")
        assert isinstance(outcome, OutcomeUnknown) and outcome.retry_after_seconds
        assert not is_there or await world.get(caller, path) == NEW
        await world.put(caller, path, NEW)
        assert await world.get(caller, path) == NEW
        assert proxy.lost == 1
        await check_all(dsn, root, strays=int(not is_there))


FITTING, UPLOADS, FILE_BYTES = 12, 50, 7
TOGETHER = 5  # so many come to the decision at the same time: an account has a third of the world's 15 connections


async def uploads_at_the_edge_of_the_quota(world: World, failpoints: Failpoints) -> None:
    """Of many uploads at once exactly as many succeed as fit."""
    caller = await world.new_caller(quota_bytes=FITTING * FILE_BYTES + FILE_BYTES - 1)
    failpoints.reset()
    together = asyncio.Barrier(TOGETHER)

    async def meet(conn: object) -> None:
        await together.wait()

    for number in range(UPLOADS):
        failpoints.arm(("users.update_usage before", number), meet)
    by_itself = Conditions(if_none_match=("*",))  # not in a group
    uploads = [outcome_of(world.put(caller, f"/{number}", b"x" * FILE_BYTES, conditions=by_itself))
               for number in range(UPLOADS)]
    outcomes = await asyncio.gather(*uploads)
    stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    assert len(stored) == FITTING, f"{len(stored)} uploads were taken where {FITTING} fit"
    assert all(isinstance(outcome, Stored | QuotaExceeded) for outcome in outcomes)
    await check_all(world.dsn, world.root)


async def groups_at_the_edge_of_the_quota(world: World, failpoints: Failpoints) -> None:
    """Two workers each commit a group of uploads, and there is room for one of the two."""
    for count in (1, 3):
        caller = await world.new_caller(quota_bytes=count * FILE_BYTES)
        failpoints.reset()
        together = asyncio.Barrier(2)

        async def meet(conn: object) -> None:
            await together.wait()

        for number in range(2):
            failpoints.arm(("users.update_usages before", number), meet)
        workers = [world.content, Content(world.database, world.store, world.limits)]
        target = [[Target(place=(f"{worker}-{number}",)) for number in range(count)] for worker in range(2)]
        staged = [[world.stage(b"x" * FILE_BYTES) for _ in range(count)] for _ in workers]
        outcomes = await asyncio.gather(*(
            outcome_of(workers[worker].store(caller, target[worker][number], staged[worker][number],
                                             content_type="x/y"))
            for number in range(count) for worker in range(2)))
        stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
        assert len(stored) == count, f"{len(stored)} uploads were taken where {count} fit"
        assert all(isinstance(outcome, Stored | QuotaExceeded) for outcome in outcomes)
        assert failpoints.was_hit
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
