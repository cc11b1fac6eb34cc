"""Attack 7: bodies that nobody may send, that are too large, or that are not what was announced."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from tests.attacks import disk
from tests.attacks.conftest import SMALL
from tests.attacks.wire import BOUNDARY, Answer, Wire, ask, chunked, form, head, part, request, talk
from tests.client import Api, new_account
from tests.stack import Stack

GIB = 2**30
PIECE = b"\xa5" * 65536
MAX_UPLOAD = int(SMALL["MAX_UPLOAD_SIZE"])
QUOTA = int(SMALL["QUOTA"])
FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"

FRAMES = {
    "length": (f"Content-Length: {10 * GIB}",),
    "length, expecting": (f"Content-Length: {10 * GIB}", "Expect: 100-continue"),
    "chunked": ("Transfer-Encoding: chunked",),
    "chunked, expecting": ("Transfer-Encoding: chunked", "Expect: 100-continue"),
}


def _piece(frame: str) -> bytes:
    return PIECE if "length" in frame else b"%x\r\n%s\r\n" % (len(PIECE), PIECE)


def _refused_while_sending(wire: Wire, stack: Stack, frame: str, rounds: int = 40) -> Answer:
    """The answer comes first; what the client goes on sending reaches no disk."""
    answer = wire.read()
    assert answer is not None and answer.status >= 400, answer  # and so not 100 Continue
    for _ in range(rounds):
        if not wire.send(_piece(frame)):
            break
        assert disk.bytes_in_flight(stack) == 0
    return answer


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("line", ["PUT /file?path=/x", "POST /file", "POST /file?path=/x"])
async def test_anonymous_10_gib_get_401_and_nothing_on_the_disk(stack: Stack, line: str, frame: str) -> None:
    before = disk.blob_count(stack)
    for token in ("", "not-a-token"):
        with Wire(stack) as wire:
            wire.send(head(line, FORM, *FRAMES[frame], token=token))
            answer = _refused_while_sending(wire, stack, frame)
            assert (answer.status, answer.code) == (401, "unauthenticated")
            assert answer.one("WWW-Authenticate") == "Bearer"
    assert disk.blob_count(stack) == before
    assert disk.bodies_in_flight(stack) == []


async def test_many_anonymous_10_gib_at_once_leave_the_disk_alone(api: Api) -> None:
    wires = [Wire(api.stack) for _ in range(30)]
    try:
        for wire in wires:
            wire.send(head("PUT /file?path=/x", *FRAMES["length"]) + PIECE)
        answers = [wire.read() for wire in wires]
        assert [answer.status for answer in answers if answer] == [401] * 30
        assert disk.bytes_in_flight(api.stack) == 0
        await api.put("/mine", b"mine")
    finally:
        for wire in wires:
            wire.reset()


@pytest.mark.parametrize("line", ["POST /auth/register", "POST /auth/jwt/login", "POST /auth/jwt/refresh",
                                  "POST /auth/jwt/logout", "GET /livez", "GET /nowhere", "POST /nowhere", "GET /docs",
                                  "DELETE /file?path=/x", "GET /file?path=/x", "PATCH /file?path=/x"])
@pytest.mark.parametrize("frame", FRAMES)
async def test_10_gib_to_any_other_address_are_refused_or_ignored(stack: Stack, line: str, frame: str) -> None:
    with Wire(stack) as wire:
        wire.send(head(line, "Content-Type: application/json", *FRAMES[frame]))
        for _ in range(40):  # 2.5 MiB: more than any of these takes
            if wire.is_answered() or not wire.send(_piece(frame)):
                break
            assert disk.bytes_in_flight(stack) <= 1_200_000
        answer = wire.read_last()
    assert answer.status in (200, 401, 404, 405, 413), answer
    if answer.status >= 400:
        assert answer.code


@pytest.mark.parametrize("method", ["DELETE", "GET", "HEAD", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("frame", FRAMES)
async def test_body_of_an_account_on_a_method_without_one_fills_no_disk(api: Api, method: str, frame: str) -> None:
    """Only PUT and POST are asked about size, quota and room, so only they may have a body."""
    with Wire(api.stack) as wire:
        wire.send(head(f"{method} /file?path=/x", *FRAMES[frame], token=api.token))
        for _ in range(40):
            if wire.is_answered() or not wire.send(_piece(frame)):
                break
        answer = wire.read_last(method)
        assert 400 <= answer.status < 500, answer
        assert disk.bytes_in_flight(api.stack) == 0
    disk.settle(api.stack)


async def _account(session: aiohttp.ClientSession, stack: Stack) -> Api:
    api = await new_account(session, stack)
    assert (await api.usage())["quota"] == QUOTA
    return api


async def test_more_than_a_file_may_have_is_413_before_the_first_byte(
        small: Stack, session: aiohttp.ClientSession) -> None:
    api = await _account(session, small)
    for length in (MAX_UPLOAD + 1, MAX_UPLOAD + 2**20, MAX_UPLOAD + 2**20 + 1, 10 * GIB, 2**40, 10**18 - 1):
        for expect in ((), ("Expect: 100-continue",)):
            with Wire(small) as wire:
                wire.send(head("PUT /file?path=/x", f"Content-Length: {length}", *expect, token=api.token))
                answer = _refused_while_sending(wire, small, "length", rounds=4)
                assert (answer.status, answer.code) == (413, "too_large"), (length, answer)
    # the frame of a form may add something to its file
    with Wire(small) as wire:
        wire.send(head("POST /file?path=/x", FORM, f"Content-Length: {MAX_UPLOAD + 2**20}", token=api.token))
        answer = _refused_while_sending(wire, small, "length", rounds=4)
        assert (answer.status, answer.code) == (413, "too_large")
    assert await api.list() == []


async def test_more_than_the_quota_is_507_before_the_first_byte(small: Stack, session: aiohttp.ClientSession) -> None:
    api = await _account(session, small)
    await api.put("/first", b"x" * 190_000)
    assert (await api.usage())["available"] == QUOTA - 190_000
    for headers in (FRAMES["length, expecting"][1:], ()):
        with Wire(small) as wire:
            wire.send(head("PUT /file?path=/second", f"Content-Length: {QUOTA - 190_000 + 1}", *headers,
                           token=api.token))
            answer = _refused_while_sending(wire, small, "length", rounds=1)
            assert (answer.status, answer.code) == (507, "quota_exceeded")
    # to the byte
    await api.put("/second", b"x" * (QUOTA - 190_000))
    assert (await api.usage())["available"] == 0
    await api.put("/none", b"", expect=201)
    assert (await api.put("/more", b"x", expect=507)).code == "quota_exceeded"


def _ways(api: Api, path: str, content: bytes) -> list[bytes]:
    """An upload without announcing its length, and forms, whose file's length is known at their end."""
    body = form(part('name="path"', path.encode()), part('name="file"; filename="f"', content))
    return [
        head(f"PUT /file?path={path}", "Transfer-Encoding: chunked", "Connection: close", token=api.token)
        + chunked([content]),
        head("POST /file", FORM, "Transfer-Encoding: chunked", "Connection: close", token=api.token) + chunked([body]),
        head("POST /file", FORM, f"Content-Length: {len(body)}", "Connection: close", token=api.token) + body,
    ]


