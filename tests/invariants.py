"""What has to hold after whatever happened (reliability notes, 3.1); each function names the invariant that it checks.

Every one looks for itself, the slow way: none trusts a query, a constraint or a counter of the service.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg

from service.db.pool import Database
from service.domain.housekeeping import Housekeeping
from service.names import check_name
from service.storage.local import LocalStore


@dataclass(frozen=True)
class Snapshot:
    """All rows of one moment, and the files that lay on the disk after it."""

    users: Sequence[asyncpg.Record]
    files: dict[UUID, asyncpg.Record]
    versions: Sequence[asyncpg.Record]
    blobs: dict[UUID, asyncpg.Record]
    on_disk: dict[UUID, Path]

    def sizes(self) -> dict[tuple[UUID, str], int]:
        """What each account holds, counted version by version: of files, of the trash, of former versions."""
        sums: dict[tuple[UUID, str], int] = defaultdict(int)
        for version in self.versions:
            file = self.files[version["file_id"]]
            is_current = file["head_id"] == version["id"]
            kind = "trash" if not self.is_live(file["id"]) else "files" if is_current else "versions"
            sums[file["user_id"], kind] += self.blobs[version["blob_id"]]["size_bytes"]
        return sums

    def is_live(self, file_id: UUID) -> bool:
        """Whether nothing from there up to the root is in the trash."""
        file = self.files[file_id]
        while file["deleted_at"] is None:
            if file["parent_id"] is None:
                return True
            file = self.files[file["parent_id"]]
        return False


async def take_snapshot(dsn: str, root: Path) -> Snapshot:
    """Everything, as of one moment."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            users, files, versions, blobs = [await connection.fetch(f"SELECT * FROM {table}")
                                             for table in ("users", "files", "versions", "blobs")]
    finally:
        await connection.close()
    return Snapshot(users=users, files={row["id"]: row for row in files}, versions=versions,
                    blobs={row["id"]: row for row in blobs},
                    on_disk={UUID(file.name): file for file in (root / "blobs").glob("*/*")})


def no_dangling_reference(now: Snapshot) -> None:
    """I4: what a version refers to is on the disk, whole: right size, right digest, right place, one name."""
    for version in now.versions:
        blob = now.blobs[version["blob_id"]]
        assert blob["referable"], f"version {version['id']} refers to a fenced blob"
        path = now.on_disk.get(blob["id"])
        assert path is not None, f"the bytes of version {version['id']} are gone"
        assert path.parent.name == str(blob["id"])[-2:]
        data = path.read_bytes()
        assert len(data) == blob["size_bytes"], f"blob {blob['id']} has another size"
        assert hashlib.sha256(data).digest() == blob["sha256"], f"blob {blob['id']} has other bytes"


def nothing_removed_before_its_fence(now: Snapshot) -> None:
    """I6: a row that may be referred to has its bytes; one that is fenced has no reference."""
    referred = {version["blob_id"] for version in now.versions}
    for blob in now.blobs.values():
        assert not blob["referable"] or blob["id"] in now.on_disk, f"blob {blob['id']} was removed without a fence"
        assert blob["referable"] or blob["id"] not in referred, f"blob {blob['id']} was fenced under a reference"


def usage_is_the_sum(now: Snapshot) -> None:
    """I7: the counters are what counting gives, and within the quota."""
    sums = now.sizes()
    for user in now.users:
        for kind in ("files", "trash", "versions"):
            counted = sums[user["id"], kind]
            assert user[f"{kind}_bytes"] == counted, f"{kind}_bytes says {user[f'{kind}_bytes']}, counted {counted}"
        count = sum(file["user_id"] == user["id"] and not file["is_folder"] and now.is_live(file["id"])
                    for file in now.files.values())
        assert user["file_count"] == count, f"file_count says {user['file_count']}, counted {count}"
        used = user["files_bytes"] + user["trash_bytes"] + user["versions_bytes"]
        assert user["quota_bytes"] is None or used <= user["quota_bytes"], f"{used} bytes are beyond the quota"


