"""What the tests of faults are worth: a service with a known mistake (mistakes.py) does not pass them.

Each scenario is one of theirs, made short.  It is run with the service as it is, and with the mistake, and then has to
fail for the reason that the mistake stands for.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from service.run.postgres import EmbeddedPostgres
from tests import databases
from tests.client import is_tidy, new_account, until
from tests.faults.changes import small_upload, stack_with_steps, upload
from tests.faults.clients import Account
from tests.faults.examine import examine, leftovers
from tests.faults.faulty_service import clock
from tests.faults.ledger import body_of
from tests.faults.machine import tmpfs
from tests.faults.recorder import Line
from tests.faults.sites import FaultyStack
from tests.faults.test_degradation import check_pace, pace_of
from tests.faults.test_steps import fault_at_every_step
from tests.faults.test_steps_work import begin, faults_at
from tests.faults.work import Sweep
from tests.redis_server import RedisServer
from tests.world import open_world

MIB = 2**20
SOON_SECONDS = 5.0  # as long as a mistake is waited for; what is right takes a moment
TRIES = 5  # PostgreSQL may happen to write by itself in that very moment
WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'file-storage' AND wait_event_type = 'Lock'
"""
ON_ALL = """
SELECT {}(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'file-storage'
"""


class Ground:
    """Where a scenario takes place: a folder, a database, the mistake."""

    def __init__(self, folder: Path, dsn: str, mistake: str, session: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.dsn = dsn
        self.mistake = mistake
        self.session = session

    @contextmanager
    def stack(self, root: Path | None = None, **settings: str) -> Iterator[FaultyStack]:
        """A running service."""
        stack = FaultyStack(root or self.folder / "data", {"DATABASE_URL": self.dsn, "WORKERS": "1", **settings},
                            faults=self.mistake)
        with stack.running():
            yield stack


Scenario = Callable[[Ground], Awaitable[None]]


async def connections_lost(ground: Ground) -> None:
    """All statements fail, since their connections end, or without that; then there are others (F6)."""
    with ground.stack(DATABASE_POOL_SIZE="2") as stack:
        account = await Account.open(ground.session, stack)
        await account.put("/first", b"first")
        locker, watcher = await asyncpg.connect(ground.dsn), await asyncpg.connect(ground.dsn)

        async def all_wait() -> bool:
            return int(await watcher.fetchval(WAITING)) >= 2

        try:
            for what in ("pg_terminate_backend", "pg_cancel_backend"):
                async with locker.transaction():
                    await locker.execute("LOCK TABLE files IN ACCESS EXCLUSIVE MODE")
                    looks = [asyncio.create_task(account.api.call("GET", "/file/info?path=/first")) for _ in range(2)]
                    await until(all_wait)
                    await watcher.fetch(ON_ALL.format(what))
                await asyncio.gather(*looks)
        finally:
            await locker.close()
            await watcher.close()
        reply = None
        for number in range(4):
            reply = await account.put(f"/again{number}", b"again")
        assert reply is not None and reply.status == 201, "uploads are not taken any more"


async def redis_lost(ground: Ground) -> None:
    """Redis is gone, and nobody notices (F8)."""
    redis = RedisServer(ground.folder)
    redis.start()
    try:
        with ground.stack(REDIS_URL=redis.url) as stack:
            api = await new_account(ground.session, stack)
            redis.kill()
            for number in range(4):
                reply = await api.put(f"/{number}", b"body", expect=None)
                assert reply.status == 201, f"Redis is gone, and an upload is a {reply.status}"
    finally:
        redis.kill()


async def redis_hangs(ground: Ground) -> None:
    """Redis does not answer any more, and nobody waits for it (F8)."""
    redis = RedisServer(ground.folder)
    redis.start()
    try:
        with ground.stack(REDIS_URL=redis.url) as stack:
            api = await new_account(ground.session, stack)
            await api.put("/kept", b"kept")
            usual = await pace_of(api)
            redis.pause()
            check_pace(usual, await pace_of(api))
    finally:
        redis.kill()


async def disk_filled(ground: Ground) -> None:
    """An upload whose length nobody knew, and for which there is no room, is a 507 (F10)."""
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(32):
            yield bytes(MIB)
            if number == 4:  # others take the room that was there when it began
                free = os.statvfs(small)
                await asyncio.to_thread((small / "hoard").write_bytes, bytes(free.f_bavail * free.f_frsize - 8 * MIB))

    with tmpfs(ground.folder / "small", "size=48m") as small, \
            ground.stack(small / "data", NGINX="off", MIN_FREE_SPACE="0", MAX_UPLOAD_SIZE=str(32 * MIB)) as stack:
        api = await new_account(ground.session, stack)
        status = (await api.put("/large", pieces(), expect=None)).status
        assert status == 507, f"a full disk is a {status}"


async def disk_refuses(ground: Ground) -> None:
    """Every call to the kernel of an upload fails for want of room (F2)."""
    with stack_with_steps(ground.folder, DATABASE_URL=ground.dsn, faults=ground.mistake) as stack:
        await fault_at_every_step(stack, ground.session, Line("", ""), small_upload, "ENOSPC", False)


async def disk_fails(ground: Ground) -> None:
    """Every step of an upload fails (F2)."""
    with stack_with_steps(ground.folder, DATABASE_URL=ground.dsn, faults=ground.mistake) as stack:
        await fault_at_every_step(stack, ground.session, Line("", ""), upload, "EIO", False)


async def _killed_amid_an_upload(ground: Ground, nginx: str) -> None:
    with ground.stack(NGINX=nginx) as stack:
        api = await new_account(ground.session, stack)
        with socket.create_connection(("127.0.0.1", stack.port)) as connection:
            connection.sendall(f"PUT /file?path=/half HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n"
                               f"Content-Length: {4 * MIB}\r\n\r\n".encode("ascii") + bytes(2 * MIB))
            await until(lambda: leftovers(stack.root) != (0, 0))
            await asyncio.to_thread(stack.kill)
        await asyncio.to_thread(stack.start)
        assert leftovers(stack.root) == (0, 0), "the start has not removed what was on its way"


async def killed_amid_a_spooled_upload(ground: Ground) -> None:
    """Everything is killed while nginx spools a body (F1, F4)."""
    await _killed_amid_an_upload(ground, "auto")


async def killed_amid_a_streamed_upload(ground: Ground) -> None:
    """The same, while a worker writes it."""
    await _killed_amid_an_upload(ground, "off")


async def upload_ended(ground: Ground) -> None:
    """What was spooled for an upload goes with it (F14)."""
    with ground.stack() as stack:
        await (await new_account(ground.session, stack)).put("/file", bytes(MIB))
        await until(lambda: is_tidy(stack), seconds=SOON_SECONDS)


async def killed_after_the_answer(ground: Ground) -> None:
    """Everything is killed, PostgreSQL too, in the moment that an upload is answered (F1, F6)."""
    stack = FaultyStack(ground.folder / "data", {"WORKERS": "1", "ACCESS_TOKEN_TTL": "86400"}, faults=ground.mistake)
    try:
        await asyncio.to_thread(stack.start)
        account = await Account.open(ground.session, stack)
        for number in range(TRIES if ground.mistake else 1):
            account.ledger.on_acknowledged = stack.kill
            await account.put(f"/{number}", body_of(f"{number}", 20_000))
            account.ledger.on_acknowledged = lambda: None
            await asyncio.to_thread(stack.start)
            damage, words = await examine([account], stack.dsn, stack.root)
            assert not damage, f"lost: {words}"
    finally:
        if stack.process is not None:
            stack.stop()


async def clock_ahead(ground: Ground) -> None:
    """A sweep whose clock is a day ahead removes nothing early (F20)."""
    async with open_world(ground.dsn, ground.folder / "data") as world:
        caller = await world.new_caller()
        await world.put(caller, "/file", b"bytes")
        await world.delete(caller, "/file")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CLOCK", "+1d")
            command = [*clock(), sys.executable, "-m", "tests.faults.sweeper", ground.dsn, str(world.root), "3600"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True,
                                       env=os.environ | {"FAULTS": ground.mistake})
        assert done.returncode == 0, done.stderr
        assert len(world.blobs()) == 1, "something was removed before its time"


async def sweep_killed(ground: Ground) -> None:
    """A sweep is killed when it has forgotten what it removes (F1)."""
    (ground.folder / "steps").mkdir()
    async with open_world(ground.dsn, ground.folder / "data", versions_keep=5) as world:
        work = await begin(world, Sweep)
        work.mistake = ground.mistake
        points = [point for point in await work.points() if str(point) == "blobs.delete_fenced after 0"]
        assert len(points) == 1
        await faults_at(work, points, "kill", Line("", ""))


CASES: list[tuple[str, str, str, Scenario, str]] = [
    ("E1", "leaked_connection", "a connection on which something failed is never given back", connections_lost,
     "uploads are not taken any more"),
    ("E2", "strict_cache", "errors of Redis are the requests'", redis_lost, "an upload is a 500"),
    ("E13", "patient_cache", "Redis is waited for a second", redis_hangs, "a question is waited for"),
    ("E14", "persistent_cache", "a Redis that hangs is asked by each request", redis_hangs, "each is waited for"),
    ("E3", "surprised_by_limits", "a full disk answered 500", disk_filled, "a full disk is a 500"),
    ("E4", "surprised_by_limits", "a call that fails for want of room answered 500", disk_refuses, "is a 500"),
    ("M3", "m3", "commit before placement", disk_fails, "the bytes of version .* are gone"),
    ("E5", "kept_spool", "a start leaves what was spooled", killed_amid_a_spooled_upload, "has not removed"),
    ("E6", "kept_staging", "a start leaves what was staged", killed_amid_a_streamed_upload, "has not removed"),
    ("E7", "kept_bodies", "spooled bodies are never removed", upload_ended, "in vain"),
    ("M14", "m14", "synchronous_commit off, PostgreSQL killed", killed_after_the_answer, "lost: "),
    ("E8", "own_clock", "a sweep that judges by its own clock", clock_ahead, "removed before its time"),
    ("E9", "forgotten_first", "rows forgotten before the bytes are removed", sweep_killed, "files have no row")]


@pytest.mark.parametrize(("mistake", "scenario", "complaint"), [
    pytest.param(mistake, scenario, complaint, id=scenario.__name__, marks=pytest.mark.mutant(number, what))
    for number, mistake, what, scenario, complaint in CASES])
async def test_mistake_is_caught(
        postgres: EmbeddedPostgres, session: aiohttp.ClientSession, tmp_path: Path, mistake: str, scenario: Scenario,
        complaint: str) -> None:
    for name, made in (("right", ""), ("wrong", mistake)):
        (folder := tmp_path / name).mkdir()
        ground = Ground(folder, databases.make_shared(postgres, f"mistake_{os.urandom(8).hex()}"), made, session)
        if made:
            with pytest.raises(AssertionError, match=complaint):
                await scenario(ground)
        else:
            await scenario(ground)
