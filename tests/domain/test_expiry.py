"""What goes by its age: each item by itself, and only what has had its time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from service import metrics
from service.db import blobs, files
from service.db.pool import Connection
from service.db.turns import Turns
from service.domain.attempts import Incomplete
from service.domain.housekeeping import Ages, Housekeeping
from service.domain.trash import Trash
from service.domain.upkeep import Pacing, Upkeep
from service.errors import Unavailable
from service.model import BlobKey, Caller
from service.names import split_path
from service.storage.inspection import LocalInspector
from tests.domain.failpoints import Failpoints, raise_refusal, raise_surprise
from tests.domain.retries import as_request
from tests.domain.test_strays import age, litter
from tests.invariants import check_all
from tests.world import World

# the two parts that go item by item, and a step that the first item does not get past
PARTS = {"trash": "trash.lock_trashed before", "versions": "versions.delete_old before"}


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account that keeps former versions."""
    world.keep_versions(9)
    return await world.new_caller()


@pytest.fixture
def inspector(world: World) -> Iterator[LocalInspector]:
    """Those who look after the world's files."""
    opened = LocalInspector(world.root)
    yield opened
    opened.close()


@pytest.fixture
def housekeeping(world: World) -> Housekeeping:
    """As the service has it: a month, and for the trail three."""
    return Housekeeping(world.database, world.store, Ages(trash_days=30, versions_days=30, audit_days=90))


@pytest.fixture
def upkeep(world: World, inspector: LocalInspector, housekeeping: Housekeeping) -> Upkeep:
    """One worker's."""
    return Upkeep(world.database, inspector, Turns(world.dsn), housekeeping, quarantine_days=7,
                  pacing=Pacing(round_seconds=86400.0))


async def in_trash(world: World) -> list[str]:
    """Names of what is in anybody's trash."""
    return [row["name"] for row in await world.observer.fetch(
        "SELECT name FROM files WHERE deleted_at IS NOT NULL ORDER BY name")]


async def trash_old(world: World, caller: Caller, path: str) -> None:
    """Something that was put into the trash 31 days ago, each a little later than the one before."""
    await world.put(caller, path, path.encode())
    await world.files.delete(caller, split_path(path))
    await world.observer.execute(
        "UPDATE files SET deleted_at = deleted_at - interval '31 days' WHERE name = $1", path[1:])


async def old_versions(world: World) -> int:
    """How many versions should have gone."""
    return int(await world.observer.fetchval(
        "SELECT count(*) FROM versions WHERE replaced_at < now() - interval '30 days'"))


async def two_of_each(world: World, caller: Caller) -> BlobKey:
    """Two items in the trash and two files with a former version that are due, and garbage; the key of that."""
    garbage = (await world.put(caller, "/garbage", b"garbage")).file.blob_key
    await world.delete(caller, "/garbage")
    await world.observer.execute("UPDATE blobs SET unref_since = unref_since - interval '2 hours'")
    for number in (1, 2):
        await trash_old(world, caller, f"/trash-{number}")
        for data in (b"old", b"new"):
            await world.put(caller, f"/file-{number}", data)
    await world.observer.execute("UPDATE versions SET replaced_at = replaced_at - interval '31 days'")
    return garbage


# --- each item by itself ---

