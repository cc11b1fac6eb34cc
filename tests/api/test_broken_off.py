"""Answers that cannot be finished, and clients that leave in the middle: nobody takes a part for the whole."""

import asyncio
import json
import struct
import socket

import aiohttp
import asyncpg
import pytest

from tests.client import Api, files_on_disk, new_account, until
from tests.stack import Stack

MIB = 2**20
FILES = 2048
SLOW = aiohttp.ClientTimeout(total=60)
BUSY = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'
"""


async def test_file_that_turns_out_too_short_is_seen_to_break_off(api: Api) -> None:
    """Sent by a worker, whatever is in front of it; a second answer in the middle would pass for content."""
    before = files_on_disk(api.stack)
    etag = (await api.put("/short.bin", b"x" * MIB)).headers["ETag"]
    (blob,) = files_on_disk(api.stack) - before
    with (api.stack.root / blob).open("r+b") as file:
        file.truncate(MIB // 2)
    with pytest.raises(aiohttp.ClientPayloadError):
        await api.get("/short.bin", headers={"If-Match": etag}, expect=None)
    (api.stack.root / blob).write_bytes(b"x" * MIB)  # or the service finds the damage, minutes later
    await api.call("GET", "/readyz", expect=200)


def _leave(stack: Stack, request: bytes) -> None:
    """Read the beginning of the answer, then be gone without a word (RST)."""
    with socket.create_connection(("127.0.0.1", stack.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


async def fill(api: Api) -> None:
    """More in a list than the kernel and aiohttp put aside between a worker and a client: each path has 3 KB."""
    deep = "/" + "/".join(["d" * 250] * 12)
    await api.put(f"{deep}/s/f", b"")
    count = 1
    while count < FILES:
        await api.call("POST", "/file/copy", json={"from": f"{deep}/s", "to": f"{deep}/t"}, expect=201)
        await api.call("POST", "/file/move", json={"from": f"{deep}/t", "to": f"{deep}/s/{count}"}, expect=200)
        count *= 2


@pytest.fixture
async def full(session: aiohttp.ClientSession, stack: Stack) -> Api:
    """An account with a long list."""
    api = await new_account(session, stack)
    await fill(api)
    return api


async def test_client_that_leaves_a_list_is_no_fault_of_the_service(full: Api) -> None:
    stack = full.stack
    before = stack.log_text.count('"list_files"')
    request = (f"GET /file/list HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {full.token}\r\n\r\n").encode()
    for _ in range(3):
        await asyncio.to_thread(_leave, stack, request)
    await until(lambda: stack.log_text.count('"list_files"') >= before + 3)
    lines = [json.loads(line) for line in stack.log_text.splitlines() if '"list_files"' in line][before:]
    gone = [line for line in lines if line.get("client_gone")]
    assert all(line["code"] == "bad_request" for line in gone)
    assert gone or stack.is_behind_nginx  # which takes all of it in any case
    assert not any(line["level"] == "error" for line in lines)
    await full.call("GET", "/readyz", expect=200)


async def test_client_that_takes_its_time_over_a_list_keeps_no_connection_to_the_database(full: Api) -> None:
    """What it has not taken is put aside: by nginx, or without it by the worker."""
    observer = await asyncpg.connect(full.stack.dsn)

    async def is_nobody_asking() -> bool:
        return bool(await observer.fetchval(BUSY) == 0)

    headers = {"Authorization": f"Bearer {full.token}"}
    async with full.session.get(f"{full.stack.url}/file/list", headers=headers, timeout=SLOW) as response:
        assert response.status == 200
        assert await response.content.read(1) == b"{"
        await until(is_nobody_asking)
        assert len(json.loads(b"{" + await response.read())["files"]) == FILES
    await observer.close()
