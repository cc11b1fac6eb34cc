"""Attack 10: requests that one reader could take for one and another for two.

At each door (nginx, a worker's socket behind it, the service without nginx) such bytes get one answer, a refusal, and
the connection ends; what follows them is never answered.  What a door does take, it takes for exactly what it is.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from tests.attacks import disk
from tests.attacks.wire import Answer, Door, Wire, head, talk
from tests.client import PASSWORD, Api, new_account
from tests.stack import Stack

NEXT = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"  # what must not be answered
LIVE = b'{"status":"ok"}'
EMPTY = b"0\r\n\r\n"


@pytest.fixture(params=["nginx", "socket", "direct"])
def door(request: pytest.FixtureRequest, nginx_stack: Stack, direct_stack: Stack) -> Door:
    """Every way into the service."""
    doors: dict[str, Door] = {"nginx": nginx_stack, "socket": nginx_stack.root / "run" / "worker-0.sock",
                              "direct": direct_stack}
    return doors[request.param]


@pytest.fixture
async def account(door: Door, session: object, nginx_stack: Stack, direct_stack: Stack) -> Api:
    """An account of the service behind that door."""
    stack = direct_stack if door is direct_stack else nginx_stack
    return await new_account(session, stack)  # type: ignore[arg-type]


# After the head of a request up to its last header; `{next}` is the request to be smuggled.
Frame = tuple[tuple[str | bytes, ...], bytes]
TWO_MEANINGS: dict[str, Frame] = {
    "length and chunks": ((f"Content-Length: {len(EMPTY + NEXT)}", "Transfer-Encoding: chunked"), EMPTY),
    "chunks and length": (("Transfer-Encoding: chunked", "Content-Length: 5"), EMPTY),
    "chunks and length 0": (("Transfer-Encoding: chunked", "Content-Length: 0"), EMPTY),
    "two lengths": (("Content-Length: 2", f"Content-Length: {2 + len(NEXT)}"), b"{}"),
    "two lengths, the long one first": ((f"Content-Length: {2 + len(NEXT)}", "Content-Length: 2"), b"{}"),
    "the same length twice": (("Content-Length: 2", "Content-Length: 2"), b"{}"),
    "a list of lengths": (("Content-Length: 2, 2",), b"{}"),
    "length with a sign": (("Content-Length: +2",), b"{}"),
    "negative length": (("Content-Length: -1",), b"{}"),
    "hexadecimal length": (("Content-Length: 0x2",), b"{}"),
    "octal length": (("Content-Length: 2_0",), b"{}"),
    "length of other digits": (("Content-Length: ２",), b"{}"),
    "length beyond 64 bits": (("Content-Length: 18446744073709551618",), b"{}"),
    "length and a space": (("Content-Length : 2",), b"{}"),
    "length and a tab": (("Content-Length\t: 2",), b"{}"),
    "empty length": (("Content-Length:",), b"{}"),
    "unknown coding": (("Transfer-Encoding: xchunked",), EMPTY),
    "chunked is not the last": (("Transfer-Encoding: chunked, identity",), EMPTY),
    "identity": (("Transfer-Encoding: identity", "Content-Length: 2"), b"{}"),
    "chunked twice": (("Transfer-Encoding: chunked, chunked",), EMPTY),
    "two codings": (("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), EMPTY),
    "two codings, the other first": (("Transfer-Encoding: identity", "Transfer-Encoding: chunked"), EMPTY),
    "coding in quotes": (('Transfer-Encoding: "chunked"',), EMPTY),
    "coding with a parameter": (("Transfer-Encoding: chunked;q=1",), EMPTY),
    "coding after a vertical tab": (("Transfer-Encoding:\x0bchunked",), EMPTY),
    "coding and NUL": (("Transfer-Encoding: chunked\0",), EMPTY),
    "coding and a space": (("Transfer-Encoding : chunked",), EMPTY),
    "folded line": (("X-A: b", " Content-Length: 5", "Content-Length: 2"), b"{}"),
    "folded coding": (("Transfer-Encoding:", " chunked"), EMPTY),
    "folded with a tab": (("X-A: b", "\tTransfer-Encoding: chunked", "Content-Length: 2"), b"{}"),
    "bare CR in a header": ((b"X-A: b\rContent-Length: 5", "Content-Length: 2"), b"{}"),
    "NUL in a header": ((b"X-A: b\0c", "Content-Length: 2"), b"{}"),
    "NUL in a name": ((b"X-\0A: b", "Content-Length: 2"), b"{}"),
    "no name": ((": b", "Content-Length: 2"), b"{}"),
    "negative chunk": (("Transfer-Encoding: chunked",), b"-2\r\n{}\r\n" + EMPTY),
    "chunk with a sign": (("Transfer-Encoding: chunked",), b"+2\r\n{}\r\n" + EMPTY),
    "chunk with 0x": (("Transfer-Encoding: chunked",), b"0x2\r\n{}\r\n" + EMPTY),
    "chunk beyond 64 bits": (("Transfer-Encoding: chunked",), b"10000000000000002\r\n{}\r\n" + EMPTY),
    "chunk without a length": (("Transfer-Encoding: chunked",), b"\r\n{}\r\n" + EMPTY),
    "chunk longer than said": (("Transfer-Encoding: chunked",), b"1\r\n{}\r\n" + EMPTY),
    "line feed in an extension": (("Transfer-Encoding: chunked",), b'2;a="\r\n"\r\n{}\r\n' + EMPTY),
    "second host": (("Host: other", "Content-Length: 2"), b"{}"),
    "HTTP/1.0 with chunks": (("Transfer-Encoding: chunked",), EMPTY),
}
# One meaning, though not everybody's way to write it: two requests, if the door takes it; one refusal, if not.
TOLERABLE: dict[str, Frame] = {
    "bare line feeds": (("Content-Length: 2",), b"{}"),
    "chunk that ends with a line feed": (("Transfer-Encoding: chunked",), b"2\r\n{}\n" + EMPTY),
    "chunk and a bare line feed": (("Transfer-Encoding: chunked",), b"2\n{}\n0\n\n"),
    "chunk with an extension": (("Transfer-Encoding: chunked",), b"2;a=b\r\n{}\r\n" + EMPTY),
    "empty extension": (("Transfer-Encoding: chunked",), b"2;\r\n{}\r\n0;\r\n\r\n"),
    "extension before a line feed": (("Transfer-Encoding: chunked",), b"2;\n{}\r\n" + EMPTY),
    "zeros before a chunk": (("Transfer-Encoding: chunked",), b"00000002\r\n{}\r\n" + EMPTY),
    "trailers": (("Transfer-Encoding: chunked",), b"2\r\n{}\r\n0\r\nContent-Length: 50\r\nX-File: /etc/passwd\r\n\r\n"),
    "gzip, then chunked": (("Transfer-Encoding: gzip, chunked",), b"2\r\n{}\r\n" + EMPTY),
    "capital letters": (("TRANSFER-ENCODING: Chunked",), b"2\r\n{}\r\n" + EMPTY),
    "underscore": (("Transfer_Encoding: chunked", "Content-Length: 2"), b"{}"),
    "header that is none": (("foo", "Content-Length: 2"), b"{}"),
    "upgrade": (("Content-Length: 2", "Connection: Upgrade", "Upgrade: websocket"), b"{}"),
    "expectation of another kind": (("Content-Length: 2", "Expect: 200-ok"), b"{}"),
    "spaces around a length": (("Content-Length:   2  ",), b"{}"),
    "hop by hop": (("Content-Length: 2", "Connection: keep-alive, Content-Length, Transfer-Encoding"), b"{}"),
}


def _login(name: str, headers: tuple[str | bytes, ...]) -> bytes:
    line = "POST /auth/jwt/login HTTP/1.0" if name.startswith("HTTP/1.0") else "POST /auth/jwt/login"
    return head(line, "Content-Type: application/json", *headers)


def _put(token: str) -> Callable[[str, tuple[str | bytes, ...]], bytes]:
    def make(name: str, headers: tuple[str | bytes, ...]) -> bytes:
        line = "PUT /file?path=/smuggled"
        return head(f"{line} HTTP/1.0" if name.startswith("HTTP/1.0") else line, *headers, token=token)
    return make


def _answers(door: Door, begin: bytes, body: bytes) -> list[Answer]:
    with Wire(door) as wire:
        wire.send(begin + body + NEXT)
        return wire.read_all()


def _assert_refused(answers: list[Answer], name: str) -> None:
    assert len(answers) == 1, (name, answers)
    assert answers[0].status in (400, 413, 501), (name, answers)
    assert answers[0].code
    assert LIVE not in answers[0].body


@pytest.mark.parametrize("name", TWO_MEANINGS)
async def test_request_with_two_meanings_is_one_refusal(door: Door, account: Api, name: str) -> None:
    headers, body = TWO_MEANINGS[name]
    for make in (_login, _put(account.token)):
        _assert_refused(_answers(door, make(name, headers), body), name)
    assert await account.list() == []
    disk.settle(account.stack)


@pytest.mark.parametrize("name", TOLERABLE)
async def test_unusual_request_with_one_meaning_is_one_request(door: Door, account: Api, name: str) -> None:
    headers, body = TOLERABLE[name]
    for make in (_login, _put(account.token)):
        begin = make(name, headers)
        answers = _answers(door, begin.replace(b"\r\n", b"\n") if name.startswith("bare") else begin, body)
        if len(answers) == 1:
            assert answers[0].status in (400, 411, 415, 417, 422, 501), (name, answers)
            continue
        assert [answer.body == LIVE for answer in answers] == [False, True], (name, answers)
        # a body that nginx has not announced to the worker behind it is refused there
        assert answers[0].status in (200, 201, 415, 417, 422, *([400] if isinstance(door, Path) else []))
    for file in await account.list():
        assert (await account.get(file["path"])).body in (b"{}", b"")
    disk.settle(account.stack)


LINES: dict[str, bytes] = {
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "control character in a host": b"GET /livez HTTP/1.1\r\nHost: a\x01b\r\n\r\n",
    "tabs": b"GET\t/livez\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "space before the first header": b"GET /livez HTTP/1.1\r\n Host: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0": b"GET /livez HTTP/3.0\r\nHost: a\r\n\r\n",
    "HTTP/1.10": b"GET /livez HTTP/1.10\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n",
    "binary": bytes(range(256)) + b"\r\n\r\n",
    "no method": b" /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    "no path": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the path": b"GET /li\0vez HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown method": b"BREW /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower case": b"get /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    "very long method": b"G" * 40000 + b" /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    "very long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "very long header": b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
    "very many headers": b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
    "one very long name": b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X" * 100_000 + b": b\r\n\r\n",
}


# Told apart from the next request by everybody, so a door may go on to that.
WITH_AN_END = {"lower case", "HTTP/1.10", "unknown method"}


@pytest.mark.parametrize("name", LINES)
def test_bytes_that_are_no_request_are_one_refusal(door: Door, name: str) -> None:
    answers = _answers(door, LINES[name], b"")
    if name in WITH_AN_END and len(answers) == 2:
        assert answers.pop().body == LIVE
        if answers[0].body == LIVE:
            return
    assert len(answers) == 1, answers
    # nginx answers HTTP/2 and 3 in their own way
    assert answers[0].status in (400, 405, 414, 431, 505), answers
    assert answers[0].code


def test_refusal_of_a_request_that_goes_on_can_be_read(door: Door) -> None:
    """Its body is sent to the end; closed at once, the connection would be reset, and the answer lost with it."""
    with Wire(door) as wire:
        assert wire.send(b"POST /s/%41\xe9/open HTTP/1.1\r\nHost: localhost\r\n"
                         b"Content-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"
                         + bytes(4_000_000))
        assert wire.read_last().status == 400
        assert wire.read_all() == []


@pytest.mark.parametrize("line", [b"GET /livez\r\n", b"GET /li\nvez HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /nowhere\n\n"])
def test_request_of_http_0_9_gets_one_answer_at_most(door: Door, line: bytes) -> None:
    """nginx still knows it: an answer without a head, and the end of the connection."""
    with Wire(door) as wire:
        wire.send(line + NEXT)
        received = wire.read_raw()
    assert received.count(b"HTTP/1.") + received.startswith(b"{") == 1
    assert received.count(LIVE) == (line == b"GET /livez\r\n" and received == LIVE)


def test_refusal_of_bytes_that_are_no_request_quotes_none_of_them(door: Door, nginx_stack: Stack,
                                                                  direct_stack: Stack) -> None:
    """A header that cannot be read may be the one with the token."""
    secret = uuid.uuid4().hex
    for broken in (f"Authorization: Bearer {secret}\x01", f"Authorization : Bearer {secret}", f"Bearer {secret}"):
        answers = talk(door, head("GET /auth/me?é", broken, "Connection: close"))
        assert answers[0].status == 400 or (answers[0].status, broken) == (401, f"Bearer {secret}")
        assert secret.encode() not in answers[0].body
    for stack in (nginx_stack, direct_stack):
        assert secret not in stack.log_text
        nginx_log = stack.root / "log" / "nginx.log"
        assert not nginx_log.exists() or secret not in nginx_log.read_text(encoding="utf-8", errors="replace")


def test_pipelined_requests_get_their_answers_in_order(door: Door) -> None:
    shots = []
    for number in range(20):
        shots.append(head("GET /livez") if number % 2 else head("GET /auth/me"))
    answers = _answers(door, b"".join(shots), b"")
    assert [answer.status for answer in answers] == [401, 200] * 10 + [200]


# not at a worker's socket: nginx never pipelines to a worker, and announces each body there
@pytest.mark.parametrize("door", ["nginx", "direct"], indirect=True)
async def test_pipelined_uploads_of_two_accounts_stay_apart(door: Door, account: Api, session: object) -> None:
    other = await new_account(session, account.stack)  # type: ignore[arg-type]
    sent = b""
    for number in range(20):
        owner, byte = ((account, b"A"), (other, b"B"))[number % 2]
        content = byte * (1000 * number + 1)
        sent += head(f"PUT /file?path=/{number}", f"Content-Length: {len(content)}", token=owner.token) + content
    answers = _answers(door, sent, b"")
    assert [answer.status for answer in answers] == [201] * 20 + [200]
    for owner, byte, parity in ((account, b"A", 0), (other, b"B", 1)):
        files = await owner.list()
        assert sorted(int(file["name"]) for file in files) == list(range(parity, 20, 2))
        for file in files:
            assert (await owner.get(file["id"])).body == byte * (1000 * int(file["name"]) + 1)


async def test_token_of_one_request_is_not_that_of_the_next(door: Door, account: Api) -> None:
    """nginx and the workers keep their connections, not what came through them."""
    answers = talk(door, head("GET /auth/me", token=account.token) + head("GET /auth/me")
                   + head("GET /auth/me", "Connection: close", token=account.token))
    assert [answer.status for answer in answers] == [200, 401, 200]
    body = orjson.dumps({"username": account.username, "password": PASSWORD})
    answers = talk(door, head("POST /auth/jwt/login", "Content-Type: application/json",
                              f"Content-Length: {len(body)}") + body + head("GET /auth/me", "Connection: close"))
    assert [answer.status for answer in answers] == [200, 401]


def test_body_of_a_refused_upload_is_never_a_request(door: Door) -> None:
    """The answer comes before the body, which the client sends all the same."""
    inner = head("GET /livez")
    for announced in (1, 5, 10):
        answers = talk(door, head("PUT /file?path=/x", f"Content-Length: {announced * len(inner)}") + inner * 10 + NEXT)
        assert answers[0].status == 401
        # what comes after the announced length are requests of their own, if the connection lives on
        assert len(answers) in (1, 12 - announced)
        assert all(answer.body == LIVE for answer in answers[1:])