@pytest.mark.parametrize("size", [MAX_UPLOAD + 1, MAX_UPLOAD + 900_000, MAX_UPLOAD + 3_000_000])
async def test_unannounced_more_than_a_file_may_have_is_413_and_leaves_nothing(
        small: Stack, session: aiohttp.ClientSession, size: int) -> None:
    """Just beyond the limit the worker refuses, well beyond it nginx does; without nginx always the worker."""
    api = await _account(session, small)
    before = disk.blob_count(small)
    for shot in _ways(api, "/x", b"x" * size):
        answer = ask(small, shot)
        assert (answer.status, answer.code) == (413, "too_large"), answer
    disk.settle(small)
    assert disk.blob_count(small) == before
    assert await api.list() == []
    assert (await api.usage())["files"] == 0
    # the limit itself is fine
    for shot in _ways(api, "/fits", b"x" * (MAX_UPLOAD - 1)):
        assert ask(small, shot).status in (200, 201)


async def test_unannounced_more_than_the_quota_is_507_and_leaves_nothing(
        small: Stack, session: aiohttp.ClientSession) -> None:
    api = await _account(session, small)
    await api.put("/first", b"x" * 190_000)
    before = disk.blob_count(small)
    for shot in _ways(api, "/x", b"x" * (QUOTA - 190_000 + 1)):
        answer = ask(small, shot)
        assert (answer.status, answer.code) == (507, "quota_exceeded"), answer
    disk.settle(small)
    assert disk.blob_count(small) == before
    assert [file["path"] for file in await api.list()] == ["/first"]