@pytest.mark.parametrize("action", [raise_refusal, raise_surprise])
@pytest.mark.parametrize("part", PARTS)
async def test_item_that_cannot_go_does_not_keep_the_others(
        world: World, caller: Caller, upkeep: Upkeep, failpoints: Failpoints, part: str,
        action: Callable[[Any], Awaitable[None]]) -> None:
    garbage = await two_of_each(world, caller)
    swept, failed = metrics.SWEPT.labels(part)._value.get(), metrics.SWEEPS.labels("failed")._value.get()
    failpoints.reset()
    failpoints.arm(PARTS[part], action)
    with capture_logs() as logs:
        assert not await upkeep.round()
    assert failpoints.was_hit
    assert (len(await in_trash(world)), await old_versions(world)) == ((1, 0) if part == "trash" else (0, 1))
    assert garbage not in world.blobs()
    assert metrics.SWEPT.labels(part)._value.get() == swept + 1
    assert metrics.SWEEPS.labels("failed")._value.get() == failed + 1
    [line] = [line for line in logs if line["event"] == "housekeeping.failed"]
    assert (line["log_level"], line["part"], line["user"]) == ("error", part, str(caller.user_id))
    assert await upkeep.round()
    assert (await in_trash(world), await old_versions(world)) == ([], 0)
    await check_all(world.dsn, world.root)


async def test_sum_that_has_drifted_keeps_only_its_own_item(
        world: World, caller: Caller, housekeeping: Housekeeping) -> None:
    """The oldest item, in each round anew."""
    other = await world.new_caller()
    await trash_old(world, caller, "/drifted")
    await world.observer.execute("UPDATE users SET trash_bytes = 0 WHERE id = $1", caller.user_id)
    await trash_old(world, other, "/later")
    for _ in range(2):
        with pytest.raises(Incomplete, match="1 failed"):
            await housekeeping.run()
        assert await in_trash(world) == ["drifted"]


@pytest.mark.parametrize("part", PARTS)
async def test_more_that_cannot_go_than_are_looked_up_at_once(
        world: World, caller: Caller, housekeeping: Housekeeping, failpoints: Failpoints, part: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"service.domain.{part}.BATCH", 1)
    garbage = await two_of_each(world, caller)
    failpoints.reset()
    failpoints.arm(PARTS[part], raise_refusal)
    failpoints.arm((PARTS[part], 1), raise_surprise)
    with pytest.raises(Incomplete, match="2 failed"):
        await housekeeping.run()
    assert failpoints.count(PARTS[part]) == 2 and garbage not in world.blobs()


async def test_busy_account_is_waited_for_once_in_a_round(
        world: World, caller: Caller, upkeep: Upkeep, failpoints: Failpoints) -> None:
    """Or its items, of which there may be thousands, would keep the others, and the sweep, for hours."""
    async def wait_shortly(conn: Connection) -> None:
        await conn.execute("SET LOCAL lock_timeout = '50ms'")

    garbage = await two_of_each(world, caller)
    await trash_old(world, await world.new_caller(), "/of-another")
    async with world.observer.acquire() as busy, busy.transaction():
        await files.lock_tree(busy, caller.user_id)
        failpoints.reset()
        failpoints.arm("files.lock_tree before", wait_shortly)
        with capture_logs() as logs:
            assert await upkeep.round()
    assert failpoints.was_hit
    assert (failpoints.count("files.lock_tree before"), failpoints.count("files.lock_tree_shared before")) == (2, 0)
    assert (await in_trash(world), await old_versions(world)) == (["trash-1", "trash-2"], 2)
    assert garbage not in world.blobs()
    [line] = [line for line in logs if line["event"] == "housekeeping.put_off"]
    assert (line["part"], line["user"]) == ("trash", str(caller.user_id))
    assert await upkeep.round()
    assert (await in_trash(world), await old_versions(world)) == ([], 0)


@pytest.mark.parametrize("point", ["trash.list_expired_trash before", "versions.list_files_with_old before",
                                   "audit.delete_old_audit before", "requests.delete_old_requests before"])
async def test_part_that_fails_does_not_keep_the_others(
        world: World, caller: Caller, housekeeping: Housekeeping, failpoints: Failpoints, point: str) -> None:
    garbage = await two_of_each(world, caller)
    failpoints.reset()
    failpoints.arm(point, raise_refusal)
    with pytest.raises(Incomplete):
        await housekeeping.run()
    assert failpoints.was_hit and garbage not in world.blobs()
    assert (await in_trash(world) == []) == (point[:5] != "trash")
    assert (await old_versions(world) == 0) == (point[:8] != "versions")


