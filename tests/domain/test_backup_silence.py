"""A server, or a way to it, that says nothing any more, and does not say that either: no backup waits for it for ever.

It would keep its folder, and with that each later backup away.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.db import backup as queries
from service.db.backup import Table
from service.db.pool import Connection
from service.domain.backup import Backup, Report, Tally
from service.errors import Unavailable
from service.model import BlobKey
from service.storage.backup import BackupFolder
from service.storage.snapshots import BackupError
from tests import backups
from tests.domain.commit_proxy import CommitProxy, open_proxy
from tests.domain.failpoints import Failpoints
from tests.world import World

DEADLINE_SECONDS = 20.0  # for a broken run, not a measurement
Copy = Callable[[Connection, Table, queries.Sink], Awaitable[int]]


@dataclass
class Way:
    """A world whose backups reach the database through a proxy."""

    world: World
    proxy: CommitProxy
    address: str
    path: Path
    key: BlobKey

    async def save(self, *, is_silent_after_the_dump: bool = False) -> Report:
        """A backup; TimeoutError if it takes for ever."""
        loop = asyncio.get_running_loop()

        def progress(tally: Tally) -> None:
            if is_silent_after_the_dump:
                loop.call_soon_threadsafe(self.proxy.swallow)

        async with asyncio.timeout(DEADLINE_SECONDS), backups.opened(self.path) as folder:
            return await Backup(self.address, self.world.root, self.world.store, folder).run(progress=progress)


@pytest.fixture
async def way(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Way]:
    """With a file, and little patience."""
    key = (await world.put(await world.new_caller(), "/file", b"bytes")).file.blob_key
    async with open_proxy(world.dsn) as (proxy, address):
        for name, seconds in (("STAY_SECONDS", 0.05), ("ANSWER_SECONDS", 0.2), ("SILENCE_SECONDS", 1.0),
                              ("LOOK_SECONDS", 0.05), ("CONNECT_SECONDS", 1.0)):
            monkeypatch.setattr(queries, name, seconds, raising=False)
        yield Way(world, proxy, address, tmp_path / "backups", key)
        await proxy.end()


async def test_silence_after_the_dump_does_no_harm_if_all_is_there(way: Way) -> None:
    assert (await way.save(is_silent_after_the_dump=True)).missing == ()


async def test_silence_after_the_dump_is_told_if_something_is_missing(way: Way) -> None:
    """It may have been removed meanwhile: nobody knows whether the fences were held."""
    way.world.store.path(way.key).unlink()
    with pytest.raises(BackupError, match="the connection to the database was lost .*; run it again"):
        await way.save(is_silent_after_the_dump=True)
    assert BackupFolder(way.path).names() == []


async def test_silence_of_a_table_ends_the_backup(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Copy = queries.copy_out

    async def cut(conn: Connection, table: Table, write: queries.Sink) -> int:
        if table.name == "users":
            way.proxy.swallow()
        return await real(conn, table, write)

    with monkeypatch.context() as patch:
        patch.setattr(queries, "copy_out", cut)
        await is_ended(way)
    assert (await way.save()).blobs == 1


async def test_silence_before_the_list_of_blobs_ends_the_backup(way: Way, failpoints: Failpoints) -> None:
    async def act(conn: Connection) -> None:
        way.proxy.swallow()

    failpoints.reset()
    failpoints.arm("backup.list_sequences after", act)
    await is_ended(way)
    assert (await way.save()).blobs == 1


async def test_slow_disk_of_the_backups_is_no_silence(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Copy = queries.copy_out

    async def slowly(conn: Connection, table: Table, write: queries.Sink) -> int:
        async def wrote(data: bytes) -> None:
            await asyncio.sleep(1.5 * queries.SILENCE_SECONDS)  # nothing is to be seen of what does not happen
            await write(data)

        return await real(conn, table, wrote if table.name == "users" else write)

    monkeypatch.setattr(queries, "copy_out", slowly)
    assert (await way.save()).blobs == 1


async def is_ended(way: Way) -> None:
    """With a sentence, and its folder is free for the next one."""
    with pytest.raises(Unavailable, match="the database has said nothing for 1 s"):
        await way.save()
    assert BackupFolder(way.path).names() == []
