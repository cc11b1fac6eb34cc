"""A disk that somebody else has filled to the last block, or to the last inode: what is deleted gives its room back."""

import os
from collections.abc import Callable
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from tests.client import new_account
from tests.faults.degraded import MIB, goes_on, is_sound, running
from tests.faults.machine import tmpfs
from tests.faults.recorder import Recorder
from tests.faults.sites import OwnPostgres
from tests.faults.sweeper import keep_up

FILES, FILE_BYTES = 80, 100_000  # more files than have to be free for an upload, and more bytes than MIN_FREE_SPACE


def take_all_blocks(hoard: Path) -> None:
    """Write until nothing more can be written, not even a byte into a file of its own."""
    for size in (MIB, 1):
        try:
            for number in range(1_000_000):
                (hoard / f"{size}-{number}").write_bytes(bytes(size))
        except OSError:
            continue


def take_all_inodes(hoard: Path) -> None:
    """Make files until none can be made."""
    while os.statvfs(hoard).f_favail:
        (hoard / str(os.statvfs(hoard).f_favail)).touch()


async def _make_old(dsn: str) -> None:
    """What nobody refers to any more could have gone long ago."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("UPDATE blobs SET unref_since = unref_since - interval '1 day'")
    await connection.close()


@pytest.mark.parametrize("take_all", [take_all_blocks, take_all_inodes])
async def test_disk_that_is_full_to_the_last_gets_its_room_back(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path,
        take_all: Callable[[Path], None]) -> None:
    line = recorder.line("F10 disk full", f"tmpfs, {take_all.__name__.replace('_', ' ')}")
    with tmpfs(tmp_path / "small", "size=48m,nr_inodes=2000") as disk, \
            running(disk / "data", server, MIN_FREE_SPACE=str(2 * MIB)) as stack:
        dsn = stack.settings["DATABASE_URL"]
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        for number in range(FILES):
            await api.put(f"/large-{number}", bytes(FILE_BYTES))
        assert await keep_up(dsn, stack.root)
        (disk / "hoard").mkdir()
        take_all(disk / "hoard")
        line.injected += 1
        for size in (100, FILE_BYTES):
            assert (await api.put("/more", bytes(size), expect=None)).status == 507
        await goes_on(api)
        for number in range(FILES):
            await api.delete(f"/large-{number}", permanent=True)
        await _make_old(dsn)
        free = os.statvfs(disk)
        assert await keep_up(dsn, stack.root)
        now = os.statvfs(disk)
        assert (now.f_bavail - free.f_bavail) * now.f_frsize >= FILES * FILE_BYTES
        assert now.f_favail - free.f_favail >= FILES
        await api.put("/more", bytes(FILE_BYTES))
        line.acknowledged += 1
        await is_sound(stack, line)