def tree_is_whole(now: Snapshot) -> None:
    """I8: everything reaches the root of its account through folders, in no circle; live names are unique and NFC."""
    roots = [file["id"] for file in now.files.values() if file["parent_id"] is None]
    assert sorted(roots) == sorted(user["id"] for user in now.users), "an account has not exactly its own root"
    names = set()
    for file in now.files.values():
        at, steps = file, 0
        while at["parent_id"] is not None:
            above = now.files[at["parent_id"]]
            assert above["is_folder"] and above["user_id"] == file["user_id"], f"{file['id']} is in a wrong place"
            assert check_name(at["name"]) == at["name"], f"the name {at['name']!r} is not as it should be"
            at, steps = above, steps + 1
            assert steps <= len(now.files), f"{file['id']} is in a circle"
        assert at["id"] == at["user_id"] == file["user_id"] and at["name"] == "" and at["deleted_at"] is None
        if file["deleted_at"] is None and file["parent_id"] is not None:
            assert (file["parent_id"], file["name"]) not in names, f"two files are called {file['name']!r}"
            names.add((file["parent_id"], file["name"]))


def versions_belong_together(now: Snapshot) -> None:
    """Each file has its current version among its own, its numbers are distinct, and none is newer than the current."""
    of_file = defaultdict(list)
    for version in now.versions:
        of_file[version["file_id"]].append(version)
    for file in now.files.values():
        own = of_file.pop(file["id"], [])
        if file["is_folder"]:
            assert file["head_id"] is None and own == []
            continue
        numbers = {version["id"]: version["number"] for version in own}
        assert file["head_id"] in numbers, f"file {file['id']} has no current version"
        assert numbers[file["head_id"]] == max(numbers.values()) and len(set(numbers.values())) == len(numbers)
    assert not of_file


def garbage_is_bounded(now: Snapshot, root: Path, *, strays: int, set_aside: int) -> None:
    """I5: after a sweep every row is referred to, every file on the disk has its row, nothing is on its way.

    `strays` is how many files without a row a test has caused: bytes of uploads whose end nobody could know.
    `set_aside` is how many files a test has had moved to quarantine, where none comes by a request.
    """
    referred = {version["blob_id"] for version in now.versions}
    assert set(now.blobs) == referred, f"{len(set(now.blobs) - referred)} blobs are referred to by nothing"
    stray = set(now.on_disk) - set(now.blobs)
    assert len(stray) == strays, f"{len(stray)} files have no row"
    for folder in ("staging", "spool"):
        left = [file for file in (root / folder).rglob("*") if not file.is_dir() and file.name != "nginx.pid"]
        assert left == [], f"{len(left)} files were left in {folder}"
    aside = [file for file in (root / "quarantine").rglob("*") if not file.is_dir()]
    assert len(aside) == set_aside, f"{len(aside)} files are in quarantine"


async def sweep(dsn: str, root: Path) -> int:
    """What housekeeping does, without waiting; how much it has removed."""
    database, store = await Database.open(dsn, size=2), LocalStore(root)
    try:
        return await Housekeeping(database, store).sweep(grace_seconds=0)
    finally:
        await database.close()
        store.close()


async def check_all(dsn: str, root: Path, *, strays: int = 0, set_aside: int = 0) -> None:
    """All of them, before a sweep and after it; nothing may be under way."""
    for is_swept in (False, True):
        if is_swept:
            await sweep(dsn, root)
        now = await take_snapshot(dsn, root)
        tree_is_whole(now)
        versions_belong_together(now)
        no_dangling_reference(now)
        nothing_removed_before_its_fence(now)
        usage_is_the_sum(now)
    garbage_is_bounded(now, root, strays=strays, set_aside=set_aside)
