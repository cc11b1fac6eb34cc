"""What is done beside the requests, each as a process of its own with steps."""

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar
from uuid import UUID

from service.domain.check import Check
from service.domain.housekeeping import Ages, Housekeeping
from service.model import Caller, new_uuid
from service.names import split_path
from service.storage.backup import BackupFolder
from service.storage.inspection import LocalInspector
from tests import backups
from tests.faults.steps import Point, Steps
from tests.faults.sweeper import all_of_upkeep
from tests.invariants import (
    check_all, no_dangling_reference, nothing_removed_before_its_fence, take_snapshot, tree_is_whole, usage_is_the_sum,
    versions_belong_together,
)
from tests.world import World

SECONDS = 120.0
AGED = """
UPDATE files SET deleted_at = deleted_at - interval '2 days' WHERE deleted_at > now() - interval '1 day';
UPDATE versions SET replaced_at = replaced_at - interval '2 days' WHERE replaced_at > now() - interval '1 day';
UPDATE audit SET at = at - interval '2 days';
UPDATE blobs SET unref_since = unref_since - interval '2 days' WHERE unref_since > now() - interval '1 day';
INSERT INTO requests (user_id, key, fingerprint, created_at)
SELECT id, gen_random_uuid()::text, sha256('x'), now() - interval '2 days' FROM users;
INSERT INTO audit (user_id, at, action, outcome) SELECT id, now() - interval '2 days', 'upload', 'ok' FROM users;
INSERT INTO sessions (id, user_id, refresh_sha256, expires_at)
SELECT gen_random_uuid(), id, sha256('x'), now() - interval '1 day' FROM users;
"""
KEPT = {"/kept": b"kept" * 1000, "/below/also": b"also kept" * 10_000}


class Work:
    """One kind of work on a world; there has to be something to do before each time."""

    name: ClassVar[str]
    codes: ClassVar[set[int]]  # with which it may end if the disk fails
    is_command: ClassVar[bool] = True  # whose failures are one sentence
    module: ClassVar[str] = "tests.faults.steps"
    mistake: str = ""

    def __init__(self, world: World, caller: Caller, folder: Path) -> None:
        self.world = world
        self.caller = caller
        self.folder = folder
        self.steps = Steps(folder / "steps")
        self.count = 0

    def fresh(self) -> str:
        """A path where nothing has been."""
        self.count += 1
        return f"/{self.count}"

    def arguments(self) -> list[str]:
        """Of the command."""
        raise NotImplementedError

    async def litter(self) -> None:
        """Make something to do."""
        raise NotImplementedError

    async def finish(self) -> None:
        """Do it again without a fault, and look whether all is as it should be."""
        raise NotImplementedError

    def run(self) -> "subprocess.CompletedProcess[str]":
        """The command."""
        settings = {"STEPS": str(self.folder / "steps"), "FAULTS": self.mistake,
                    "FILE_STORAGE_DATA_ROOT": str(self.world.root),
                    "FILE_STORAGE_DATABASE_URL": self.world.dsn, "FILE_STORAGE_LOG_LEVEL": "error"}
        return subprocess.run([sys.executable, "-m", self.module, *self.arguments()], env=os.environ | settings,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)

    async def points(self) -> list[Point]:
        """The steps of one time, which is not the first."""
        await self.litter()
        await self.finish()
        await self.litter()
        self.steps.record()
        done = await asyncio.to_thread(self.run)
        self.steps.record(is_on=False)
        assert "Traceback" not in done.stderr, done.stderr
        await self.finish()
        return self.steps.points()

    async def kept(self) -> int:
        """How many of the files that nobody changes are not what they were."""
        wrong = 0
        for path, data in KEPT.items():
            try:
                wrong += await self.world.get(self.caller, path) != data
            except OSError:
                wrong += 1
        return wrong


