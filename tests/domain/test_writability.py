"""A disk that fails again and again: uploads are refused, reading goes on, and a durable write ends it."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.cache.shared import SharedFlag, make_memory
from service.db.instance import get_epoch
from service.domain import writability
from service.domain.archives import Archives
from service.domain.content import Content
from service.domain.places import Target
from service.domain.writability import Writability
from service.errors import DiskFailed, ReadOnly, ServiceError, StorageFull
from service.model import Caller
from service.storage.base import Room
from service.storage.local import LocalStore
from tests.client import until
from tests.storage.disk import Disk, install
from tests.world import World, open_world

BODY = b"x" * 1000


class Failing:
    """The domain on a disk that fails on demand."""

    def __init__(self, world: World, disk: Disk, content: Content, caller: Caller) -> None:
        self.world = world
        self.disk = disk
        self.content = content
        self.caller = caller

    async def put(self, path: str) -> None:
        """An upload as a client makes it: asked about, written, stored."""
        await self.content.admit(self.caller, len(BODY), (path,))
        writer = await self.content.run(self.content.writer)
        try:
            await self.content.run(writer.write, BODY)
            staged = await self.content.run(writer.finish)
        finally:
            await self.content.run(writer.abort)
        await self.content.store(self.caller, Target(place=(path,)), staged, content_type=None)

    async def fail(self, call: str, number: int = errno.EIO) -> None:
        """An upload whose first call of that kind fails."""
        self.disk.expect((call, 0), number)
        with pytest.raises(DiskFailed) as caught:
            await self.put("lost")
        assert caught.value.retry_after_seconds
        self.disk.expect(None, 0)

    async def is_refused(self) -> bool:
        """Whether uploads are, and whether that is all that is."""
        assert await self.world.get(self.caller, "/kept") == BODY
        try:
            await self.put("more")
        except ReadOnly as error:
            assert error.retry_after_seconds
            return True
        return False


@pytest.fixture
async def failing(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Failing]:
    """With one file that is there."""
    async with open_world(dsn, tmp_path / "data") as world:
        disk, path = install(monkeypatch, world.root)
        store = LocalStore(path)
        async with world.database.connection() as conn:
            store.open(await get_epoch(conn))
        failing = Failing(world, disk, Content(world.database, store, world.limits), await world.new_caller())
        await failing.put("kept")
        yield failing
        store.close()


@pytest.mark.parametrize("call", ["os.fsync", "os.link", "path.open", "file.write"])
async def test_three_failures_within_a_minute_end_uploads_and_a_durable_write_begins_them_again(
        failing: Failing, call: str) -> None:
    for _ in range(writability.MAX_FAILURES):
        assert not failing.content.writability.is_read_only
        await failing.fail(call)
    assert await failing.is_refused()
    # a disk that still fails is not trusted
    failing.disk.expect(("os.fsync", 0), errno.EIO)
    await failing.content.writability.try_again()
    assert await failing.is_refused()
    # nor one that loses the folder
    failing.disk.expect(("os.fsync", 1), errno.EIO)
    await failing.content.writability.try_again()
    assert await failing.is_refused()
    failing.disk.expect(None, 0)
    await failing.content.writability.try_again()
    assert not await failing.is_refused()
    assert failing.world.staged() == []


async def test_disk_that_fails_now_and_then_goes_on(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("service.domain.writability.time", SimpleNamespace(monotonic=lambda: now))
    for _ in range(3 * writability.MAX_FAILURES):
        await failing.fail("os.fsync")
        now += writability.WINDOW_SECONDS / (writability.MAX_FAILURES - 1) + 0.1
    assert not await failing.is_refused()


async def test_each_copy_that_the_disk_may_have_lost_is_dropped(failing: Failing) -> None:
    for _ in range(writability.MAX_FAILURES):
        await failing.fail("os.fsync")
    assert failing.world.staged() == []
    assert len(failing.world.blobs()) == 1
    assert await failing.world.listing(failing.caller) == {
        "/kept": (await failing.world.content.deliver(failing.caller, ("kept",))).sha256.hex()}


async def test_file_system_mounted_read_only_ends_uploads_at_once(
        failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    await failing.fail("path.open", errno.EROFS)
    assert await failing.is_refused()
    await failing.content.writability.try_again()
    assert not await failing.is_refused()
    # behind nginx nothing is written by a worker, so it looks at the mount
    with monkeypatch.context() as mounted:
        mounted.setattr(LocalStore, "room", lambda store: Room(free_bytes=2**40, free_files=None, is_read_only=True))
        assert await failing.is_refused()
    assert failing.content.writability.is_read_only
    await failing.content.writability.try_again()
    assert not await failing.is_refused()


async def test_other_errors_are_no_reason(failing: Failing) -> None:
    for number in (errno.ENOSPC, errno.EMFILE):
        for _ in range(writability.MAX_FAILURES + 1):
            failing.disk.expect(("path.open", 0), number)
            with pytest.raises(ServiceError):
                await failing.put("lost")
            failing.disk.expect(None, 0)
    assert not await failing.is_refused()


async def test_disk_is_tried_again_by_itself(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writability, "PROBE_SECONDS", 0.01)
    watching = asyncio.create_task(failing.content.writability.watch())
    failing.disk.expect(("path.open", 0), errno.EROFS)
    with pytest.raises(DiskFailed):
        await failing.put("lost")
    await until(lambda: not failing.content.writability.is_read_only)
    assert not await failing.is_refused()
    watching.cancel()


async def failure_that_another_worker_finds(failing: Failing, memory: int) -> None:
    """It counts for this one, and ends with the other's first durable write."""
    other = Content(failing.world.database, failing.content._store, failing.world.limits)
    for content in (failing.content, other):
        content.writability.share(SharedFlag(memory))
    failing.content, mine = other, failing.content
    await failing.fail("path.open", errno.EROFS)
    assert await failing.is_refused()
    failing.content = mine
    assert await failing.is_refused(), "a worker goes on writing to a disk that fails"
    await other.writability.try_again()
    assert not await failing.is_refused()
    assert not other.writability.is_read_only


