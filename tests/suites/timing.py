"""Attack 3, by the clock: what is another account's must take as long as what does not exist.

Run by `make test-faults` and `make fuzz`.  Requests of both kinds take turns, so whatever else the machine does meets
both.
"""

import os
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable

import aiohttp
import orjson
import pytest

from tests.client import PASSWORD, Api, new_account
from tests.stack import Stack

ROUNDS = 40 * int(os.environ.get("FUZZ_EXAMPLES", "25"))
LIMIT = 0.10
KNOWN = 20


async def _milliseconds(api: Api, line: str, status: int) -> float:
    """How long a request takes; after its address a line may have JSON."""
    method, address, *body = line.split(" ", 2)
    more = {"json": orjson.loads(body[0])} if body else {}
    begin = time.perf_counter()
    await api.call(method, address, expect=status, **more)
    return (time.perf_counter() - begin) * 1000


async def _compare(api: Api, line: str, known: list[str], status: int) -> None:
    """The same line about what is there and what is not."""
    times: dict[str, list[float]] = {"known": [], "unknown": []}
    for number in range(min(ROUNDS, 4000)):
        for kind in ("known", "unknown") if number % 2 else ("unknown", "known"):
            found = known[number % len(known)] if kind == "known" else str(uuid.uuid4())
            times[kind].append(await _milliseconds(api, line % found, status))
    one, two = (statistics.median(times[kind]) for kind in ("known", "unknown"))
    print(f"{line}: {one:.3f} ms, {two:.3f} ms")
    assert abs(one - two) / two < LIMIT, (one, two)


async def _files(owner: Api) -> list[str]:
    return [(await owner.put(f"/{number}", b"x")).json["id"] for number in range(KNOWN)]


async def _trashed(owner: Api) -> list[str]:
    found = await _files(owner)
    for file_id in found:
        await owner.delete(file_id)
    return found


async def _links(owner: Api) -> list[str]:
    return [(await owner.call("POST", "/file/link", json={"path": file_id}, expect=201)).json["id"]
            for file_id in await _files(owner)]


async def _sessions(owner: Api) -> list[str]:
    for _ in range(KNOWN):
        await owner.call("POST", "/auth/jwt/login", json={"username": owner.username, "password": PASSWORD}, expect=200)
    return [session["id"] for session in (await owner.call("GET", "/auth/session", expect=200)).json["sessions"]]


@pytest.mark.parametrize(("make", "line"), [
    *((_files, line) for line in (
        "GET /file/download?path=%s", "GET /file/download?path=%s&version=1", "GET /file/info?path=%s",
        "DELETE /file?path=%s", "GET /file/versions?path=%s", "GET /file/archive?path=%s")),
    (_trashed, "DELETE /file/trash?id=%s"), (_trashed, 'POST /file/trash/restore {"id": "%s"}'),
    (_links, "DELETE /file/link/%s"), (_sessions, "DELETE /auth/session/%s"),
])
async def test_foreign_and_unknown_ids_take_as_long(
        nginx_stack: Stack, session: aiohttp.ClientSession, make: Callable[[Api], Awaitable[list[str]]],
        line: str) -> None:
    owner, other = await new_account(session, nginx_stack), await new_account(session, nginx_stack)
    await _compare(other, line, await make(owner), 404)


async def test_wrong_passwords_and_unknown_names_take_as_long(
        nginx_stack: Stack, session: aiohttp.ClientSession) -> None:
    api, names = Api(session, nginx_stack), [str(uuid.uuid4()) for _ in range(KNOWN)]
    for name in names:
        await api.call("POST", "/auth/register", json={"username": name, "password": PASSWORD}, expect=201)
    await _compare(api, 'POST /auth/jwt/login {"username": "%s", "password": "wrong wrong"}', names, 401)