class Sweep(Work):
    """Old trash, old versions, old lines, old requests, sessions that are over, bytes that nothing refers to."""

    name = "housekeeping"
    codes = {0, 1}
    is_command = False
    module = "tests.faults.sweeper"

    def arguments(self) -> list[str]:
        """Everything."""
        return [self.world.dsn, str(self.world.root), "0", "--all"]

    async def litter(self) -> None:
        """Something of each kind."""
        trashed, former, gone = self.fresh(), self.fresh(), self.fresh()
        for path in (trashed, former, former, gone):
            await self.world.put(self.caller, path, os.urandom(100))
        await self.world.files.delete(self.caller, split_path(trashed), permanent=False)
        await self.world.delete(self.caller, gone)
        await self.world.observer.execute(AGED)

    async def finish(self) -> None:
        """Another round has nothing left to do, and nothing is there that should not be."""
        ages = Ages(trash_days=1, versions_days=1, audit_days=1)
        await Housekeeping(self.world.database, self.world.store, ages).run()
        left = await self.world.observer.fetchrow(
            "SELECT (SELECT count(*) FROM files WHERE deleted_at IS NOT NULL), (SELECT count(*) FROM versions WHERE "
            "replaced_at IS NOT NULL), (SELECT count(*) FROM audit WHERE at < now() - interval '1 day'), "
            "(SELECT count(*) FROM requests), (SELECT count(*) FROM sessions WHERE expires_at < now())")
        assert left is not None and set(left) == {0}, left
        await check_all(self.world.dsn, self.world.root)


class Watch(Work):
    """All checks are due, all bytes are to be read back, and what was damaged is whole again."""

    name = "upkeep"
    codes = {0, 1}
    is_command = False
    module = "tests.faults.sweeper"

    def arguments(self) -> list[str]:
        """What one worker of all does."""
        return [self.world.dsn, str(self.world.root), "0", "--upkeep"]

    async def litter(self) -> None:
        """Something of each kind."""
        path = self.fresh()
        await self.world.put(self.caller, path, os.urandom(100))
        key = (await self.world.content.deliver(self.caller, split_path(path))).key
        async with self.world.observer.acquire() as observer:
            await observer.execute("DELETE FROM checks")
            await observer.execute("UPDATE blobs SET verified_at = NULL")
            await observer.execute("INSERT INTO damaged_blobs (blob_id, kind) VALUES ($1, 'digest')", key)

    async def finish(self) -> None:
        """Another time ends what was cut off: all was looked at, and nothing is taken for damaged any more."""
        inspector = LocalInspector(self.world.root)
        try:
            assert await all_of_upkeep(self.world.database, self.world.store, inspector, self.world.dsn)
        finally:
            inspector.close()
        left = await self.world.observer.fetchrow(
            "SELECT (SELECT count(*) FROM damaged_blobs), (SELECT count(*) FROM blobs WHERE verified_at IS NULL)")
        assert left is not None and set(left) == {0}, left
        done = {row["name"] for row in await self.world.observer.fetch("SELECT name FROM checks")}
        assert done == {"leftovers", "walk", "sizes", "rows"}, done
        await check_all(self.world.dsn, self.world.root)


