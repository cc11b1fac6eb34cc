"""Health from outside: what answers, and what goes on when PostgreSQL or Redis does not."""

import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from service.run import processes
from service.run.postgres import EmbeddedPostgres
from tests.client import PASSWORD, Api, Reply, files_on_disk, is_tidy, new_account, until
from tests.redis_server import RedisServer
from tests.stack import Stack

DOWN_WITHIN_SECONDS = 5.0


@dataclass
class World:
    """A service, and what it depends on, outside of it."""

    stack: Stack
    postgres: EmbeddedPostgres
    redis: RedisServer


@pytest.fixture(scope="module", params=["auto", "off"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With nginx and without; every test leaves all of it running."""
    redis = RedisServer(tmp_path_factory.mktemp("redis"))
    redis.start()
    with EmbeddedPostgres.temporary(tmp_path_factory.mktemp("external")) as postgres:
        postgres.ensure_database("files")
        stack = Stack(tmp_path_factory.mktemp("world") / "data", {
            "NGINX": request.param, "DATABASE_URL": postgres.dsn("files"), "REDIS_URL": redis.url}).start()
        yield World(stack, postgres, redis)
        stack.stop()
    redis.kill()


@pytest.fixture
async def account(session: aiohttp.ClientSession, world: World) -> Api:
    """A fresh account of that service, with a file."""
    api = await new_account(session, world.stack)
    await api.put("/kept.txt", b"kept")
    return api


async def ping(api: Api) -> tuple[int, Any]:
    """Status and times."""
    reply = await Api(api.session, api.stack).call("GET", "/ping/all")
    assert reply.headers["Cache-Control"] == "no-store"
    return reply.status, reply.json


async def works(api: Api) -> None:
    """All that a client does every day."""
    await api.put("/new.txt", b"new", expect=None)
    assert (await api.get("/new.txt")).body == b"new"
    assert (await api.get("/kept.txt")).body == b"kept"
    await api.post(b"form", path="/form.txt", expect=None)
    assert {file["path"] for file in await api.list()} == {"/new.txt", "/kept.txt", "/form.txt"}
    await new_account(api.session, api.stack)


# --- all is well ---

async def test_ping_measures_each_service_in_milliseconds(anonymous: Api) -> None:
    status, times = await ping(anonymous)
    assert status == 200
    assert set(times) == {"db", "cache", "storage"}
    assert all(isinstance(value, float) and 0 < value < 3000 for value in times.values())


async def test_probes_say_ok(anonymous: Api) -> None:
    for address in ("/livez", "/readyz"):
        assert (await anonymous.call("GET", address, expect=200)).json == {"status": "ok"}
        assert (await anonymous.call("HEAD", address, expect=200)).body == b""


async def test_with_redis_and_postgres_of_ones_own_all_works(account: Api) -> None:
    await works(account)
    status, times = await ping(account)
    assert status == 200
    assert all(isinstance(times[name], float) for name in ("db", "cache", "storage"))


# --- Redis is not ---

@pytest.mark.parametrize("trouble", ["killed", "hanging"])
async def test_without_redis_all_goes_on_and_the_cache_is_null(world: World, account: Api, trouble: str) -> None:
    async def once() -> None:
        """201 each time, since it is carried out once: no key is in Redis alone."""
        await account.call("POST", "/file/folder", json={"path": f"/{trouble}"},
                           headers={"Idempotency-Key": trouble}, expect=201)

    await once()
    try:
        if trouble == "killed":
            world.redis.kill()
        else:
            world.redis.pause()
        status, times = await ping(account)
        assert (status, times["cache"]) == (200, None)
        assert isinstance(times["db"], float)
        await works(account)
        await account.call("GET", "/readyz", expect=200)
        await once()
    finally:
        if trouble == "killed":
            world.redis.start()
        else:
            world.redis.resume()

    async def is_back() -> bool:
        return isinstance((await ping(account))[1]["cache"], float)

    await until(is_back)
    await works(account)


# --- PostgreSQL is not ---

async def test_without_postgres_everything_says_so_and_recovers_by_itself(world: World, account: Api) -> None:
    await until(lambda: is_tidy(world.stack))
    on_disk = files_on_disk(world.stack)
    world.postgres.stop()
    try:
        async def is_noticed() -> bool:
            status, times = await ping(account)
            return status == 503 and times["db"] is None

        await until(is_noticed, seconds=DOWN_WITHIN_SECONDS)
        _, times = await ping(account)
        assert isinstance(times["storage"], float)
        assert isinstance(times["cache"], float)
        await account.call("GET", "/livez", expect=200)
        assert (await account.call("GET", "/readyz", expect=503)).json["db"] is None
        for reply in await ask_everything(account):
            assert (reply.status, reply.code) == (503, "unavailable")
            assert int(reply.headers["Retry-After"]) >= 1
        await account.call("GET", "/file/list", headers={"Authorization": "Bearer garbage"}, expect=401)
        await until(lambda: files_on_disk(world.stack) == on_disk)
    finally:
        world.postgres.start()

    async def is_back() -> bool:
        return (await ping(account))[0] == 200

    await until(is_back)

    async def is_answered() -> bool:
        return {reply.status for reply in await ask_everything(account)} == {200, 201}

    await until(is_answered)  # each worker finds out by itself
    assert (await account.get("/kept.txt")).body == b"kept"


async def test_workers_that_die_while_postgres_is_away_wait_for_it(world: World, account: Api) -> None:
    """A start that fails again and again would end the service, and somebody would have to start it."""
    stack = world.stack
    before = stack.log_text.count("database_awaited")
    killed = processes.find_working_in(stack.root / "run", processes.own_program())
    assert len(killed) == 2
    world.postgres.stop()
    try:
        processes.send(killed, signal.SIGKILL)
        # more often than the supervisor would start one that ends
        await until(lambda: stack.log_text.count("database_awaited") >= before + 2 * 8, seconds=60)
        assert stack.process is not None and stack.process.poll() is None
    finally:
        world.postgres.start()

    async def is_answered() -> bool:
        try:
            return {reply.status for reply in await ask_everything(account)} <= {200, 201}
        except aiohttp.ClientConnectionError:
            return False

    await until(is_answered, seconds=60)
    await until(lambda: len(processes.find_working_in(stack.root / "run", processes.own_program())) == 2)
    assert (await account.get("/kept.txt")).body == b"kept"


async def ask_everything(api: Api) -> list[Reply]:
    """One request of each kind."""
    credentials = {"username": api.username, "password": PASSWORD}
    register = {"username": f"late-{uuid.uuid4().hex[:12]}", "password": PASSWORD}
    return [
        await api.call("GET", "/file/list"), await api.get("/kept.txt", expect=None),
        await api.put("/while-down.txt", b"x" * 300_000, expect=None),
        await api.post(b"x" * 300_000, path="/while-down.txt", expect=None),
        await api.call("GET", "/file/info?path=/"), await api.call("GET", "/file/usage_memory"),
        await api.call("GET", "/auth/me"), await api.call("POST", "/auth/jwt/login", json=credentials),
        await api.call("POST", "/auth/register", json=register),
    ]