@pytest.fixture
def memory() -> Iterator[int]:
    """What the supervisor gives to all workers."""
    descriptor = make_memory()
    yield descriptor
    os.close(descriptor)


async def test_failure_that_one_worker_finds_counts_for_all(failing: Failing, memory: int) -> None:
    await failure_that_another_worker_finds(failing, memory)


@pytest.mark.mutant("D5", "a failing disk is the secret of the worker that met it")
async def test_failure_that_is_kept_to_oneself_is_caught(
        failing: Failing, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writability, "share", lambda self, flag: None)
    with pytest.raises(AssertionError, match="a worker goes on writing"):
        await failure_that_another_worker_finds(failing, memory)


async def test_body_that_cannot_be_removed_does_not_hide_the_answer(
        failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the upload is what counts, not that of tidying up after it."""
    def refuse(store: LocalStore, key: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(LocalStore, "discard", refuse)
    await failing.fail("os.link")


class FullFile(BytesIO):
    """A scratch file on a disk that has room for so many bytes."""

    def __init__(self, room_bytes: int, number: int) -> None:
        super().__init__()
        self._room_bytes = room_bytes
        self._number = number

    def write(self, data: Any) -> int:
        """Take it, or fail as the disk does."""
        if self.tell() + len(data) > self._room_bytes:
            raise OSError(self._number, os.strerror(self._number))
        return super().write(data)

    def close(self) -> None:
        """What a buffer has still to write is tried again, and fails again."""
        super().close()
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, StorageFull), (errno.EIO, DiskFailed)])
@pytest.mark.parametrize("room_bytes", [0, 100])
async def test_archive_whose_plan_finds_no_room_is_refused(
        failing: Failing, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ServiceError],
        room_bytes: int) -> None:
    archives = Archives(failing.world.database, failing.world.store)
    monkeypatch.setattr(failing.world.store, "scratch", lambda: FullFile(room_bytes, number))
    for _ in range(20):  # more often than there are connections
        with pytest.raises(kind):
            await archives.plan(failing.caller, ())
    monkeypatch.undo()
    plan = await archives.plan(failing.caller, ())
    assert plan.count == 2  # the folder and its file
    plan.close()


@pytest.mark.mutant("D2", "a failing disk trusted for ever")
async def test_without_counting_failures_uploads_go_on(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writability, "MAX_FAILURES", 10**9)
    for _ in range(3):
        await failing.fail("os.fsync")
    assert not await failing.is_refused()
