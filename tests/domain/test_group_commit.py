"""Uploads that share a transaction: each comes to what it would have come to by itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import orjson
import pytest

from service.db import files, uploads
from service.db.pool import Connection
from service.domain.content import Stored
from service.domain.moves import Change, Moves
from service.domain.places import Target
from service.domain.versions import Versions
from service.errors import IsAFolder, NotAFolder, NotFound, QuotaExceeded
from service.model import Caller, Conditions, SessionId, UserId, new_uuid
from service.names import split_path
from tests.domain.failpoints import Failpoints, raise_os_error
from tests.domain.scenarios import outcome_of
from tests.invariants import check_all
from tests.world import World

Outcome = Stored | Exception


async def in_one_group(world: World, failpoints: Failpoints, puts: Sequence[Awaitable[Stored]],
                       caller: Caller) -> list[Outcome]:
    """What becomes of uploads that all wait while the first of all is being committed."""
    failpoints.reset()
    async with failpoints.paused("uploads.lock_accounts after", world.put(caller, "/leads", b"leads")) as first:
        tasks = [asyncio.create_task(outcome_of(put)) for put in puts]
        while failpoints.count("store.place after") < 1 + len(tasks):
            await asyncio.sleep(0)
        for _ in range(10):  # from the placement to the queue
            await asyncio.sleep(0)
    await first
    outcomes = await asyncio.gather(*tasks)
    assert failpoints.count("uploads.lock_accounts before") == 2, "they were not one group"
    return outcomes


async def test_group_of_several_accounts_is_stored_whole(world: World, failpoints: Failpoints) -> None:
    callers = [await world.new_caller() for _ in range(3)]
    for caller in callers:
        await world.put(caller, "/folder/below/old", b"old")
    puts = [(caller, path) for caller in callers for path in ("/a", "/b", "/folder/a", "/folder/below/a")]
    outcomes = await in_one_group(
        world, failpoints,
        [world.put(caller, path, f"{number}".encode()) for number, (caller, path) in enumerate(puts)], callers[0])
    for number, ((caller, path), outcome) in enumerate(zip(puts, outcomes, strict=True)):
        assert isinstance(outcome, Stored) and outcome.is_new
        assert (outcome.file.path, outcome.file.version) == (path, 1)
        assert outcome.file == await world.files.info(caller, tuple(path[1:].split("/")))
        assert await world.get(caller, path) == f"{number}".encode()
    assert failpoints.count("files.claim_file before") == 0, "something had a transaction of its own"
    lines = await world.observer.fetch(
        "SELECT path, file_id, details FROM audit WHERE user_id = $1 AND action = 'upload' ORDER BY path",
        callers[1].user_id)
    assert [row["path"] for row in lines] == ["/a", "/b", "/folder/a", "/folder/below/a", "/folder/below/old"]
    by_path = {outcome.file.path: outcome.file for outcome in outcomes[4:8] if isinstance(outcome, Stored)}
    assert all(row["file_id"] == by_path[row["path"]].id for row in lines if row["path"] in by_path)
    await check_all(world.dsn, world.root)


async def test_what_cannot_be_stored_fails_by_itself(world: World, failpoints: Failpoints) -> None:
    caller, poor = await world.new_caller(), await world.new_caller(quota_bytes=3)
    nobody = Caller(user_id=UserId(new_uuid()), session_id=SessionId(new_uuid()))
    await world.put(caller, "/taken", b"old")
    await world.put(caller, "/folder/file", b"old")
    puts = {
        "new": world.put(caller, "/new", b"new"), "taken": world.put(caller, "/taken", b"new"),
        "folder missing": world.put(caller, "/x/y/z", b"new"), "is a folder": world.put(caller, "/folder", b"new"),
        "below a file": world.put(caller, "/taken/below", b"new"), "no room": world.put(poor, "/a", b"four"),
        "no account": world.put(nobody, "/a", b"new"),
        "into a folder": world.put(caller, "/folder/", b"1", own_name="n"),
        "twice": world.put(caller, "/new", b"newer"), "last": world.put(caller, "/last", b"last")}
    outcomes = dict(zip(puts, await in_one_group(world, failpoints, list(puts.values()), caller), strict=True))
    refused = {"is a folder": IsAFolder, "below a file": NotAFolder, "no room": QuotaExceeded, "no account": NotFound}
    for name, outcome in outcomes.items():
        assert type(outcome) is refused.get(name, Stored), (name, outcome)
    listed = await world.listing(caller)
    assert set(listed) == {"/leads", "/new", "/taken", "/x/y/z", "/folder/file", "/folder/n", "/last"}
    assert await world.get(caller, "/taken") == b"new"
    assert await world.get(caller, "/new") in (b"new", b"newer")
    assert (await world.usage(caller)).count == 7 and (await world.usage(poor)).count == 0
    await check_all(world.dsn, world.root)


async def test_account_whose_tree_is_taken_keeps_nobody_else_waiting(world: World, failpoints: Failpoints) -> None:
    caller, busy = await world.new_caller(), await world.new_caller()
    async with world.database.connection() as conn, conn.transaction():
        await files.lock_tree(conn, busy.user_id)
        waiting = asyncio.create_task(world.put(busy, "/waits", b"waits"))
        stored = await asyncio.wait_for(world.put(caller, "/goes on", b"x"), 30)
        assert stored.is_new and not waiting.done()
    assert (await waiting).is_new
    await check_all(world.dsn, world.root)


async def test_group_that_fails_is_done_again_one_by_one(
        world: World, failpoints: Failpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the database has against one of them, it has against the statement for all."""
    caller = await world.new_caller()

    async def refuse(conn: Connection, wanted: Sequence[uploads.Upload]) -> Any:
        raise asyncpg.CheckViolationError("injected")

    monkeypatch.setattr(uploads, "put_files", refuse)
    outcomes = await asyncio.gather(*(world.put(caller, f"/{number}", b"x") for number in range(5)))
    assert all(outcome.is_new for outcome in outcomes)
    assert len(await world.listing(caller)) == 5
    await check_all(world.dsn, world.root)


