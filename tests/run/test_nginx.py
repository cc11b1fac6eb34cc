"""A real nginx with our configuration, in front of a stand-in for a worker."""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from service.config import Config
from service.run import nginx, processes
from service.run.programs import Program
from tests.run import fake_worker
from tests.run.conftest import wait_for, wait_for_async
from tests.run.fake_worker import BLOB, SEEN
from tests.stack import free_port

LIMIT = 64 * 2**30
TEN_GIB = 10 * 2**30
PER_ACCOUNT = 3  # uploads at the same time
PROXY: str | None = None  # who is believed, by address
LARGE = bytes(range(256)) * 300  # more than what comes with its request


@dataclass(slots=True)
class Front:
    """A running nginx, its worker, and how to talk to it."""

    root: Path
    prefix: Path
    port: int
    app: web.Application
    runner: web.AppRunner
    session: ClientSession
    sockets: list[Path]
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def seen(self) -> fake_worker.Seen:
        return self.app[SEEN]

    def spooled(self) -> list[Path]:
        """Every body on the disk."""
        return [path for path in self.prefix.rglob("*") if path.is_file() and path.name.isdigit()]

    async def raw(self, head: str, body: bytes = b"") -> "Answer":
        """Send bytes as they are and read one answer; `head` without its final empty line."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
            return await read_answer(reader)
        finally:
            writer.close()


@dataclass(slots=True)
class Answer:
    """Status, headers in lower case, body; and the interim answers before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: list[int] = field(default_factory=list)

    @property
    def json(self) -> dict[str, object]:
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    interim: list[int] = []
    while True:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        if status >= 200:
            break
        interim.append(status)
    pairs = [line.split(": ", 1) for line in head[1:] if line]
    names = [name.lower() for name, _ in pairs]
    assert len(set(names)) == len(names), f"a header twice: {head}"
    headers = {name.lower(): value for name, value in pairs}
    return Answer(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))), interim)


def start_nginx(program: Program, root: Path, port: int, sockets: list[Path]) -> "tuple[Path, subprocess.Popen[bytes]]":
    config = Config(data_root=root, port=port, max_upload_size=LIMIT, workers=2, uploads_per_account=PER_ACCOUNT,
                    trusted_proxies=PROXY)
    prefix = nginx.make_prefix(root / "spool")
    (root / "nginx.conf").write_text(nginx.render(config, sockets, as_root=os.geteuid() == 0))
    with (root / "nginx.log").open("ab") as log:
        process = subprocess.Popen(
            processes.launch_command(nginx.command(program.path, prefix, root / "nginx.conf")), cwd=prefix,
            stderr=log, env={**os.environ, **program.environment})
    return prefix, process


@pytest.fixture
async def front(nginx_program: Program, tmp_path: Path) -> AsyncIterator[Front]:
    """nginx in front of one worker; the configuration knows of a second one that is not there."""
    root = tmp_path / "дата [root] {x} ~1;#"
    for name in ("spool", "blobs/ab"):
        (root / name).mkdir(parents=True)
    (root / "blobs" / BLOB).write_bytes(b"0123456789")
    app, port = fake_worker.make_app(), free_port()
    runner = web.AppRunner(app)
    await runner.setup()
    with tempfile.TemporaryDirectory() as sockets:
        one, other = Path(sockets) / "0.sock", Path(sockets) / "1.sock"
        await web.UnixSite(runner, str(one)).start()
        prefix, process = start_nginx(nginx_program, root, port, [one, other])
        async with ClientSession() as session:
            front = Front(root, prefix, port, app, runner, session, [one, other], process)
            await wait_for_async(lambda: is_up(front), "nginx answers")
            app[SEEN].clear()
            yield front
        front.process.send_signal(signal.SIGTERM)
        front.process.wait()
        await runner.cleanup()


async def is_up(front: Front) -> bool:
    assert front.process.poll() is None, (front.root / "nginx.log").read_text()
    try:
        return (await front.raw("GET / HTTP/1.1\nHost: x")).status > 0
    except OSError:
        return False


