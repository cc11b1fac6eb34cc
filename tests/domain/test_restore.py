"""What comes back from a backup is what was there; a restore that died is gone on with, and nothing starts before."""

import asyncio
import errno
import gzip
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import pytest

from service.db.instance import get_epoch
from service.domain import restore as restoring
from service.domain.restore import Restore
from service.run import backup as command, migrate
from service.run.folders import locked
from service.run.migrate import MigrationError
from service.run.postgres import EmbeddedPostgres
from service.run.processes import StartError
from service.storage import copying
from service.storage.backup import BackupFolder
from service.storage.base import StoreError
from service.storage.copying import NamedBlob
from service.storage.local import LocalStore
from service.storage.snapshots import BackupError
from tests import backups, databases
from tests.invariants import check_all
from tests.killed import Step, run_killed
from tests.world import World, open_world

LACKS_SOMETHING = 3


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The commands change it."""
    mask = os.umask(0o077)
    yield
    os.umask(mask)


@dataclass(frozen=True)
class Saved:
    """A full world that nobody changes any more, and a backup of it, which no test may change either."""

    dsn: str
    root: Path
    path: Path
    rows: dict[str, list[tuple[Any, ...]]]
    blobs: dict[str, bytes]

    @property
    def name(self) -> str:
        """That of the snapshot."""
        return BackupFolder(self.path).names()[0]


@pytest.fixture(scope="module")
def saved(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Made once, since it takes its time."""
    folder = tmp_path_factory.mktemp("saved")
    dsn = databases.make_shared(postgres, "saved")

    async def work() -> Saved:
        async with open_world(dsn, folder / "data") as world:
            (world.root / "address_secret").write_text("x" * 64)
            await backups.fill(world)
            await backups.make(world, folder / "backups")
            await check_all(dsn, world.root)
            return Saved(dsn, world.root, folder / "backups", await backups.everything(dsn),
                         backups.bytes_below(folder / "backups"))

    return asyncio.run(work())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder of backups."""
    return tmp_path / "backups"


@pytest.fixture
def copied(saved: Saved, path: Path) -> Path:
    """The backup again, to be changed."""
    shutil.copytree(saved.path, path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where to restore to."""
    return tmp_path / "restored"


@pytest.fixture
def target(postgres: EmbeddedPostgres) -> str:
    """An empty database."""
    return backups.new_database(postgres)


def part(path: Path, file: str) -> Path:
    """A file of the only snapshot."""
    [found] = path.glob(f"snapshots/*/{file}")
    return found


def flip(file: Path) -> None:
    """Damage one bit."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


async def epoch_of(dsn: str) -> UUID:
    """Which database it is."""
    connection = await asyncpg.connect(dsn)
    try:
        return await get_epoch(connection)
    finally:
        await connection.close()


# --- all comes back ---

async def test_everything_comes_back(saved: Saved, root: Path, target: str) -> None:
    assert await backups.restore(target, root, saved.path) == 0
    assert await backups.everything(target) == saved.rows
    assert backups.bytes_below(root) == saved.blobs
    assert all(len(saved.rows[table]) > 1 for table in ("users", "files", "versions", "blobs", "links", "audit"))
    await check_all(target, root)
    assert (root / "address_secret").read_text() == "x" * 64
    assert stat.S_IMODE((root / "address_secret").stat().st_mode) == 0o600
    epoch = await epoch_of(target)
    assert (root / "MARKER").read_text() == f"{epoch}\n"
    # the old data root and the new database never mix
    for folder, dsn in ((saved.root, target), (root, saved.dsn)):
        with pytest.raises(StoreError, match="belongs to another database"):
            LocalStore(folder).open(await epoch_of(dsn))
    # and the service goes on: with new numbers in the trail, and without the old sessions
    async with open_world(target, root) as restored:
        caller = await restored.new_caller()
        await restored.put(caller, "/new", b"new")
        await restored.observer.execute("INSERT INTO audit (user_id, action, outcome) VALUES ($1, 'login', 'ok')",
                                        caller.user_id)
        open_sessions = await restored.observer.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL")
    assert open_sessions == 0, "a session that was ended after the backup would be open again"
    await check_all(target, root)


async def test_any_snapshot_can_be_chosen(world: World, path: Path, root: Path, target: str) -> None:
    await world.put(await world.new_caller(), "/file", b"file")
    before = await backups.everything(world.dsn)
    made = (await backups.make(world, path)).snapshot
    await world.put(await world.new_caller(), "/later", b"later")
    later = (await backups.make(world, path)).snapshot
    with pytest.raises(BackupError, match=f"no snapshot yesterday in .*; there are: {made}, {later}"):
        BackupFolder(path).snapshot("yesterday")
    assert await backups.restore(target, root, path, made) == 0
    assert await backups.everything(target) == before


async def test_read_only_backup_can_be_restored(
        saved: Saved, root: Path, target: str) -> None:
    """Nothing is written to it."""
    def state() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in saved.path.rglob("*")}

    before = state()
    assert await backups.restore(target, root, saved.path) == 0
    assert state() == before


# --- other versions of the service ---

def use_migrations(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The schema of another version."""
    for function in (migrate.apply, migrate.rollback, migrate.renew, migrate.read):
        monkeypatch.setattr(function, "__defaults__", (folder,))


