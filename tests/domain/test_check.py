"""The check is checked: each kind of damage is reported, nothing else ever is, and repairing loses nothing."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from service.domain.check import Check
from service.domain.findings import Report
from service.domain.moves import Change, Moves
from service.domain.places import Target
from service.domain.trash import Trash
from service.model import BlobKey, Caller
from service.storage.inspection import LocalInspector
from tests.invariants import check_all
from tests.world import World


@pytest.fixture
def inspector(world: World) -> Iterator[LocalInspector]:
    """Those who look after the world's files."""
    opened = LocalInspector(world.root)
    yield opened
    opened.close()


@pytest.fixture
def check(world: World, inspector: LocalInspector) -> Check:
    """The check, without waiting for uploads to end: there are none."""
    return Check(world.database, inspector, settle_seconds=0)


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account with folders, files, former versions and trash."""
    caller = await world.new_caller(quota_bytes=10_000)
    await world.put(caller, "/a/b/one", b"11")
    await world.put(caller, "/a/two", b"222")
    await world.put(caller, "/gone", b"4444")
    await world.put(caller, "/empty", b"")
    await world.files.delete(caller, ("gone",))
    return caller


def blob_of(world: World, data: bytes) -> Path:
    """The file that holds these bytes."""
    [path] = [path for path in (world.root / "blobs").glob("*/*") if path.read_bytes() == data]
    return path


def kinds(report: Report) -> list[tuple[str, bool]]:
    """What was found, and whether it was made good."""
    return sorted((finding.kind, finding.is_repaired) for finding in report.findings)


async def execute(world: World, statement: str, *values: object) -> None:
    """Change the database behind the service's back."""
    async with world.observer.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL session_replication_role = replica")  # no foreign key may come to the rescue
        await conn.execute(statement, *values)


async def test_healthy_world_has_no_findings_and_every_byte_was_read(
        world: World, caller: Caller, check: Check) -> None:
    told = []
    report = await check.run(progress=lambda *step: told.append(step))
    assert report.findings == [] and report.is_healthy
    assert (report.blobs, report.bytes_read, report.files_on_disk) == (4, 9, 4)
    assert ("bytes", 9, 9) in told and ("folders", 256, 256) in told
    assert (await check.run(reads=False)).bytes_read == 0


@pytest.mark.parametrize(("damage", "kind"), [
    ("flip", "digest"), ("cut", "size"), ("grow", "size"), ("remove", "missing"), ("folder", "missing")])
async def test_damaged_blob_is_reported_with_the_files_concerned(
        world: World, caller: Caller, check: Check, damage: str, kind: str) -> None:
    path = blob_of(world, b"222")
    match damage:
        case "flip":
            path.write_bytes(b"223")
        case "cut":
            path.write_bytes(b"22")
        case "grow":
            path.write_bytes(b"222\0")
        case "remove" | "folder":
            path.unlink()
    if damage == "folder":
        path.mkdir()
    report = await check.run()
    if damage == "folder":
        path.rmdir()
        assert kinds(report) == [("foreign", False), ("missing", False)]
    else:
        assert kinds(report) == [(kind, False)] and not report.is_healthy
    finding = report.findings[-1]
    assert finding.subject == path.name
    [affected] = finding.affected
    assert (affected.user_id, affected.path, affected.version) == (caller.user_id, "/a/two", 1)
    assert affected.is_current and not affected.is_trashed
    found_by_size = [finding.kind for finding in (await check.run(reads=False)).findings]
    assert found_by_size == ([] if kind == "digest" else [kind])


