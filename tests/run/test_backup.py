"""The commands `backup` and `restore` beside a service that people use, and what it is like to use the restored one."""

import asyncio
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest

from service.__main__ import main
from service.db.pool import Database
from service.domain.housekeeping import Housekeeping
from service.run.postgres import EmbeddedPostgres
from service.storage.backup import BackupFolder
from service.storage.local import LocalStore
from tests import backups
from tests.client import PASSWORD, Api, new_account
from tests.invariants import check_all
from tests.run.conftest import PROJECT
from tests.stack import Stack

WRITERS = 4
BLOBS_BY_PATH = """
WITH RECURSIVE tree AS (
    SELECT id, '' COLLATE "C" AS path, head_id FROM files WHERE parent_id IS NULL
    UNION ALL
    SELECT files.id, tree.path || '/' || name, files.head_id
    FROM tree JOIN files ON files.parent_id = tree.id AND deleted_at IS NULL
)
SELECT path, blob_id FROM tree JOIN versions ON versions.id = head_id
"""


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The commands change it."""
    mask = os.umask(0o077)
    yield
    os.umask(mask)


def content(path: str, number: int) -> bytes:
    """What is written to a path the n-th time: it tells which, and no two are alike."""
    line = f"{path} {number}\n".encode()
    return line + hashlib.sha256(line).digest() * (number * 37 % 3000)


def number_of(data: bytes) -> int:
    """Which time it was."""
    return int(data.partition(b"\n")[0].rpartition(b" ")[2])


@dataclass
class Load:
    """People who overwrite and delete, and a sweep without grace, as fast as they can."""

    api: Api
    acknowledged: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    removed_blobs: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the context lasts; every request has to succeed."""
        database, store = await Database.open(self.api.stack.dsn, size=2), LocalStore(self.api.stack.root)
        tasks = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]
        tasks.append(asyncio.create_task(self._sweep(Housekeeping(database, store))))
        try:
            yield
            assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await database.close()
            store.close()

    async def _write(self, writer: int) -> None:
        number = 0
        while True:
            number += 1
            await self._put(f"/overwritten/{writer}", number)
            await self._put(f"/deleted/{writer}/{number}", number)
            await self.api.delete(f"/deleted/{writer}/{number}", permanent=True)

    async def _put(self, path: str, number: int) -> None:
        self.sent[path] = number
        await self.api.put(path, content(path, number), expect=None)
        self.acknowledged[path] = number

    async def _sweep(self, housekeeping: Housekeeping) -> None:
        while True:
            self.removed_blobs += await housekeeping.sweep(grace_seconds=0)