def check_problem(answer: Answer, status: int, code: str) -> None:
    """The answer is nginx's own, as problem+json."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json["type"] == "about:blank"
    assert (answer.json["status"], answer.json["code"]) == (status, code)
    assert answer.json["title"] and answer.json["detail"]
    assert answer.json["request_id"] == answer.headers["x-request-id"]


# --- uploads ---

UPLOAD = "PUT /file?path=/a%20b HTTP/1.1\nHost: x\nAuthorization: Bearer t"


async def test_body_is_spooled_and_its_name_handed_over(front: Front) -> None:
    answer = await front.raw(f"{UPLOAD}\nContent-Length: {len(LARGE)}", LARGE)
    assert answer.status == 201
    name = str(answer.json["file"])
    assert Path(name).is_relative_to(front.prefix / "body")
    assert [len(part) for part in Path(name).relative_to(front.prefix / "body").parts] == [1, 2, 10]
    assert answer.json == {"file": name, "size": len(LARGE), "received": 0, "content": LARGE[:16].hex(), "mode": 0o600}
    question, request = front.seen
    assert question[""] == "GET /_preflight"
    assert question["x-original-method"] == "PUT"
    assert question["x-original-uri"] == "/file?path=/a%20b"
    assert question["x-body-length"] == request["x-body-length"] == str(len(LARGE))
    assert request[""] == "PUT /file?path=/a%20b"
    assert question["x-request-id"] == request["x-request-id"] == answer.headers["x-request-id"]
    wait_for(lambda: not front.spooled(), "the spooled body is removed")


async def test_body_in_pieces_is_spooled(front: Front) -> None:
    answer = await front.raw(UPLOAD + "\nTransfer-Encoding: chunked", b"5\r\nhello\r\n3\r\n...\r\n0\r\n\r\n")
    assert (answer.status, answer.json["size"]) == (201, 8)
    for seen in front.seen:
        assert seen["x-body-transfer-encoding"] == "chunked"
        assert "x-body-length" not in seen


@pytest.mark.parametrize("size", [0, 1, 5, 4096, 9999, 10000, 65535, 65536])
async def test_small_body_comes_with_its_request(front: Front, size: int) -> None:
    """One request to the worker, and nothing on the disk."""
    answer = await front.raw(f"{UPLOAD}\nContent-Length: {size}\nX-File: /etc/passwd\nX-Request-Begin: 1",
                             LARGE[:size])
    assert (answer.status, answer.json["file"], answer.json["received"]) == (201, None, size)
    [request] = front.seen
    assert request[""] == "PUT /file?path=/a%20b"
    assert request["x-body-length"] == request["content-length"] == str(size)
    assert "x-file" not in request
    assert request["x-request-id"] == answer.headers["x-request-id"]
    assert abs(float(request["x-request-begin"]) - time.time()) < 600
    assert not (front.prefix / "body").exists() or front.spooled() == []


@pytest.mark.parametrize("head", ["Content-Length: 65537", "Content-Length: 5\nExpect: 100-continue",
                                  "Transfer-Encoding: chunked"])
async def test_any_other_body_is_asked_for(front: Front, head: str) -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n" if "chunked" in head else LARGE[:65537 if "65537" in head else 5]
    answer = await front.raw(f"{UPLOAD}\n{head}", body)
    assert answer.status == 201 and answer.json["file"]
    assert [request[""] for request in front.seen] == ["GET /_preflight", "PUT /file?path=/a%20b"]
    assert answer.interim == ([100] if "Expect" in head else [])


async def test_small_body_of_a_client_that_dawdles_keeps_no_worker(front: Front) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(UPLOAD.replace("\n", "\r\n").encode() + b"\r\nContent-Length: 60000\r\n\r\n" + bytes(50_000))
    await writer.drain()
    assert (await front.raw("GET /x HTTP/1.1\nHost: x")).status == 200
    assert [request[""] for request in front.seen] == ["GET /x"]
    assert front.spooled() == []
    writer.close()


async def test_no_body_is_no_file(front: Front) -> None:
    answer = await front.raw(UPLOAD)
    assert (answer.status, answer.json["file"], answer.json["received"]) == (201, None, 0)
    assert not {"x-file", "x-body-length"} & front.seen[0].keys()


@pytest.mark.parametrize("encoding", [f"Content-Length: {TEN_GIB}", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("expect", ["", "\nExpect: 100-continue"])
async def test_anonymous_upload_ends_before_its_body(front: Front, encoding: str,
                                                     expect: str) -> None:
    answer = await front.raw(f"PUT /file?path=/a HTTP/1.1\nHost: x\n{encoding}{expect}")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json == json.loads(fake_worker.problem(401))
    assert answer.interim == []  # the client was not invited to send it
    assert front.spooled() == []
    assert len(front.seen) == 1


async def test_refused_client_that_goes_on_sending_sees_the_answer(front: Front) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(f"PUT /file?path=/a HTTP/1.1\r\nHost: x\r\nContent-Length: {TEN_GIB}\r\n\r\n".encode())
    for _ in range(50):  # never looks at the answer
        writer.write(bytes(2**20))
        await writer.drain()
        assert front.spooled() == []
    assert (await read_answer(reader)).status == 401
    writer.close()


@pytest.mark.parametrize("status", sorted({*nginx.REFUSALS} - {500}))  # 500 is no refusal of the stand-in's
async def test_refusal_keeps_its_status(front: Front, status: int) -> None:
    answer = await front.raw(f"POST /file HTTP/1.1\nHost: x\nContent-Length: {len(LARGE)}\nWant: {status}", LARGE)
    assert answer.status == status
    assert answer.json["detail"] == "нет"
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
    assert "x-file" not in front.seen[0]


async def test_refusal_with_an_unknown_status_is_403(front: Front) -> None:
    check_problem(await front.raw(f"PUT /file HTTP/1.1\nHost: x\nContent-Length: {len(LARGE)}\nWant: 418", LARGE),
                  403, "forbidden")


@pytest.mark.parametrize("want", ["0", "500"])
async def test_question_without_an_answer_is_503(front: Front, want: str) -> None:
    answer = await front.raw(f"{UPLOAD}\nContent-Length: {len(LARGE)}\nWant: {want}", LARGE)
    check_problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"]


async def test_upload_without_any_worker_is_503(front: Front) -> None:
    await front.runner.cleanup()
    for body in (b"hello", LARGE):
        check_problem(await front.raw(f"{UPLOAD}\nContent-Length: {len(body)}", body), 503, "unavailable")
    answer = await front.raw("GET /file/list HTTP/1.1\nHost: x")
    check_problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "2"


async def test_upload_over_the_limit_is_413(front: Front) -> None:
    size = LIMIT + nginx.FRAME_BYTES + 1
    check_problem(await front.raw(f"{UPLOAD}\nContent-Length: {size}"), 413, "too_large")
    assert front.seen == []
    answer = await front.raw(f"{UPLOAD}\nTransfer-Encoding: chunked", f"{size:x}\r\n".encode() + bytes(2**20))
    check_problem(answer, 413, "too_large")
    wait_for(lambda: not front.spooled(), "the spooled part is removed")


async def test_body_that_cannot_be_written_is_507(front: Front) -> None:
    """Whether it was announced or not; the worker has let it begin, and sees nothing of it."""
    shutil.rmtree(front.prefix / "body")
    (front.prefix / "body").touch()  # as good as a disk without room: no file can be made
    for head in (f"Content-Length: {len(LARGE)}", "Transfer-Encoding: chunked"):
        body = LARGE if "Length" in head else b"%x\r\n%s\r\n0\r\n\r\n" % (len(LARGE), LARGE)
        check_problem(await front.raw(f"{UPLOAD}\n{head}", body), 507, "storage_full")
    assert {seen[""] for seen in front.seen} == {"GET /_preflight"}
    (front.prefix / "body").unlink()
    (front.prefix / "body").mkdir(mode=0o700)
    assert (await front.raw(f"{UPLOAD}\nContent-Length: {len(LARGE)}", LARGE)).status == 201


def limit_files(pid: int, spare: int | None) -> None:
    """Let a process open so many files more, or as many as it may."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    count = len(list((processes.PROC / str(pid) / "fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if spare is None else count + spare, hard))


