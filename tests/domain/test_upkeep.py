"""One worker at a time does everything that is due; a database that is older than its data root removes nothing."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from service import metrics
from service.db import damage, instance
from service.db.turns import Turns
from service.domain.check import Check
from service.domain.leftovers import Leftovers
from service.domain.pairing import Pairing
from service.domain.scrub import Scrub, Throttle, unpaced
from service.domain.upkeep import Pacing, Upkeep
from service.errors import Unavailable
from service.model import Caller
from service.run.postgres import EmbeddedPostgres, find_programs
from service.storage.inspection import LocalInspector
from tests.domain.failpoints import Failpoints, raise_surprise
from tests.domain.test_strays import age, in_quarantine, litter
from tests.world import World, open_world

NEVER = 86400.0


@pytest.fixture
def inspector(world: World) -> Iterator[LocalInspector]:
    """Those who look after the world's files."""
    opened = LocalInspector(world.root)
    yield opened
    opened.close()


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account."""
    return await world.new_caller()


def make(world: World, inspector: LocalInspector) -> Upkeep:
    """One worker's; uploads need no time to settle here."""
    upkeep = Upkeep(world.database, inspector, Turns(world.dsn), world.housekeeping, quarantine_days=7,
                    pacing=Pacing(round_seconds=NEVER, scrub_rate=2**40))
    upkeep._strays._settle_seconds = 0.0
    return upkeep


async def do_all(upkeep: Upkeep) -> bool:
    """A round of everything; whether nothing went wrong."""
    return all([await upkeep.round(), await upkeep.look()])


async def days_later(world: World) -> None:
    """Everything that has its time has had it."""
    await age(world, "first_seen_at", 48)
    await age(world, "quarantined_at", 240)
    await world.observer.execute("DELETE FROM checks")
    await world.observer.execute("UPDATE blobs SET unref_since = unref_since - interval '2 days'")


def value(gauge: metrics.Gauge, label: str) -> float:
    """What a gauge shows."""
    return float(gauge.labels(label)._value.get())


# --- whose turn it is ---

BACKEND = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'file-storage upkeep' AND datname = current_database()
"""


async def holder(world: World) -> int:
    """The server's process behind whoever has the turn; waits until somebody has."""
    while (pid := await world.observer.fetchval(
            "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
            "AND application_name = 'file-storage upkeep' AND datname = current_database()")) is None:
        await asyncio.sleep(0.01)
    return int(pid)


async def test_one_has_the_turn_and_another_takes_it_when_that_one_is_gone(
        world: World, inspector: LocalInspector) -> None:
    first, second = make(world, inspector), make(world, inspector)
    leading = asyncio.ensure_future(first.take_turn())
    pid = await holder(world)
    await asyncio.wait_for(second.take_turn(), 30)  # returns: it is the other's turn
    assert not leading.done()
    assert await world.observer.fetchval("SELECT pg_terminate_backend($1, 10000)", pid)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(leading, 30)
    following = asyncio.ensure_future(second.take_turn())
    assert await holder(world) != pid
    await asyncio.wait_for(first.take_turn(), 30)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    while await world.observer.fetch(BACKEND):  # nothing is left of it
        await asyncio.sleep(0.01)


async def test_who_has_the_turn_works_at_once(world: World, caller: Caller, inspector: LocalInspector) -> None:
    await world.put(caller, "/a", b"some bytes")
    leading = asyncio.ensure_future(make(world, inspector).take_turn())
    while (await world.observer.fetchval("SELECT count(*) FROM checks") < 4
           or await world.observer.fetchval("SELECT verified_at FROM blobs") is None):
        assert not leading.done()
        await asyncio.sleep(0.01)
    leading.cancel()
    await asyncio.wait([leading])


