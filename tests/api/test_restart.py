"""What a stop, a crash and a start leave as it was."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from service.run import processes
from tests.client import PASSWORD, PATIENCE_SECONDS, Api, is_tidy, new_account, until
from tests.stack import Stack


@pytest.fixture(scope="module", params=["auto", "off"])
def own_stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service to be stopped and killed; every test leaves it running."""
    stack = Stack(tmp_path_factory.mktemp("restart") / "data", {"NGINX": request.param})
    start(stack)
    yield stack
    if stack.process is not None:
        stack.stop()


def start(stack: Stack) -> None:
    """Start it, until it says that all of it is up: it is ready a little earlier, when its first worker answers."""
    output = stack.root.parent / f"{stack.root.name}.out"
    before = output.stat().st_size if output.exists() else 0
    stack.start()
    assert processes.wait_until(lambda: b"Ctrl-C ends everything" in output.read_bytes()[before:], PATIENCE_SECONDS)


def workers(stack: Stack) -> list[int]:
    """The processes that answer."""
    return processes.find_working_in(stack.root / "run", processes.own_program())


async def log_in(api: Api) -> None:
    """Begin another session of the account."""
    tokens = (await api.call("POST", "/auth/jwt/login", json={"username": api.username, "password": PASSWORD},
                             expect=200)).json
    api.token, api.refresh_token = tokens["access_token"], tokens["refresh_token"]


async def test_stop_and_start_keeps_files_and_sessions(session: aiohttp.ClientSession, own_stack: Stack) -> None:
    api = await new_account(session, own_stack)
    ended = await new_account(session, own_stack)
    await api.put("/папка/файл.txt", b"kept")
    once = await api.put("/once.txt", b"once", headers={"Idempotency-Key": "once"})
    await api.post(b"x" * 500_000, path="/big.bin")
    await api.put("/gone.txt")
    await api.delete("/gone.txt", permanent=True)
    await ended.call("POST", "/auth/jwt/logout", expect=204)
    listed, usage = await api.list(), await api.usage()
    assert own_stack.stop() == 0
    assert workers(own_stack) == []
    assert is_tidy(own_stack)
    start(own_stack)
    assert (await api.put("/once.txt", b"once", headers={"Idempotency-Key": "once"})).body == once.body
    assert await api.list() == listed
    assert await api.usage() == usage
    assert (await api.get("/папка/файл.txt")).body == b"kept"
    assert (await api.get("/big.bin")).body == b"x" * 500_000
    assert (await api.get("/gone.txt", expect=404)).code == "not_found"
    tokens = (await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token}, expect=200)).json
    api.token = tokens["access_token"]
    await api.call("GET", "/auth/me", expect=200)
    await ended.call("GET", "/auth/me", expect=401)
    await log_in(api)
    await api.put("/папка/файл.txt", b"new", expect=200)
    await until(lambda: is_tidy(own_stack))


async def test_killed_worker_is_replaced_while_requests_go_on(
        session: aiohttp.ClientSession, own_stack: Stack) -> None:
    api = await new_account(session, own_stack)
    await api.put("/kept.txt", b"kept")
    before = workers(own_stack)
    assert len(before) == 2
    killed = asyncio.Event()

    def is_excused() -> bool:
        """Behind nginx a client sees nothing of a worker's end; without it, only what that worker was at."""
        return not own_stack.is_behind_nginx and time.monotonic() < deadline

    deadline = time.monotonic() + PATIENCE_SECONDS

    async def read_all_the_time() -> None:
        """The file can be read before, while and after."""
        after = 0
        while after < 20:
            try:
                assert (await api.get("/kept.txt")).body == b"kept"
            except aiohttp.ClientConnectionError:
                assert is_excused()
                continue
            after += killed.is_set()

    async def write_all_the_time() -> None:
        """Each upload is stored, or said not to be, or its connection ends."""
        stored: set[str] = set()
        after = 0
        while after < 20:
            path = f"/{len(stored)}.txt"
            try:
                reply = await api.put(path, path.encode() * 1000, expect=None)
            except aiohttp.ClientConnectionError:
                assert is_excused()
                continue
            assert time.monotonic() < deadline
            assert reply.status in (200, 201, 503), reply.body
            stored |= {path} if reply.status in (200, 201) else set()
            after += killed.is_set()
        for path in stored:
            assert (await api.get(path)).body == path.encode() * 1000

    async def kill() -> None:
        os.kill(before[0], signal.SIGKILL)
        killed.set()

    await asyncio.gather(read_all_the_time(), write_all_the_time(), kill())
    await until(lambda: len(workers(own_stack)) == 2 and before[0] not in workers(own_stack))
    assert before[1] in workers(own_stack)
    await log_in(api)


async def test_start_after_everything_was_killed_finds_all_that_was_answered(
        session: aiohttp.ClientSession, own_stack: Stack) -> None:
    api = await new_account(session, own_stack)
    stored = {}
    for number in range(5):
        stored[f"/{number}.txt"] = (await api.put(f"/{number}.txt", b"x" * number)).json
    # half of an upload, so that there is something on its way
    _, writer = await asyncio.open_connection("127.0.0.1", own_stack.port)
    writer.write(f"PUT /file?path=/half HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.token}\r\n"
                 f"Content-Length: 9000000\r\n\r\n".encode() + b"x" * 3_000_000)
    await writer.drain()
    await until(lambda: not is_tidy(own_stack))
    assert own_stack.process is not None
    own_stack.process.kill()
    own_stack.process.wait()
    for pid in [*workers(own_stack), *nginxes(own_stack)]:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: workers(own_stack) == [])
    writer.close()
    own_stack.process = None
    start(own_stack)
    assert is_tidy(own_stack)
    assert {file["path"]: file for file in await api.list()} == stored
    for path in stored:
        assert len((await api.get(path)).body) == stored[path]["size"]
    await api.put("/half", b"whole now")


def nginxes(stack: Stack) -> list[int]:
    """The processes of nginx."""
    return [pid for prefix in (stack.root / "spool").iterdir() if Path(prefix).is_dir()
            for pid in processes.find_working_in(prefix, "nginx")]