async def bodies_without_descriptors(front: Front) -> list[Answer]:
    """Answers to uploads that were let begin when nginx had no descriptor left for their bodies."""
    # the worker is asked over connections that are there already
    workers = [pid for pid in processes.find_working_in(front.prefix, "nginx") if pid != front.process.pid]
    connections = [await asyncio.open_connection("127.0.0.1", front.port) for _ in range(8)]
    answers = []
    try:
        for reader, writer in connections:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await read_answer(reader)
        for pid in workers:
            limit_files(pid, 0)
        for number, (reader, writer) in enumerate(connections):
            head = f"{UPLOAD}{number}\nContent-Length: {len(LARGE)}".replace("\n", "\r\n").encode()
            writer.write(head + b"\r\n\r\n" + LARGE)
            answers.append(await read_answer(reader))
    finally:
        for pid in workers:
            limit_files(pid, None)
        for _, writer in connections:
            writer.close()
            await writer.wait_closed()
    assert re.search(r'open\(\) "[^"]*/body/[^"]*" failed \(24: ', (front.root / "nginx.log").read_text())
    return answers


async def test_body_for_which_there_is_no_descriptor_is_503(front: Front) -> None:
    """Nothing is wrong with the disk."""
    for answer in await bodies_without_descriptors(front):
        check_problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"]
    assert (await front.raw(f"{UPLOAD}\nContent-Length: {len(LARGE)}", LARGE)).status == 201


