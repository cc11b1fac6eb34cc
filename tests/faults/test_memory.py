"""Little memory (F12): whatever comes in, a worker needs the same, and no more than it may have."""

import asyncio
import hashlib
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from service.run.postgres import EmbeddedPostgres
from tests import databases
from tests.client import Api, new_account
from tests.faults.examine import check_invariants
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack

MIB = 2**20
MEMORY_BYTES = 1024 * MIB  # of addresses: some 560 MiB are in use before anything has come
LARGE_BYTES = 2048 * MIB
TOGETHER = 200
BODY_BYTES = 4 * MIB
GROWTH_BYTES = MIB  # that an upload in flight may cost a worker at most
PIECE = bytes(MIB)
# else each thread reserves 64 MiB of addresses, whatever it needs of them
FEW_ADDRESSES = {"MALLOC_ARENA_MAX": "2"}


async def _zeros(size_bytes: int) -> AsyncIterator[bytes]:
    for _ in range(size_bytes // len(PIECE)):
        yield PIECE


def _digest(size_bytes: int) -> str:
    found = hashlib.sha256()
    for _ in range(size_bytes // len(PIECE)):
        found.update(PIECE)
    return found.hexdigest()


def _peak_bytes(worker: int) -> int:
    status = Path(f"/proc/{worker}/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def _upload_all(api: Api) -> list[int]:
    """A file that is twice what a worker may have, and many at once that are together nearly as much."""
    async def put(path: str, size_bytes: int) -> int:
        reply = await api.put(path, _zeros(size_bytes), expect=None, headers={"Content-Length": str(size_bytes)})
        return reply.status

    return [await put("/large", LARGE_BYTES),
            *await asyncio.gather(*(put(f"/many/{number}", BODY_BYTES) for number in range(TOGETHER)))]


async def _stored_within(stack: FaultyStack, session: aiohttp.ClientSession) -> tuple[int, int]:
    """Upload to workers that are given so little; how many uploads, and how much all workers grew."""
    api = await new_account(session, stack)
    await api.put("/first", b"first")
    workers = {worker: _peak_bytes(worker) for worker in stack.workers()}
    for worker in workers:
        resource.prlimit(worker, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        statuses = await _upload_all(api)
    except aiohttp.ClientError as error:
        raise AssertionError(f"an upload was cut off: {error!r}") from error
    assert set(statuses) == {201}, f"not all were stored: {sorted(set(statuses))}"
    assert set(stack.workers()) == set(workers), "a worker did not survive it"
    assert (await api.info("/large"))["sha256"] == _digest(LARGE_BYTES)
    assert {file["sha256"] for file in await api.list() if file["path"].startswith("/many/")} == {_digest(BODY_BYTES)}
    return len(statuses), sum(_peak_bytes(worker) - before for worker, before in workers.items())


@pytest.mark.parametrize("nginx", ["auto", "off"], ids=["behind-nginx", "without-nginx"])
async def test_uploads_larger_than_the_memory_of_a_worker(
        postgres: EmbeddedPostgres, session: aiohttp.ClientSession, recorder: Recorder, tmp_path: Path, nginx: str
) -> None:
    line = recorder.line(f"F12 workers with 1 GiB of addresses, {'behind' if nginx == 'auto' else 'without'} nginx",
                         "2 GiB in one file, then 200 at once")
    dsn = databases.make_shared(postgres, f"memory_{tmp_path.name}")
    stack = FaultyStack(tmp_path / "data", {"DATABASE_URL": dsn, "NGINX": nginx, "UPLOADS_PER_ACCOUNT": "1000"},
                        variables=FEW_ADDRESSES)
    try:
        await asyncio.to_thread(stack.start)
        line.acknowledged, grown_bytes = await _stored_within(stack, session)
        line.injected = 1
        line.note = f"the workers grew by {grown_bytes / MIB:.0f} MiB together"
        assert grown_bytes < TOGETHER * GROWTH_BYTES, line.note
        await check_invariants(stack.dsn, stack.root, max_strays=0)
    finally:
        if stack.process is not None:
            await asyncio.to_thread(stack.stop)


@pytest.mark.mutant("E12", "bodies are collected in memory before they are written")
async def test_bodies_kept_in_memory_are_caught(
        postgres: EmbeddedPostgres, session: aiohttp.ClientSession, tmp_path: Path) -> None:
    dsn = databases.make_shared(postgres, f"memory_{tmp_path.name}")
    stack = FaultyStack(tmp_path / "data", {"DATABASE_URL": dsn, "NGINX": "off", "UPLOADS_PER_ACCOUNT": "1000"},
                        faults="collected_bodies", variables=FEW_ADDRESSES)
    try:
        await asyncio.to_thread(stack.start)
        with pytest.raises(AssertionError, match="not all were stored|cut off|did not survive"):
            await _stored_within(stack, session)
    finally:
        if stack.process is not None:
            await asyncio.to_thread(stack.stop)
