"""Attack 4: clients that go away while nginx and a worker hand a body over.

No byte of one account may ever be in a file of another, and nothing may stay behind.
"""

import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.attacks import disk
from tests.attacks.logs import Mark
from tests.attacks.wire import Wire, ask, head
from tests.client import Api, new_account
from tests.stack import Stack

Other = Callable[[], Awaitable[Api]]

SIZE = 500_000  # more than nginx keeps in memory
PATIENCE_SECONDS = 30.0


def _until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def _children(pid: int, pattern: str) -> list[int]:
    """The processes that this one started and whose command line matches."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text(encoding="latin-1").rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")
        except OSError:
            continue
        if parent == pid and re.search(pattern, command):
            found.append(int(folder.name))
    return found


def _pid(stack: Stack) -> int:
    assert stack.process is not None
    return stack.process.pid


@contextmanager
def _stopped_workers(stack: Stack) -> Iterator[None]:
    """The workers do nothing meanwhile."""
    workers = _children(_pid(stack), r"service worker")
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Behind nginx; its processes are stopped and killed here."""
    stack = Stack(tmp_path_factory.mktemp("late") / "data").start()
    mark = Mark.now(stack)
    yield stack
    trouble = [line for line in mark.trouble() if "open() " not in line and "openat() " not in line]
    stack.stop()
    assert not trouble, trouble[:5]


