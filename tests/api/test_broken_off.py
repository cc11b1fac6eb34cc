"""Answers that cannot be finished, and clients that leave in the middle: nobody takes a part for the whole."""

import asyncio
import json
import struct
import socket

import aiohttp
import pytest

from tests.client import Api, files_on_disk, new_account, until
from tests.stack import Stack

MIB = 2**20


async def test_file_that_turns_out_too_short_is_seen_to_break_off(api: Api) -> None:
    """Sent by a worker, whatever is in front of it; a second answer in the middle would pass for content."""
    before = files_on_disk(api.stack)
    etag = (await api.put("/short.bin", b"x" * MIB)).headers["ETag"]
    (blob,) = files_on_disk(api.stack) - before
    with (api.stack.root / blob).open("r+b") as file:
        file.truncate(MIB // 2)
    with pytest.raises(aiohttp.ClientPayloadError):
        await api.get("/short.bin", headers={"If-Match": etag}, expect=None)
    await api.call("GET", "/readyz", expect=200)


def _leave(stack: Stack, request: bytes) -> None:
    """Read the beginning of the answer, then be gone without a word (RST)."""
    with socket.create_connection(("127.0.0.1", stack.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


async def test_client_that_leaves_a_streamed_list_is_no_fault_of_the_service(
        session: aiohttp.ClientSession, direct_stack: Stack) -> None:
    api = await new_account(session, direct_stack)
    folder = "/" + "/".join(["d" * 250] * 12)
    made = (await api.call("POST", "/file/folder", json={"path": folder}, expect=201)).json
    assert made["path"] == folder
    # one file becomes many: a copy of its folder into itself would be endless, so side by side
    await api.put(f"{folder}/f", b"")
    source, size = f"/{'d' * 250}", 1
    while size < 2048:  # beyond what the kernel and the worker put aside: each path has 3 KB
        await api.call("POST", "/file/copy", json={"from": source, "to": f"/copy-{size}"}, expect=201)
        await api.call("POST", "/file/move", json={"from": f"/copy-{size}", "to": f"{source}/copy-{size}"}, expect=200)
        size *= 2
    before = direct_stack.log_text.count("list_files")
    request = (f"GET /file/list HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n\r\n").encode()
    for _ in range(5):
        await asyncio.to_thread(_leave, direct_stack, request)
    await until(lambda: direct_stack.log_text.count("list_files") >= before + 5)
    lines = [json.loads(line) for line in direct_stack.log_text.splitlines() if '"list_files"' in line][before:]
    gone = [line for line in lines if line.get("client_gone")]
    assert gone and all(line["code"] == "bad_request" for line in gone)
    assert not any(line["level"] == "error" for line in lines)
    await api.call("GET", "/readyz", expect=200)
