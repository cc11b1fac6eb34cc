"""Sessions, passwords and the end of an account, from outside."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from tests.client import PASSWORD, Api, new_account, until
from tests.redis_server import RedisServer
from tests.stack import Stack

DEAD_WITHIN_SECONDS = 5.0
OTHER_PASSWORD = "incorrect mule battery staple"


async def log_in(api: Api, password: str = PASSWORD, agent: str = "tests", *, expect: int = 200) -> Api:
    """Another session of the same account."""
    reply = await api.call("POST", "/auth/jwt/login", json={"username": api.username, "password": password},
                           headers={"User-Agent": agent}, expect=expect)
    other = Api(api.session, api.stack)
    other.username = api.username
    if reply.status == 200:
        other.token, other.refresh_token = reply.json["access_token"], reply.json["refresh_token"]
    return other


async def sessions_of(api: Api) -> list[dict[str, object]]:
    """What the account is told."""
    found = (await api.call("GET", "/auth/session", expect=200)).json["sessions"]
    assert isinstance(found, list)
    return found


async def is_known(api: Api) -> bool:
    """Whether the access token is good for something."""
    return (await api.call("GET", "/file/usage_memory")).status == 200


async def dies(*apis: Api, seconds: float = DEAD_WITHIN_SECONDS) -> None:
    """Each access token is refused by every worker within the time that is promised, and so is the refresh token.

    Asked many times in a row: nginx takes another worker each time, and each has a memory of its own.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    for api in apis:
        refused = 0
        while refused < 12:
            status = (await api.call("GET", "/file/usage_memory")).status
            refused = refused + 1 if status == 401 else 0
            assert refused or asyncio.get_running_loop().time() < deadline, "still taken"
        reply = await Api(api.session, api.stack).call("POST", "/auth/jwt/refresh",
                                                       json={"refresh_token": api.refresh_token})
        assert reply.status == 401


async def warm(*apis: Api) -> None:
    """Every worker believes in every session."""
    for api in apis:
        for _ in range(8):
            assert await is_known(api)


# --- list ---

async def test_list_has_every_open_session_and_says_which_is_current(api: Api) -> None:
    other = await log_in(api, agent="Firefox/140 (X11)")
    listed = await sessions_of(other)
    assert len(listed) == 2
    assert [entry["is_current"] for entry in listed] == [True, False]  # the one used last comes first
    current = listed[0]
    assert set(current) == {"id", "created_at", "refreshed_at", "expires_at", "user_agent", "network", "is_current"}
    assert current["user_agent"] == "Firefox/140 (X11)"
    assert current["network"] == "127.0.0.0/24"
    assert str(current["created_at"]) < str(current["expires_at"])
    assert [entry["is_current"] for entry in await sessions_of(api)] == [False, True]


@pytest.mark.parametrize(("agent", "shown"), [
    ("a" * 5000, "a" * 120), ("  curl/8 ", "curl/8"), ("<b>\tx", "<b>x"), ("\N{SNOWMAN}", "\N{SNOWMAN}"), ("", None)])
async def test_user_agent_is_shortened_and_has_nothing_unprintable(api: Api, agent: str, shown: str | None) -> None:
    other = await log_in(api, agent=agent)
    assert (await sessions_of(other))[0]["user_agent"] == shown


async def test_refresh_moves_a_session_to_the_top(api: Api) -> None:
    await log_in(api)
    tokens = (await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token}, expect=200)).json
    api.token = tokens["access_token"]
    listed = await sessions_of(api)
    assert [entry["is_current"] for entry in listed] == [True, False]
    assert str(listed[0]["refreshed_at"]) > str(listed[0]["created_at"])


# --- end ---

async def test_ending_one_session_leaves_the_others(api: Api) -> None:
    other, third = await log_in(api), await log_in(api)
    await warm(api, other, third)
    victim = next(entry["id"] for entry in await sessions_of(other) if entry["is_current"])
    await api.call("DELETE", f"/auth/session/{victim}", expect=204)
    await dies(other)
    assert await is_known(api) and await is_known(third)
    assert victim not in [entry["id"] for entry in await sessions_of(api)]
    assert (await api.call("DELETE", f"/auth/session/{victim}", expect=404)).code == "not_found"


async def test_current_session_may_be_ended_like_any_other(api: Api) -> None:
    mine = (await sessions_of(api))[0]["id"]
    await api.call("DELETE", f"/auth/session/{mine}", expect=204)
    await dies(api)