async def test_aborted_uploads_beside_another_accounts_never_mix(api: Api, other_account: Other) -> None:
    """Aborted in every phase: before, within and right after the body, by FIN and by RST."""
    other = await other_account()
    for number in range(60):
        aborted = Wire(api.stack)
        aborted.send(head(f"PUT /file?path=/{number}", f"Content-Length: {SIZE}", token=api.token))
        aborted.send(b"A" * (SIZE * (number % 5) // 4))
        if number % 2:
            aborted.reset()
        theirs = ask(other.stack, head(f"PUT /file?path=/{number}", f"Content-Length: {SIZE}", "Connection: close",
                                       token=other.token) + b"B" * SIZE)
        assert theirs.status == 201, theirs
        if not number % 2:
            with aborted:
                pass
    disk.settle(api.stack)
    assert len(await other.list()) == 60
    for account, byte in ((api, b"A"), (other, b"B")):
        for file in await account.list():
            # what was sent whole may have been stored whole, though nobody waited for the answer
            assert file["size"] == SIZE
            assert (await account.get(file["id"])).body == byte * SIZE
    assert all(int(file["name"]) % 5 == 4 for file in await api.list())


async def test_aborted_forms_beside_another_accounts_never_mix(api: Api, other_account: Other) -> None:
    other = await other_account()
    begin = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    end = b"\r\n--x--\r\n"
    for number in range(20):
        body = begin + b"A" * SIZE + end
        aborted = Wire(api.stack)
        aborted.send(head(f"POST /file?path=/{number}", "Content-Type: multipart/form-data; boundary=x",
                          f"Content-Length: {len(body)}", token=api.token))
        aborted.send(body[:len(body) * (number % 5) // 4])
        if number % 2:
            aborted.reset()
        else:
            with aborted:
                pass
        stored = await other.post(b"B" * SIZE, path=f"/{number}")
        assert stored.json["size"] == SIZE
    disk.settle(api.stack)
    for account, byte in ((api, b"A"), (other, b"B")):
        for file in await account.list():
            assert (await account.get(file["id"])).body == byte * SIZE


async def test_body_withdrawn_before_the_worker_looks_is_never_taken(
        own_stack: Stack, session: aiohttp.ClientSession) -> None:
    """The worker hears of the upload only after its client has gone and nginx has removed the body."""
    alice, bob = await new_account(session, own_stack), await new_account(session, own_stack)
    with Wire(own_stack) as wire:
        wire.send(head("PUT /file?path=/late", f"Content-Length: {SIZE}", "Expect: 100-continue", token=alice.token))
        invited = wire.read()
        assert invited is not None and invited.status == 100  # the question before the upload has been answered
        with _stopped_workers(own_stack):
            wire.send(b"A" * SIZE)
            _until(lambda: disk.bytes_in_flight(own_stack) == SIZE, "nginx did not take the body")
            wire.reset()
            _until(lambda: not disk.bodies_in_flight(own_stack), "nginx did not remove the body")
    for number in range(5):
        await bob.put(f"/{number}", b"B" * SIZE)
    disk.settle(own_stack)
    assert await alice.list() == []
    assert (await alice.usage())["files"] == 0
    for file in await bob.list():
        assert (await bob.get(file["id"])).body == b"B" * SIZE


async def test_name_of_a_body_of_an_earlier_nginx_is_no_body_of_this_one(
        own_stack: Stack, session: aiohttp.ClientSession) -> None:
    """nginx numbers bodies from 1 after each start: a late request of the last run must not take one of this run."""
    alice, bob = await new_account(session, own_stack), await new_account(session, own_stack)

    def spool() -> set[Path]:
        return {path for path in (own_stack.root / "spool").iterdir() if (path / "nginx.pid").exists()}

    (before,) = spool()
    (master,) = _children(_pid(own_stack), r"nginx: master")
    os.kill(master, signal.SIGKILL)
    _until(lambda: len(spool() - {before}) == 1 and _is_up(own_stack), "nginx did not come back")
    (now,) = spool() - {before}
    with Wire(own_stack) as bobs:
        bobs.send(head("PUT /file?path=/bobs", f"Content-Length: {SIZE}", "Connection: close", token=bob.token))
        bobs.send(b"B" * (SIZE - 1))
        _until(lambda: disk.bytes_in_flight(own_stack) >= SIZE // 2, "nginx did not take the body")
        (spooled,) = [path for path in disk.below(now / "body") if path.is_file()]
        late = str(spooled).replace(str(now), str(before))
        for socket in sorted((own_stack.root / "run").glob("worker-*.sock")):
            answer = ask(socket, head("PUT /file?path=/late", f"X-File: {late}", "Connection: close",
                                      f"X-Request-Id: {'0' * 32}", token=alice.token))
            assert (answer.status, answer.code) == (503, "unavailable")
        bobs.send(b"B")
        stored = bobs.read()
    assert stored is not None and stored.status == 201
    assert (await bob.get("/bobs")).body == b"B" * SIZE
    assert await alice.list() == []
    disk.settle(own_stack)


def _is_up(stack: Stack) -> bool:
    try:
        return ask(stack, head("GET /readyz", "Connection: close")).status == 200
    except (OSError, AssertionError):
        return False


async def test_x_file_that_is_no_spooled_body_is_refused_even_from_nginx(
        own_stack: Stack, session: aiohttp.ClientSession) -> None:
    """What the worker believes of its socket's other side is little: only names that nginx gives."""
    alice = await new_account(session, own_stack)
    secret = own_stack.root / "jwt_secret"
    before = secret.read_bytes()
    (prefix,) = {path.name for path in (own_stack.root / "spool").iterdir() if (path / "nginx.pid").exists()}
    link = own_stack.root / "spool" / prefix / "body" / "1" / "98"
    link.mkdir(parents=True, exist_ok=True)
    (link / "0000000001").symlink_to(secret)
    os.link(secret, link / "0000000002")
    (link / "0000000003").mkdir()
    os.mkfifo(link / "0000000004")
    names = [str(secret), "/etc/passwd", f"{prefix}/../../jwt_secret", f"/{prefix}/body/1/00/../../../jwt_secret",
             f"/{prefix}/body/1/00/0000000001\n", f"/{prefix}/nginx.pid", f"/{prefix}/body/1/99/9999999999",
             *(str(link / f"000000000{number}") for number in (1, 2, 3))]
    socket = own_stack.root / "run" / "worker-0.sock"
    try:
        for name in names:
            answer = ask(socket, head("PUT /file?path=/x", f"X-File: {name.strip()}", "Connection: close",
                                      f"X-Request-Id: {'0' * 32}", token=alice.token))
            assert answer.code == {400: "bad_request", 503: "unavailable"}[answer.status], (name, answer)
    finally:
        for path in link.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        link.rmdir()
    assert secret.read_bytes() == before
    assert await alice.list() == []
    disk.settle(own_stack)
