"""Where a backup goes: never to the empty place of a disk that is not mounted, nor among those of another service."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.run import backup as command
from service.run.postgres import EmbeddedPostgres
from service.storage.backup import BackupFolder
from service.storage.known import NAME
from service.storage.snapshots import BackupError
from tests import backups
from tests.world import World, open_world


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


# --- two services, one folder ---

@pytest.fixture
async def drill(postgres: EmbeddedPostgres, world: World, path: Path, tmp_path: Path) -> AsyncIterator[World]:
    """A service that was restored from the folder of the first, as somebody does to see whether it can be."""
    await world.put(await world.new_caller(), "/kept", b"kept")
    await backups.make(world, path)
    dsn = backups.new_database(postgres)
    assert await backups.restore(dsn, tmp_path / "drill", path) == 0
    async with open_world(dsn, tmp_path / "drill") as drill:
        yield drill


async def test_backup_among_those_of_another_service_is_refused(
        world: World, drill: World, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {file for file in path.rglob("*") if file.parent != path}
    names = BackupFolder(path).names()
    assert await save(drill, path) == 1
    errors = capfd.readouterr().err
    assert f"the last backup in {path}, {names[-1]}, is of another service, or of this one before a restore" in errors
    assert errors.count("\n") == 1
    assert {file for file in path.rglob("*") if file.parent != path} == before
    assert await save(world, path) == 0
    assert await save(drill, path, anew=True) == 0
    assert await save(drill, path) == 0  # a restored service goes on
    assert await save(world, path) == 1  # and that which was before it has to end


async def test_only_the_own_backups_are_removed(world: World, drill: World, path: Path) -> None:
    kept = BackupFolder(path).names()
    saved = backups.bytes_below(path)
    drilled = [(await backups.make(drill, path, keep=1, anew=True)).snapshot for _ in range(3)]
    assert BackupFolder(path).names() == [*kept, drilled[-1]]
    await drill.observer.execute("TRUNCATE users, blobs CASCADE")
    drilled.append((await backups.make(drill, path, keep=1)).snapshot)
    assert BackupFolder(path).names() == [*kept, drilled[-1]]
    assert backups.bytes_below(path) == saved
    own = (await backups.make(world, path, keep=1, anew=True)).snapshot
    assert BackupFolder(path).names() == [drilled[-1], own]


async def test_last_one_of_several_services_is_not_guessed(
        world: World, drill: World, postgres: EmbeddedPostgres, path: Path, tmp_path: Path,
        capfd: pytest.CaptureFixture[str]) -> None:
    names = [*BackupFolder(path).names(), (await backups.make(drill, path, anew=True)).snapshot]
    dsn = backups.new_database(postgres)
    assert await backups.restore(dsn, tmp_path / "restored", path) == 1
    assert (f"error: the backups in {path} are of 2 services, and the last ones of each are {', '.join(names)}: choose "
            "with --snapshot\n") in capfd.readouterr().err
    assert not (tmp_path / "restored").exists()
    assert await backups.restore(dsn, tmp_path / "restored", path, names[0]) == 0


async def test_old_manifest_that_is_damaged_keeps_nothing_back(world: World, path: Path) -> None:
    """Which service it is of cannot be told."""
    names = [(await backups.make(world, path)).snapshot for _ in range(2)]
    (path / "snapshots" / names[0] / "manifest.json").write_bytes(b"damaged")
    assert BackupFolder(path).snapshot().name == names[1]
    (path / "snapshots" / names[1] / "manifest.json").write_bytes(b"damaged")
    await backups.make(world, path)
