"""Backups on the file system of the service, where it can share blocks (XFS): no room is taken, and nothing else is
different: what is damaged is found, and what is done survives a power cut.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.model import BlobKey, Caller
from service.run.postgres import EmbeddedPostgres
from service.storage import copying
from service.storage.backup import BackupFolder
from tests import backups, databases
from tests.faults.machine import LoopDisk, loop_disk
from tests.faults.recorder import Recorder
from tests.world import World, open_world

FILES, FILE_BYTES = 8, 2**22


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    """A disk of its own."""
    with loop_disk(tmp_path, "xfs") as opened:
        yield opened


@pytest.fixture
async def world(disk: LoopDisk, postgres: EmbeddedPostgres) -> AsyncIterator[World]:
    """The data root is on the disk; the database is not."""
    dsn = databases.make_shared(postgres, f"clones_{os.urandom(8).hex()}")
    async with open_world(dsn, disk.mount_point / "data") as opened:
        yield opened


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account with some megabytes."""
    caller = await world.new_caller()
    for number in range(FILES):
        await world.put(caller, f"/{number}", os.urandom(FILE_BYTES))
    return caller


def free_bytes(disk: LoopDisk) -> int:
    """Room, once all is written that is to be written."""
    os.sync()
    status = os.statvfs(disk.mount_point)
    return status.f_bfree * status.f_frsize


async def test_copies_share_their_blocks_until_the_original_is_changed(
        world: World, caller: Caller, disk: LoopDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    good = backups.bytes_below(world.root)
    before = free_bytes(disk)
    report = await backups.make(world, disk.mount_point / "cloned")
    assert (report.copied, report.missing) == (FILES, ())
    taken = before - free_bytes(disk)
    monkeypatch.setattr(copying, "_clone", lambda reader, writer: False)
    await backups.make(world, disk.mount_point / "plain")
    assert before - taken - free_bytes(disk) >= FILES * FILE_BYTES  # what the same takes without sharing
    assert taken < FILES * FILE_BYTES / 4
    for key in world.blobs():
        with world.root.joinpath("blobs", key.hex[-2:], str(key)).open("r+b") as file:
            file.write(b"something else")
    assert backups.bytes_below(disk.mount_point / "cloned") == good


async def test_damage_is_found_in_what_was_cloned(world: World, caller: Caller, disk: LoopDisk) -> None:
    key = BlobKey(min(world.blobs()))
    path = world.store.path(key)
    path.write_bytes(path.read_bytes()[::-1])
    report = await backups.make(world, disk.mount_point / "backups")
    assert [(blob.key, blob.reason) for blob in report.missing] == [(key, "is damaged: its SHA-256 is another one")]
    assert report.copied == FILES - 1


@pytest.mark.mutant("B5", "a clone that nobody reads")
async def test_clone_that_is_not_read_is_found_out(
        world: World, caller: Caller, disk: LoopDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_compare", lambda blob, pieces: None)
    with pytest.raises(AssertionError, match=r"assert \[\] == "):
        await test_damage_is_found_in_what_was_cloned(world, caller, disk)


async def test_clones_are_on_the_disk_when_the_backup_is_done(
        postgres: EmbeddedPostgres, disk: LoopDisk, recorder: Recorder) -> None:
    dsn = databases.make_shared(postgres, f"clones_{os.urandom(8).hex()}")
    path = disk.mount_point / "backups"
    async with open_world(dsn, disk.mount_point / "data") as world:
        await backups.fill(world)
        good = backups.bytes_below(world.root)
        report = await backups.make(world, path)
    disk.cut()
    disk.power_on()
    line = recorder.line("cut after the backup", "xfs, shared blocks, the database elsewhere")
    line.injected, line.acknowledged = 1, report.blobs
    found = backups.bytes_below(path)
    line.dangling = report.blobs - len(found)
    line.torn = sum(found[key] != good[key] for key in found)
    assert (line.dangling, line.torn) == (0, 0)
    BackupFolder(path).snapshot().verify()