async def command(stack: Stack, *arguments: str, **settings: str) -> str:
    """One command of the service; what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", *arguments, cwd=PROJECT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=stack.environment() | {f"FILE_STORAGE_{name}": value for name, value in settings.items()})
    output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b""), errors.decode()
    return output.decode()


async def contents(dsn: str, root: Path) -> dict[str, bytes]:
    """Every current file and its bytes, read from the disk."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(BLOBS_BY_PATH)
    await connection.close()
    return {row["path"]: (root / "blobs" / row["blob_id"].hex[-2:] / str(row["blob_id"])).read_bytes() for row in rows}


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that keeps few former versions: what is overwritten soon leaves the disk."""
    stack = Stack(tmp_path_factory.mktemp("backup") / "data", {"WORKERS": "1", "VERSIONS_KEEP": "2"}).start()
    yield stack
    if stack.process is not None:
        stack.stop()


async def test_backup_under_load_has_every_file_of_one_moment(
        session: aiohttp.ClientSession, own_stack: Stack, server: EmbeddedPostgres, tmp_path: Path) -> None:
    api = await new_account(session, own_stack)
    still = {f"/still/{number}": content(f"/still/{number}", number) for number in range(20)}
    for path, data in still.items():
        await api.put(path, data)
    load = Load(api)
    bounds = []
    async with load.running():
        for _ in range(2):
            before = dict(load.acknowledged)
            await command(own_stack, "backup", str(tmp_path / "backups"))
            bounds.append((before, dict(load.sent)))
    assert load.removed_blobs > 0
    for name, (before, after) in zip(BackupFolder(tmp_path / "backups").names(), bounds, strict=True):
        dsn, root = backups.new_database(server), tmp_path / name
        assert await backups.restore(dsn, root, tmp_path / "backups", name) == 0
        await check_all(dsn, root)
        found = await contents(dsn, root)
        assert {path: data for path, data in found.items() if path.startswith("/still/")} == still
        for path, data in found.items():
            assert data == content(path, number_of(data)), path
            if path.startswith("/overwritten/"):
                assert before.get(path, 0) <= number_of(data) <= after[path], path
        assert {path for path in before if path.startswith("/overwritten/")} <= set(found)


async def log_in(api: Api, stack: Stack) -> None:
    """With the password, in the restored service."""
    api.stack, api.token = stack, ""
    api.token = (await api.call("POST", "/auth/jwt/login", json={"username": api.username, "password": PASSWORD},
                                expect=200)).json["access_token"]


async def test_restored_service_is_the_same_to_its_users(
        session: aiohttp.ClientSession, own_stack: Stack, tmp_path: Path) -> None:
    api = await new_account(session, own_stack)
    for number in range(3):
        await api.put("/папка/файл.txt", f"version {number}".encode(), expect=None)
    await api.put("/gone.txt", b"trash")
    await api.delete("/gone.txt")
    link = (await api.call("POST", "/file/link", json={"path": "/папка"}, expect=201)).json["url"]
    signed = (await api.call("POST", "/file/sign", json={"path": "/папка/файл.txt", "expires_in": 600},
                             expect=201)).json["url"]
    listed, usage = await api.list(), await api.usage()
    trash = (await api.call("GET", "/file/trash", expect=200)).json
    assert own_stack.stop() == 0
    # with the service at rest both commands start the embedded PostgreSQL for themselves
    await command(own_stack, "backup", str(tmp_path / "backups"))
    restored = Stack(tmp_path / "restored", {"WORKERS": "1"})
    output = await command(restored, "restore", str(tmp_path / "backups"))
    assert re.search(r": \d+ rows and (\d+) of \1 blobs; everybody has to log in again\n$", output), output
    try:
        restored.start()
        api.stack = restored
        await api.call("GET", "/auth/me", expect=401)  # the old token
        await log_in(api, restored)
        assert (await api.list(), await api.usage()) == (listed, usage)
        assert (await api.call("GET", "/file/trash", expect=200)).json == trash
        assert (await api.get("/папка/файл.txt")).body == b"version 2"
        path = quote("/папка/файл.txt")
        versions = (await api.call("GET", f"/file/versions?path={path}", expect=200)).json["versions"]
        assert [version["version"] for version in versions] == [3, 2, 1]
        old = await api.call("GET", f"/file/download?path={path}&version=1", expect=200)
        assert old.body == b"version 0"
        anonymous = Api(session, restored)
        assert (await anonymous.call("GET", signed.removeprefix(own_stack.url), expect=200)).body == b"version 2"
        await anonymous.call("GET", link.removeprefix(own_stack.url), expect=200)
        await api.put("/new.txt", b"goes on")
    finally:
        if restored.process is not None:
            restored.stop()


@pytest.mark.parametrize(("arguments", "message"), [
    (["backup", "x", "--keep", "0"], "argument --keep: has to be 1 or more"),
    (["backup"], "the following arguments are required: DIR"),
    (["restore"], "the following arguments are required: DIR"),
])
def test_wrong_arguments_are_refused(
        arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capfd.readouterr().err


def test_failures_are_one_sentence(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    root, path = tmp_path / "data", tmp_path / "backups"
    monkeypatch.setenv("FILE_STORAGE_DATA_ROOT", str(root))
    for name, message in (
            ("backup", f"error: {root}/MARKER cannot be read: No such file or directory; is this the data root, and "
             "did the service ever run on it?\n"),
            ("restore", f"error: {path} is not a folder of backups: No such file or directory\n")):
        assert main([name, str(path)]) == 1
        assert capfd.readouterr().err == message
    assert list(tmp_path.iterdir()) == []