async def test_round_ends_when_the_database_is_gone(
        world: World, caller: Caller, housekeeping: Housekeeping, failpoints: Failpoints) -> None:
    async def lose(conn: object) -> None:
        world.database._pool.terminate()

    garbage = await two_of_each(world, caller)
    failpoints.reset()
    failpoints.arm(PARTS["trash"], lose)
    with capture_logs() as logs, pytest.raises(Unavailable):
        await housekeeping.run()
    assert "housekeeping.failed" not in [line["event"] for line in logs]  # it is one fault, not one of each item
    assert len(await in_trash(world)) == 2 and garbage in world.blobs()
    assert failpoints.count("versions.list_files_with_old before") == 0


SLOW_BLOBS = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.6); RETURN NEW; END';
CREATE TRIGGER slow BEFORE UPDATE ON blobs FOR EACH ROW EXECUTE FUNCTION slow()
"""


async def test_blobs_of_a_very_large_folder_have_the_time_that_its_deletion_has(world: World, caller: Caller) -> None:
    """Longer than other statements, of which the longest time is a small one here."""
    key = (await world.put(caller, "/a", b"a")).file.blob_key
    connection = await asyncpg.connect(world.dsn, command_timeout=0.3)
    async with world.observer.acquire() as other:
        locked, slow = other.transaction(), connection.transaction()
        await locked.start()
        await other.execute("SELECT FROM blobs WHERE id = $1 FOR UPDATE", key)

        async def let_go() -> None:
            await other.execute("SELECT pg_sleep(0.6)")
            await locked.rollback()

        await asyncio.gather(blobs.lock_blobs(connection, [key]), let_go())
    await slow.start()
    await connection.execute(SLOW_BLOBS, timeout=60)
    await connection.execute("DELETE FROM versions", timeout=60)
    await blobs.release_blobs(connection, [key])
    assert await connection.fetchval("SELECT unref_since IS NOT NULL FROM blobs", timeout=60)
    await slow.rollback()
    await connection.close()


# --- what has come back meanwhile ---

async def out_and_in_again(world: World, caller: Caller) -> None:
    """The owner brings the one item of the trash back, and deletes it again."""
    trash = Trash(world.database)
    [item] = await trash.list(caller, after=None, limit=9)
    await trash.restore(caller, item.id)
    await world.files.delete(caller, item.id)


@pytest.mark.parametrize("way", ["expiry", "empty"])
async def test_item_that_was_restored_and_trashed_again_meanwhile_stays(
        world: World, caller: Caller, housekeeping: Housekeeping, failpoints: Failpoints, way: str) -> None:
    async def act(conn: object) -> None:
        await out_and_in_again(world, caller)

    await trash_old(world, caller, "/a")
    failpoints.reset()
    if way == "expiry":
        failpoints.arm("trash.list_expired_trash after", act)
        await housekeeping.run()
    else:
        failpoints.arm("trash.list_trash after", act)
        await Trash(world.database).empty(caller)
    assert failpoints.was_hit and await in_trash(world) == ["a"]
    await check_all(world.dsn, world.root)
    await Trash(world.database).empty(caller)
    assert await in_trash(world) == []


async def test_item_that_is_named_goes_whenever_it_was_deleted(world: World, caller: Caller) -> None:
    await world.put(caller, "/a", b"a")
    await world.files.delete(caller, ("a",))
    [item] = await Trash(world.database).list(caller, after=None, limit=9)
    await out_and_in_again(world, caller)
    await Trash(world.database).purge(caller, item.id)
    assert await in_trash(world) == []


# --- clocks ---

OLD = {
    "audit": "SELECT count(*) FROM audit WHERE at < now() - interval '90 days'",
    "requests": "SELECT count(*) FROM requests WHERE created_at < now() - interval '2 days'",
    "sessions": "SELECT count(*) FROM sessions WHERE expires_at < now() - interval '2 days'",
    "links": "SELECT count(*) FROM links WHERE expires_at < now() - interval '31 days'",
}
SESSION = """
INSERT INTO sessions (id, user_id, refresh_sha256, expires_at)
VALUES (gen_random_uuid(), $1, sha256('token'), now() - interval '3 days')
"""
LINK = """
INSERT INTO links (id, user_id, file_id, is_folder, kind, token_sha256, created_at, expires_at)
SELECT gen_random_uuid(), $1, $2, false, 'download', sha256('token'), at - interval '9 days', at
FROM (SELECT now() - interval '40 days' AS at) AS expiry
"""


async def make_all_old(world: World, caller: Caller) -> None:
    """A line of a trail, a request with a key, a session, a link, each of which is due."""
    await world.observer.execute("UPDATE audit SET at = at - interval '91 days'")
    await as_request("a key", lambda: world.put(caller, "/keyed", b"keyed"), "/keyed")
    await world.observer.execute("UPDATE requests SET created_at = created_at - interval '3 days'")
    await world.observer.execute(SESSION, caller.user_id)
    await world.observer.execute(LINK, caller.user_id, (await world.files.info(caller, ("keyed",))).id)


async def left(world: World) -> tuple[int, ...]:
    """How much there is that goes by its age: trash, versions, files in quarantine, and what is in `OLD`."""
    return (len(await in_trash(world)), await old_versions(world), len(list((world.root / "quarantine").glob("*"))),
            *[await world.observer.fetchval(query) for query in OLD.values()])


@pytest.mark.parametrize("hours", [25, -25, 9000])
async def test_nothing_goes_by_its_age_while_the_clocks_disagree(
        world: World, caller: Caller, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """One of them is wrong, and it may be PostgreSQL's, by which the ages are.  All else goes on."""
    upkeep._strays._settle_seconds = 0.0
    garbage = await two_of_each(world, caller)
    await make_all_old(world, caller)
    key = litter(world)
    for column in ("first_seen_at", "quarantined_at"):
        assert await upkeep.look()
        await age(world, column, 9 * 24)
        await world.observer.execute("DELETE FROM checks")
    before = await left(world)
    assert min(before) > 0 and world.store.path(key).exists() is False
    with monkeypatch.context() as moved:
        moved.setattr("service.domain.clocks.own_time", lambda: datetime.now(UTC) + timedelta(hours=hours))
        for _ in range(2):
            with capture_logs() as logs:
                assert await upkeep.round() and await upkeep.look()
            assert await left(world) == before and garbage not in world.blobs()
            assert metrics.HELD.labels("clocks")._value.get() == 1
            held = [line for line in logs if line["event"] == "removals.held" and line["log_level"] == "error"]
            assert len(held) == 2 and all("clocks disagree" in line["reason"] for line in held)
            await world.observer.execute("DELETE FROM checks")
    assert await upkeep.round() and await upkeep.look()
    assert not any(await left(world)) and metrics.HELD.labels("clocks")._value.get() == 0


async def test_clocks_that_differ_by_hours_hold_nothing(
        world: World, caller: Caller, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time zone that was set wrong: it is less than the least age."""
    monkeypatch.setattr("service.domain.clocks.own_time", lambda: datetime.now(UTC) - timedelta(hours=14))
    await two_of_each(world, caller)
    assert await upkeep.round()
    assert (await in_trash(world), await old_versions(world)) == ([], 0)


async def test_clock_that_nobody_can_read_holds_what_goes_by_its_age(
        world: World, caller: Caller, upkeep: Upkeep, failpoints: Failpoints) -> None:
    garbage = await two_of_each(world, caller)
    failpoints.reset()
    failpoints.arm("instance.get_time before", raise_surprise)
    assert not await upkeep.round()
    assert failpoints.was_hit and len(await in_trash(world)) == 2 and garbage not in world.blobs()
