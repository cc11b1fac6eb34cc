"""Many at once on the same names: every outcome is one that some order explains, and all invariants hold after it."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import pytest

from service.domain.content import Stored
from service.errors import Conflict, IsAFolder, NotAFolder, NotFound, PreconditionFailed, ServiceError
from service.model import Caller, Conditions, Folder
from service.names import split_path
from tests.domain.failpoints import Failpoints
from tests.domain.scenarios import outcome_of, refer_again
from tests.invariants import check_all, no_dangling_reference, take_snapshot, versions_belong_together
from tests.world import World

WAITS_FOR_THE_TREE = """
SELECT true FROM pg_locks JOIN pg_database ON pg_database.oid = database
WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted
"""
NAMES = ("/same", "/folder/same", "/folder/other")


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account."""
    return await world.new_caller()


async def together(*work: Awaitable[Any]) -> list[Any]:
    """All at once; what each came to."""
    return await asyncio.gather(*work, return_exceptions=True)


def kinds(outcomes: list[Any]) -> Counter[type[Any]]:
    """How often each kind of outcome occurred."""
    return Counter(type(outcome) for outcome in outcomes)


# --- one name ---

async def test_twenty_overwrites_of_one_file_are_twenty_versions_in_a_row(world: World, caller: Caller) -> None:
    outcomes = await together(*(world.put(caller, "/a", b"%d" % n) for n in range(20)))
    assert kinds(outcomes) == {Stored: 20}
    assert sorted(outcome.file.version for outcome in outcomes) == list(range(1, 21))
    assert sum(outcome.is_new for outcome in outcomes) == 1
    assert len({outcome.file.id for outcome in outcomes}) == 1
    last = next(outcome.file for outcome in outcomes if outcome.file.version == 20)
    assert await world.files.info(caller, ("a",)) == last
    times = [outcome.file.updated_at for outcome in sorted(outcomes, key=lambda outcome: outcome.file.version)]
    assert times == sorted(times)
    await check_all(world.dsn, world.root)
    assert world.blobs() == {last.blob_key}


async def test_of_twenty_that_want_to_be_first_one_is(world: World, caller: Caller) -> None:
    new_only = Conditions(if_none_match=("*",))
    outcomes = await together(*(world.put(caller, "/a", b"%d" % n, conditions=new_only) for n in range(20)))
    assert kinds(outcomes) == {Stored: 1, PreconditionFailed: 19}
    [winner] = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    assert winner.is_new and winner.file.version == 1
    await check_all(world.dsn, world.root)


async def test_of_twenty_that_change_what_they_saw_one_does(world: World, caller: Caller) -> None:
    seen = Conditions(if_match=((await world.put(caller, "/a", b"seen")).file.etag,))
    outcomes = await together(*(world.put(caller, "/a", b"%d" % n, conditions=seen) for n in range(20)))
    assert kinds(outcomes) == {Stored: 1, PreconditionFailed: 19}
    assert (await world.files.info(caller, ("a",))) == next(
        outcome.file for outcome in outcomes if isinstance(outcome, Stored))
    await check_all(world.dsn, world.root)


async def test_of_ten_deletions_of_one_file_one_succeeds(world: World, caller: Caller) -> None:
    for path in ("/a", "/folder"):
        await world.put(caller, path if path == "/a" else "/folder/file", b"12345")
        outcomes = await together(*(world.delete(caller, path) for _ in range(10)))
        assert kinds(outcomes) == {type(None): 1, NotFound: 9}
        assert (await world.usage(caller)).files_bytes == 0
    await check_all(world.dsn, world.root)


# --- folders ---

async def test_folders_made_by_many_uploads_at_once_are_made_once(world: World, caller: Caller) -> None:
    outcomes = await together(*(world.put(caller, f"/a/b/c/{n % 3}/d/{n}", b"x") for n in range(24)))
    assert kinds(outcomes) == {Stored: 24}
    now = await take_snapshot(world.dsn, world.root)
    folders = Counter(row["name"] for row in now.files.values() if row["is_folder"] and row["parent_id"])
    assert folders == {"a": 1, "b": 1, "c": 1, "0": 1, "1": 1, "2": 1, "d": 3}
    await check_all(world.dsn, world.root)


async def test_name_that_is_wanted_as_file_and_as_folder_becomes_one_of_them(world: World) -> None:
    for _ in range(5):
        caller = await world.new_caller()
        outcomes = await together(*(world.put(caller, "/x" if n % 2 else f"/x/{n}", b"x") for n in range(10)))
        found = await world.files.info(caller, ("x",))
        refusal = IsAFolder if isinstance(found, Folder) else NotAFolder
        assert kinds(outcomes) == {Stored: 5, refusal: 5}
    await check_all(world.dsn, world.root)


async def test_folder_deleted_under_uploads_takes_all_or_is_made_again(world: World, caller: Caller) -> None:
    for turn in range(5):
        await world.put(caller, "/folder/below/first", b"first")
        outcomes = await together(
            *(world.put(caller, f"/folder/below/{turn}-{n}", b"%d" % n) for n in range(6)),
            world.delete(caller, "/folder"),
            *(world.put(caller, f"/folder/other/{turn}-{n}", b"%d" % n) for n in range(6)))
        assert set(kinds(outcomes)) <= {Stored, type(None), NotFound}
        assert outcomes[6] is None
        # whatever was acknowledged after the deletion is there, whatever before it is not: nothing in between
        there = await world.listing(caller)
        assert "/folder/below/first" not in there
        stored = {outcome.file.path: outcome.file for outcome in outcomes if isinstance(outcome, Stored)}
        assert set(there) <= set(stored)
        await check_all(world.dsn, world.root)
        if there:
            await world.delete(caller, "/folder")


