"""Attack 7: one account that has as many large uploads under way as it can, from anywhere."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from service.config import Config
from tests.attacks import disk
from tests.attacks.wire import BOUNDARY, Answer, Wire, ask, form, head, part, request
from tests.client import Api, until
from tests.stack import Stack

LIMIT = int(Config.model_fields["uploads_per_account"].default)
LARGE = bytes(70_000)  # more than comes with its request
FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture
def stack(nginx_stack: Stack) -> Stack:
    """It is nginx that counts."""
    return nginx_stack


@contextmanager
def _under_way(stack: Stack, line: str, *headers: str, token: str = "") -> Iterator[list[Wire]]:
    """As many uploads as are let begin at the same time, none of which sends anything."""
    wires = [Wire(stack) for _ in range(LIMIT)]
    try:
        for wire in wires:
            assert wire.send(head(line, *headers, "Content-Length: 10000000", "Expect: 100-continue", token=token))
            answer = wire.read()
            assert answer is not None and answer.status == 100, answer
        yield wires
    finally:
        for wire in wires:
            wire.reset()
        disk.settle(stack)


def _check_refused(answer: Answer) -> None:
    assert (answer.status, answer.code) == (429, "too_many_requests")
    assert int(answer.one("Retry-After")) > 0


async def test_account_with_too_many_uploads_is_refused_and_nobody_else(
        api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    other = await other_account()
    again = (await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token}, expect=200)).json
    with _under_way(api.stack, "PUT /file?path=/slow", token=api.token) as wires:
        for token in (api.token, again["access_token"]):  # another token is not another account
            _check_refused(ask(api.stack, request("PUT /file?path=/one", token=token, body=LARGE)))
            _check_refused(ask(api.stack, head("POST /file", FORM, "Transfer-Encoding: chunked", token=token)))
        assert ask(api.stack, request("PUT /file?path=/two", token=other.token, body=LARGE)).status == 201
        await api.put("/small", b"small", expect=201)
        assert (await api.get("/small")).body == b"small"
        wires.pop().reset()

        def is_free() -> bool:
            return ask(api.stack, request("PUT /file?path=/three", token=api.token, body=LARGE)).status == 201

        await until(is_free)


async def test_visitors_of_a_link_use_up_nothing_of_its_owner(api: Api) -> None:
    await api.call("POST", "/file/folder", json={"path": "/inbox"}, expect=201)
    links = [(await api.call("POST", "/file/link", json={"path": "/inbox", "kind": "upload"}, expect=201)).json["url"]
             for _ in range(2)]
    first, second = (url.removeprefix(api.stack.url) for url in links)
    body = form(part('name="file"; filename="a"', LARGE))
    with _under_way(api.stack, f"POST {first}", FORM):
        _check_refused(ask(api.stack, request(f"POST {first}", FORM, body=body)))
        assert ask(api.stack, request(f"POST {second}", FORM, body=body)).status in (200, 201)
        assert ask(api.stack, request("PUT /file?path=/own", token=api.token, body=LARGE)).status == 201