@pytest.fixture
def few_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bodies from one network at the same time."""
    monkeypatch.setattr(nginx, "UPLOADS_PER_NETWORK", 2)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """X-Forwarded-For says where a client is."""
    monkeypatch.setattr(f"{__name__}.PROXY", "127.0.0.1")


async def test_many_bodies_at_once_from_one_address_are_429_before_they_come(few_uploads: None, front: Front) -> None:
    begun = [await asyncio.open_connection("127.0.0.1", front.port) for _ in range(2)]
    for _, writer in begun:
        writer.write(UPLOAD.replace("\n", "\r\n").encode() + b"\r\nContent-Length: 20000000\r\n\r\n" + bytes(2_000_000))
        await writer.drain()

    async def are_spooled() -> bool:
        return len(front.spooled()) == 2

    await wait_for_async(are_spooled, "both are on their way")
    answer = await front.raw(f"{UPLOAD}\nContent-Length: 20000000\nExpect: 100-continue")
    check_problem(answer, 429, "too_many_requests")
    assert answer.headers["retry-after"] and answer.interim == []
    assert (await front.raw("GET /file/list HTTP/1.1\nHost: x")).status == 200  # nothing else is counted
    for _, writer in begun:
        writer.close()

    async def is_free() -> bool:
        return (await front.raw(f"{UPLOAD}\nContent-Length: {len(LARGE)}", LARGE)).status == 201

    await wait_for_async(is_free, "whoever has left is not counted any more")


async def announce(front: Front, token: str,
                   *headers: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin an upload that waits to be invited; what came back first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write("\r\n".join(["PUT /file HTTP/1.1", "Host: x", f"Authorization: {token}", "Content-Length: 20000000",
                              "Expect: 100-continue", *headers, "", ""]).encode())
    return await asyncio.wait_for(reader.readuntil(b"\r\n"), 20), reader, writer


async def uploads_are_limited_for_each_account(front: Front) -> None:
    """Whoever has as many uploads under way as an account may have is refused another one, and nobody else is."""
    begun = [await announce(front, "one") for _ in range(PER_ACCOUNT)]
    late = await announce(front, "one")
    try:
        assert {status for status, _, _ in begun} == {b"HTTP/1.1 100 Continue\r\n"}
        assert late[0].startswith(b"HTTP/1.1 429 ")
        head = (await late[1].readuntil(b"\r\n\r\n")).decode("ascii")
        assert "\r\nRetry-After: " in head and "application/problem+json" in head
        large, small = (f"PUT /file HTTP/1.1\nHost: x\nContent-Length: {len(body)}\nAuthorization: "
                        for body in (LARGE, b"hello"))
        check_problem(await front.raw(f"{large}one", LARGE), 429, "too_many_requests")
        assert (await front.raw(f"{large}two", LARGE)).status == 201
        assert (await front.raw(f"{small}one", b"hello")).status == 201  # never on the disk
        begun[0][2].close()

        async def is_free() -> bool:
            return (await front.raw(f"{large}one", LARGE)).status == 201

        await wait_for_async(is_free, "whoever has left is not counted any more")
    finally:
        for _, _, writer in (*begun, late):
            writer.close()
            await writer.wait_closed()


async def test_many_bodies_at_once_on_one_account_are_429_before_they_come(front: Front) -> None:
    await uploads_are_limited_for_each_account(front)


async def first_words(front: Front, uploads: list[tuple[str, str]]) -> list[int]:
    """What uploads are told that are under way at the same time: a token and another header of each."""
    begun = [await announce(front, token, header) for token, header in uploads]
    for _, _, writer in begun:
        writer.close()
        await writer.wait_closed()
    return [int(status.split()[1]) for status, _, _ in begun]


@pytest.mark.parametrize(("addresses", "is_one"), [
    (("2001:db8::1", "2001:db8::2", "2001:0DB8:0:0:1::5"), True),
    (("2001:db8:0:1::a", "2001:db8:0:1:a::", "2001:db8::1:a0a:a0a:a0a:a0a"), True),
    (("::1", "::2:0", "0:0:0:0:1::"), True),
    (("1.2.3.4", "::ffff:1.2.3.4", "::ffff:102:304"), True),
    (("1.2.3.10", "1.2.3.11", "1.2.3.12"), False),
    (("::ffff:1.2.3.4", "::ffff:1.2.3.5", "::1"), False),
    (("2001:db8::1", "2001:db8:0:1::1", "2001:db8:1::1"), False),
    (("a0a:a0a:a0a:a0a::", "a0a:a0a:a0a:a0b::", "a:a0a:a0a:a0a::"), False),  # line feeds
])
async def test_addresses_of_one_network_share_its_uploads(few_uploads: None, proxied: None, front: Front,
                                                          addresses: tuple[str, ...], is_one: bool) -> None:
    uploads = [(f"token-{number}", f"X-Forwarded-For: {address}") for number, address in enumerate(addresses)]
    assert await first_words(front, uploads) == [100, 100, 429 if is_one else 100]


async def test_links_of_an_account_share_a_limit_of_their_own(front: Front) -> None:
    """Each has a share, all together have more, and their owner has what is his in any case."""
    uploads = [(f"link-{number % 3}", "Owner: one") for number in range(2 * PER_ACCOUNT)]
    assert await first_words(front, [
        *uploads, ("link-3", "Owner: one"), ("link-4", "Owner: other"), ("one", "X: x")]) == [
        *[100] * (2 * PER_ACCOUNT), 429, 100, 100]
    assert await first_words(front, [("link", "Owner: one")] * (PER_ACCOUNT + 1)) == [*[100] * PER_ACCOUNT, 429]


ASIDE = 2**20
LONG_BYTES = 32 * 2**20  # more than the kernel keeps for a connection


@pytest.fixture
def few_long_answers(proxied: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at the same time to one network, of which a MiB each may be put aside."""
    monkeypatch.setattr(nginx, "LONG_ANSWERS_PER_NETWORK", 2)
    monkeypatch.setattr(nginx, "ASIDE_BYTES", ASIDE)


