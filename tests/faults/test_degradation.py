"""What goes on while something is full, read-only, hanging or scarce (F8, F10, F11), and that all comes back."""

import asyncio
import os
import resource
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from service.cache.redis import BREAK_SECONDS, TIMEOUT_SECONDS
from service.domain import writability
from tests.client import Api, is_tidy, new_account, until
from tests.faults.degraded import MIB, PATIENCE_SECONDS, Ask, goes_on, is_sound, running, timed
from tests.faults.machine import descendants, read_only, tmpfs
from tests.faults.recorder import Line, Recorder
from tests.faults.sites import OwnPostgres
from tests.redis_server import RedisServer

TRIES, REQUESTS = 3, 41
SLACK_SECONDS = 0.25  # five times what a question to Redis may take, and less than any other time-out


async def make_upload_link(api: Api) -> str:
    """Where a stranger may drop files."""
    await api.call("POST", "/file/folder", json={"path": "/drop"})
    made = await api.call("POST", "/file/link", json={"path": "/drop", "kind": "upload"}, expect=201)
    return str(made.json["url"]).removeprefix(api.stack.url)


def chunked(size_bytes: int) -> AsyncIterator[bytes]:
    """A body whose length is not announced."""
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size_bytes // MIB):
            yield bytes(MIB)

    return pieces()


def uploads(api: Api, link: str, size_bytes: int) -> dict[str, Ask]:
    """Each kind of upload."""
    def form() -> aiohttp.FormData:
        made = aiohttp.FormData()
        made.add_field("file", BytesIO(bytes(size_bytes)), filename="dropped")
        return made

    stranger = Api(api.session, api.stack)
    return {
        "put": lambda: api.put("/new", bytes(size_bytes), expect=None),
        "chunked": lambda: api.put("/new", chunked(size_bytes), expect=None),
        "form": lambda: api.call("POST", "/file", data=form()),
        "link": lambda: stranger.call("POST", link, data=form()),
    }


# --- F10: a full disk ---

async def fill(api: Api, line: Line) -> list[str]:
    """Store until there is no room; what was stored."""
    stored: list[str] = []
    while True:
        reply = await api.put(f"/filling-{len(stored)}", bytes(MIB), expect=None)
        line.injected += 1
        if reply.status != 201:
            assert (reply.status, reply.code) == (507, "storage_full")
            return stored
        stored.append(f"/filling-{len(stored)}")
        line.acknowledged += 1


async def test_full_disk_refuses_uploads_of_all_kinds_and_nothing_else(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path, nginx: str) -> None:
    line = recorder.line("F10 disk full", f"tmpfs, nginx {nginx}")
    with tmpfs(tmp_path / "small", "size=48m") as disk, \
            running(disk / "data", server, NGINX=nginx, MIN_FREE_SPACE=str(2 * MIB)) as stack:
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        link = await make_upload_link(api)
        stored = await fill(api, line)
        for size in (4 * MIB, 16 * MIB, 40 * MIB):
            for kind, ask in uploads(api, link, size).items():
                reply = await ask()
                line.injected += 1
                assert (reply.status, reply.code) == (507, "storage_full"), (kind, size, reply.body)
        await until(lambda: is_tidy(stack))
        await goes_on(api)
        for path in stored:
            assert len((await api.get(path)).body) == MIB
            await api.delete(path, permanent=True)
        await is_sound(stack, line)
        line.note = f"{line.injected - line.acknowledged} refused with 507, all else went on"


async def test_disk_without_inodes_refuses_uploads_and_nothing_else(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path, nginx: str) -> None:
    line = recorder.line("F10 inodes full", f"tmpfs, nginx {nginx}")
    with tmpfs(tmp_path / "small", "size=64m,nr_inodes=500") as disk, \
            running(disk / "data", server, NGINX=nginx, MIN_FREE_SPACE=str(2 * MIB),
                    MAX_UPLOAD_SIZE=str(16 * MIB)) as stack:
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        link = await make_upload_link(api)
        # what others leave on the disk, all but a few
        hoard = disk / "hoard"
        hoard.mkdir()
        while os.statvfs(disk).f_favail > 8:
            (hoard / str(os.statvfs(disk).f_favail)).touch()
        for kind, ask in uploads(api, link, MIB).items():
            reply = await ask()
            line.injected += 1
            assert (reply.status, reply.code) == (507, "storage_full"), (kind, reply.body)
        await goes_on(api)
        for file in hoard.iterdir():
            file.unlink()
        began = time.monotonic()
        for kind, ask in uploads(api, link, MIB).items():
            assert (await ask()).status in (200, 201), kind
            line.acknowledged += 1
        line.recovered(time.monotonic() - began)
        await is_sound(stack, line)


# --- a disk that may not be written to ---

async def test_disk_that_turns_read_only_ends_uploads_until_it_is_writable_again(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path, nginx: str) -> None:
    line = recorder.line("F2 disk read-only", f"bind mount, nginx {nginx}")
    with running(tmp_path / "data", server, NGINX=nginx) as stack:
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        link = await make_upload_link(api)
        with read_only(stack.root / "staging"):
            for size in (1000, MIB):
                for kind, ask in uploads(api, link, size).items():
                    reply = await ask()
                    line.injected += 1
                    assert reply.status == 503 and reply.code in ("read_only", "disk_failed"), (kind, reply.body)
                    assert int(reply.headers["Retry-After"]) >= 1

            async def say_so() -> bool:
                replies = [await api.call("GET", "/readyz", expect=200) for _ in range(8)]
                return {reply.json["status"] for reply in replies} == {"read_only"}

            await until(say_so)
            await goes_on(api)
        began = time.monotonic()

        async def is_back() -> bool:
            return {(await api.put("/new", b"new", expect=None)).status for _ in range(8)} <= {200, 201}

        await until(is_back, seconds=writability.PROBE_SECONDS + PATIENCE_SECONDS)
        line.recovered(time.monotonic() - began)
        await goes_on(api)
        await is_sound(stack, line)