def add_migration(folder: Path) -> None:
    """What a later version brings: tables that need each other, sequences, what is computed, rows of its own."""
    shutil.copytree(migrate.FOLDER, folder)
    (folder / "9999_later.sql").write_text("""
        -- depends: 0001_users
        CREATE SEQUENCE "Odd Numbers" INCREMENT BY 2;
        CREATE TABLE b (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, twice bigint GENERATED ALWAYS AS (odd * 2)
            STORED, odd bigint DEFAULT nextval('"Odd Numbers"'), user_id uuid REFERENCES users,
            parent_id bigint REFERENCES b);
        CREATE TABLE a (id serial PRIMARY KEY, b_id bigint NOT NULL REFERENCES b);
        ALTER TABLE b ADD COLUMN a_id int REFERENCES a DEFERRABLE;
        INSERT INTO b DEFAULT VALUES;
        INSERT INTO a (b_id) SELECT id FROM b;
        UPDATE b SET a_id = 1;""")
    (folder / "9999_later.rollback.sql").write_text("""
        ALTER TABLE b DROP COLUMN a_id; DROP TABLE a; DROP TABLE b; DROP SEQUENCE "Odd Numbers";""")


async def test_tables_that_a_later_version_brings_are_not_forgotten(
        postgres: EmbeddedPostgres, path: Path, root: Path, target: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    add_migration(tmp_path / "migrations")
    use_migrations(monkeypatch, tmp_path / "migrations")
    source = backups.new_database(postgres)
    migrate.apply(source)
    async with open_world(source, tmp_path / "data") as world:
        await world.new_caller()
        for _ in range(3):
            await world.observer.execute("INSERT INTO b (user_id, parent_id) SELECT id, 1 FROM users")
        await backups.make(world, path)
    assert await backups.restore(target, root, path) == 0
    assert await backups.everything(target) == await backups.everything(source)
    connection = await asyncpg.connect(target)
    [row] = await connection.fetch("INSERT INTO b DEFAULT VALUES RETURNING id, odd, twice")
    await connection.close()
    assert tuple(row) == (5, 9, 18)


async def test_backup_of_an_earlier_version_is_migrated(
        saved: Saved, root: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_migration(tmp_path / "migrations")
    use_migrations(monkeypatch, tmp_path / "migrations")
    assert await backups.restore(target, root, saved.path) == 0
    after = await backups.everything(target)
    assert len(after.pop("a")) == len(after.pop("b")) == 1
    assert after == saved.rows
    assert all(is_applied for _, is_applied in migrate.status(target, tmp_path / "migrations"))


async def test_backup_of_a_later_version_is_refused(
        saved: Saved, root: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = migrate.read()[-1].id
    earlier = tmp_path / "migrations"
    shutil.copytree(migrate.FOLDER, earlier)
    for file in earlier.glob(f"{last}.*"):
        file.unlink()
    use_migrations(monkeypatch, earlier)
    with pytest.raises(MigrationError, match=f"the backup is newer than this version .* {last}"):
        await backups.restore(target, root, saved.path)
    assert not root.exists()


def test_tables_are_filled_after_those_that_they_need() -> None:
    in_order = restoring._in_order
    assert in_order(["a", "b", "c"], [("a", "b"), ("b", "c")]) == ["c", "b", "a"]
    with pytest.raises(BackupError, match="need each other at once"):
        in_order(["a", "b"], [("a", "b"), ("b", "a")])


# --- what was altered or is damaged ---

@pytest.mark.parametrize("file", ["manifest.json", "blobs.gz", "tables/files.gz", "secrets/address_secret"])
@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flipped", "gone"])
async def test_damaged_part_is_found_before_anything_is_touched(
        copied: Path, root: Path, target: str, file: str, damage: Callable[[Path], None],
        capfd: pytest.CaptureFixture[str]) -> None:
    damage(part(copied, file))
    assert await backups.restore(target, root, copied) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert ("there is no finished backup" if (file, damage) == ("manifest.json", Path.unlink) else file.split(".")[0]
            ) in errors
    assert not root.exists()


async def test_manifest_whose_digests_were_made_to_fit_is_refused_by_the_database(
        copied: Path, root: Path, target: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A row was taken out of a table, and others refer to it."""
    snapshot = BackupFolder(copied).snapshot()
    [table] = [table for table in snapshot.manifest.tables if table.name == "blobs"]
    data = gzip.compress(b"".join(snapshot.rows(table)).partition(b"\n")[2])
    (snapshot.folder / table.file).write_bytes(data)
    changed = table.model_copy(update={"rows": table.rows - 1, "size_bytes": len(data),
                                       "sha256": hashlib.sha256(data).hexdigest()})
    tables = tuple(changed if found is table else found for found in snapshot.manifest.tables)
    manifest = snapshot.manifest.model_copy(update={"tables": tables})
    (snapshot.folder / "manifest.json").write_bytes(manifest.to_json())
    assert await backups.restore(target, root, copied) == 1
    assert "violates foreign key constraint" in capfd.readouterr().err
    assert (await backups.everything(target))["users"] == []
    with pytest.raises(StoreError, match="did not end"):
        LocalStore(root).open(await epoch_of(target))


async def test_file_that_cannot_be_unpacked_is_one_sentence(copied: Path) -> None:
    snapshot = BackupFolder(copied).snapshot()
    for file in (part(copied, "blobs.gz"), part(copied, "tables/files.gz")):
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BackupError, match="blobs.gz cannot be unpacked"):
        list(snapshot.blobs())
    with pytest.raises(BackupError, match="files.gz cannot be unpacked"):
        list(snapshot.rows(next(table for table in snapshot.manifest.tables if table.name == "files")))


async def test_full_disk_is_one_sentence_and_the_next_try_goes_on(
        saved: Saved, root: Path, target: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
        ) -> None:
    real = copying.copy_blob
    there: list[NamedBlob] = []

    def fill_up(blob: NamedBlob, source: Path, draft: Path, place: Path, stop: threading.Event) -> None:
        if len(there) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(draft))
        there.append(blob)
        real(blob, source, draft, place, stop)

    monkeypatch.setattr("service.storage.restoring.copy_blob", fill_up)
    monkeypatch.setattr("service.domain.restore.COPIERS", 1)
    assert await backups.restore(target, root, saved.path) == 1
    assert capfd.readouterr().err == (
        f"error: the data root cannot be used: No space left on device; 5 of {len(saved.blobs)} blobs are there, and "
        "the next try goes on with them\n")
    monkeypatch.setattr("service.storage.restoring.copy_blob", real)
    assert await backups.restore(target, root, saved.path) == 0
    assert backups.bytes_below(root) == saved.blobs


async def test_database_that_is_not_there_is_one_sentence(saved: Saved, path: Path, root: Path) -> None:
    nowhere = "postgresql:///nothing?host=/nowhere"
    with pytest.raises(StartError, match=r"\Athe database cannot be reached: .*\Z"):
        await backups.restore(nowhere, root, saved.path)
    assert not (root / "MARKER").exists()
    with pytest.raises(StartError, match=r"\Athe database cannot be reached: .*\Z"):
        await asyncio.to_thread(command.backup, backups.config(nowhere, saved.root), path)


async def test_damaged_blobs_are_named_and_all_others_restored(
        saved: Saved, copied: Path, root: Path, target: str, capfd: pytest.CaptureFixture[str]) -> None:
    flipped, gone, *_ = [file for file in sorted(copied.glob("blobs/*/*")) if file.stat().st_size]
    flip(flipped)
    gone.unlink()
    assert await backups.restore(target, root, copied) == LACKS_SOMETHING
    errors = capfd.readouterr().err
    assert f"error: blob {flipped.name} " in errors and "its SHA-256 is another one" in errors
    assert f"error: blob {gone.name} " in errors and "it is missing" in errors
    for key in (flipped.name, gone.name):
        assert f"error: the check says: missing: {key}: " in errors
    assert "    of user-" in errors
    assert await backups.everything(target) == saved.rows
    assert backups.bytes_below(root) == {
        key: data for key, data in saved.blobs.items() if key not in (flipped.name, gone.name)}


# --- where it may go ---

async def test_data_root_that_is_not_empty_is_refused(
        saved: Saved, root: Path, target: str, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "blobs" / "00").mkdir(parents=True)
    (root / "blobs" / "00" / "file").touch()
    assert await backups.restore(target, root, saved.path) == 1
    assert capfd.readouterr().err == (f"error: the data root {root} is not empty, there is blobs/00/file; a restore "
                                      "needs an empty one\n")
    assert await backups.restore(target, saved.root, saved.path) == 1
    assert "is not empty, there is" in capfd.readouterr().err
    assert not (root / "MARKER").exists()


async def test_data_root_in_use_is_refused(saved: Saved, root: Path, target: str) -> None:
    with locked(root), pytest.raises(StartError, match="in use by another service"):
        await backups.restore(target, root, saved.path)


async def test_database_with_accounts_is_refused(
        saved: Saved, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert await backups.restore(saved.dsn, root, saved.path) == 1
    assert capfd.readouterr().err == "error: the database has accounts in it; a restore needs an empty one\n"
    assert await backups.everything(saved.dsn) == saved.rows
    assert not (root / "MARKER").exists()


async def test_database_of_something_else_is_refused(
        saved: Saved, root: Path, target: str, capfd: pytest.CaptureFixture[str]) -> None:
    connection = await asyncpg.connect(target)
    await connection.execute("CREATE TABLE theirs (x int)")
    await connection.close()
    assert await backups.restore(target, root, saved.path) == 1
    assert capfd.readouterr().err == ("error: the database has tables of something else (theirs); a restore needs an "
                                      "empty one\n")
    assert not (root / "MARKER").exists()


ACCOUNT = "INSERT INTO users (id, username, password_hash) VALUES (gen_random_uuid(), 'somebody', 'x')"


def sign_up(dsn: str) -> None:
    """What the first person to find a new service does."""
    migrate.apply(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute(ACCOUNT)


@pytest.mark.parametrize(("owner", "name"), [(Restore, "copy_blobs"), (migrate, "renew")])
async def test_account_that_comes_while_a_restore_is_under_way_stays(
        saved: Saved, root: Path, target: str, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> None:
    """In the hours in which bytes are copied, or in the moment in which there is a schema without rows."""
    real = getattr(owner, name)

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, real)
            sign_up(target)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, overtaken)
        assert await backups.restore(target, root, saved.path) == 1
    assert capfd.readouterr().err == "error: the database has accounts in it; a restore needs an empty one\n"
    assert [dict(row)["username"] for row in (await backups.everything(target))["users"]] == ["somebody"]


async def test_database_of_a_service_that_runs_is_refused(
        saved: Saved, root: Path, target: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Though nobody has an account there yet: soon somebody would, in the restored database."""
    migrate.apply(target)
    async with open_world(target, tmp_path / "data"):
        before = await epoch_of(target)
        assert await backups.restore(target, root, saved.path) == 1
        assert capfd.readouterr().err == "error: a service is connected to the database; a restore needs it stopped\n"
        assert await epoch_of(target) == before
    assert not (root / "MARKER").exists()
    assert await backups.restore(target, root, saved.path) == 0


async def test_database_that_a_new_service_has_migrated_is_as_good_as_empty(
        saved: Saved, root: Path, target: str) -> None:
    migrate.apply(target)
    assert await backups.restore(target, root, saved.path) == 0
    assert await backups.everything(target) == saved.rows


async def test_backup_and_data_root_have_to_be_apart(
        saved: Saved, capfd: pytest.CaptureFixture[str]) -> None:
    for place in (saved.root, saved.root / "backups", saved.root.parent):
        assert await asyncio.to_thread(command.backup, backups.config(saved.dsn, saved.root), place) == 1
        assert "have to be apart" in capfd.readouterr().err


# --- killed ---

STEPS_OF_A_BACKUP = [
    Step("service.storage.backup:write_durably"),  # of FORMAT
    Step("service.storage.backup:write_durably", 2),  # of its id
    Step("service.storage.known:write_durably"),
    Step("service.storage.backup:BackupFolder.begin"),
    Step("service.storage.snapshots:PartWriter.finish", 5),
    Step("service.storage.backup:copy_blob", 4),
    Step("service.storage.copying:os.replace", 5),
    Step("service.storage.backup:BackupFolder.seal"),
    Step("service.storage.backup:write_durably"),  # of the manifest
]
STEPS_AFTER_IT = [
    Step("service.storage.snapshots:shutil.rmtree"), Step("service.storage.snapshots:Snapshot.remove", 2),
    Step("service.storage.backup:_Walk.enter"), Step("service.storage.backup:_Walk.enter", 128),
]
STEPS_OF_A_RESTORE = [
    Step("service.storage.restoring:write_durably"),  # of the mark
    Step("service.storage.restoring:copy_blob", 5),
    Step("service.storage.copying:os.replace", 6),
    Step("service.run.migrate:Backend.apply_one", 4),
    Step("service.db.backup:copy_in", 4),
    Step("service.db.backup:set_epoch"),
    Step("service.domain.restore:Restore.finish"),  # all is loaded
    Step("service.storage.restoring:RestoredRoot.finish"),
]


async def test_backup_killed_at_any_step_is_gone_on_with(saved: Saved, path: Path, root: Path, target: str) -> None:
    settings = backups.config(saved.dsn, saved.root)
    done = 0
    for step in STEPS_OF_A_BACKUP:
        await asyncio.to_thread(run_killed, step, command.backup, settings, path)
        assert BackupFolder(path).names() == [], step
        found = backups.bytes_below(path)
        assert len(found) >= done, f"what was copied is gone: {step}"
        done = len(found)
    assert await asyncio.to_thread(command.backup, settings, path) == 0
    assert len(list((path / "snapshots").iterdir())) == len(BackupFolder(path).names()) == 1
    assert backups.bytes_below(path) == saved.blobs and done == len(saved.blobs)
    assert await backups.restore(target, root, path) == 0
    assert await backups.everything(target) == saved.rows


async def test_removal_of_old_backups_killed_at_any_step_harms_no_newer_one(world: World, path: Path) -> None:
    settings = backups.config(world.dsn, world.root)
    caller = await world.new_caller()
    for step in STEPS_AFTER_IT:
        for _ in range(2):
            await world.put(caller, "/changes", os.urandom(10))
            await backups.make(world, path)
        await asyncio.to_thread(run_killed, step, command.backup, settings, path, keep=1)
        last = BackupFolder(path).snapshot()
        last.verify()
        for blob in last.blobs():
            assert hashlib.sha256(BackupFolder(path).place(blob).read_bytes()).digest() == blob.sha256, step
    report = await backups.make(world, path, keep=1)
    assert BackupFolder(path).names() == [report.snapshot]
    assert len(backups.bytes_below(path)) == report.blobs == 1


async def test_restore_killed_at_any_step_is_gone_on_with(saved: Saved, root: Path, target: str) -> None:
    settings = backups.config(target, root)
    for step in STEPS_OF_A_RESTORE:
        await asyncio.to_thread(run_killed, step, command.restore, settings, saved.path)
        if (root / "MARKER").exists():
            with pytest.raises(StoreError, match="the restore of a backup into .* did not end; run it again"):
                LocalStore(root).open(await epoch_of(saved.dsn))
    assert await backups.restore(target, root, saved.path) == 0
    assert await backups.everything(target) == saved.rows
    await check_all(target, root)
    LocalStore(root).open(await epoch_of(target))


async def test_other_snapshot_cannot_be_mixed_in(
        saved: Saved, copied: Path, root: Path, target: str, capfd: pytest.CaptureFixture[str]) -> None:
    step = Step("service.storage.restoring:copy_blob", 3)
    await asyncio.to_thread(run_killed, step, command.restore, backups.config(target, root), copied)
    assert await asyncio.to_thread(command.backup, backups.config(saved.dsn, saved.root), copied) == 0
    assert await backups.restore(target, root, copied) == 1
    assert f"a restore of the snapshot {saved.name} into {root} has begun" in capfd.readouterr().err
    assert await backups.restore(target, root, copied, saved.name) == 0
