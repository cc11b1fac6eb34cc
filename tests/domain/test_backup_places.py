"""Where a backup goes: never to the empty place of a disk that is not mounted."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.run import backup as command
from service.storage.backup import BackupFolder
from service.storage.known import NAME
from service.storage.snapshots import BackupError
from tests import backups
from tests.world import World


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The commands change it."""
    mask = os.umask(0o077)
    yield
    os.umask(mask)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the disk for backups is mounted."""
    path = tmp_path / "mnt" / "backups"
    path.mkdir(parents=True)
    return path


@pytest.fixture(autouse=True)
def nothing_is_known(world: World) -> None:
    """The data root is shared by tests, and others have saved it too."""
    shutil.rmtree(world.root / NAME, ignore_errors=True)


async def save(world: World, path: Path, *, anew: bool = False) -> int:
    """The command; its exit code."""
    return await asyncio.to_thread(command.backup, backups.config(world.dsn, world.root), path, anew=anew)


def unmount(path: Path, disk: Path) -> None:
    """What is there is elsewhere, and its place is empty."""
    path.rename(disk)
    path.mkdir()


async def test_empty_place_of_a_folder_that_was_used_is_refused(
        world: World, path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert await save(world, path) == 0
    unmount(path, tmp_path / "disk")
    capfd.readouterr()
    for _ in range(2):
        assert await save(world, path) == 1
        assert capfd.readouterr() == ("", f"error: the folder of backups that was at {path} is gone, nothing is there: "
                                          "is its disk mounted?  --new goes on with what is there now\n")
        assert list(path.iterdir()) == []
    path.rmdir()  # a folder of the disk, not where it is mounted
    assert await save(world, path) == 1
    assert not path.exists()
    assert await save(world, path, anew=True) == 0
    assert await save(world, path) == 0
    assert len(BackupFolder(path).names()) == 2


async def test_other_folder_at_the_place_is_refused_until_it_is_meant(
        world: World, path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As one that was made there before this was noticed; disks that take turns are each named once."""
    assert await save(world, path) == 0
    unmount(path, tmp_path / "one")
    await backups.make(world, path)
    before = sorted(path.rglob("*"))
    capfd.readouterr()
    assert await save(world, path) == 1
    assert "is gone, another one is there: is its disk mounted?" in capfd.readouterr().err
    assert sorted(path.rglob("*")) == before
    assert await save(world, path, anew=True) == 0
    for disk, other in (("two", "one"), ("one", "two")):
        path.rename(tmp_path / disk)
        (tmp_path / other).rename(path)
        assert await save(world, path) == 0


async def test_folder_that_moved_goes_on_at_its_new_place(world: World, path: Path, tmp_path: Path) -> None:
    assert await save(world, path) == 0
    path.rename(tmp_path / "moved")
    assert await save(world, tmp_path / "moved") == 0
    assert await save(world, path) == 1  # it is not here any more


async def test_folder_of_an_earlier_version_gets_an_id(world: World, path: Path) -> None:
    await backups.make(world, path)
    (path / "ID").unlink()
    assert await save(world, path) == 0
    identity = BackupFolder(path).read_id()
    assert identity is not None
    assert await save(world, path) == 0
    assert BackupFolder(path).read_id() == identity and len(BackupFolder(path).names()) == 3


async def test_id_that_could_lead_elsewhere_is_refused(world: World, path: Path) -> None:
    await backups.make(world, path)
    (path / "ID").write_text("../../MARKER\n")
    with pytest.raises(BackupError, match="ID is malformed"):
        BackupFolder(path).read_id()


async def test_data_root_that_takes_nothing_any_more_is_saved(
        world: World, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (world.root / NAME).write_text("in the way")  # as root may write wherever it is forbidden
    try:
        assert await save(world, path) == 1  # nothing is known of what was at which place
        assert "saved-to cannot be read: Not a directory" in capfd.readouterr().err
    finally:
        (world.root / NAME).unlink()
    with pytest.MonkeyPatch.context() as patch:
        def fail(*args: object) -> None:
            raise OSError(30, "Read-only file system")

        patch.setattr("service.storage.known.write_durably", fail)
        assert await save(world, path) == 0
    assert "could not be noted in the data root: Read-only file system" in capfd.readouterr().err
