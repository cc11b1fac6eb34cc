"""F9: a worker is killed between COMMIT and the new mark, so nginx still holds what was decided before (decisions.js).

Nobody has had an answer then, and nothing that was decided before is good for longer than is promised: afterwards
whoever asks finds what was committed.  Waiting until a decision has expired is what these tests are about.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from service.domain.accounts import SESSION_CACHE_SECONDS
from service.run import folders
from tests.client import Api, Reply, new_account, until
from tests.faults.changes import stack_with_steps
from tests.faults.clients import NO_ANSWER
from tests.faults.examine import check_invariants
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack
from tests.faults.steps import RENEWAL, Steps

PROMISED_SECONDS = 5.0  # by README.md
SLACK_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
TRIES = 5


class Watched:
    """An account whose downloads nginx remembers, in a service with steps."""

    def __init__(self, stack: FaultyStack, api: Api) -> None:
        self.stack = stack
        self.api = api
        self.steps = Steps(Path(stack.variables["STEPS"]))

    async def get(self, path: str) -> Reply:
        """A plain download."""
        return await self.api.get(path, expect=None)

    async def is_remembered(self, path: str) -> bool:
        """Whether nginx answers by itself: no worker comes by a step."""
        self.steps.record()
        try:
            assert (await self.get(path)).status == 200
            return not self.steps.passed()
        finally:
            self.steps.record(is_on=False)

    async def warm(self, path: str) -> None:
        """Ask until nginx remembers."""
        async with asyncio.timeout(60):
            while not await self.is_remembered(path):
                pass

    async def kill_at(self, moment: str, change: Callable[[], Awaitable[object]]) -> None:
        """Ask for a change whose worker is killed before the mark is renewed, or after."""
        self.steps.arm(f"{RENEWAL} {moment}", "kill")
        with suppress(*NO_ANSWER):
            await change()
        assert self.steps.was_hit(), "the change renews no mark"
        self.steps.disarm()

    async def outdated(self, paths: list[str], is_new: Callable[[Reply], bool]) -> int:
        """How often what was before is found by who asks again and again; AssertionError if for longer than promised.

        While no worker can be asked an answer is 503, and tells nothing.
        """
        found, over, is_settled = 0, time.monotonic() + PROMISED_SECONDS + SLACK_SECONDS, False
        async with asyncio.timeout(PATIENCE_SECONDS):
            while time.monotonic() < over or not is_settled:
                is_settled = True
                for path in paths:
                    began = time.monotonic()
                    reply = await self.get(path)
                    if not is_new(reply):
                        is_settled = False
                        if reply.status != 503:
                            found += 1
                            assert began < over, f"{reply.status} {began - over:.1f} s after what is promised"
        return found


async def overwrite(watched: Watched, moment: str) -> int:
    """Another content for a file; how often the former one was found."""
    path = "/hot"
    await watched.api.put(path, b"old", expect=None)
    await watched.warm(path)
    await watched.kill_at(moment, lambda: watched.api.put(path, b"new", expect=None))
    found = await watched.outdated([path], lambda reply: (reply.status, reply.body) == (200, b"new"))
    assert (await watched.api.info(path))["size"] == 3
    return found


async def log_out(watched: Watched, moment: str) -> int:
    """The end of a session, amid downloads of many files; how often one was sent."""
    api = await new_account(watched.api.session, watched.stack)
    paths = [f"/{number}" for number in range(12)]
    for path in paths:
        await api.put(path, b"kept")
    leaving = Watched(watched.stack, api)
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < PROMISED_SECONDS:  # each is decided at another moment
        for path in paths[:1 + int(len(paths) * seconds / PROMISED_SECONDS)]:
            assert (await leaving.get(path)).status == 200
    await leaving.warm(paths[0])
    await leaving.kill_at(moment, lambda: api.call("POST", "/auth/jwt/logout"))
    return await leaving.outdated(paths, lambda reply: reply.status == 401)


CHANGES = {"overwritten": overwrite, "logged out": log_out}


async def is_sound(stack: FaultyStack) -> None:
    """All invariants hold; a worker that is killed after its COMMIT leaves no bytes without a row."""
    await until(stack.all_workers_listen, seconds=PATIENCE_SECONDS)
    await check_invariants(stack.dsn, stack.root, max_strays=0)


@pytest.mark.parametrize("change", CHANGES)
async def test_decision_that_was_remembered_dies_in_time_when_its_mark_stays(
        tmp_path: Path, session: aiohttp.ClientSession, recorder: Recorder, rounds: int, change: str) -> None:
    line = recorder.line("F9 worker killed before it renews a mark", change)
    with stack_with_steps(tmp_path) as stack:
        for _ in range(rounds):
            watched = Watched(stack, await new_account(session, stack))
            found = 0
            for _ in range(TRIES):  # what was remembered may happen to expire in that very moment
                await until(stack.all_workers_listen, seconds=PATIENCE_SECONDS)
                found += await CHANGES[change](watched, "before")
                line.injected += 1
                if found:
                    break
            assert found, "nothing was remembered"
        await is_sound(stack)
    line.note = f"nobody found what was before after {PROMISED_SECONDS:.0f} s"


@pytest.mark.parametrize("change", CHANGES)
async def test_nothing_outdated_is_found_once_the_mark_is_renewed(
        tmp_path: Path, session: aiohttp.ClientSession, recorder: Recorder, change: str) -> None:
    line = recorder.line("F9 worker killed after it has renewed a mark", change)
    with stack_with_steps(tmp_path) as stack:
        assert await CHANGES[change](Watched(stack, await new_account(session, stack)), "after") == 0
        line.injected += 1
        await is_sound(stack)


# --- what these tests are there to find ---

@pytest.mark.mutant("M19", "a decision that is good for an hour")
@pytest.mark.parametrize("change", CHANGES)
async def test_decision_that_is_good_for_an_hour_is_found_out(
        tmp_path: Path, session: aiohttp.ClientSession, change: str) -> None:
    with stack_with_steps(tmp_path, faults="long_decisions") as stack:
        with pytest.raises(AssertionError, match="after what is promised"):
            await CHANGES[change](Watched(stack, await new_account(session, stack)), "before")


async def test_worker_says_how_long_its_decision_is_good(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """nginx counts the last second in full, and whoever decides may have asked after the session some time before."""
    with stack_with_steps(tmp_path, ACCESS_TOKEN_TTL="86400") as stack:
        api = await new_account(session, stack)
        await api.put("/file", b"file")
        socket = folders.find_sockets(stack.root) / "worker-0.sock"
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as worker:
            async def decide(address: str) -> int:
                headers = {"X-Original-Method": "GET", "X-Original-Uri": address}
                async with worker.get("http://worker/_decide", headers={
                        **headers, "Authorization": f"Bearer {api.token}"}) as response:
                    assert response.status == 403 and "X-Next" in response.headers
                    return int(response.headers["X-Accel-Expires"])

            assert 0 < await decide("/file/download?path=/file") + 1 + SESSION_CACHE_SECONDS <= PROMISED_SECONDS
            assert await decide("/file/download?path=/nothing") == 0