def put_aside(front: Front) -> int:
    """The bytes that nginx keeps on the disk in files without a name."""
    total = 0
    for pid in processes.find_working_in(front.prefix, "nginx"):
        for link in (processes.PROC / str(pid) / "fd").iterdir():
            try:
                if "/proxy/" in str(link.readlink()):
                    total += link.stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


async def begin_to_read(front: Front, path: str, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a long answer and look at its status alone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, limit=2**12)
    writer.write(f"GET {path}?bytes={LONG_BYTES} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n".encode())
    assert await asyncio.wait_for(reader.readline(), 20) == b"HTTP/1.1 200 OK\r\n"
    return reader, writer


async def test_who_does_not_read_long_answers_gets_few_of_them(few_long_answers: None, front: Front) -> None:
    other = [await begin_to_read(front, "/x", "2001:db8::1") for _ in range(3)]  # not put aside, not counted
    assert put_aside(front) == 0
    begun = [await begin_to_read(front, "/file/list", f"2001:db8::{number}") for number in range(2)]

    async def is_put_aside() -> bool:
        return put_aside(front) > ASIDE

    await wait_for_async(is_put_aside, "the disk has a part of both")
    late = "GET /file/list HTTP/1.1\nHost: x\nX-Forwarded-For: "
    for path in ("list", "trash"):
        answer = await front.raw(late.replace("list", path) + "2001:db8::abcd")
        check_problem(answer, 429, "too_many_requests")
        assert int(answer.headers["retry-after"]) > 0
    assert (await front.raw(late + "2001:db8:0:1::1")).status == 200
    assert (await front.raw(late.replace("list", "info") + "2001:db8::1")).status == 200
    assert put_aside(front) <= 2 * (ASIDE + 2**18)
    reader, _ = begun[0]
    async with asyncio.timeout(60):
        await reader.readuntil(b"\r\n\r\n")
        assert len(await reader.readexactly(LONG_BYTES)) == LONG_BYTES  # whoever reads on gets it all

    async def is_free() -> bool:
        return (await front.raw(late + "2001:db8::2")).status == 200

    await wait_for_async(is_free, "who has it all is not counted any more")
    for _, writer in (*other, *begun):
        writer.close()