class Repair(Work):
    """Blobs that are damaged or gone, files without a row, wrong sums, wrong marks, bytes set aside by mistake."""

    name = "check --repair"
    codes = {1, 2}

    def __init__(self, world: World, caller: Caller, folder: Path) -> None:
        super().__init__(world, caller, folder)
        self._good: dict[Path, bytes] = {}

    def arguments(self) -> list[str]:
        """As an operator would."""
        return ["check", "--repair"]

    async def litter(self) -> None:
        """Something of each kind; what was in quarantine has been there for long."""
        paths = []
        for _ in range(3):
            path = self.world.store.path((await self.world.content.deliver(self.caller, split_path(
                await self._stored()))).key)
            paths.append(path)
        damaged, missing, aside = paths
        self._good = {path: path.read_bytes() for path in (damaged, missing)}
        damaged.write_bytes(os.urandom(100))
        missing.unlink()
        (self.world.root / "quarantine").mkdir(exist_ok=True)
        aside.rename(self.world.root / "quarantine" / aside.name)
        stray = new_uuid()
        self.world.root.joinpath("blobs", stray.hex[-2:], str(stray)).write_bytes(b"stray")
        self.world.root.joinpath("staging", str(new_uuid())).write_bytes(b"left")
        async with self.world.observer.acquire() as observer:
            await observer.execute("UPDATE strays SET quarantined_at = now() - interval '9 days'")
            await observer.execute("INSERT INTO strays (blob_id, size_bytes, first_seen_at) "
                                   "VALUES ($1, 5, now() - interval '2 days')", stray)
            await observer.execute("UPDATE users SET files_bytes = files_bytes + 7")
            await observer.execute("UPDATE blobs SET unref_since = now() WHERE referable")

    async def _stored(self) -> str:
        path = self.fresh()
        await self.world.put(self.caller, path, os.urandom(100))
        return path

    async def _check(self) -> dict[str, bool]:
        """Each kind of finding, and whether all of them were repaired."""
        inspector = LocalInspector(self.world.root)
        try:
            report = await Check(self.world.database, inspector, settle_seconds=0, leftover_seconds=0).run(repairs=True)
        finally:
            inspector.close()
        found: dict[str, bool] = {}
        for finding in report.findings:
            found[finding.kind] = found.get(finding.kind, True) and finding.is_repaired
        return found

    async def finish(self) -> None:
        """All is repaired but what has to come from a backup; once that is there again, nothing is found any more."""
        found = await self._check()
        open_ones = {kind for kind, is_repaired in found.items() if not is_repaired}
        # what was damaged is in quarantine, and missing from then on
        assert "missing" in open_ones and open_ones <= {"missing", "size", "digest"}, found
        for path, data in self._good.items():
            assert not path.exists()
            path.write_bytes(data)
        found = await self._check()
        assert all(found.values()), found
        assert await self._check() == {}
        now = await take_snapshot(self.world.dsn, self.world.root)
        for holds in (tree_is_whole, versions_belong_together, no_dangling_reference, nothing_removed_before_its_fence,
                      usage_is_the_sum):
            holds(now)
        # what was set aside has its fence for as long as it is kept
        aside = {UUID(path.name) for path in (self.world.root / "quarantine").iterdir()}
        assert set(now.blobs) - {version["blob_id"] for version in now.versions} <= aside
        assert self.world.staged() == []


class Backup(Work):
    """A snapshot with something new in it; those before the last two go."""

    name = "backup"
    codes = {0, 1, 3}

    @property
    def path(self) -> Path:
        """Where backups are."""
        return self.folder / "backups"

    def arguments(self) -> list[str]:
        """As an operator would every night."""
        return ["backup", str(self.path), "--keep", "2"]

    async def litter(self) -> None:
        """New bytes, and some that only older snapshots name."""
        path = self.fresh()
        await self.world.put(self.caller, path, os.urandom(200_000))
        await self.world.put(self.caller, path, os.urandom(100))
        await self.world.delete(self.caller, path)
        for _ in range(3):
            await self.world.put(self.caller, self.fresh(), os.urandom(100))

    async def finish(self) -> None:
        """What calls itself a backup is whole; so is the next one, and removals go on."""
        self._look_at_all()
        report = await backups.make(self.world, self.path, keep=2)
        assert report.missing == ()
        self._look_at_all()
        await check_all(self.world.dsn, self.world.root)
        there, saved = backups.bytes_below(self.world.root), backups.bytes_below(self.path)
        assert {key: saved.get(key) for key in there} == there

    def _look_at_all(self) -> None:
        folder = BackupFolder(self.path)
        for name in folder.names():
            snapshot = folder.snapshot(name)
            snapshot.verify()
            for blob in snapshot.blobs():
                assert hashlib.sha256(folder.place(blob).read_bytes()).digest() == blob.sha256, f"{name} is not whole"
