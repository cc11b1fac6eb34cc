"""Little memory (F12): whatever comes in or goes out, a worker needs the same, and no more than it may have."""

import asyncio
import hashlib
import resource
import socket
import struct
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import aiohttp
import asyncpg
import pytest

from service.run.postgres import EmbeddedPostgres
from tests import databases
from tests.attacks.wire import head
from tests.client import Api, new_account, until
from tests.faults.examine import check_invariants
from tests.faults.ledger import body_of
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack
from tests.faults.test_leaks import nothing_is_left
from tests.open_files import open_files

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


# --- what goes out ---

ENTRIES = 100_000
SMALL_BYTES = 2000
GROWTH_BYTES = 64 * MIB  # of a worker; the archive has more than twice as much
MANY = "GET /file/archive?path=/many"
MULTIPLY = """
-- so many files more beside a file, each with the same bytes
WITH made AS MATERIALIZED (
    SELECT gen_random_uuid() AS id, gen_random_uuid() AS head_id, nth || '.txt' AS name, user_id, parent_id,
           blob_id, blob_bytes, content_type
    FROM files JOIN versions ON versions.id = head_id, generate_series(1, $2::int) AS nth
    WHERE files.id = $1
), versions AS (
    INSERT INTO versions (id, file_id, number, blob_id, blob_bytes, content_type)
    SELECT head_id, id, 1, blob_id, blob_bytes, content_type FROM made
), files AS (
    INSERT INTO files (id, user_id, parent_id, name, is_folder, head_id, head_bytes)
    SELECT id, user_id, parent_id, name, false, head_id, blob_bytes FROM made
)
UPDATE users SET files_bytes = files_bytes + (SELECT sum(blob_bytes) FROM made),
                 file_count = file_count + (SELECT count(*) FROM made)
WHERE id = (SELECT user_id FROM made LIMIT 1)
"""


async def _fill_folder(api: Api) -> bytes:
    """`/many` with 0.txt and so on; what is in each."""
    body = body_of("0.txt", SMALL_BYTES)
    stored = (await api.put("/many/0.txt", body)).json
    connection = await asyncpg.connect(api.stack.dsn)
    await connection.execute(MULTIPLY, UUID(stored["id"]), ENTRIES - 1, timeout=600)
    await connection.close()
    return body


def _forget_peak(worker: int) -> int:
    """What it has now counts as the most that it had."""
    Path(f"/proc/{worker}/clear_refs").write_text("5", "ascii")
    return _peak_bytes(worker)


async def _download(api: Api, archive: Path) -> None:
    headers = {"Authorization": f"Bearer {api.token}"}
    async with api.session.get(f"{api.stack.url}/file/archive?path=/many", headers=headers) as response:
        assert response.status == 200
        with archive.open("wb") as file:
            async for piece in response.content.iter_chunked(MIB):
                file.write(piece)


def _hang_up(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def test_archive_of_many_files_takes_little_memory_and_leaves_nothing_when_its_client_does(
        postgres: EmbeddedPostgres, session: aiohttp.ClientSession, recorder: Recorder, tmp_path: Path) -> None:
    line = recorder.line("F12 an archive of 100,000 files", "taken, and left twice")
    dsn = databases.make_shared(postgres, f"memory_{tmp_path.name}")
    with FaultyStack(tmp_path / "data", {"DATABASE_URL": dsn}).running() as stack:
        api = await new_account(session, stack)
        body = await _fill_folder(api)
        workers = {worker: _forget_peak(worker) for worker in stack.workers()}
        await _download(api, archive := tmp_path / "many.zip")
        grown_bytes = max(_peak_bytes(worker) - before for worker, before in workers.items())
        line.note = f"a worker grew by {grown_bytes / MIB:.0f} MiB for one of {archive.stat().st_size / MIB:.0f} MiB"
        assert archive.stat().st_size > 2 * GROWTH_BYTES
        assert grown_bytes < GROWTH_BYTES, line.note
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
            assert len(names) == ENTRIES + 1
            assert set(names) == {"many/", *(f"many/{number}.txt" for number in range(ENTRIES))}
            for name in names[1::9973]:
                assert opened.read(name) == body
        archive.unlink()
        for is_sent in (False, True):  # while it is laid out; while it is sent
            connection = socket.create_connection(("127.0.0.1", stack.port), 60)
            connection.sendall(head(MANY, token=api.token))
            assert not is_sent or connection.recv(12) == b"HTTP/1.1 200"
            await until(lambda: open_files(stack.workers(), stack.root) != [])
            _hang_up(connection)
            line.injected += 1
            await nothing_is_left(stack)
        await check_invariants(stack.dsn, stack.root, max_strays=0)
