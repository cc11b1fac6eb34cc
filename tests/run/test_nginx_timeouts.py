"""nginx waits for nobody without end: each of its time-outs, made short, ends what it is there for and leaves nothing.

How the real ones treat clients that are merely slow is seen in tests/faults/test_slow_clients.py.
"""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.run import processes
from tests.attacks.wire import BOUNDARY, Wire, ask, form, head, part, request
from tests.client import PATIENCE_SECONDS, Api, nothing_stored, until
from tests.faults.sites import FaultyStack
from tests.open_files import open_files

SHORT = "\n".join(f" {name} {real};=> {name} {short};" for name, real, short in (
    ("client_header_timeout", "15s", "1s"), ("keepalive_timeout", "75s", "1s"),
    ("lingering_time", "10s", "1s"), ("lingering_timeout", "5s", "1s"),
    ("client_body_timeout", "60s", "2s"), ("send_timeout", "60s", "2s"),
    # so long that a machine with other things to do answers in time what is not held up
    ("proxy_read_timeout", "120s", "4s"), ("proxy_read_timeout", "15s", "4s"), ("proxy_send_timeout", "60s", "4s")))
LARGE_BYTES = 16 * 2**20  # more than the kernel keeps for a connection
SPOOLED = 3  # of the bodies below, those of the account itself for which nginx makes a file
JSON = "Content-Type: application/json"
FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    """A service whose nginx has little patience, and no place for more uploads of an account than are tried here."""
    found = FaultyStack(tmp_path_factory.mktemp("hasty") / "data", {"UPLOADS_PER_ACCOUNT": str(SPOOLED)},
                        module="tests.faults.faulty_nginx", variables={"NGINX_MISTAKE": SHORT})
    with found.running():
        yield found


def _hear(wire: Wire) -> bytes:
    with wire:
        return wire.read_raw()


async def heard(wires: list[Wire]) -> list[bytes]:
    """What each is told until its connection ends; TimeoutError for one that does not."""
    return list(await asyncio.gather(*(asyncio.to_thread(_hear, wire) for wire in wires)))


async def begun(stack: FaultyStack, begins: list[bytes]) -> list[bytes]:
    """Begin requests and send no more of them; what each is told until its connection ends."""
    wires = [Wire(stack) for _ in begins]
    for wire, begin in zip(wires, begins):
        assert wire.send(begin)
    return await heard(wires)


# --- what clients owe ---

async def test_head_that_does_not_go_on_is_cut_off(stack: FaultyStack) -> None:
    assert await begun(stack, [b"", b"GET /livez", b"PUT /file?path=/a HTTP/1.1\r\nHost: x\r\nX-A: "]) == [b""] * 3


async def test_body_that_does_not_go_on_is_cut_off_and_nothing_of_it_stays(api: Api, stack: FaultyStack) -> None:
    await api.call("POST", "/file/folder", json={"path": "/drop"}, expect=201)
    made = await api.call("POST", "/file/link", json={"path": "/drop", "kind": "upload"}, expect=201)
    link = made.json["url"].removeprefix(stack.url)
    half_form = form(part('name="file"; filename="a"', bytes(200_000)))[:100_000]
    begins = {
        "large": head("PUT /file?path=/a", "Content-Length: 1000000", token=api.token) + bytes(500_000),
        "in pieces": head("PUT /file?path=/b", "Transfer-Encoding: chunked", token=api.token) + b"fffff\r\n12345",
        "form": head("POST /file", FORM, "Content-Length: 200300", token=api.token) + half_form,
        "through a link": head(f"POST {link}", FORM, "Content-Length: 200300") + half_form,
        "in memory": head("PUT /file?path=/c", "Content-Length: 1000", token=api.token) + bytes(999),
        "password": head(f"POST {link}/open", JSON, "Content-Length: 100") + b"{",
        "batch": head("POST /file/batch", JSON, "Content-Length: 100", token=api.token) + b"{",
        "login": head("POST /auth/jwt/login", JSON, "Content-Length: 100") + b"{"}
    async with nothing_stored(api):
        told = dict(zip(begins, await begun(stack, list(begins.values()))))
        assert told == dict.fromkeys(begins, b"")  # no answer, so each was waited for
    statuses = [ask(stack, request(f"PUT /file?path=/{number}", token=api.token, body=bytes(100_000))).status
                for number in range(SPOOLED)]
    assert statuses == [201] * SPOOLED  # none is counted as under way any more


async def test_refused_client_is_not_read_from_for_long(stack: FaultyStack) -> None:
    """Whether it sends on and on, or nothing any more."""
    for sent in (b"x", b""):
        with Wire(stack) as wire:
            assert wire.send(head("PUT /file?path=/a", "Content-Length: 10000000000"))
            assert wire.read_last().status == 401
            if sent:
                await until(lambda: not wire.send(sent))
            else:
                assert await heard([wire]) == [b""]


async def test_connection_without_another_request_is_closed(stack: FaultyStack) -> None:
    wire = Wire(stack)
    assert wire.send(head("GET /livez"))
    assert wire.read_last().status == 200
    assert await heard([wire]) == [b""]


# --- what clients are given ---

def begin_to_read(stack: FaultyStack, asked: bytes) -> socket.socket:
    """Ask for something, and look at no more than the status of the answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE_SECONDS)
    connection.connect(("127.0.0.1", stack.port))
    connection.sendall(asked)
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def count_rest(connection: socket.socket) -> int:
    """How many bytes still come until the connection ends, one way or the other."""
    count = 0
    with connection:
        try:
            while piece := connection.recv(2**18):
                count += len(piece)
        except ConnectionResetError:
            pass
    return count


async def test_answer_that_nobody_takes_is_cut_off_and_nothing_stays_open(api: Api, stack: FaultyStack) -> None:
    await api.put("/folder/large", bytes(LARGE_BYTES))
    connections = [begin_to_read(stack, head(*lines, token=api.token)) for lines in (
        ("GET /file/download?path=/folder/large",),  # nginx sends the file
        ("GET /file/download?path=/folder/large", "If-Match: *"),  # a worker sends it
        ("GET /file/archive?path=/folder",))]
    await until(lambda: open_files([*stack.nginx(), *stack.workers()], stack.root) == [])
    for connection in connections:
        assert count_rest(connection) < LARGE_BYTES


# --- what workers owe ---

@contextmanager
def hanging(pids: list[int]) -> Iterator[None]:
    """These processes do nothing as long as the context lasts."""
    processes.send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        processes.send(pids, signal.SIGCONT)


async def test_worker_that_hangs_is_not_waited_for(api: Api, stack: FaultyStack) -> None:
    asked = {
        "an answer": ("GET", "/file/list", b""), "to be read": ("POST", "/file/batch", bytes(900_000)),
        "before an upload": ("PUT", "/file?path=/a", bytes(100_000)),
        "before a download": ("GET", "/file/download?path=/a", b"")}
    with hanging(stack.workers()):
        async with asyncio.timeout(PATIENCE_SECONDS):
            replies = await asyncio.gather(*(
                api.call(method, path, data=body or None) for method, path, body in asked.values()))
    assert {what: (reply.status, reply.code) for what, reply in zip(asked, replies)} == {
        "an answer": (504, "unavailable"), "to be read": (504, "unavailable"),
        "before an upload": (503, "unavailable"), "before a download": (503, "unavailable")}
    assert ask(stack, request("PUT /file?path=/a", token=api.token, body=b"hello")).status == 201
