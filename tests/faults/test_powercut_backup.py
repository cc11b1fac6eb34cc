"""Power cuts in the moment in which a backup or a restore says that it is done: all of it is on the disk.

Each is tried with the service as it is, and with a forgotten fsync.  The database lies on another disk.
"""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from service.run.postgres import EmbeddedPostgres
from service.run.processes import StartError
from service.storage.backup import BackupFolder
from service.storage.restoring import RestoredRoot
from service.storage.snapshots import BackupError
from tests import backups, databases
from tests.faults.machine import MKFS, LoopDisk, loop_disk
from tests.faults.recorder import Damage, Recorder
from tests.invariants import check_all
from tests.world import open_world

Scenario = Callable[["Case"], Awaitable[Damage]]


class Case:
    """A full world on the disk of the tests, a backup of it, and a disk to be cut."""

    def __init__(self, disk: LoopDisk, folder: Path, dsn: str, target: str) -> None:
        self.disk = disk
        self.folder = folder
        self.dsn = dsn
        self.target = target

    @property
    def root(self) -> Path:
        """The data root of the world."""
        return self.folder / "data"


@pytest.fixture(params=MKFS)
def case(request: pytest.FixtureRequest, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Case]:
    """On each kind of file system."""
    dsn = databases.make_shared(postgres, f"cut_{os.urandom(8).hex()}")

    async def fill() -> None:
        async with open_world(dsn, tmp_path / "data") as world:
            await backups.fill(world)
            await backups.make(world, tmp_path / "backups")

    asyncio.run(fill())
    with loop_disk(tmp_path, request.param) as disk:
        yield Case(disk, tmp_path, dsn, backups.new_database(postgres))


async def cut_after_the_backup(case: Case) -> Damage:
    """The manifest has its name; what then is missing of everything?"""
    path = case.disk.mount_point / "backups"
    async with open_world(case.dsn, case.root) as world:
        with pytest.MonkeyPatch.context() as patch:
            cut_after(patch, BackupFolder, "seal", case.disk)
            try:
                await backups.make(world, path)
            except BackupError:
                pass  # tidying up comes after it, on a disk that is gone
    await asyncio.to_thread(case.disk.power_on)
    folder = BackupFolder(path)
    try:
        snapshot = folder.snapshot()
        snapshot.verify()
    except BackupError:
        return Damage(lost=1)
    wanted = backups.bytes_below(case.folder / "backups")
    found = backups.bytes_below(path)
    return Damage(dangling=len(wanted.keys() - found.keys()),
                  torn=sum(found[key] != wanted[key] for key in wanted.keys() & found.keys()))


async def cut_after_the_restore(case: Case) -> Damage:
    """The data root has its epoch."""
    root = case.disk.mount_point / "data"
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, RestoredRoot, "finish", case.disk)
        try:
            await backups.restore(case.target, root, case.folder / "backups")
        except (OSError, StartError):
            pass  # the check comes after it, on a disk that is gone
    await asyncio.to_thread(case.disk.power_on)
    marker = root / "MARKER"
    if not marker.exists() or marker.read_text().startswith("restoring"):
        return Damage(lost=1)
    wanted = backups.bytes_below(case.folder / "backups")
    found = backups.bytes_below(root)
    damage = Damage(dangling=len(wanted.keys() - found.keys()),
                    torn=sum(found[key] != wanted[key] for key in wanted.keys() & found.keys()))
    if not damage:
        await check_all(case.target, root)
    return damage


def cut_after(patch: pytest.MonkeyPatch, owner: type, name: str, disk: LoopDisk) -> None:
    """The power fails as soon as this has returned."""
    real = getattr(owner, name)

    def done(*args: object) -> object:
        result = real(*args)
        disk.cut()
        return result

    patch.setattr(owner, name, done)


def forget_bytes(patch: pytest.MonkeyPatch) -> None:
    """No fsync of the blobs; nor the hint that they are not needed in memory, which has them written soon."""
    patch.setattr(os, "posix_fadvise", lambda *args: None)
    forget(patch, lambda path, mode: stat.S_ISREG(mode) and path.parent.name in ("incoming", "staging"))


def forget_names(patch: pytest.MonkeyPatch) -> None:
    """No fsync of folders."""
    forget(patch, lambda path, mode: stat.S_ISDIR(mode))


def forget(patch: pytest.MonkeyPatch, is_forgotten: Callable[[Path, int], bool]) -> None:
    """No fsync of some."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if not is_forgotten(Path(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor).st_mode):
            real(descriptor)

    patch.setattr(os, "fsync", fsync)


every_scenario = pytest.mark.parametrize("scenario", [cut_after_the_backup, cut_after_the_restore])


@every_scenario
async def test_all_is_on_the_disk_when_it_is_done(case: Case, scenario: Scenario, recorder: Recorder) -> None:
    line = recorder.line(scenario.__name__.replace("_", " "), f"{case.disk.kind}, the database elsewhere")
    line.injected, line.acknowledged = 1, len(backups.bytes_below(case.folder / "backups"))
    damage = await scenario(case)
    line.add(damage)
    assert not damage


@every_scenario
@pytest.mark.parametrize(("mistake", "harm"), [
    pytest.param(forget_bytes, "torn", id="bytes", marks=pytest.mark.mutant("B3", "no fsync of the bytes of a backup")),
    pytest.param(forget_names, "gone", id="names",
                 marks=pytest.mark.mutant("B4", "no fsync of the names of a backup"))])
async def test_forgotten_fsync_is_caught(
        case: Case, scenario: Scenario, mistake: Callable[[pytest.MonkeyPatch], None], harm: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        damage = await scenario(case)
    assert damage.torn if harm == "torn" else damage.lost or damage.dangling, damage