async def test_damage_that_the_first_look_of_a_turn_finds_is_set_aside_at_once(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    """Nor would the next look come soon: what was read back has a week, the sizes have a day."""
    path = world.store.path((await world.put(caller, "/a", b"some bytes")).file.blob_key)
    assert await do_all(make(world, inspector))  # nothing else is due
    path.write_bytes(b"fame bytes")
    leading = asyncio.ensure_future(make(world, inspector).take_turn())
    while await world.observer.fetchval("SELECT verified_at FROM blobs") is None:
        assert not leading.done()
        await asyncio.sleep(0.01)
    assert await noted(world) == [(UUID(path.name), "digest")] and not path.exists()
    leading.cancel()
    await asyncio.wait([leading])


async def test_round_that_fails_is_logged_and_the_worker_goes_on(
        world: World, inspector: LocalInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    upkeep = make(world, inspector)
    turns = 0
    is_enough = asyncio.Event()

    async def take_turn() -> None:
        nonlocal turns
        turns += 1
        if turns == 3:
            is_enough.set()
            await asyncio.Event().wait()
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(upkeep, "take_turn", take_turn)
    monkeypatch.setattr(upkeep, "_pacing", Pacing(round_seconds=0.0))
    task = asyncio.ensure_future(upkeep.run())
    await asyncio.wait_for(is_enough.wait(), 30)
    task.cancel()
    await asyncio.wait([task])


# --- a round ---

async def test_round_does_everything_that_is_due_and_no_more(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    upkeep = make(world, inspector)
    await world.put(caller, "/gone", b"gone")
    await world.delete(caller, "/gone")
    await days_later(world)
    lost = await world.put(caller, "/lost", b"lost")
    world.store.path(lost.file.blob_key).unlink()
    await world.put(caller, "/long", b"long")
    [path] = [path for path in (world.root / "blobs").glob("*/*") if path.read_bytes() == b"long"]
    path.write_bytes(b"longer")
    litter(world)
    await world.observer.execute("UPDATE users SET file_count = 7")
    assert await do_all(upkeep)
    shown = {kind: value(metrics.FINDINGS, kind) for kind in ("missing", "size", "digest", "stray", "usage", "tree")}
    assert shown == {"missing": 1, "size": 1, "digest": 0, "stray": 1, "usage": 1, "tree": 0}
    assert value(metrics.HELD, "pairing") == 0
    assert not path.exists() and in_quarantine(world) == {UUID(path.name)}
    assert await world.observer.fetchval("SELECT count(*) FROM blobs") == 2  # what was deleted is gone
    assert await world.observer.fetchval("SELECT file_count FROM users") == 7  # only by hand
    done = await world.observer.fetch("SELECT name, finished_at, findings FROM checks ORDER BY name")
    assert {row["name"]: row["findings"] for row in done} == {"leftovers": 0, "rows": 1, "sizes": 2, "walk": 1}
    assert await do_all(upkeep)
    assert await world.observer.fetch("SELECT name, finished_at, findings FROM checks ORDER BY name") == done
    await days_later(world)
    assert await do_all(upkeep)
    assert len(in_quarantine(world)) == 2


async def test_step_that_fails_does_not_keep_the_others(
        world: World, inspector: LocalInspector, failpoints: Failpoints) -> None:
    for point, kept in [("strays.insert_sightings before", ["leftovers", "rows", "sizes"]),
                        ("damage.list_expected before", ["leftovers", "rows", "walk"]),
                        ("blobs.list_fenced before", ["leftovers", "rows", "sizes", "walk"])]:
        await days_later(world)
        litter(world)
        failpoints.reset()
        failpoints.arm(point, raise_surprise)
        assert not await do_all(make(world, inspector))
        assert failpoints.was_hit, point
        assert [row["name"] for row in await world.observer.fetch("SELECT name FROM checks ORDER BY name")] == kept


async def test_too_many_strays_are_shown_and_nothing_is_touched_until_somebody_takes_them(
        world: World, caller: Caller, inspector: LocalInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.domain.strays.MIN_LIMIT", 2)
    keys = {litter(world) for _ in range(3)}
    for _ in range(3):
        assert await do_all(make(world, inspector))
        assert value(metrics.HELD, "strays") == 1
        await world.put(caller, "/gone", b"gone")
        keys.add((await world.put(caller, "/gone", b"gone too")).file.blob_key)
        await world.delete(caller, "/gone")  # nor does anything else go
        await days_later(world)
    assert len(world.blobs()) == 9 and world.blobs() > keys
    check = Check(world.database, inspector, settle_seconds=0)
    report = await check.run(repairs=True)
    assert [finding.kind for finding in report.findings].count("held") == 1 and len(world.blobs()) == 9
    assert (await check.run(repairs=True, takes_many=True)).is_healthy
    assert len(in_quarantine(world)) == 3
    assert await do_all(make(world, inspector))
    assert world.blobs() == set() and value(metrics.HELD, "strays") == 0


async def test_leftovers_are_removed_by_their_age(world: World, inspector: LocalInspector) -> None:
    upkeep = make(world, inspector)
    (world.root / "staging" / "left").write_bytes(b"left")
    assert await do_all(upkeep)
    assert world.staged() == ["left"]
    upkeep._leftovers = Leftovers(inspector, age_seconds=0)
    await days_later(world)
    assert await do_all(upkeep)
    assert world.staged() == []


async def test_leftover_is_logged_before_it_is_removed(
        world: World, inspector: LocalInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "staging" / "left").write_bytes(b"left")
    leftovers, remove = Leftovers(inspector, age_seconds=0), inspector.remove_leftover
    moments = []

    async def look_first(name: str) -> None:
        moments.append((list(logs), world.staged()))
        await remove(name)

    monkeypatch.setattr(inspector, "remove_leftover", look_first)
    with capture_logs() as logs:
        assert len(await leftovers.remove(await leftovers.find())) == 1
    [([line], there)] = moments
    assert line.pop("reason").startswith("untouched for ")
    assert line == {"event": "leftover.removed", "log_level": "warning", "file": "staging/left", "size": len(b"left"),
                    "count": 1}
    assert there == ["left"] and world.staged() == []


async def test_what_was_done_in_the_future_is_due(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    """PostgreSQL's clock was ahead, and was set right: nothing waits for that time to come."""
    await world.put(caller, "/a", b"some bytes")
    upkeep, scrub = make(world, inspector), Scrub(world.database, inspector)
    litter(world)
    assert await do_all(upkeep) and await scrub.verify_due(unpaced, may_move=True) == 1
    await world.observer.execute("UPDATE checks SET finished_at = now() + interval '1 year'")
    await world.observer.execute("UPDATE blobs SET verified_at = now() + interval '1 year'")
    await age(world, "last_seen_at", -9000)
    await age(world, "first_seen_at", -9000)
    assert await do_all(upkeep)
    assert await world.observer.fetchval("SELECT count(*) FROM checks WHERE finished_at <= now()") == 4
    assert await scrub.verify_due(unpaced, may_move=True) == 1
    assert await scrub.verify_due(unpaced, may_move=True) == 0
    assert await do_all(upkeep)


# --- a database that is older than its data root ---

async def test_each_round_counts_here_and_there(world: World, inspector: LocalInspector) -> None:
    pairing = Pairing(world.database, inspector)
    assert await pairing.find_objection() is None and await inspector.read_high_water() is None
    before = await world.observer.fetchval("SELECT high_water FROM instance")
    for number in (1, 2):
        assert await pairing.confirm() is None
        assert await world.observer.fetchval("SELECT high_water FROM instance") == before + number
        assert (await inspector.read_high_water() or "").split()[-1] == str(before + number)
    assert await pairing.find_objection() is None


DOUBTS = [
    ("MARKER", f"{uuid4()}", "another database"), ("MARKER", "", "another database"),
    ("HIGH_WATER", "{incarnation} 999999999", "older than the data root"),
    ("HIGH_WATER", "1.2.3 0", "made anew"), ("HIGH_WATER", "{incarnation}", "cannot be read"),
    ("HIGH_WATER", "", "cannot be read")]


async def test_data_root_that_has_known_more_is_noticed(world: World, inspector: LocalInspector) -> None:
    pairing = Pairing(world.database, inspector)
    assert await pairing.confirm() is None
    for name, text, words in DOUBTS:
        file = world.root / name
        before = file.read_text()
        file.write_text(text.format(incarnation=before.split()[0]))
        for look in (pairing.confirm, pairing.find_objection):
            assert words in (await look() or ""), (name, text)
        file.write_text(before)
    assert await pairing.confirm() is None


async def test_data_root_that_has_known_more_is_left_alone(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    upkeep = make(world, inspector)
    assert await do_all(upkeep)
    await world.observer.execute("UPDATE instance SET high_water = high_water - 1")
    await nothing_is_removed(world, caller, inspector, upkeep)


async def nothing_is_removed(world: World, caller: Caller, inspector: LocalInspector, upkeep: Upkeep) -> None:
    """Neither strays nor leftovers nor what was deleted, by a round or by hand; all of it has had its time."""
    (world.root / "staging" / "left").write_bytes(b"left")
    litter(world)
    await world.put(caller, "/gone", b"gone")
    await world.delete(caller, "/gone")
    before = world.blobs()
    hand = Check(world.database, inspector, settle_seconds=0, leftover_seconds=0)
    for _ in range(2):
        await days_later(world)
        assert await do_all(upkeep) and value(metrics.HELD, "pairing") == 1
        findings = (await hand.run(repairs=True)).findings
        assert sorted(finding.kind for finding in findings) == ["held", "leftover", "stray"]
    assert world.blobs() == before and world.staged() == ["left"]


def dump(postgres: EmbeddedPostgres, dsn: str, name: str) -> str:
    """What an operator does: pg_dump, and pg_restore into a new database; its address."""
    with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(
            psycopg.sql.Identifier(name)))
    programs = find_programs()
    data = subprocess.run([programs / "pg_dump", "-Fc", "-d", dsn], check=True, capture_output=True).stdout
    subprocess.run([programs / "pg_restore", "-d", postgres.dsn(name)], input=data, check=True, capture_output=True)
    return postgres.dsn(name)


@asynccontextmanager
async def restored(world: World, caller: Caller, postgres: EmbeddedPostgres, upkeep: Upkeep) -> AsyncIterator[World]:
    """The world on a database as it was before half of what happened; beside the files of now."""
    await world.put(caller, "/before", b"before")
    await world.put(caller, "/garbage", b"garbage")
    await world.delete(caller, "/garbage")
    assert await do_all(upkeep)
    name = f"restored_{uuid4().hex}"
    dsn = await asyncio.to_thread(dump, postgres, world.dsn, name)
    await world.put(caller, "/after", b"after")
    await world.put(caller, "/before", b"replaced")
    async with open_world(dsn, world.root) as older:
        yield older
    with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))


async def rounds(older: World, inspector: LocalInspector) -> None:
    """Days go by, with upkeep and by hand."""
    upkeep = make(older, inspector)
    for _ in range(2):
        await do_all(upkeep)
        await Check(older.database, inspector, settle_seconds=0).run(repairs=True)
        await days_later(older)


async def test_restored_older_dump_removes_nothing_until_somebody_has_looked(
        world: World, caller: Caller, inspector: LocalInspector, postgres: EmbeddedPostgres) -> None:
    async with restored(world, caller, postgres, make(world, inspector)) as older:
        before = world.blobs()
        assert len(before) == 4
        await rounds(older, inspector)
        assert world.blobs() == before and in_quarantine(world) == set()
        assert await older.get(caller, "/before") == b"before"
        assert await world.get(caller, "/after") == b"after"
        (world.root / "HIGH_WATER").unlink()  # as an operator does who means it
        await do_all(make(older, inspector))
        assert len(in_quarantine(world)) == 2 and len(world.blobs()) == 1
        await check_after(older)


async def check_after(older: World) -> None:
    """What the older database names is all there."""
    report = await Check(older.database, LocalInspector(older.root), settle_seconds=0).run()
    assert report.findings == []


@pytest.mark.mutant("M5", "a sweep beside a restored dump that only compares the marker")
async def test_m5_trust_in_the_marker_alone_is_caught(
        world: World, caller: Caller, inspector: LocalInspector, postgres: EmbeddedPostgres,
        monkeypatch: pytest.MonkeyPatch) -> None:
    async def compare_marker(self: Pairing) -> str | None:
        return None  # the restored dump has the same epoch

    monkeypatch.setattr(Pairing, "find_objection", compare_marker)
    async with restored(world, caller, postgres, make(world, inspector)) as older:
        before = world.blobs()
        await rounds(older, inspector)
        assert world.blobs() < before


async def test_role_without_rights_can_tell_the_incarnation(world: World, inspector: LocalInspector) -> None:
    """pg_control_system() is open to everybody, or the database of a hoster could not be used."""
    async with world.observer.acquire() as conn, conn.transaction():
        await conn.execute("CREATE ROLE nobody_special; GRANT SELECT ON instance TO nobody_special")
        await conn.execute("SET LOCAL ROLE nobody_special")
        incarnation, _ = await instance.get_high_water(conn)
        assert len(incarnation.split(".")) == 3
        await conn.execute("RESET ROLE; DROP OWNED BY nobody_special; DROP ROLE nobody_special")


# --- reading back ---

async def test_bytes_are_read_back_in_turn(world: World, caller: Caller, inspector: LocalInspector) -> None:
    keys = [(await world.put(caller, f"/{number}", bytes([number]) * 9)).file.blob_key for number in range(3)]
    scrub = Scrub(world.database, inspector)
    read: list[int] = []

    async def pace(length: int) -> None:
        read.append(length)

    assert await scrub.verify_due(pace, may_move=True) == 3
    assert read == [9, 9, 9]
    assert await scrub.verify_due(pace, may_move=True) == 0
    await world.observer.execute("UPDATE blobs SET verified_at = now() - interval '8 days' WHERE id = $1", keys[1])
    new = (await world.put(caller, "/new", b"12345")).file.blob_key
    async with world.database.connection() as conn:
        due = await damage.list_unverified(conn, age_seconds=7 * 86400, limit=9)
    assert [blob.key for blob in due] == [new, keys[1]]


async def test_blob_that_rots_is_found_and_set_aside_and_forgotten_when_it_is_whole_again(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    key = (await world.put(caller, "/a", b"some bytes")).file.blob_key
    path = world.store.path(key)
    scrub = Scrub(world.database, inspector)
    path.write_bytes(b"fame bytes")
    assert await scrub.verify_due(unpaced, may_move=False) == 1
    assert path.exists() and await noted(world) == [(key, "digest")]
    await world.observer.execute("UPDATE blobs SET verified_at = NULL")
    assert await scrub.verify_due(unpaced, may_move=True) == 1
    assert not path.exists() and await noted(world) == [(key, "digest")]
    assert await scrub.check_sizes(may_move=True) == 1
    assert await noted(world) == [(key, "digest")]
    path.write_bytes(b"some bytes")
    assert await scrub.check_sizes(may_move=True) == 0
    assert await noted(world) == []


async def test_blob_that_rots_again_is_set_aside_again_and_what_rotted_before_stays(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    """Each good copy that rots is in nobody's way: it has its days in quarantine under a key of its own."""
    key = (await world.put(caller, "/a", b"some bytes")).file.blob_key
    path, scrub, upkeep = world.store.path(key), Scrub(world.database, inspector), make(world, inspector)
    for data in (b"fame bytes", b"same bytes", b"some byte"):
        path.write_bytes(data)
        await scrub.check_sizes(may_move=True)
        await scrub.verify_due(unpaced, may_move=True, age_seconds=0)
        assert not path.exists() and (await noted(world))[0][0] == key
        with pytest.raises(FileNotFoundError):
            await world.get(caller, "/a")
        path.write_bytes(b"some bytes")
        assert await scrub.check_sizes(may_move=True) == 0
        assert await noted(world) == []
    await world.observer.execute("DELETE FROM checks")
    assert await do_all(upkeep)
    aside = {UUID(file.name): file.read_bytes() for file in (world.root / "quarantine").iterdir()}
    assert aside.pop(key) == b"fame bytes"
    assert sorted(aside.values()) == [b"same bytes", b"some byte"]
    await days_later(world)
    assert await do_all(upkeep)
    assert in_quarantine(world) == {key}  # as long as somebody may want to mend it
    assert await world.get(caller, "/a") == b"some bytes"
    await world.delete(caller, "/a")
    assert await world.housekeeping.sweep(grace_seconds=0) == 1
    for _ in range(2):
        await days_later(world)
        assert await do_all(upkeep)
    assert in_quarantine(world) == set()


async def noted(world: World) -> list[tuple[UUID, str]]:
    """What is known to be damaged."""
    return [(row["blob_id"], row["kind"]) for row in await world.observer.fetch("SELECT * FROM damaged_blobs")]


async def test_file_that_cannot_be_read_is_noted_and_stays(
        world: World, caller: Caller, inspector: LocalInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    key = (await world.put(caller, "/a", b"some bytes")).file.blob_key
    world.store.path(key).unlink()
    world.store.path(key).symlink_to(world.root / "MARKER")
    scrub = Scrub(world.database, inspector)
    await scrub.check_sizes(may_move=True)
    assert await noted(world) == [(key, "missing")]

    async def fail(*_: object, **__: object) -> bytes:
        raise OSError(5, "Input/output error")

    world.store.path(key).unlink()
    world.store.path(key).write_bytes(b"some bytes")
    monkeypatch.setattr(inspector, "hash", fail)
    await scrub.verify_due(unpaced, may_move=True)
    assert await noted(world) == [(key, "unreadable")] and world.store.path(key).exists()
    # its size is right, but that has not made it readable
    assert await scrub.check_sizes(may_move=True) == 1
    assert await noted(world) == [(key, "unreadable")]
    monkeypatch.undo()
    assert await scrub.check_sizes(may_move=True) == 0
    assert await noted(world) == []


async def test_so_much_damage_that_the_reading_is_to_be_doubted_moves_nothing(
        world: World, caller: Caller, inspector: LocalInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.domain.scrub.MIN_LIMIT", 2)
    for number in range(4):
        stored = await world.put(caller, f"/{number}", bytes([number]) * 9)
        world.store.path(stored.file.blob_key).write_bytes(b"")
    assert await Scrub(world.database, inspector).check_sizes(may_move=True) == 4
    assert len(in_quarantine(world)) == 2 and len(await noted(world)) == 4


async def test_disk_that_is_gone_is_not_noted_blob_by_blob(
        world: World, caller: Caller, inspector: LocalInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.domain.scrub.MOST_NOTED", 2)
    for number in range(5):
        await world.put(caller, f"/{number}", bytes([number]) * 9)
    scrub = Scrub(world.database, inspector)
    assert await scrub.verify_due(unpaced, may_move=True) == 5
    (world.root / "blobs").rename(world.root / "elsewhere")
    assert await scrub.check_sizes(may_move=True) == 5
    assert [kind for _, kind in await noted(world)] == ["missing"] * 2
    (world.root / "elsewhere").rename(world.root / "blobs")
    assert await scrub.check_sizes(may_move=True) == 0
    assert await noted(world) == []
    assert await scrub.verify_due(unpaced, may_move=True) == 2  # what was missed is read first


async def test_blob_that_was_swept_meanwhile_is_not_damaged(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    """Its row was listed, then it was fenced, removed and forgotten."""
    await world.put(caller, "/a", b"some bytes")
    async with world.database.connection() as conn:
        [blob] = await damage.list_expected(conn, after=None, limit=9)
    await world.delete(caller, "/a")
    await world.housekeeping.sweep(grace_seconds=0)
    scrub = Scrub(world.database, inspector)
    for pace in (None, unpaced):
        assert await scrub.look(blob, pace) is None
        assert [kind async for _, kind in scrub.look_at([blob], pace)] == [None]
    await scrub.note(blob, "missing", may_move=True)  # as if it had been seen in between
    assert await noted(world) == []


async def test_throttle_gives_so_many_bytes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)  # no time goes by

    throttle = Throttle(100)
    monkeypatch.setattr("service.domain.scrub.asyncio.sleep", wait)
    for length in (500, 500, 1000):
        await throttle(length)
    assert waits == [pytest.approx(5, abs=1), pytest.approx(10, abs=1), pytest.approx(20, abs=1)]
