"""Parts of the service are killed, stopped and restarted while clients write and read (F6, F8, F13, F23).

Every reader compares what it gets with what was acknowledged; at the end everything is compared.  Nothing was done by
hand but what was done to the part.
"""

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import pytest

from service.run import processes
from tests.faults.examine import check_invariants
from tests.faults.load import AT_ONCE, PATIENCE_SECONDS, PROBE_SECONDS, Load, under_load
from tests.faults.machine import descendants, kill
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of our own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer, recorder: Recorder) -> Iterator[FaultyStack]:
    """One service for all of them, as `make run` starts it, with Redis; after them all invariants hold."""
    before = len(recorder.lines)
    stack = FaultyStack(tmp_path_factory.mktemp("load") / "data",
                        {"REDIS_URL": redis.url, "ACCESS_TOKEN_TTL": "86400"})
    with stack.running():
        yield stack
        # a start removes what killed workers had in staging
        stack.stop()
        stack.start()
        lines = recorder.lines[before:]
        # what a worker had when it was killed nginx sends to another one, which answers; the bytes may be there twice
        sent_again = AT_ONCE * sum(line.injected for line in lines if line.fault == "F1 worker killed")
        in_doubt = sum(line.in_doubt for line in lines)
        strays = asyncio.run(check_invariants(stack.dsn, stack.root, max_strays=in_doubt + sent_again))
        recorder.line("all of F6, F8, F13, F23", note=f"{strays} files without a row; all invariants hold")


def postmaster(stack: FaultyStack) -> int:
    """PostgreSQL's first process."""
    return int((stack.root / "postgres" / "postmaster.pid").read_text(encoding="utf-8").split()[0])


def backends(stack: FaultyStack) -> list[int]:
    """PostgreSQL's other processes."""
    return descendants(postmaster(stack))


# --- what is killed, and comes back by itself ---

async def kill_postgres(load: Load) -> None:
    """As a crash does."""
    await kill([postmaster(load.stack)])


async def restart_postgres(load: Load) -> None:
    """pg_ctl -m immediate."""
    await kill([postmaster(load.stack)], signal.SIGQUIT)


async def kill_backend(load: Load) -> None:
    """One connection's process; PostgreSQL then ends all others and recovers."""
    await kill(backends(load.stack)[-1:])


async def kill_worker(load: Load) -> None:
    """One that answers."""
    await kill(load.stack.workers()[:1])


async def end_worker(load: Load) -> None:
    """One is asked to end; it finishes what it has begun."""
    await kill(load.stack.workers()[:1], signal.SIGTERM)


async def kill_nginx(load: Load) -> None:
    """Its master."""
    await kill(load.stack.nginx()[:1])


async def kill_nginx_worker(load: Load) -> None:
    """One that moves bytes."""
    await kill(load.stack.nginx()[1:2])


async def stop_and_start(load: Load) -> None:
    """The whole service is ended in order, while everybody writes, and started again."""
    assert await asyncio.to_thread(load.stack.stop) == 0
    await asyncio.to_thread(load.stack.start)


async def kill_and_start(load: Load) -> None:
    """Everything is gone at once."""
    await asyncio.to_thread(load.stack.kill)
    await asyncio.to_thread(load.stack.start)


KILLS: dict[str, Callable[[Load], Awaitable[None]]] = {
    "F1 service killed": kill_and_start, "F1 worker killed": kill_worker, "F6 PostgreSQL killed": kill_postgres,
    "F6 PostgreSQL restarted at once": restart_postgres, "F6 backend killed": kill_backend,
    "F13 nginx killed": kill_nginx, "F13 nginx worker killed": kill_nginx_worker,
    "F23 worker asked to end": end_worker, "F23 service stopped under load": stop_and_start}


@pytest.mark.parametrize("fault", KILLS)
async def test_what_was_acknowledged_survives_and_the_service_is_back_by_itself(
        loaded: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int, fault: str) -> None:
    async with under_load(loaded, session, recorder.line(fault)) as load:
        for _ in range(rounds):
            await load.inject(lambda: KILLS[fault](load))


async def test_kill_of_nothing_is_noticed() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pids in ([], [gone.pid]):
        with pytest.raises(AssertionError, match="nothing to kill"):
            await kill(pids)


# --- what hangs ---

async def test_postgres_that_hangs_is_a_503_and_then_used_again(
        loaded: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int) -> None:
    async with under_load(loaded, session, recorder.line("F6 PostgreSQL stopped (SIGSTOP)")) as load:
        async def hang() -> None:
            stopped = [*backends(load.stack), postmaster(load.stack)]
            processes.send(stopped, signal.SIGSTOP)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while await load.try_change() != 503:
                        await asyncio.sleep(PROBE_SECONDS)
            finally:
                processes.send(stopped, signal.SIGCONT)

        for _ in range(rounds):
            await load.inject(hang)


# --- Redis: nobody notices ---

async def redis_killed(redis: RedisServer, load: Load) -> None:
    """It is gone for a while."""
    await asyncio.to_thread(redis.kill)
    await load.calm()
    await asyncio.to_thread(redis.start)


async def redis_stopped(redis: RedisServer, load: Load) -> None:
    """It takes connections and answers nothing."""
    redis.pause()
    await load.calm()
    redis.resume()


async def redis_flushed(redis: RedisServer, load: Load) -> None:
    """It has forgotten everything."""
    await asyncio.to_thread(redis.execute, "FLUSHALL")


async def redis_full(redis: RedisServer, load: Load) -> None:
    """It takes nothing more."""
    await asyncio.to_thread(redis.execute, "CONFIG", "SET", "maxmemory", "1")
    await load.calm()
    await asyncio.to_thread(redis.execute, "CONFIG", "SET", "maxmemory", "0")


@pytest.mark.parametrize("fault", [redis_killed, redis_stopped, redis_flushed, redis_full],
                         ids=lambda fault: str(fault.__name__))
async def test_nobody_notices_what_happens_to_redis(
        loaded: FaultyStack, redis: RedisServer, session: aiohttp.ClientSession, recorder: Recorder, rounds: int,
        fault: Callable[[RedisServer, Load], Awaitable[None]]) -> None:
    line = recorder.line(f"F8 {fault.__name__.replace('_', ' ').replace('redis', 'Redis')}")
    async with under_load(loaded, session, line) as load:
        for _ in range(rounds):
            await load.inject(lambda: fault(redis, load))
    assert (line.in_doubt, load.unanswered) == (0, 0), "requests failed"
    line.note = "no request failed"


async def test_reload_of_nginx_costs_no_request(
        loaded: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int) -> None:
    line = recorder.line("F13 nginx reloaded")

    async def reload() -> None:
        master, *before = loaded.nginx()
        processes.send([master], signal.SIGHUP)
        assert await asyncio.to_thread(processes.wait_until, lambda: not set(before) & set(loaded.nginx()), 60)

    async with under_load(loaded, session, line) as load:
        for _ in range(rounds):
            await load.inject(reload)
    assert (line.in_doubt, load.unanswered) == (0, 0), "requests failed"
    line.note = "no request failed"