# --- F11: few files ---

def limit_files(pids: list[int], most: int) -> list[tuple[int, tuple[int, int]]]:
    """So many open files for these processes; what they had before."""
    had = [(pid, resource.prlimit(pid, resource.RLIMIT_NOFILE)) for pid in pids]
    for pid, (_, hard) in had:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))
    return had


async def test_few_open_files_are_refusals_and_nothing_dies(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path, nginx: str) -> None:
    line = recorder.line("F11 few open files", f"prlimit, nginx {nginx}")
    with running(tmp_path / "data", server, NGINX=nginx) as stack:
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        assert stack.process is not None
        before = sorted(descendants(stack.process.pid))
        had = limit_files(before, 48)
        statuses: list[int] = []
        hasty: list[bytes] = []

        async def ask(number: int) -> None:
            status = 0  # not taken: the listener has no file for it
            try:
                reply = await (api.put(f"/{number}", bytes(100_000), expect=None) if number % 2 else
                               api.get("/kept", expect=None))
                status = reply.status
                if status == 503 and int(reply.headers.get("Retry-After", 0)) < 1:
                    hasty.append(reply.body)
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            statuses.append(status)
            line.in_doubt += number % 2 == 1 and status in (0, 503)

        for _ in range(3):
            await asyncio.gather(*(asyncio.wait_for(ask(number), PATIENCE_SECONDS) for number in range(80)))
        for pid, limits in had:
            if Path(f"/proc/{pid}").exists():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        began = time.monotonic()

        async def is_back() -> bool:
            return (await api.put("/after", b"after", expect=None)).status in (200, 201)

        await until(is_back, seconds=PATIENCE_SECONDS)
        line.injected, line.acknowledged = len(statuses), sum(status in (200, 201) for status in statuses)
        line.recovered(time.monotonic() - began)
        line.note = ", ".join(f"{statuses.count(status)} times {status or 'none'}" for status in sorted(set(statuses)))
        assert set(statuses) <= {0, 200, 201, 503}, line.note
        assert 503 in statuses, "there were enough"
        assert not hasty, "a refusal does not say when to come again"
        assert set(before) <= set(descendants(stack.process.pid))  # nobody died
        await goes_on(api)
        await is_sound(stack, line)


# --- F8: a cache that hangs ---

def fill_redis(redis: RedisServer, most_bytes: int) -> None:
    """Its memory is full, or not."""
    redis.execute("CONFIG", "SET", "maxmemory", most_bytes)


TROUBLES: dict[str, tuple[Callable[[RedisServer], object], Callable[[RedisServer], object]]] = {
    "hangs": (lambda redis: redis.pause(), lambda redis: redis.resume()),
    "killed": (lambda redis: redis.kill(), lambda redis: redis.start()),
    "flushed": (lambda redis: redis.execute("FLUSHALL"), lambda redis: None),
    "full": (lambda redis: fill_redis(redis, 1), lambda redis: fill_redis(redis, 0)),
}


async def test_troubled_redis_is_not_noticed(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path,
        tmp_path_factory: pytest.TempPathFactory) -> None:
    redis = RedisServer(tmp_path_factory.mktemp("redis"))
    redis.start()
    try:
        with running(tmp_path / "data", server, REDIS_URL=redis.url) as stack:
            api = await new_account(session, stack)
            await api.put("/kept", b"kept" * 1000)
            for what, (begin, end) in TROUBLES.items():
                line = recorder.line("F8 Redis", what)
                usual = await pace_of(api)
                begin(redis)
                troubled = await pace_of(api)
                await goes_on(api)
                end(redis)
                line.injected = 1
                line.note = f"a request, median and slowest: {usual} before, {troubled} then"
                check_pace(usual, troubled)
                await is_sound(stack, line)
    finally:
        redis.kill()


@dataclass(frozen=True)
class Pace:
    """What requests take, in seconds."""

    median: float
    slowest: float

    def __str__(self) -> str:
        return f"{1000 * self.median:.0f} and {1000 * self.slowest:.0f} ms"


async def pace_of(api: Api) -> Pace:
    """Of each the best of some tries: a machine may have other things to do.

    Before each try every worker gets the time after which it turns to Redis again, or only the first try would show
    what that costs.
    """
    medians, slowest = [], []
    for _ in range(TRIES):
        await asyncio.sleep(BREAK_SECONDS)
        times = []
        for _ in range(REQUESTS):
            reply, seconds = await timed(lambda: api.call("GET", "/file/info?path=/kept"))
            assert reply.status == 200
            times.append(seconds)
        medians.append(statistics.median(times))
        slowest.append(max(times))
    return Pace(min(medians), min(slowest))


def check_pace(usual: Pace, troubled: Pace) -> None:
    """As README.md has it: no question is waited for for long, and after one without an answer there is none."""
    assert troubled.slowest < usual.slowest + SLACK_SECONDS, f"a question is waited for: {usual}, now {troubled}"
    assert troubled.median < max(2 * usual.median, TIMEOUT_SECONDS), f"each is waited for: {usual}, now {troubled}"