async def test_quota_that_is_used_up_meanwhile_takes_nothing_from_the_group(
        world: World, failpoints: Failpoints) -> None:
    """There was room at the first look; at the charge there is none, and nobody has lost anything."""
    caller, other = await world.new_caller(quota_bytes=10), await world.new_caller()
    failpoints.reset()

    async def use_up(conn: object) -> None:
        await world.observer.execute("UPDATE users SET quota_bytes = 4 WHERE id = $1", caller.user_id)

    failpoints.arm("users.update_usages before", use_up)
    outcomes = await asyncio.gather(outcome_of(world.put(caller, "/a", b"12345")), outcome_of(world.put(other, "/b")))
    assert failpoints.was_hit
    assert isinstance(outcomes[0], QuotaExceeded) and isinstance(outcomes[1], Stored)
    await check_all(world.dsn, world.root)


async def test_lost_connection_is_unavailable_for_the_group_and_the_next_one_is_stored(
        world: World, failpoints: Failpoints) -> None:
    caller = await world.new_caller()
    failpoints.reset()
    failpoints.arm("uploads.put_files after", failpoints.end_backend)
    outcome = await outcome_of(world.put(caller, "/a", b"x"))
    assert failpoints.was_hit and isinstance(outcome, Exception)
    assert await world.listing(caller) == {}
    failpoints.arm(("uploads.put_files before", 1), raise_os_error)
    assert (await world.put(caller, "/a", b"x")).is_new  # by itself
    assert (await world.put(caller, "/b", b"x")).is_new
    await check_all(world.dsn, world.root)


async def test_waiter_that_is_cancelled_keeps_nobody_from_storing(world: World, failpoints: Failpoints) -> None:
    caller = await world.new_caller()
    await world.put(caller, "/old", b"old")
    failpoints.reset()
    async with failpoints.paused("uploads.lock_accounts after", world.put(caller, "/leads", b"leads")) as first:
        for task in world.content._commits:
            task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(20):
        await world.put(caller, "/next", b"next")
    assert await world.get(caller, "/next") == b"next"
    await check_all(world.dsn, world.root)


# --- what replaces a file ---

async def test_overwrites_of_a_group_keep_as_much_history_as_any_other(
        world: World, failpoints: Failpoints) -> None:
    world.keep_versions(2)
    caller, other = await world.new_caller(), await world.new_caller()
    places = [(caller, "/a"), (caller, "/folder/b"), (other, "/a")]
    for owner, path in places:
        await world.put(owner, path, b"1")
    for number in range(2, 6):
        puts = [world.put(owner, path, b"x" * number) for owner, path in places]
        outcomes = await in_one_group(world, failpoints, [*puts, world.put(other, f"/new {number}", b"new")], caller)
        assert failpoints.count("files.claim_file before") == 0, "something had a transaction of its own"
        for (owner, path), outcome in zip(places, outcomes, strict=False):
            assert isinstance(outcome, Stored) and not outcome.is_new
            assert (outcome.file.path, outcome.file.version) == (path, number)
            assert outcome.file == await world.files.info(owner, split_path(path))
            assert await world.get(owner, path) == b"x" * number
        await world.delete(caller, "/leads")
    for owner, path in places:
        numbers = [version.number for version in await Versions(world.database, keep=2).list(owner, split_path(path))]
        assert numbers == [5, 4, 3]
        lines = await world.observer.fetch(
            "SELECT details FROM audit WHERE user_id = $1 AND path = $2 AND action = 'upload' ORDER BY id",
            owner.user_id, path)
        assert [orjson.loads(row["details"])["version"] for row in lines] == [1, 2, 3, 4, 5]
    usage = await world.usage(caller)
    assert (usage.files_bytes, usage.versions_bytes, usage.count) == (10, 14, 2)
    await check_all(world.dsn, world.root)


