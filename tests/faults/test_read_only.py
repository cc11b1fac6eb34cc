"""A disk that fails under one worker of several: all of them refuse uploads, say so, and begin again together (F2)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from service.domain import writability
from service.run import folders, processes
from tests.client import new_account, until
from tests.faults.degraded import PATIENCE_SECONDS, goes_on, is_sound, running
from tests.faults.machine import descendants, kill, read_only
from tests.faults.recorder import Recorder
from tests.faults.sites import OwnPostgres

WORKERS = 2


@asynccontextmanager
async def asked(root: Path, number: int) -> AsyncIterator[aiohttp.ClientSession]:
    """One worker, without nginx in between."""
    socket = folders.find_sockets(root) / f"worker-{number}.sock"
    async with aiohttp.ClientSession("http://worker", connector=aiohttp.UnixConnector(str(socket))) as session:
        yield session


async def status_of(root: Path, number: int) -> str:
    """What one worker says of itself; nothing while it is started again."""
    try:
        async with asked(root, number) as session, session.get("/readyz") as response:
            found: Any = await response.json()
            return str(found.get("status"))
    except aiohttp.ClientConnectionError:
        return ""


async def gauge_of(root: Path, number: int) -> float:
    """What the metrics of one worker say of all."""
    async with asked(root, number) as session, session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    [line] = [line for line in lines if line.startswith("file_storage_read_only{")]
    return float(line.rpartition(" ")[2])


async def all_say(root: Path, status: str) -> bool:
    """Whether every worker does."""
    return [await status_of(root, number) for number in range(WORKERS)] == [status] * WORKERS


def find_worker(pid: int, number: int) -> int:
    """The process of a worker."""
    [found] = [child for child in descendants(pid) if f"worker\0--number\0{number}\0" in (
        processes.PROC / str(child) / "cmdline").read_text()]
    return found


async def test_disk_that_fails_under_one_worker_is_read_only_for_all(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path) -> None:
    line = recorder.line("F2 disk read-only", f"seen by one of {WORKERS} workers")
    with running(tmp_path / "data", server, WORKERS=str(WORKERS)) as stack:
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        assert await all_say(stack.root, "ok")
        assert stack.process is not None
        with read_only(stack.root / "staging"):
            reply = await api.put("/lost", b"lost", expect=503)
            line.injected += 1
            assert reply.code in ("disk_failed", "read_only")
            assert await all_say(stack.root, "read_only"), "a worker goes on writing"
            for number in range(WORKERS):
                await until(lambda: gauge_is(stack.root, 1.0), seconds=PATIENCE_SECONDS)
                await kill([find_worker(stack.process.pid, number)])
                await until(lambda: all_say(stack.root, "read_only"), seconds=PATIENCE_SECONDS)
            for _ in range(4 * WORKERS):
                assert (await api.put("/lost", b"lost", expect=503)).code == "read_only"
                line.injected += 1
            await goes_on(api)
        await until(lambda: all_say(stack.root, "ok"), seconds=2 * writability.PROBE_SECONDS + PATIENCE_SECONDS)
        for _ in range(4 * WORKERS):
            assert (await api.put("/again", b"again", expect=None)).status in (200, 201)
            line.acknowledged += 1
        await until(lambda: gauge_is(stack.root, 0.0), seconds=PATIENCE_SECONDS)
        await goes_on(api)
        await is_sound(stack, line)


async def gauge_is(root: Path, value: float) -> bool:
    """Whether the metrics say so, whichever worker is asked."""
    try:
        return [await gauge_of(root, number) for number in range(WORKERS)] == [value] * WORKERS
    except aiohttp.ClientConnectionError:  # it is being started again
        return False