@pytest.fixture
def mistake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx is set up otherwise: the parameter has what stands in its configuration, and what does instead."""
    render, (right, wrong) = nginx.render, request.param

    def render_wrong(*given: Any, **more: Any) -> str:
        text = render(*given, **more)
        assert right in text
        return text.replace(right, wrong)

    monkeypatch.setattr(nginx, "render", render_wrong)


@pytest.mark.mutant("N1", "uploads of an account that nobody counts")
@pytest.mark.parametrize("mistake", [(f"limit_conn uploads_of_account {PER_ACCOUNT};", "")], indirect=True, ids=[""])
async def test_uncounted_uploads_are_found_out(mistake: None, front: Front) -> None:
    with pytest.raises(AssertionError):
        await uploads_are_limited_for_each_account(front)


@pytest.mark.mutant("N5", "every body that nginx cannot write taken for a full disk")
@pytest.mark.parametrize("mistake", [("error_page 500 = /_spool/probe;", "error_page 500 =507 /_problem;")],
                         indirect=True, ids=[""])
async def test_descriptors_taken_for_a_full_disk_are_found_out(mistake: None, front: Front) -> None:
    assert 507 in {answer.status for answer in await bodies_without_descriptors(front)}


async def test_client_that_leaves_in_the_middle_leaves_nothing(front: Front) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(UPLOAD.replace("\n", "\r\n").encode() + b"\r\nContent-Length: 20000000\r\n\r\n" + bytes(10_000_000))
    await writer.drain()
    wait_for(front.spooled, "the body is being spooled")
    writer.close()
    await writer.wait_closed()
    wait_for(lambda: not front.spooled(), "the part is removed")
    assert [seen[""] for seen in front.seen] == ["GET /_preflight"]


async def test_next_start_spools_elsewhere(nginx_program: Program, front: Front) -> None:
    first = str((await front.raw(UPLOAD + "\nTransfer-Encoding: chunked", b"1\r\nx\r\n0\r\n\r\n")).json["file"])
    front.process.send_signal(signal.SIGTERM)
    front.process.wait()
    nginx.stop_leftovers(front.root / "spool")
    assert list((front.root / "spool").iterdir()) == []
    front.prefix, front.process = start_nginx(nginx_program, front.root, front.port, front.sockets)
    await wait_for_async(lambda: is_up(front), "nginx answers")
    second = str((await front.raw(UPLOAD + "\nTransfer-Encoding: chunked", b"1\r\nx\r\n0\r\n\r\n")).json["file"])
    assert Path(first).name == Path(second).name  # nginx counts from 1 again
    assert first != second


async def test_killed_master_leaves_no_process_and_no_port(front: Front) -> None:
    children = processes.find_working_in(front.prefix, "nginx")
    assert len(children) >= 2
    front.process.kill()
    front.process.wait()
    assert processes.find_working_in(front.prefix, "nginx")  # nginx's own processes go on
    nginx.stop_leftovers(front.root / "spool")
    assert not processes.find_working_in(front.prefix, "nginx")


# --- headers ---

FORGED = {"x-file": "/etc/passwd", "x-body-length": "5", "x-body-transfer-encoding": "chunked",
          "x-original-method": "PUT", "x-original-uri": "/", "x-internal": "1", "x-real-ip": "6.6.6.6",
          "x-request-id": "mine", "x-forwarded-for": "6.6.6.6", "x-forwarded-host": "evil",
          "x-forwarded-proto": "https", "forwarded": "for=6.6.6.6"}


@pytest.mark.parametrize("path", ["/", "/auth/me", "/file/list", "/file"])
async def test_forged_headers_do_not_arrive(front: Front, path: str) -> None:
    forged = "".join(f"\n{name}: {value}\n{name.title()}: {value}" for name, value in FORGED.items())
    await front.raw(f"POST {path} HTTP/1.1\nHost: files.example:81\nAuthorization: x{forged}")
    assert front.seen
    for seen in front.seen:
        assert seen["x-real-ip"] == "127.0.0.1"
        assert seen["x-request-id"] != "mine"
        assert seen["host"] == "files.example:81"
        question = {"x-original-method": "POST", "x-original-uri": path} if "_preflight" in seen[""] else {}
        for name in FORGED.keys() - {"x-real-ip", "x-request-id"}:
            assert seen.get(name) == question.get(name)


async def test_each_header_is_given_once(front: Front) -> None:
    for path in ("/x", "/x?status=404", "/x?status=500", "/file/download", "/metrics"):
        answer = await front.raw(f"GET {path} HTTP/1.1\nHost: x")  # read_answer checks for twins
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"] != "the worker's"
        assert answer.headers["server"] == "nginx"


async def test_answers_of_a_worker_are_not_replaced(front: Front) -> None:
    for status in (400, 401, 403, 404, 409, 412, 413, 416, 500, 502, 503, 507):
        answer = await front.raw(f"GET /x?status={status} HTTP/1.1\nHost: x")
        assert answer.status == status
        assert "headers" in answer.json


async def test_path_arrives_as_it_was_sent(front: Front) -> None:
    answer = await front.raw("GET /a%2Fb/../%ff//c?d=%00%0a HTTP/1.1\nHost: x")
    assert answer.json["path"] == "/a%2Fb/../%ff//c?d=%00%0a"


async def test_request_without_host_gets_one(front: Front) -> None:
    answer = await front.raw("GET /x HTTP/1.0")
    assert json.loads(answer.body)["headers"]["Host"] == "localhost"


# --- what nginx says by itself ---

@pytest.mark.parametrize("path", [
    "/_preflight", "/_linked/" + BLOB, "/_linked/",
    "/_blobs/" + BLOB, "/_blobs/", "/_blobs", "/_blobs../spool", "/_blobs/../_preflight", "/_problem",
    "/_refuse/401", "/_refuse/", "/_refused", "/_unreadable/200", "/_unsatisfiable", "/_", "/_x", "//_preflight",
    "/%5Fpreflight", "/x/../_preflight", "/metrics", "/metrics/", "/%6detrics", "/./metrics", "/_unreadable/",
    "/_spool/probe", "/_spool/", "/_unspooled/x", "/_unspooled/"])
async def test_what_is_not_public_is_not_there(front: Front, path: str) -> None:
    check_problem(await front.raw(f"GET {path} HTTP/1.1\nHost: x"), 404, "not_found")
    assert front.seen == []


@pytest.mark.parametrize(("head", "status", "code"), [
    ("GET / HTTP/1.1", 400, "bad_request"),  # no Host
    ("GET / HTTP/1.1\nHost: a\nHost: b", 400, "bad_request"),
    ("GET / HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 2", 400, "bad_request"),
    ("GET / HTTP/1.1\nHost: a\nContent-Length: -1", 400, "bad_request"),
    ("GET / HTTP/1.1\nHost: a\nContent-Length: 5\nTransfer-Encoding: chunked", 400, "bad_request"),
    ("GET /%zz HTTP/1.1\nHost: x", 400, "bad_request"),
    ("GET /../x HTTP/1.1\nHost: x", 400, "bad_request"),
    ("NONSENSE", 400, "bad_request"),
    ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip", 501, "not_implemented"),
    ("GET / HTTP/9.9\nHost: a", 505, "bad_request"),
    ("TRACE / HTTP/1.1\nHost: x", 405, "method_not_allowed"),
    ("CONNECT x:1 HTTP/1.1\nHost: x", 400, "bad_request"),
    (f"GET /{'x' * 20000} HTTP/1.1\nHost: x", 414, "address_too_long"),
    (f"GET / HTTP/1.1\nHost: x\nX-Long: {'x' * 20000}", 431, "headers_too_large"),
    ("POST /x HTTP/1.1\nHost: x\nContent-Length: 1048577", 413, "too_large"),
    ("POST /auth/register HTTP/1.1\nHost: x\nContent-Length: 65537", 413, "too_large"),
])
async def test_error_of_nginx_is_problem_json(front: Front, head: str, status: int, code: str) -> None:
    check_problem(await front.raw(head), status, code)
    assert front.seen == []


async def test_small_bodies_do_not_touch_the_disk(front: Front) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(999_999))
    await writer.drain()
    await asyncio.sleep(0)
    assert front.spooled() == []
    writer.write(b"x")
    assert (await read_answer(reader)).json["received"] == 1_000_000
    writer.close()


# --- downloads ---

async def test_download_has_all_headers(front: Front) -> None:
    answer = await front.raw("GET /file/download HTTP/1.1\nHost: x")
    assert (answer.status, answer.body) == (200, b"0123456789")
    for name, value in {"content-type": "text/plain", "etag": '"v1"', "repr-digest": "sha-256=:AA==:",
                        "last-modified": "Fri, 11 Sep 2020 17:22:05 GMT", "cache-control": "private, no-cache",
                        "content-disposition": 'attachment; filename="a.txt"', "accept-ranges": "bytes",
                        "content-security-policy": "sandbox; default-src 'none'",
                        "cross-origin-resource-policy": "same-origin"}.items():
        assert answer.headers[name] == value


@pytest.mark.parametrize(("headers", "status", "body"), [
    ("Range: bytes=2-4", 206, b"234"),
    ("Range: bytes=-3", 206, b"789"),
    ("Range: bytes=8-", 206, b"89"),
    ("Range: bytes=8-99", 206, b"89"),
    ("Range: letters=1-2", 200, b"0123456789"),
    ('Range: bytes=0-1\nIf-Range: "v1"', 206, b"01"),
    ('Range: bytes=0-1\nIf-Range: "v0"', 200, b"0123456789"),
    ("Range: bytes=0-1\nIf-Range: Fri, 11 Sep 2020 17:22:05 GMT", 206, b"01"),
    ("Range: bytes=0-1\nIf-Range: Fri, 11 Sep 2020 17:22:06 GMT", 200, b"0123456789"),
    ('If-None-Match: "v1"', 200, b"0123456789"),  # the worker's business
    ("Range: bytes=" + ",".join(["0-0"] * 9), 200, b"0123456789"),
])
async def test_download_of_a_part(front: Front, headers: str, status: int, body: bytes) -> None:
    answer = await front.raw(f"GET /file/download HTTP/1.1\nHost: x\n{headers}")
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers["etag"] == '"v1"'
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_range_that_is_not_there(front: Front) -> None:
    answer = await front.raw("GET /file/download HTTP/1.1\nHost: x\nRange: bytes=10-")
    check_problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */10"


async def test_head_of_a_download(front: Front) -> None:
    async with front.session.head(f"{front.url}/file/download") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, "10")
        assert response.headers["ETag"] == '"v1"'


@pytest.mark.parametrize("blob", ["ab/nothing", "ab/", "cd/link"])
async def test_missing_bytes_are_our_fault(front: Front, blob: str) -> None:
    (front.root / "blobs" / "cd").mkdir()
    (front.root / "blobs" / "cd" / "link").symlink_to(front.root / "blobs" / BLOB)
    answer = await front.raw(f"GET /file/download?blob={blob} HTTP/1.1\nHost: x")
    check_problem(answer, 500, "content_unavailable")
    assert "etag" not in answer.headers


async def test_worker_that_leads_out_of_the_blobs_gets_nowhere(front: Front) -> None:
    for blob in ("../spool", "ab/../../nginx.conf"):
        check_problem(await front.raw(f"GET /file/download?blob={blob} HTTP/1.1\nHost: x"), 404, "not_found")


# --- workers ---

@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_worker_that_cannot_be_reached_is_passed_over(front: Front, method: str) -> None:
    for _ in range(10):  # one of two is not there
        assert (await front.raw(f"{method} /x HTTP/1.1\nHost: x\nContent-Length: 0")).status == 200


async def test_delete_is_never_sent_twice(front: Front) -> None:
    answers = [await front.raw("DELETE /x HTTP/1.1\nHost: x") for _ in range(30)]
    reached = [answer for answer in answers if answer.status == 200]
    assert 0 < len(reached) == len(front.seen) < 30
    for answer in answers:
        if answer.status != 200:
            check_problem(answer, 503, "unavailable")


async def test_delete_is_not_sent_again_when_its_connection_breaks(front: Front) -> None:
    """Even over one that was kept from before, which nginx takes for a reason to try again."""
    for method, path in (("DELETE", "/x"), ("DELETE", "/auth/x"), ("DELETE", "/file"), ("POST", "/x")):
        reached = 0
        while reached < 5:  # one of two workers is not there
            await front.raw(f"{method} {path} HTTP/1.1\nHost: x")  # leaves a connection
            front.seen.clear()
            check_problem(await front.raw(f"{method} {path} HTTP/1.1\nHost: x\nWant: 0"), 503, "unavailable")
            assert len(front.seen) <= 1, (method, path)
            reached += len(front.seen)