async def test_uploads_at_once_never_get_beyond_the_quota(small: Stack, session: aiohttp.ClientSession) -> None:
    api = await _account(session, small)
    ways: list[Callable[[int], Awaitable[object]]] = [
        lambda number: api.put(f"/{number}", b"x" * 60_000, expect=None),
        lambda number: api.post(b"x" * 60_000, path=f"/{number}", expect=None)]
    await asyncio.gather(*(ways[number % 2](number) for number in range(24)))
    usage = await api.usage()
    assert usage["files"] == 60_000 * usage["count"] == QUOTA
    assert usage["count"] == len(await api.list()) == 5


async def test_fewer_bytes_than_announced_are_never_a_file(api: Api) -> None:
    before = disk.blob_count(api.stack)
    body = form(part('name="path"', b"/x"), part('name="file"; filename="f"', b"x" * 5000))
    heads = [
        (head("PUT /file?path=/x", "Content-Length: 5000", token=api.token), b"x" * 4999),
        (head("PUT /file?path=/x", "Content-Length: 500000", token=api.token), b"x" * 400_000),
        (head("PUT /file?path=/x", "Transfer-Encoding: chunked", token=api.token), b"5000\r\n" + b"x" * 100),
        (head("PUT /file?path=/x", "Transfer-Encoding: chunked", token=api.token), b"5\r\nhello\r\n"),
        (head("PUT /file?path=/x", "Transfer-Encoding: chunked", token=api.token), b"5\r\nhello\r\n0\r\n"),
        (head("PUT /file?path=/x", "Transfer-Encoding: chunked", token=api.token), b"5\r\nhello\r\n0"),
        (head("POST /file", FORM, f"Content-Length: {len(body)}", token=api.token), body[:-1]),
        (head("POST /file", FORM, f"Content-Length: {len(body)}", token=api.token), body[:300]),
        (head("POST /file", FORM, "Transfer-Encoding: chunked", token=api.token), b"%x\r\n%s" % (len(body), body)),
    ]
    for begin, sent in heads:
        for is_reset in (True, False):
            with Wire(api.stack) as wire:
                wire.send(begin + sent)
                if is_reset:
                    wire.reset()
    # complete as HTTP, cut off as a form
    for cut in (body[:-4], body[:-3], body[:len(body) // 2], body[:100], body[:60], body[:10], b""):
        for shot in (request("POST /file", FORM, token=api.token, body=cut),
                     head("POST /file", FORM, "Transfer-Encoding: chunked", "Connection: close", token=api.token)
                     + (chunked([cut]) if cut else b"0\r\n\r\n")):
            answer = ask(api.stack, shot)
            assert answer.code in ("incomplete_body", "bad_request", "missing_file"), (cut[-50:], answer)
            assert answer.status in (400, 422)
    disk.settle(api.stack)
    assert disk.blob_count(api.stack) == before
    assert await api.list() == []


async def test_more_bytes_than_announced_are_not_in_the_file(api: Api) -> None:
    """What follows is another request, and not one."""
    answers = talk(api.stack, head("PUT /file?path=/x", "Content-Length: 5", token=api.token) + b"helloWORLD\r\n\r\n")
    assert [answer.status for answer in answers] in ([201, 400], [400])  # aiohttp refuses both if they come at once
    if answers[0].status == 201:
        assert (await api.get("/x")).body == b"hello"
    else:
        assert await api.list() == []


async def test_lengths_that_are_no_lengths_are_refused(api: Api) -> None:
    for length in ("-1", "+5", "0x5", "5,5", "5 5", "5.0", "5e1", "", " ", "five", "٥", "1" * 30, str(2**63),
                   str(2**64), str(2**64 + 5), "9" * 18, "-9223372036854775808"):
        answer = ask(api.stack, head("PUT /file?path=/x", f"Content-Length: {length}", "Connection: close",
                                     token=api.token) + b"hello")
        assert answer.status in (400, 413), (length, answer)
        assert answer.code in ("bad_request", "too_large")
    assert await api.list() == []
