"""Limits from outside: costly requests are counted for each account, and say when to come back."""

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest

from tests.client import PASSWORD, Api, Reply, new_account
from tests.stack import Stack

LIMIT = 7


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service where little is allowed; one worker, so that there is one count without Redis."""
    stack = Stack(tmp_path_factory.mktemp("counted") / "data", {
        "WORKERS": "1", "COSTLY_REQUESTS_PER_MINUTE": str(LIMIT), "BCRYPT_COST": "10"}).start()
    yield stack
    stack.stop()


async def ask_costly(api: Api) -> list[Reply]:
    """One request of each costly kind; the file /f and the folder /d are there."""
    copy = {"from": "/f", "to": "/d/g", "overwrite": True}
    return [
        await api.call("GET", "/file/list"), await api.call("GET", "/file/list?q=x&recursive=true"),
        await api.call("GET", "/file/archive?path=/d"), await api.call("POST", "/file/copy", json=copy),
        await api.call("POST", "/file/sign", json={"path": "/f", "expires_in": 60}),
        await api.call("GET", "/file/link"), await api.call("POST", "/file/link", json={"path": "/d"}),
    ]


async def test_costly_requests_are_counted_together_and_for_each_account(
        session: aiohttp.ClientSession, counted: Stack) -> None:
    api, other = await new_account(session, counted), await new_account(session, counted)
    for each in (api, other):
        await each.put("/f", b"f")
        await each.call("POST", "/file/folder", json={"path": "/d"}, expect=201)
    replies = await ask_costly(api)
    assert [reply.status for reply in replies] == [200, 200, 200, 201, 201, 200, 201]
    link = replies[-1].json["url"].removeprefix(counted.url)
    batch = {"operations": [{"op": "delete", "path": "/f"}]}
    for reply in [*await ask_costly(api), await api.call("POST", "/file/batch", json=batch)]:
        assert (reply.status, reply.code) == (429, "too_many_requests")
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
    # what costs little goes on, and so does everybody else
    await api.put("/f", b"again", expect=200)
    assert (await api.get("/f")).body == b"again"
    await api.call("GET", "/file/usage_memory", expect=200)
    assert [reply.status for reply in await ask_costly(other)] == [200, 200, 200, 201, 201, 200, 201]
    # visitors of a link are counted by their network
    visitor = Api(session, counted)
    statuses = [(await visitor.call("GET", f"{link}?download=1")).status for _ in range(LIMIT + 2)]
    assert statuses == [200] * LIMIT + [429] * 2


async def test_flood_of_logins_is_refused_beyond_its_queue_and_stops_nobody_else(
        session: aiohttp.ClientSession, counted: Stack) -> None:
    """Each of them costs more than ten downloads; the one thread that hashes has a queue of 32."""
    api = await new_account(session, counted)
    await api.put("/f", b"f")
    stranger = Api(session, counted)
    names = [f"nobody-{number}" for number in range(90)]
    flood = [asyncio.ensure_future(stranger.call(
        "POST", "/auth/jwt/login", json={"username": name, "password": PASSWORD})) for name in names]
    downloads = 0
    while not all(login.done() for login in flood):
        assert (await api.get("/f")).body == b"f"
        downloads += 1
    replies = [login.result() for login in flood]
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.status for reply in replies} == {401, 503} and len(refused) >= 90 - 2 * 33
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
    assert downloads >= 10


async def test_passwords_of_many_links_keep_nobody_from_logging_in(
        session: aiohttp.ClientSession, tight_stack: Stack) -> None:
    """One account has no more hashed for its links than for its logins, so the queue stays free for the others."""
    api, other = await new_account(session, tight_stack), await new_account(session, tight_stack)
    link = {"path": "/", "password": PASSWORD}
    flood = [asyncio.ensure_future(api.call("POST", "/file/link", json=link)) for _ in range(80)]
    credentials = {"username": other.username, "password": PASSWORD}
    await other.call("POST", "/auth/jwt/login", json=credentials, expect=200)
    replies = await asyncio.gather(*flood)
    refused = [reply for reply in replies if reply.status == 429]
    assert {reply.status for reply in replies} == {201, 429} and len(refused) >= 75
    for reply in refused:
        assert reply.code == "too_many_requests" and 1 <= int(reply.headers["Retry-After"]) <= 60
    await other.call("POST", "/file/link", json=link, expect=201)
    await api.call("POST", "/file/link", json={"path": "/"}, expect=201)