async def test_overwrites_without_history_let_go_of_what_was_there(world: World, failpoints: Failpoints) -> None:
    caller = await world.new_caller(quota_bytes=100)
    old = [(await world.put(caller, path, b"old")).file.blob_key for path in ("/a", "/b")]
    puts = [world.put(caller, path, b"newer") for path in ("/a", "/b")]
    outcomes = await in_one_group(world, failpoints, puts, caller)
    assert [type(outcome) for outcome in outcomes] == [Stored, Stored]
    usage = await world.usage(caller)
    assert (usage.files_bytes, usage.versions_bytes, usage.count) == (15, 0, 3)
    released = await world.observer.fetch("SELECT id FROM blobs WHERE unref_since IS NOT NULL ORDER BY id")
    assert [row["id"] for row in released] == sorted(old)
    await check_all(world.dsn, world.root)


async def test_history_gives_way_to_an_overwrite_that_has_no_room_beside_it(
        world: World, failpoints: Failpoints) -> None:
    world.keep_versions(5)
    caller = await world.new_caller(quota_bytes=10)
    await world.put(caller, "/a", b"1234")
    assert (await world.put(caller, "/a", b"123456")).file.version == 2  # it just fits
    assert (await world.put(caller, "/a", b"12345678")).file.version == 3
    assert (await world.usage(caller)).versions_bytes == 0
    assert isinstance(await outcome_of(world.put(caller, "/a", b"12345678901")), QuotaExceeded)
    assert await world.get(caller, "/a") == b"12345678"
    await check_all(world.dsn, world.root)


async def test_file_that_somebody_changes_keeps_nobody_else_waiting(world: World, failpoints: Failpoints) -> None:
    caller = await world.new_caller()
    stored = [await world.put(caller, path, b"old") for path in ("/busy", "/free")]
    async with world.database.connection() as conn, conn.transaction():
        assert await files.lock_file(conn, stored[0].file.id) is not None
        waiting = asyncio.create_task(world.put(caller, "/busy", b"waits"))
        overwritten = await asyncio.wait_for(world.put(caller, "/free", b"new"), 30)
        assert overwritten.file.version == 2 and not waiting.done()
    assert (await waiting).file.version == 2
    assert await world.get(caller, "/busy") == b"waits"
    await check_all(world.dsn, world.root)


@pytest.mark.parametrize("change", ["overwritten", "moved", "trashed", "deleted", "made"])
async def test_what_changes_while_a_group_begins_is_seen(
        world: World, failpoints: Failpoints, change: str) -> None:
    """Between the locks of the accounts and the statement that writes, another worker has its say."""
    world.keep_versions(5)
    caller = await world.new_caller()
    if change != "made":
        await world.put(caller, "/a", b"old")
    changes: dict[str, Callable[[], Awaitable[object]]] = {
        "overwritten": lambda: _alone(world, caller, "/a", b"between"),
        "made": lambda: _alone(world, caller, "/a", b"between"),
        "moved": lambda: Moves(world.database).move(
            caller, Change(source=("a",), target=Target(place=("b",)))),
        "trashed": lambda: world.files.delete(caller, ("a",)),
        "deleted": lambda: world.delete(caller, "/a")}

    async def meanwhile(conn: object) -> None:
        await changes[change]()

    failpoints.reset()
    failpoints.arm("uploads.put_files before", meanwhile)
    stored = await world.put(caller, "/a", b"new")
    assert failpoints.was_hit
    assert stored.file.version == {"overwritten": 3, "made": 2}.get(change, 1)
    assert stored.is_new == (stored.file.version == 1)
    assert await world.get(caller, "/a") == b"new"
    assert set(await world.listing(caller)) == ({"/a", "/b"} if change == "moved" else {"/a"})
    await check_all(world.dsn, world.root)


async def _alone(world: World, caller: Caller, path: str, data: bytes) -> Stored:
    """An upload that no group takes."""
    return await world.put(caller, path, data, conditions=Conditions(if_none_match=('"other"',)))
