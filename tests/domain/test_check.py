"""The check is checked: each kind of damage is reported, nothing else ever is, and repairing loses nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.domain.check import Check
from service.domain.findings import Report
from service.model import Caller
from service.storage.inspection import LocalInspector
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
