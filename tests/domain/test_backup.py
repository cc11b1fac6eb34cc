"""A backup holds what its snapshot names, whatever happens meanwhile, and says so when it does not."""

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from service.db import backup as queries
from service.db.pool import Connection
from service.domain.backup import Backup, Tally
from service.errors import Unavailable
from service.model import Caller
from service.storage import copying
from service.storage.backup import BackupFolder
from service.storage.copying import NamedBlob
from service.storage.snapshots import BackupError, Manifest
from tests import backups
from tests.domain.failpoints import Failpoints
from tests.world import World

FILES = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder of backups."""
    return tmp_path / "backups"


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account with a few files."""
    caller = await world.new_caller()
    for number in range(FILES):
        await world.put(caller, f"/{number}", f"file {number}".encode())
    return caller


def pool(path: Path) -> list[Path]:
    """The files of the pool."""
    return sorted(path.glob("blobs/*/*"))


def manifest_of(path: Path, name: str) -> Manifest:
    """What is written of a snapshot."""
    return Manifest.from_json((path / "snapshots" / name / "manifest.json").read_bytes())


async def test_second_backup_copies_only_what_is_new(world: World, caller: Caller, path: Path) -> None:
    first = await backups.make(world, path)
    assert (first.blobs, first.copied, first.missing) == (FILES, FILES, ())
    assert backups.bytes_below(path) == backups.bytes_below(world.root)
    inodes = {file: file.stat().st_ino for file in pool(path)}
    second = await backups.make(world, path)
    assert (second.blobs, second.copied, second.copied_bytes) == (FILES, 0, 0)
    assert {file: file.stat().st_ino for file in pool(path)} == inodes
    await world.put(caller, "/new", b"twelve bytes")
    third = await backups.make(world, path)
    assert (third.blobs, third.copied, third.copied_bytes) == (FILES + 1, 1, 12)
    assert BackupFolder(path).names() == [first.snapshot, second.snapshot, third.snapshot]


async def test_backup_shares_no_inode_with_the_data_root_and_is_its_owners_alone(
        world: World, caller: Caller, path: Path) -> None:
    (world.root / "address_secret").write_text("x" * 64)
    report = await backups.make(world, path)
    assert all(file.stat().st_nlink == 1 for file in pool(path))
    for folder, _, names in os.walk(path):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        assert {stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) for name in names} <= {0o600}, folder
    assert (path / "snapshots" / report.snapshot / "secrets" / "address_secret").read_text() == "x" * 64
    (world.root / "address_secret").unlink()


async def test_every_table_is_in_it(world: World, path: Path) -> None:
    """Also one that nobody has thought of: they are taken from the catalogue."""
    await world.observer.execute(
        "CREATE TABLE thought_of_later (id int, twice int GENERATED ALWAYS AS (id * 2) STORED)")
    try:
        await world.observer.execute("INSERT INTO thought_of_later VALUES (1), (2)")
        manifest = manifest_of(path, (await backups.make(world, path)).snapshot)
        rows = await world.observer.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await world.observer.execute("DROP TABLE thought_of_later")
    assert {part.name for part in manifest.tables} == {name for name, in rows if "yoyo" not in name}
    [part] = [part for part in manifest.tables if part.name == "thought_of_later"]
    assert (part.rows, part.columns) == (2, ("id",))


# --- what leaves the disk meanwhile ---

async def delete_and_sweep(world: World, caller: Caller) -> None:
    """Everything goes, as soon as it may."""
    for number in range(FILES):
        await world.delete(caller, f"/{number}")
    for _ in range(3):
        await world.housekeeping.sweep(grace_seconds=0)


async def everything_deleted_meanwhile(world: World, caller: Caller, path: Path, failpoints: Failpoints) -> None:
    """After the snapshot, before the first blob is copied, all files are deleted for good and swept."""
    async def act(conn: Connection) -> None:
        await delete_and_sweep(world, caller)

    before = backups.bytes_below(world.root)
    failpoints.reset()
    failpoints.arm("backup.list_sequences after", act)
    report = await backups.make(world, path)
    assert failpoints.was_hit
    assert report.missing == (), f"{len(report.missing)} blobs that the snapshot names were removed"
    assert backups.bytes_below(path) == before
    assert backups.bytes_below(world.root) == before, "swept while a backup ran"
    assert await world.housekeeping.sweep(grace_seconds=0) == FILES
    assert backups.bytes_below(world.root) == {}


