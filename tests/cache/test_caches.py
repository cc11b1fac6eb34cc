"""service.cache: what both caches promise, then what only one of them can get wrong."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.cache import local, redis
from service.cache.base import Cache
from service.cache.local import LocalCache
from service.cache.redis import BREAK_SECONDS, MAX_CONNECTIONS, WARN_EVERY_SECONDS, RedisCache
from tests.redis_server import RedisServer

# For tests that are not about time running out: a busy machine must not decide them.
PATIENT_SECONDS = 30.0


class Clock:
    """Stands in for the module time."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return round(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock()
    monkeypatch.setattr(local, "time", result)
    monkeypatch.setattr(redis, "time", result)
    return result


@pytest.fixture
async def shared(redis_server: RedisServer) -> AsyncIterator[RedisCache]:
    """A cache in a real Redis, with its own time-outs."""
    cache = RedisCache(redis_server.url)
    yield cache
    await cache.close()


@pytest.fixture(params=["local", "redis", "redis-tcp"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    if request.param == "local":
        result: Cache = LocalCache()
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.start_tcp() if request.param == "redis-tcp" else server.url
        result = RedisCache(url, timeout_seconds=PATIENT_SECONDS)
    yield result
    await result.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once it holds."""
    async with asyncio.timeout(PATIENT_SECONDS):
        while not await condition():
            await asyncio.sleep(0.002)


async def until_answered(cache: Cache) -> None:
    async def is_up() -> bool:
        try:
            await cache.ping()
        except OSError:
            return False
        return True

    await until(is_up)


# --- what both promise ---

async def test_missing_key_gives_none(cache: Cache) -> None:
    assert await cache.get("k") is None


@pytest.mark.parametrize("value", [b"v", b"", b"\0\xff\r\n$-1\r\n", bytes(range(256)) * 400])
async def test_value_comes_back_as_it_was_set(cache: Cache, value: bytes) -> None:
    await cache.set("k", value, ttl_seconds=60)
    assert await cache.get("k") == value
    assert await cache.get("k") == value


async def test_later_value_replaces_the_earlier_and_its_lifetime(cache: Cache) -> None:
    await cache.set("k", b"1", ttl_seconds=0)
    await cache.set("k", b"2", ttl_seconds=60)
    assert await cache.get("k") == b"2"
    await cache.set("k", b"3", ttl_seconds=0)
    assert await cache.get("k") is None


async def test_forgotten_value_is_gone(cache: Cache) -> None:
    await cache.set("k", b"1", ttl_seconds=60)
    await cache.set("other", b"2", ttl_seconds=60)
    await cache.forget("k")
    await cache.forget("never there")
    assert await cache.get("k") is None
    assert await cache.get("other") == b"2"


async def test_value_expires(cache: Cache) -> None:
    await cache.set("k", b"1", ttl_seconds=0.02)

    async def is_gone() -> bool:
        return await cache.get("k") is None

    await until(is_gone)


@pytest.mark.parametrize("ttl_seconds", [0, -1, -1e9])
async def test_value_without_a_lifetime_is_not_kept(cache: Cache, ttl_seconds: float) -> None:
    await cache.set("k", b"1", ttl_seconds=ttl_seconds)
    assert await cache.get("k") is None


async def test_any_text_is_a_key_of_its_own(cache: Cache) -> None:
    keys = ["", "k", "K", "k ", "k\n", "k\r\nSET x 1", "k\0", "é", "e\u0301", "\ud800", "\U0001f600", "*", "x" * 9999]
    for number, key in enumerate(keys):
        await cache.set(key, b"%d" % number, ttl_seconds=60)
    assert [await cache.get(key) for key in keys] == [b"%d" % number for number in range(len(keys))]
    assert [await cache.take(key, per_minute=1, burst=1) for key in keys] == [0.0] * len(keys)


async def test_value_and_bucket_of_one_key_do_not_touch_each_other(cache: Cache) -> None:
    await cache.set("k", b"1", ttl_seconds=60)
    assert await cache.take("k", per_minute=1, burst=1) == 0.0
    assert await cache.get("k") == b"1"
    await cache.forget("k")
    assert await cache.take("k", per_minute=1, burst=1) > 0
    assert await cache.get("k") is None


@pytest.mark.parametrize(("per_minute", "burst"), [(1, 1), (1, 5), (2, 3), (3, 20)])
async def test_bucket_gives_its_burst_and_then_the_time_to_wait(cache: Cache, per_minute: int, burst: int) -> None:
    taken = [await cache.take("k", per_minute=per_minute, burst=burst) for _ in range(burst)]
    assert taken == [0.0] * burst
    assert 0 < await cache.take("k", per_minute=per_minute, burst=burst) <= 60 / per_minute


async def test_refused_takes_do_not_prolong_the_wait(cache: Cache) -> None:
    await cache.take("k", per_minute=1, burst=1)
    waits = [await cache.take("k", per_minute=1, burst=1) for _ in range(10)]
    assert waits == sorted(waits, reverse=True)
    assert 0 < waits[-1] and waits[0] <= 60


async def test_empty_bucket_gives_again_after_a_while(cache: Cache) -> None:
    async def is_granted() -> bool:
        return await cache.take("k", per_minute=600, burst=1) == 0.0

    await until(is_granted)
    await until(is_granted)


async def test_buckets_are_apart(cache: Cache) -> None:
    assert await cache.take("one", per_minute=1, burst=1) == 0.0
    assert await cache.take("other", per_minute=1, burst=1) == 0.0
    assert await cache.take("one", per_minute=1, burst=1) > 0


async def test_takes_at_the_same_time_get_the_burst_exactly(cache: Cache) -> None:
    waits = await asyncio.gather(*(cache.take("k", per_minute=1, burst=10) for _ in range(100)))
    assert waits.count(0.0) == 10


async def test_calls_at_the_same_time_all_get_their_own_value(cache: Cache) -> None:
    await asyncio.gather(*(cache.set(str(number), b"%d" % number, ttl_seconds=60) for number in range(200)))
    values = await asyncio.gather(*(cache.get(str(number)) for number in range(200)))
    assert values == [b"%d" % number for number in range(200)]


async def test_ping_of_a_cache_that_is_up_returns(cache: Cache) -> None:
    await cache.ping()


async def test_close_twice_does_not_raise(cache: Cache) -> None:
    await cache.set("k", b"1", ttl_seconds=60)
    await cache.close()
    await cache.close()


# --- local ---

async def test_local_value_lives_until_its_time_and_not_longer(clock: Clock) -> None:
    cache = LocalCache()
    await cache.set("k", b"1", ttl_seconds=5)
    clock.now += 4.999
    assert await cache.get("k") == b"1"
    clock.now += 0.001
    assert await cache.get("k") is None


async def test_local_value_used_least_recently_makes_room() -> None:
    cache = LocalCache(max_entries=2)
    await cache.set("a", b"1", ttl_seconds=60)
    await cache.set("b", b"2", ttl_seconds=60)
    await cache.get("a")
    await cache.set("c", b"3", ttl_seconds=60)
    assert [await cache.get(key) for key in "abc"] == [b"1", None, b"3"]
    await cache.set("a", b"4", ttl_seconds=60)
    await cache.set("d", b"5", ttl_seconds=60)
    assert [await cache.get(key) for key in "acd"] == [b"4", None, b"5"]


async def test_local_bucket_used_least_recently_makes_room_and_values_stay() -> None:
    cache = LocalCache(max_entries=2)
    await cache.set("v", b"1", ttl_seconds=60)
    for key in "aba":  # the second take of a is refused: that counts as a use
        await cache.take(key, per_minute=1, burst=1)
    await cache.take("c", per_minute=1, burst=1)
    assert await cache.take("a", per_minute=1, burst=1) > 0
    assert await cache.take("b", per_minute=1, burst=1) == 0.0
    assert await cache.get("v") == b"1"


@pytest.mark.parametrize(("per_minute", "burst"), [(1, 1), (7, 3), (20, 20), (120, 60), (1000, 1)])
async def test_local_bucket_fills_at_its_rate_and_never_over_its_burst(
    clock: Clock, per_minute: int, burst: int,
) -> None:
    cache = LocalCache()

    async def granted() -> int:
        count = 0
        while (wait := await cache.take("k", per_minute=per_minute, burst=burst)) == 0.0:
            count += 1
        assert wait == pytest.approx(60 / per_minute, abs=1e-5)
        return count

    assert await granted() == burst
    clock.now += 86400
    assert await granted() == burst
    for _ in range(burst):
        clock.now += 60 / per_minute + 1e-6
        assert await cache.take("k", per_minute=per_minute, burst=burst) == 0.0
        assert await cache.take("k", per_minute=per_minute, burst=burst) > 0


async def test_local_bucket_gives_after_the_wait_it_asked_for(clock: Clock) -> None:
    cache = LocalCache()
    await cache.take("k", per_minute=7, burst=1)
    clock.now += 3.21
    clock.now += await cache.take("k", per_minute=7, burst=1) + 1e-6  # a float of seconds since 1970 is that coarse
    assert await cache.take("k", per_minute=7, burst=1) == 0.0


# --- redis: several workers ---

async def test_workers_share_values_and_buckets(redis_server: RedisServer) -> None:
    one = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    other = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    await one.set("k", b"1", ttl_seconds=60)
    assert await other.get("k") == b"1"
    await other.forget("k")
    assert await one.get("k") is None
    assert await one.take("k", per_minute=1, burst=1) == 0.0
    assert await other.take("k", per_minute=1, burst=1) > 0
    await one.close()
    await other.close()


async def test_every_key_in_redis_has_the_prefix_and_a_lifetime(redis_server: RedisServer) -> None:
    cache = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    await cache.set("k", b"1", ttl_seconds=60)
    await cache.take("k", per_minute=1, burst=3)
    await cache.close()
    keys = redis_server.execute("KEYS", "*")
    assert isinstance(keys, list) and len(keys) == 2
    for key in keys:
        lifetime = redis_server.execute("PTTL", key)
        assert key.startswith(b"fs:")
        assert isinstance(lifetime, int) and 0 < lifetime <= 60_000


@pytest.mark.parametrize("stored", [b"", b"short", b"x" * 7])
async def test_foreign_value_under_a_key_is_not_found(redis_server: RedisServer, stored: bytes) -> None:
    cache = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    await cache.set("k", b"1", ttl_seconds=60)
    redis_server.execute("SET", "fs:value:k", stored)
    assert await cache.get("k") is None
    redis_server.execute("DEL", "fs:value:k")
    redis_server.execute("LPUSH", "fs:value:k", "1")
    assert await cache.get("k") is None
    await cache.close()


@pytest.mark.parametrize("full_at", [0, 4 * 10**15, 10**300])
async def test_bucket_of_a_server_whose_clock_jumped_is_full_or_one_burst_from_full(
    redis_server: RedisServer, full_at: int,
) -> None:
    cache = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    redis_server.execute("SET", "fs:bucket:k", str(full_at))
    waits = [await cache.take("k", per_minute=1, burst=2) for _ in range(3)]
    if full_at == 0:
        assert waits[:2] == [0.0, 0.0]
    assert 0 < waits[2] <= 60
    await cache.close()


# --- redis: every state it can be in ---

def stop(server: RedisServer) -> None:
    server.stop()


def kill(server: RedisServer) -> None:
    server.kill()


def pause(server: RedisServer) -> None:
    server.pause()


def fill(server: RedisServer) -> None:
    server.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.execute("CONFIG", "SET", "maxmemory", "1")


def flush(server: RedisServer) -> None:
    server.execute("FLUSHALL")
    server.execute("SCRIPT", "FLUSH")


def lock(server: RedisServer) -> None:
    server.start("--requirepass", "a password that the URL does not have")


def make_read_only(server: RedisServer) -> None:
    server.execute("REPLICAOF", "127.0.0.1", "1")


def forbid(server: RedisServer) -> None:
    server.execute("ACL", "SETUSER", "default", "-@all", "+ping")


def load(server: RedisServer) -> None:
    """Restart it on so much that it goes on loading for longer than any test runs."""
    server.execute("CONFIG", "SET", "rdbcompression", "no")
    server.execute("EVAL", "for i = 1, 20000 do redis.call('SET', i, string.rep(i, 300)) end", 0)
    server.execute("SAVE")
    server.start("--loading-process-events-interval-bytes", "1024", "--key-load-delay", "5000",
                 until="server initialized")


def replace_by_a_file(server: RedisServer) -> None:
    server.stop()
    server.socket.write_text("not a socket")


FAULTS = [stop, kill, pause, fill, lock, make_read_only, forbid, load, replace_by_a_file]


@pytest.mark.parametrize("is_connected", [True, False])
@pytest.mark.parametrize("fault", [*FAULTS, flush])
async def test_no_state_of_redis_raises_and_takes_are_still_counted(
    redis_server: RedisServer, shared: RedisCache, fault: Callable[[RedisServer], None], is_connected: bool,
) -> None:
    if is_connected:
        await until_answered(shared)
    fault(redis_server)
    for _ in range(2):  # with the first failure and after it
        await shared.set("k", b"1", ttl_seconds=60)
        assert await shared.get("k") in (None, b"1")
        await shared.forget("k")
    waits = [await shared.take("k", per_minute=1, burst=3) for _ in range(8)]
    assert 3 <= waits.count(0.0) <= 6  # one burst, or two if Redis failed in between: each counts by itself
    assert waits[-1] > 0


@pytest.mark.parametrize("fault", FAULTS)
async def test_many_calls_at_once_on_a_broken_redis_all_end(
    redis_server: RedisServer, shared: RedisCache, fault: Callable[[RedisServer], None],
) -> None:
    await until_answered(shared)
    fault(redis_server)
    values = await asyncio.gather(*(shared.get(str(number)) for number in range(10 * MAX_CONNECTIONS)))
    assert set(values) == {None}


@pytest.mark.parametrize("fault", [stop, kill, pause, lock, load, replace_by_a_file])
async def test_ping_of_a_redis_that_is_down_is_an_os_error_every_time(
    redis_server: RedisServer, shared: RedisCache, fault: Callable[[RedisServer], None],
) -> None:
    await until_answered(shared)
    fault(redis_server)
    for _ in range(3):
        with pytest.raises((ConnectionError, TimeoutError)):
            await shared.ping()


async def test_loading_redis_is_down_until_it_has_loaded(redis_server: RedisServer) -> None:
    cache = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    load(redis_server)
    with pytest.raises(ConnectionError, match="loading"):
        await cache.ping()
    assert await cache.get("k") is None
    redis_server.kill()
    redis_server.start("--dbfilename", "none.rdb")
    await cache.ping()
    await cache.set("k", b"1", ttl_seconds=60)
    assert await cache.get("k") == b"1"
    await cache.close()


async def test_redis_that_wants_a_password_gets_it_from_the_url(redis_server: RedisServer) -> None:
    redis_server.start("--requirepass", "p@ss/word")
    right = RedisCache(f"unix://:p%40ss%2Fword@{redis_server.socket}", timeout_seconds=PATIENT_SECONDS)
    await right.ping()
    await right.close()
    for password in ("", ":wrong@"):
        wrong = RedisCache(f"unix://{password}{redis_server.socket}", timeout_seconds=PATIENT_SECONDS)
        with pytest.raises(ConnectionError):
            await wrong.ping()
        await wrong.close()


async def test_full_redis_still_gives_what_it_has(redis_server: RedisServer) -> None:
    cache = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    await cache.set("k", b"1", ttl_seconds=60)
    fill(redis_server)
    await cache.set("other", b"2", ttl_seconds=60)
    assert await cache.get("k") == b"1"
    assert await cache.get("other") is None
    await cache.ping()
    await cache.close()


async def test_redis_that_comes_back_is_used_again(redis_server: RedisServer, clock: Clock) -> None:
    cache = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    await cache.set("k", b"1", ttl_seconds=60)
    redis_server.kill()
    await cache.set("k", b"2", ttl_seconds=60)
    redis_server.start()
    await cache.set("k", b"3", ttl_seconds=60)
    assert await cache.get("k") is None  # left alone for now
    clock.now += BREAK_SECONDS
    assert await cache.get("k") is None  # empty, as it was killed
    await cache.set("k", b"4", ttl_seconds=60)
    assert await cache.get("k") == b"4"
    await cache.close()


async def test_redis_that_went_on_after_a_pause_is_used_again(redis_server: RedisServer, shared: RedisCache) -> None:
    await until_answered(shared)
    redis_server.pause()
    assert await shared.get("k") is None
    redis_server.resume()
    await until_answered(shared)  # an answered ping ends the break

    async def is_kept() -> bool:
        await shared.set("k", b"1", ttl_seconds=60)
        return await shared.get("k") == b"1"

    await until(is_kept)


async def test_takes_are_counted_in_redis_again_after_it_comes_back(redis_server: RedisServer, clock: Clock) -> None:
    cache = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    redis_server.kill()
    assert await cache.take("k", per_minute=1, burst=1) == 0.0
    assert await cache.take("k", per_minute=1, burst=1) > 0
    redis_server.start()
    clock.now += BREAK_SECONDS
    assert await cache.take("k", per_minute=1, burst=1) == 0.0
    assert redis_server.execute("EXISTS", "fs:bucket:k") == 1
    await cache.close()


async def test_value_that_a_paused_redis_sets_late_does_not_outlive_its_time(
    redis_server: RedisServer, shared: RedisCache, clock: Clock,
) -> None:
    await until_answered(shared)
    redis_server.pause()
    await shared.set("k", b"stale", ttl_seconds=5)  # given up, yet it waits in the socket
    redis_server.resume()

    async def is_set() -> bool:
        return redis_server.execute("EXISTS", "fs:value:k") == 1

    await until(is_set)
    clock.now += 5
    await until_answered(shared)
    assert await shared.get("k") is None


async def test_close_of_a_cache_whose_redis_is_gone_does_not_raise(redis_server: RedisServer) -> None:
    for fault in (pause, kill):
        cache = RedisCache(redis_server.url)
        await until_answered(cache)
        fault(redis_server)
        await cache.close()
        if fault is pause:
            redis_server.resume()


@pytest.mark.parametrize("url", [
    "redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0", "unix:///nowhere/s",
    "redis://127.0.0.1:1/0?no_such_option=1",
])
async def test_redis_that_is_not_there_at_all_raises_nothing(url: str) -> None:
    cache = RedisCache(url)
    with pytest.raises((ConnectionError, TimeoutError)):
        await cache.ping()
    await cache.set("k", b"1", ttl_seconds=60)
    assert await cache.get("k") is None
    assert await cache.take("k", per_minute=1, burst=1) == 0.0
    await cache.close()


@pytest.mark.parametrize("url", ["", "http://127.0.0.1/", "redis://127.0.0.1:x/0", "redis://127.0.0.1/0?db=x"])
def test_url_that_cannot_be_read_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError):
        RedisCache(url)


# --- redis: a server that is none ---

class Imposter:
    """A listener that answers everything with `reply` (None: with nothing)."""

    def __init__(self, path: Path, reply: bytes | None) -> None:
        self.url = f"unix://{path}"
        self.received: list[bytes] = []
        self.heard = asyncio.Event()
        self._reply = reply
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[object] | None] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._tasks.add(asyncio.current_task())
        try:
            while data := await reader.read(65536):
                self.received.append(data)
                self.heard.set()
                if self._reply is not None:
                    writer.write(self._reply)
        except ConnectionError:
            pass
        writer.close()

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*filter(None, self._tasks))


Imposters = Callable[[bytes | None], AbstractAsyncContextManager[Imposter]]


@pytest.fixture
def imposter(tmp_path_factory: pytest.TempPathFactory) -> Imposters:
    @asynccontextmanager
    async def listen(reply: bytes | None) -> AsyncIterator[Imposter]:
        path = tmp_path_factory.mktemp("imposter") / "s"
        result = Imposter(path, reply)
        async with await asyncio.start_unix_server(result.answer, path):
            try:
                yield result
            finally:
                await result.close()

    return listen


@pytest.mark.parametrize("reply", [
    b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-1\r\n", b"$3\r\nabc\r\n", b":1\r\n", b"+OK\r\n", b"*-1\r\n", b"\0",
    b"$20\r\n" + b"\xff" * 20 + b"\r\n", b"$20\r\n" + b"\0" * 20 + b"\r\n", b"*1\r\n$1\r\na\r\n", b"-ERR no\r\n",
    b"-\r\n", b"-MOVED 1 127.0.0.1:1\r\n", b"-MOVED\r\n", b"$99999999999999\r\n", b"\xff" * 100, b"-LOADING wait\r\n",
    b"-NOSCRIPT no\r\n", b"-\xff\r\n", b"$3\r\nab",
])
async def test_server_that_talks_nonsense_raises_nothing(imposter: Imposters, reply: bytes) -> None:
    async with imposter(reply) as server:
        cache = RedisCache(server.url)
        for _ in range(2):
            await cache.set("k", b"1", ttl_seconds=60)
            assert await cache.get("k") is None
            await cache.forget("k")
            assert await cache.take("k", per_minute=1, burst=10) >= 0
        await cache.close()


async def test_server_that_closes_every_connection_raises_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    path = tmp_path_factory.mktemp("imposter") / "s"
    async with await asyncio.start_unix_server(close, path):
        cache = RedisCache(f"unix://{path}")
        await cache.set("k", b"1", ttl_seconds=60)
        assert await cache.get("k") is None
        assert await cache.take("k", per_minute=1, burst=1) == 0.0
        with pytest.raises(ConnectionError):
            await cache.ping()
        await cache.close()


async def test_after_a_failure_nothing_is_sent_for_a_while_and_then_one_call_tries(
    imposter: Imposters, clock: Clock,
) -> None:
    async with imposter(b"-LOADING wait\r\n") as server:
        cache = RedisCache(server.url, timeout_seconds=PATIENT_SECONDS)
        assert await cache.get("first") is None
        assert len(server.received) == 1
        clock.now += BREAK_SECONDS * 0.99
        assert await cache.get("too early") is None
        assert len(server.received) == 1
        clock.now += BREAK_SECONDS * 0.01
        await asyncio.gather(*(cache.get(str(number)) for number in range(50)))
        assert len(server.received) == 2
        await cache.close()


async def test_error_as_a_reply_is_no_reason_to_stay_away(imposter: Imposters) -> None:
    async with imposter(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n") as server:
        cache = RedisCache(server.url, timeout_seconds=PATIENT_SECONDS)
        for _ in range(5):
            await cache.set("k", b"1", ttl_seconds=60)
        assert len(server.received) == 5
        await cache.close()


async def test_failures_are_logged_once_a_minute(clock: Clock) -> None:
    cache = RedisCache("redis://:a-secret@127.0.0.1:1/0")
    with capture_logs() as logs:
        for _ in range(round(WARN_EVERY_SECONDS) + 1):
            await cache.get("k")
            clock.now += 1
        await cache.close()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("cache_unavailable", "warning")] * 2
    assert "a-secret" not in str(logs)


# --- redis: cancellation ---

async def test_cancelled_call_is_cancelled_and_not_answered(imposter: Imposters) -> None:
    async with imposter(None) as server:
        cache = RedisCache(server.url, timeout_seconds=PATIENT_SECONDS)
        for call in (cache.get("k"), cache.set("k", b"1", ttl_seconds=60), cache.take("k", per_minute=1, burst=1)):
            task = asyncio.ensure_future(call)
            await server.heard.wait()
            server.heard.clear()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(server.received) == 3  # to be cancelled is no failure of Redis
        await cache.close()


async def test_cancelled_calls_leave_no_reply_for_others_and_no_place_taken(redis_server: RedisServer) -> None:
    cache = RedisCache(redis_server.url, timeout_seconds=PATIENT_SECONDS)
    values = {str(number): b"%d" % number for number in range(3 * MAX_CONNECTIONS)}
    for key, value in values.items():
        await cache.set(key, value, ttl_seconds=600)
    for turns in range(60):
        tasks = {key: asyncio.create_task(cache.get(key)) for key in values}
        for _ in range(turns % 20):
            await asyncio.sleep(0)  # one more turn of the loop: cancel at each step of the calls
        for number, task in enumerate(tasks.values()):
            if (number + turns) % 2:
                task.cancel()
        await asyncio.wait(tasks.values())
        for key, task in tasks.items():
            assert task.cancelled() or task.result() == values[key]
    assert await asyncio.gather(*map(cache.get, values)) == list(values.values())
    await cache.close()