@pytest.mark.parametrize(("statement", "kind", "is_repaired"), [
    ("UPDATE users SET files_bytes = files_bytes + 1", "usage", True),
    ("UPDATE users SET trash_bytes = 0, file_count = 0", "usage", True),
    ("UPDATE users SET versions_bytes = 1", "usage", True),
    ("UPDATE blobs SET unref_since = now() WHERE size_bytes = 2", "unmarked", True),
    ("INSERT INTO blobs (id, size_bytes, sha256) VALUES ('01a00000-0000-7000-8000-000000000000', 2, sha256('11'))",
     "unmarked", True),
    ("UPDATE files SET parent_id = (SELECT id FROM files WHERE name = 'b') WHERE name = 'a'", "tree", False),
    ("DELETE FROM files WHERE parent_id IS NULL", "tree", False),
    ("UPDATE files SET head_bytes = 7 WHERE name = 'two'", "version", False),
    ("UPDATE versions SET replaced_at = now() WHERE file_id IN (SELECT id FROM files WHERE name = 'two')", "version",
     False),
    ("UPDATE blobs SET referable = false, fenced_at = now() WHERE size_bytes = 3", "version", False),
])
async def test_rows_that_do_not_agree_are_reported_and_what_can_be_is_put_right(
        world: World, caller: Caller, check: Check, statement: str, kind: str, is_repaired: bool) -> None:
    if statement.startswith("INSERT INTO blobs"):
        folder = world.root / "blobs" / "00"
        (folder / "01a00000-0000-7000-8000-000000000000").write_bytes(b"11")
    await execute(world, statement)
    found = kinds(await check.run())
    assert found and {name for name, _ in found} == {kind} and not any(repaired for _, repaired in found)
    assert kinds(await check.run()) == found  # nothing was changed
    assert {repaired for _, repaired in kinds(await check.run(repairs=True))} == {is_repaired}
    report = await check.run()
    assert report.is_healthy == is_repaired and (kinds(report) == found or is_repaired)
    if is_repaired:
        await check_all(world.dsn, world.root)


async def test_file_without_a_current_version_is_reported_and_left_alone(
        world: World, caller: Caller, check: Check) -> None:
    await execute(world, "UPDATE files SET head_id = gen_random_uuid() WHERE name = 'two'")
    assert kinds(await check.run()) == [("usage", False), ("version", False)]
    assert kinds(await check.run(repairs=True)) == [("usage", True), ("version", False)]
    assert kinds(await check.run()) == [("version", False)]


async def test_check_without_repairs_changes_nothing_at_all(world: World, caller: Caller, check: Check) -> None:
    blob_of(world, b"222").write_bytes(b"223")
    blob_of(world, b"11").unlink()
    (world.root / "blobs" / "00" / "01a00000-0000-7000-8000-000000000000").write_bytes(b"stray")
    await execute(world, "UPDATE users SET files_bytes = 0")

    async def everything() -> object:
        async with world.observer.acquire() as conn:
            rows = [await conn.fetch(f"SELECT * FROM {table} ORDER BY 1") for table in
                    ("users", "files", "versions", "blobs", "strays", "damaged_blobs", "checks", "instance")]
        return rows, {str(file): file.read_bytes() for file in sorted(world.root.rglob("*")) if file.is_file()}

    before = await everything()
    assert len((await check.run()).findings) == 4
    assert await everything() == before


async def test_lost_bytes_are_reported_with_everybody_who_has_them(
        world: World, caller: Caller, check: Check) -> None:
    """Repairs touch no row that names them: the names, the versions and the history stay."""
    other = await world.new_caller()
    moves = Moves(world.database)
    world.keep_versions(5)
    await world.put(caller, "/a/two", b"333")
    await moves.copy(caller, Change(source=("a", "b"), target=Target(place=("copy",))))
    await world.files.delete(caller, ("a",))
    await world.put(other, "/x/y", b"other")
    for data in (b"11", b"222", b"333", b"4444", b"other"):
        blob_of(world, data).unlink()
    before = await world.observer.fetch("SELECT * FROM versions ORDER BY id")
    report = await check.run(repairs=True)
    assert await world.observer.fetch("SELECT * FROM versions ORDER BY id") == before
    found = sorted((affected.path, affected.version, affected.is_current, affected.is_trashed)
                   for finding in report.findings for affected in finding.affected)
    assert found == [("/a/b/one", 1, True, True), ("/a/two", 1, False, True), ("/a/two", 2, True, True),
                     ("/copy/one", 1, True, False), ("/gone", 1, True, True), ("/x/y", 1, True, False)]
    assert {finding.kind for finding in report.findings} == {"missing"} and not report.is_healthy
    owners = {affected.user_id for finding in report.findings for affected in finding.affected}
    assert owners == {caller.user_id, other.user_id}