async def test_what_the_snapshot_names_stays_until_it_is_copied(
        world: World, caller: Caller, path: Path, failpoints: Failpoints) -> None:
    await everything_deleted_meanwhile(world, caller, path, failpoints)


@pytest.mark.mutant("B1", "a backup that does not hold the sweep off")
async def test_backup_that_does_not_hold_the_fences_is_caught(
        world: World, caller: Caller, path: Path, failpoints: Failpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hold_nothing(conn: Connection) -> None:
        pass

    monkeypatch.setattr(queries, "hold_fences", hold_nothing)
    with pytest.raises((AssertionError, BackupError), match="may have been removed|were removed"):
        await everything_deleted_meanwhile(world, caller, path, failpoints)


@pytest.mark.mutant("B2", "a sweep that does not ask whether a backup runs")
async def test_sweep_that_does_not_ask_is_caught(
        world: World, caller: Caller, path: Path, failpoints: Failpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    async def always(conn: Connection) -> bool:
        return True

    monkeypatch.setattr(queries, "may_fence", always)
    with pytest.raises(AssertionError, match="were removed"):
        await everything_deleted_meanwhile(world, caller, path, failpoints)


async def test_two_backups_at_once_go_to_two_folders(world: World, caller: Caller, tmp_path: Path) -> None:
    """And the sweep waits for both, but never for itself."""
    reports = await asyncio.gather(backups.make(world, tmp_path / "a"), backups.make(world, tmp_path / "b"))
    assert [report.copied for report in reports] == [FILES, FILES]
    async with backups.opened(tmp_path / "a"):
        with pytest.raises(BackupError, match="in use by another backup"):
            await backups.make(world, tmp_path / "a")


async def test_sweep_does_not_fence_while_a_backup_holds_it(world: World, caller: Caller) -> None:
    async with queries.fences_held(world.dsn) as hold:
        await delete_and_sweep(world, caller)
        assert await world.observer.fetchval("SELECT count(*) FROM blobs WHERE NOT referable") == 0
        assert len(world.blobs()) == FILES
        assert await hold.release()
        assert not await hold.release()
    assert await world.housekeeping.sweep(grace_seconds=0) == FILES


# --- what goes wrong ---

def cut_off_when_half_is_copied(world: World, loop: asyncio.AbstractEventLoop) -> Any:
    """For `progress`: the server ends the connection that holds the fences; then nothing keeps a sweep back."""
    def progress(tally: Tally) -> None:
        if tally.blobs == FILES // 2:
            asyncio.run_coroutine_threadsafe(end_connections(world), loop).result()

    return progress


async def end_connections(world: World) -> None:
    """End all connections of backups."""
    ended = await world.observer.fetch("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                                       "WHERE datname = current_database() AND application_name LIKE '%backup'")
    assert any(was_there for was_there, in ended)  # the one of the tables may just be ending by itself


async def test_connection_that_is_lost_does_no_harm_if_all_is_there(world: World, caller: Caller, path: Path) -> None:
    async with backups.opened(path) as folder:
        making = Backup(world.dsn, world.root, world.store, folder)
        report = await making.run(progress=cut_off_when_half_is_copied(world, asyncio.get_running_loop()))
    assert (report.copied, report.missing) == (FILES, ())


async def test_connection_that_is_lost_is_told_if_something_is_missing(
        world: World, caller: Caller, path: Path) -> None:
    world.store.path(sorted_keys(world)[-1]).unlink()
    async with backups.opened(path) as folder:
        making = Backup(world.dsn, world.root, world.store, folder)
        with pytest.raises(BackupError, match="the connection to the database was lost .*; run it again"):
            await making.run(progress=cut_off_when_half_is_copied(world, asyncio.get_running_loop()))
        assert folder.names() == []


def sorted_keys(world: World) -> list[Any]:
    """Keys in the order in which they are copied."""
    return sorted(world.blobs(), key=lambda key: (key.hex[-2:], key))


async def test_what_cannot_be_saved_is_named_and_the_rest_is_saved(world: World, caller: Caller, path: Path) -> None:
    gone, folder, flipped, cut, *others = sorted_keys(world)
    good = backups.bytes_below(world.root)
    world.store.path(gone).unlink()
    world.store.path(folder).unlink()
    world.store.path(folder).mkdir()  # the one file that root cannot read
    data = bytearray(good[str(flipped)])
    data[0] ^= 1
    world.store.path(flipped).write_bytes(data)
    world.store.path(cut).write_bytes(good[str(cut)][:-1])
    report = await backups.make(world, path)
    world.store.path(folder).rmdir()
    assert {blob.key: blob.reason for blob in report.missing} == {
        gone: "is missing", folder: "cannot be read: Is a directory",
        flipped: "is damaged: its SHA-256 is another one",
        cut: f"is damaged: it has {len(good[str(cut)]) - 1} bytes instead of {len(good[str(cut)])}"}
    paths = {f"of user-{caller.user_id.hex}: /{number}, version 1" for number in range(FILES)}
    files = [blob.files for blob in report.missing]
    assert len({file for file, in files} & paths) == 4
    assert manifest_of(path, report.snapshot).missing == report.missing
    assert backups.bytes_below(path) == {str(key): good[str(key)] for key in others}
    assert list((path / "incoming").iterdir()) == []
    for key in (gone, folder, flipped, cut):  # mended: the next backup has them too
        world.store.path(key).write_bytes(good[str(key)])
    report = await backups.make(world, path)
    assert (report.copied, report.missing) == (4, ())


async def test_blob_that_was_saved_before_it_was_damaged_is_in_later_backups(
        world: World, caller: Caller, path: Path) -> None:
    good = backups.bytes_below(world.root)
    await backups.make(world, path)
    world.store.path(sorted_keys(world)[0]).write_bytes(b"damaged")
    for verify in (False, True):
        report = await backups.make(world, path, verify=verify)
        assert (report.copied, report.missing) == (0, ())
    assert backups.bytes_below(path) == good


async def test_damage_of_the_pool_is_found_and_mended_by_verify(world: World, caller: Caller, path: Path) -> None:
    good = backups.bytes_below(world.root)
    await backups.make(world, path)
    rotten, cut, *_ = pool(path)
    rotten.write_bytes(rotten.read_bytes()[::-1])
    cut.write_bytes(b"")
    assert (await backups.make(world, path)).copied == 1  # another size is seen at once
    report = await backups.make(world, path, verify=True)
    assert (report.copied, report.missing) == (1, ())
    assert backups.bytes_below(path) == good


async def test_full_disk_is_one_sentence_and_what_is_there_is_kept(
        world: World, caller: Caller, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[NamedBlob] = []
    copied: list[NamedBlob] = []
    real = copying.copy_blob

    def fill_up(blob: NamedBlob, source: Path, draft: Path, *more: Any) -> None:
        begun.append(blob)
        if len(begun) > 5:
            raise OSError(28, "No space left on device", str(draft))
        real(blob, source, draft, *more)
        copied.append(blob)  # not all that were begun: the one that fails stops those still under way

    monkeypatch.setattr("service.storage.backup.copy_blob", fill_up)
    with pytest.raises(BackupError, match=r"cannot be used: No space left on device.* of 12 blobs are there, and the"):
        await backups.make(world, path)
    assert BackupFolder(path).names() == []
    monkeypatch.setattr("service.storage.backup.copy_blob", real)
    assert (await backups.make(world, path)).copied == FILES - len(copied)
    assert len(list((path / "snapshots").iterdir())) == 1


async def test_migration_in_the_middle_is_noticed(
        world: World, caller: Caller, path: Path, failpoints: Failpoints) -> None:
    async def migrate(conn: Connection) -> None:
        await world.observer.execute(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999_x')")

    failpoints.reset()
    failpoints.arm("backup.list_sequences after", migrate)
    try:
        with pytest.raises(BackupError, match="the schema was changed"):
            await backups.make(world, path)
    finally:
        await world.observer.execute("DELETE FROM _yoyo_migration WHERE migration_id = '9999_x'")
    assert BackupFolder(path).names() == []


async def test_database_that_is_not_there_is_one_sentence(world: World, path: Path) -> None:
    async with backups.opened(path) as folder:
        with pytest.raises(Unavailable, match="the database cannot be reached: "):
            await Backup("postgresql:///nothing?host=/nowhere", world.root, world.store, folder).run()


async def test_data_root_of_another_database_is_refused(world: World, caller: Caller, path: Path) -> None:
    marker = world.root / "MARKER"
    right = marker.read_bytes()
    marker.write_text("00000000-0000-4000-8000-000000000000\n")
    try:
        with pytest.raises(BackupError, match="belongs to another database"):
            await backups.make(world, path)
    finally:
        marker.write_bytes(right)


# --- the folder ---

@pytest.mark.parametrize("names", [["notes.txt"], ["blobs"], [".hidden"]])
def test_folder_of_something_else_is_refused(path: Path, names: list[str]) -> None:
    path.mkdir()
    for name in names:
        (path / name).touch()
    with pytest.raises(BackupError, match="neither empty nor a folder of backups"):
        BackupFolder(path).open_to_write()
    assert sorted(os.listdir(path)) == names


def test_folder_of_another_format_is_refused(path: Path) -> None:
    path.mkdir()
    (path / "FORMAT").write_text("file-storage backup 2\n")
    for open_folder in (BackupFolder(path).open_to_write, BackupFolder(path).open_to_read):
        with pytest.raises(BackupError, match="not a folder of backups that this version can use"):
            open_folder()


async def test_old_backups_are_removed_with_what_only_they_name(world: World, caller: Caller, path: Path) -> None:
    names = [(await backups.make(world, path)).snapshot]
    await world.delete(caller, "/0")
    await world.put(caller, "/1", b"another 1")
    for _ in range(2):
        names.append((await backups.make(world, path)).snapshot)
    assert len(pool(path)) == FILES + 1
    (pool(path)[0].parent / "not a key").touch()
    names.append((await backups.make(world, path, keep=3)).snapshot)
    assert BackupFolder(path).names() == names[1:]
    await world.housekeeping.sweep(grace_seconds=0)
    foreign = [file for file in pool(path) if file.name == "not a key"]
    assert len(foreign) == 1
    foreign[0].unlink()
    assert backups.bytes_below(path) == backups.bytes_below(world.root)


async def test_backups_that_lack_something_do_not_push_out_whole_ones(
        world: World, caller: Caller, path: Path) -> None:
    whole = (await backups.make(world, path)).snapshot
    late = (await world.put(caller, "/late", b"late")).file.blob_key
    world.store.path(late).unlink()
    lacking = [(await backups.make(world, path, keep=1)).snapshot for _ in range(2)]
    assert BackupFolder(path).names() == [whole, *lacking]
    world.store.path(late).write_bytes(b"late")
    last = (await backups.make(world, path, keep=1)).snapshot
    assert BackupFolder(path).names() == [last]


@pytest.fixture
async def two(world: World, caller: Caller, path: Path) -> list[str]:
    """Two backups, of which the first names more."""
    first = await backups.make(world, path)
    await world.delete(caller, "/0")
    return [first.snapshot, (await backups.make(world, path)).snapshot]


@pytest.mark.parametrize("file", ["blobs.gz", "manifest.json"])
async def test_nothing_is_removed_if_a_list_cannot_be_trusted(path: Path, two: list[str], file: str) -> None:
    """What looks like garbage may be named by what cannot be read."""
    damaged = path / "snapshots" / two[1] / file
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    async with backups.opened(path) as folder:
        with pytest.raises(BackupError, match="another one|cannot be used"):
            folder.prune(1, made=two[1])
    assert len(pool(path)) == FILES
    assert len(list((path / "snapshots").iterdir())) == 2


async def test_new_backup_stays_though_the_clock_went_back(path: Path, two: list[str]) -> None:
    async with backups.opened(path) as folder:
        assert folder.prune(1, made=two[0]) == (0, 0)
        assert folder.names() == two
        assert folder.prune(1, made=two[1]) == (1, 1)
    assert len(pool(path)) == FILES - 1