async def test_upload_waits_for_the_deletion_of_a_folder_above_it(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    """A lock of the parent alone would not see that the folder above it goes away."""
    await world.put(caller, "/a/b/c/file", b"old")
    failpoints.reset()
    async with failpoints.paused("files.delete_tree after", world.delete(caller, "/a")) as deletion:
        upload = asyncio.create_task(world.put(caller, "/a/b/c/new", b"new"))
        async with world.database.connection() as conn:
            while not await conn.fetchval(WAITS_FOR_THE_TREE):
                pass
        assert not upload.done()
    await deletion
    assert (await upload).file.path == "/a/b/c/new"
    assert list(await world.listing(caller)) == ["/a/b/c/new"]
    await check_all(world.dsn, world.root)


# --- everything at once ---

async def test_storm_of_writers_readers_and_deleters_is_never_torn(world: World, caller: Caller) -> None:
    """Readers see one version, whole, or nothing; the sweeper removes what no reader can still be sent to."""
    written: set[str] = set()
    writers_left = 8

    async def write(number: int) -> None:
        nonlocal writers_left
        for turn in range(12):
            data = bytes([number + 1]) * (1000 + number * 7 + turn)
            written.add(hashlib.sha256(data).hexdigest())
            outcome = await outcome_of(world.put(caller, NAMES[turn % len(NAMES)], data))
            assert isinstance(outcome, Stored), outcome
        writers_left -= 1

    async def read(path: str) -> int:
        seen = 0
        while writers_left:
            try:
                delivery = await world.content.deliver(caller, split_path(path))
                data = await asyncio.to_thread(world.store.path(delivery.key).read_bytes)
            except NotFound:
                continue
            except FileNotFoundError:
                # with no grace at all a reader may come too late, but only for what is no longer the current version
                assert await is_replaced(world, caller, path, delivery.etag)
                continue
            assert hashlib.sha256(data).digest() == delivery.sha256 and len(data) == delivery.size_bytes
            assert delivery.sha256.hex() in written
            seen += 1
        return seen

    async def delete() -> None:
        while writers_left:
            for path in ("/same", "/folder"):
                with contextlib.suppress(NotFound, Conflict):  # a folder came to be there meanwhile: try again
                    await world.delete(caller, path)

    async def sweep() -> None:
        while writers_left:
            await world.housekeeping.sweep(grace_seconds=0)

    outcomes = await asyncio.gather(*map(write, range(8)), *map(read, NAMES), delete(), sweep(), sweep())
    assert sum(outcome or 0 for outcome in outcomes) > 0, "nobody read anything"
    assert set((await world.listing(caller)).values()) <= written
    await check_all(world.dsn, world.root)


async def is_replaced(world: World, caller: Caller, path: str, etag: str) -> bool:
    """Whether that version is no longer the current one of the file."""
    try:
        return (await world.content.deliver(caller, split_path(path))).etag != etag
    except NotFound:
        return True


async def test_uploads_against_a_sweeper_without_grace_lose_nothing(world: World, caller: Caller) -> None:
    is_done = False

    async def sweep() -> int:
        removed = 0
        while not is_done:
            removed += await world.housekeeping.sweep(grace_seconds=0)
        return removed

    sweeping = [asyncio.create_task(sweep()) for _ in range(2)]
    for turn in range(15):
        outcomes = await together(*(world.put(caller, f"/{n}", b"%d-%d" % (turn, n)) for n in range(4)))
        assert kinds(outcomes) == {Stored: 4}
        now = await take_snapshot(world.dsn, world.root)
        versions_belong_together(now)
        for number in range(4):
            assert await world.get(caller, f"/{number}") == b"%d-%d" % (turn, number)
    is_done = True
    assert sum(await asyncio.gather(*sweeping)) > 0, "nothing was swept meanwhile"
    await check_all(world.dsn, world.root)


async def test_new_reference_and_sweep_never_both_succeed(world: World, caller: Caller) -> None:
    """A reference and the sweep, many times; the scenarios have it once, step by step."""
    for turn in range(30):
        old = (await world.put(caller, f"/{turn}", b"old")).file
        new = (await world.put(caller, f"/{turn}", b"new")).file
        await asyncio.gather(refer_again(world, caller, new, old), world.housekeeping.sweep(grace_seconds=0))
        no_dangling_reference(await take_snapshot(world.dsn, world.root))
    await check_all(world.dsn, world.root)


async def test_two_accounts_on_the_same_paths_never_meet(world: World) -> None:
    callers = [await world.new_caller() for _ in range(4)]
    outcomes = await together(*(world.put(caller, NAMES[n % 3], b"%d" % number)
                                for number, caller in enumerate(callers) for n in range(9)))
    assert kinds(outcomes) == {Stored: 36}
    for number, caller in enumerate(callers):
        assert {await world.get(caller, path) for path in NAMES} == {b"%d" % number}
    await check_all(world.dsn, world.root)


async def test_refusals_under_load_leave_nothing(world: World) -> None:
    caller = await world.new_caller(quota_bytes=50)
    outcomes = await together(*(world.put(caller, f"/{n % 7}", b"x" * (n % 40)) for n in range(60)))
    assert set(kinds(outcomes)) <= {Stored, *ServiceError.__subclasses__()}
    await check_all(world.dsn, world.root)