async def test_session_of_somebody_else_is_not_found_and_lives_on(
        api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    stranger = await other_account()
    theirs = (await sessions_of(stranger))[0]["id"]
    foreign = await api.call("DELETE", f"/auth/session/{theirs}", expect=404)
    unknown = await api.call("DELETE", f"/auth/session/{uuid.uuid4()}", expect=404)
    malformed = await api.call("DELETE", "/auth/session/x", expect=404)
    assert foreign.json["detail"] == unknown.json["detail"] == malformed.json["detail"]
    assert await is_known(stranger)


@pytest.mark.parametrize("query", ["", "?all=false"])
async def test_ending_all_keeps_the_current_one(api: Api, query: str) -> None:
    others = [await log_in(api) for _ in range(3)]
    await warm(api, *others)
    await api.call("DELETE", f"/auth/session{query}", expect=204)
    await dies(*others)
    assert await is_known(api)
    assert len(await sessions_of(api)) == 1


async def test_ending_all_with_the_current_one(api: Api) -> None:
    other = await log_in(api)
    await warm(api, other)
    await api.call("DELETE", "/auth/session?all=true", expect=204)
    await dies(api, other)


async def test_odd_value_ends_nothing(api: Api) -> None:
    other = await log_in(api)
    assert (await api.call("DELETE", "/auth/session?all=perhaps", expect=422)).json["field"] == "all"
    assert await is_known(other)


# --- password ---

async def change(api: Api, old: str, new: str, *, expect: int) -> str:
    """Change the password; the code of the problem, if it is one."""
    reply = await api.call("POST", "/auth/password", json={"old_password": old, "new_password": new}, expect=expect)
    return "" if expect == 204 else reply.code


async def test_new_password_ends_the_other_sessions_and_keeps_this_one(api: Api) -> None:
    others = [await log_in(api) for _ in range(2)]
    await warm(api, *others)
    await change(api, PASSWORD, OTHER_PASSWORD, expect=204)
    await dies(*others)
    assert await is_known(api)
    await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token}, expect=200)
    await log_in(api, PASSWORD, expect=401)
    await log_in(api, OTHER_PASSWORD)


async def test_wrong_old_password_changes_nothing(api: Api) -> None:
    other = await log_in(api)
    assert await change(api, "wrong" * 3, OTHER_PASSWORD, expect=403) == "wrong_password"
    assert await is_known(other)
    await log_in(api, OTHER_PASSWORD, expect=401)
    await log_in(api)


@pytest.mark.parametrize("new", ["short", "\N{WOMAN}" * 7, "x" * 1025])
async def test_unfit_new_password_is_named_and_changes_nothing(api: Api, new: str) -> None:
    reply = await api.call("POST", "/auth/password", json={"old_password": PASSWORD, "new_password": new}, expect=422)
    assert reply.json["field"] == "new_password"
    await log_in(api)


async def test_of_many_changes_at_once_one_wins(api: Api) -> None:
    news = [f"password number {number}" for number in range(6)]
    replies = await asyncio.gather(*(
        api.call("POST", "/auth/password", json={"old_password": PASSWORD, "new_password": new}) for new in news))
    assert sorted({reply.status for reply in replies} - {403, 409}) == [204]
    assert [reply.status for reply in replies].count(204) == 1
    winner = news[[reply.status for reply in replies].index(204)]
    await log_in(api, winner)
    await log_in(api, PASSWORD, expect=401)


async def test_no_login_with_the_old_password_outlives_the_change(api: Api) -> None:
    """Logins that were under way when the password changed either failed or were ended by it."""
    async def keep_logging_in() -> list[Api]:
        begun = []
        while (found := await api.call("POST", "/auth/jwt/login",
                                       json={"username": api.username, "password": PASSWORD})).status == 200:
            begun.append(Api(api.session, api.stack, found.json["access_token"]))
        return begun

    logins = [asyncio.create_task(keep_logging_in()) for _ in range(4)]
    await until(lambda: _has_sessions(api, 8))
    await change(api, PASSWORD, OTHER_PASSWORD, expect=204)
    begun = [other for login in logins for other in await login]
    assert begun
    assert len(await sessions_of(api)) == 1


async def _has_sessions(api: Api, count: int) -> bool:
    return len(await sessions_of(api)) >= count


# --- the end of an account ---

async def delete_me(api: Api, password: str = PASSWORD, *, expect: int = 204) -> str:
    """Delete the account; the code of the problem, if it is one."""
    reply = await api.call("DELETE", "/auth/me", json={"password": password}, expect=expect)
    return "" if expect == 204 else reply.code