async def test_damaged_bytes_are_set_aside_by_repairs_and_go_back_by_hand(
        world: World, caller: Caller, check: Check) -> None:
    """No door gives them out any more; whoever has a good copy puts it into its place, and all is well."""
    path = blob_of(world, b"222")
    path.write_bytes(b"223")
    for _ in range(2):
        assert kinds(await check.run(repairs=True)) == [("digest", False)]
        assert not path.exists() and (world.root / "quarantine" / path.name).read_bytes() == b"223"
        assert kinds(await check.run(reads=False)) == [("digest", False)]
    path.write_bytes(b"222")
    assert (await check.run(reads=False)).is_healthy
    assert (await check.run(repairs=True)).is_healthy
    assert await world.observer.fetchval("SELECT count(*) FROM damaged_blobs") == 0


async def test_bytes_in_quarantine_that_a_row_names_go_back(
        world: World, caller: Caller, check: Check, inspector: LocalInspector) -> None:
    path = blob_of(world, b"222")
    await inspector.set_aside(BlobKey(UUID(path.name)))
    assert kinds(await check.run()) == [("missing", False), ("quarantine", False)]
    assert kinds(await check.run(repairs=True)) == [("quarantine", True)]
    assert await world.get(caller, "/a/two") == b"222"
    await check_all(world.dsn, world.root)


async def test_leftovers_are_reported_and_removed_and_what_is_worked_on_is_not(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    old, young = (Check(world.database, inspector, settle_seconds=0, leftover_seconds=age) for age in (0, 3600))
    body = world.root / "spool" / ("0" * 32) / "body" / "1" / "00" / "0000000001"
    body.parent.mkdir(parents=True)
    body.write_bytes(b"claimed")
    (world.root / "staging" / "claim").hardlink_to(body)
    (body.parent / "0000000101").write_bytes(b"left")
    (world.root / "staging" / "left").write_bytes(b"left")
    assert (await young.run()).is_healthy
    assert sorted(finding.subject for finding in (await old.run()).findings) == [
        f"spool/{'0' * 32}/body/1/00/0000000101", "staging/left"]
    assert kinds(await old.run(repairs=True)) == [("leftover", True)] * 2
    assert world.staged() == ["claim"] and [file.name for file in body.parent.iterdir()] == [body.name]
    shutil.rmtree(world.root / "spool" / ("0" * 32))


async def test_healthy_world_has_no_findings_under_load(
        world: World, caller: Caller, inspector: LocalInspector) -> None:
    """Whatever is under way: uploads, overwrites, deletions, copies, the trash, and the sweep without any grace."""
    check = Check(world.database, inspector)
    moves, trash = Moves(world.database), Trash(world.database)
    is_over = asyncio.Event()

    async def work(number: int) -> int:
        own = await world.new_caller()
        done = 0
        while not is_over.is_set():
            await world.put(own, f"/f/{done % 3}", bytes([number]) * (done % 7))
            await moves.copy(own, Change(source=("f", str(done % 3)), target=Target(place=("copy",)), overwrite=True))
            await world.files.delete(own, ("f", str(done % 3)), permanent=done % 2 == 0)
            await trash.empty(own)
            await world.housekeeping.sweep(grace_seconds=0)
            done += 1
        return done

    workers = [asyncio.ensure_future(work(number)) for number in range(4)]
    reports = [await check.run(repairs=number % 2 == 1) for number in range(5)]
    is_over.set()
    assert all(await asyncio.gather(*workers))
    assert [report.findings for report in reports] == [[]] * 5
    assert sum(report.blobs for report in reports)
    await check_all(world.dsn, world.root)