async def test_deleted_account_is_gone_with_all_it_had(
        api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    stranger = await other_account()
    await stranger.put("/kept.txt", b"kept")
    other = await log_in(api)
    for version in (b"one", b"two"):
        await api.put("/a/b.txt", version, expect=None)
    await api.put("/trashed.txt", b"three")
    await api.delete("/trashed.txt")
    await warm(api, other)
    user_id = (await api.call("GET", "/auth/me", expect=200)).json["id"]
    await delete_me(api)
    await dies(api, other)
    await log_in(api, expect=401)
    connection = await asyncpg.connect(api.stack.dsn)
    for table in ("files", "sessions", "links", "audit"):
        assert await connection.fetchval(f"SELECT count(*) FROM {table} WHERE user_id = $1", uuid.UUID(user_id)) == 0
    await connection.close()
    assert (await stranger.get("/kept.txt")).body == b"kept"
    await api.call("POST", "/auth/register", json={"username": api.username, "password": PASSWORD}, expect=201)
    assert await (await log_in(api)).list() == []


async def test_wrong_password_deletes_nothing(api: Api) -> None:
    await api.put("/a.txt", b"x")
    assert await delete_me(api, "wrong" * 3, expect=403) == "wrong_password"
    assert (await api.call("DELETE", "/auth/me", expect=422, json={})).json["field"] == "password"
    assert (await api.get("/a.txt")).body == b"x"


async def test_uploads_that_race_with_the_deletion_leave_no_row(api: Api) -> None:
    """Each was there before the deletion, or is refused; none is a fault of ours."""
    async def keep_uploading(number: int) -> set[int]:
        statuses = set()
        for count in range(1000):
            reply = await api.put(f"/{number}/{count}", b"x", expect=None)
            statuses.add(reply.status)
            if reply.status != 201:
                return statuses
        raise AssertionError("never refused")

    uploads = [asyncio.create_task(keep_uploading(number)) for number in range(4)]
    await until(lambda: _holds_files(api))
    await delete_me(api)
    for upload in uploads:
        assert await upload <= {201, 401, 404}


async def _holds_files(api: Api) -> bool:
    return bool((await api.usage())["count"] >= 4)


# --- throttling, costs, Redis: services of their own ---

@pytest.fixture(scope="module")
def strict_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that takes few passwords."""
    stack = Stack(tmp_path_factory.mktemp("strict") / "data",
                  {"LOGIN_ATTEMPTS_PER_MINUTE": "3", "WORKERS": "1", "NGINX": "off"}).start()
    yield stack
    stack.stop()


@pytest.mark.parametrize(("method", "path", "body"), [
    ("POST", "/auth/password", {"old_password": "wrong wrong", "new_password": OTHER_PASSWORD}),
    ("DELETE", "/auth/me", {"password": "wrong wrong"})])
async def test_guesses_of_ones_own_password_count_like_logins(
        session: aiohttp.ClientSession, strict_stack: Stack, method: str, path: str, body: dict[str, str]) -> None:
    api = await new_account(session, strict_stack)  # takes one
    for _ in range(2):
        await api.call(method, path, json=body, expect=403)
    refused = await api.call(method, path, json=body, expect=429)
    assert refused.code == "too_many_requests" and int(refused.headers["Retry-After"]) > 0
    await log_in(api, expect=429)


async def test_login_brings_a_hash_to_the_cost_of_today(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data", {"WORKERS": "1", "NGINX": "off"}).start()
    try:
        old = await new_account(session, stack)
        assert (await _hash_of(old)).startswith("$2b$04$")
        stack.stop()
        stack.settings["BCRYPT_COST"] = "5"
        stack.start()
        async with aiohttp.ClientSession() as fresh:  # the connections of the other are gone
            api = Api(fresh, stack, old.token)
            api.username = old.username
            await log_in(api, "wrong wrong", expect=401)
            assert (await _hash_of(api)).startswith("$2b$04$")
            begun = await asyncio.gather(*(log_in(api) for _ in range(5)))  # each of them finds the old hash at first
            assert (await _hash_of(api)).startswith("$2b$05$")
            assert all([await is_known(other) for other in begun])
            await log_in(api)
            await change(begun[0], PASSWORD, OTHER_PASSWORD, expect=204)
            assert (await _hash_of(api)).startswith("$2b$05$")
    finally:
        stack.stop()


async def _hash_of(api: Api) -> str:
    connection = await asyncpg.connect(api.stack.dsn)
    found = await connection.fetchval("SELECT password_hash FROM users WHERE username = $1", api.username)
    await connection.close()
    return str(found)


@pytest.fixture(scope="module")
def redis_of_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def redis_stack(tmp_path_factory: pytest.TempPathFactory, redis_of_stack: RedisServer) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("with-redis") / "data",
                  {"REDIS_URL": redis_of_stack.url, "WORKERS": "3"}).start()
    yield stack
    stack.stop()


@pytest.fixture
async def with_redis(session: aiohttp.ClientSession, redis_stack: Stack,
                     redis_of_stack: RedisServer) -> AsyncIterator[Api]:
    redis_of_stack.start()
    yield await new_account(session, redis_stack)


ENDS: dict[str, Callable[[Api], Awaitable[object]]] = {
    "end all": lambda api: api.call("DELETE", "/auth/session?all=true", expect=204),
    "change of password": lambda api: change(api, PASSWORD, OTHER_PASSWORD, expect=204),
    "deletion": delete_me,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("fate", ["well", "killed before", "paused before", "killed after"])
async def test_tokens_die_in_time_whatever_happens_to_redis(
        with_redis: Api, redis_of_stack: RedisServer, fate: str, end: Callable[[Api], Awaitable[object]]) -> None:
    other = await log_in(with_redis)
    await warm(with_redis, other)
    if fate == "killed before":
        redis_of_stack.kill()
    elif fate == "paused before":
        redis_of_stack.pause()
    await end(with_redis)
    if fate == "killed after":
        redis_of_stack.kill()
    elif fate == "paused before":
        redis_of_stack.resume()  # it carries out what waited in its sockets
    await dies(other)
