"""F1, F2: the real service is killed, or the disk fails, at every step of every change (steps.py).

What a client was told is true, nothing is torn or dangles, trying again makes it good, and the service is back by
itself.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from service.run import processes
from tests.client import Reply
from tests.faults.clients import Account
from tests.faults.examine import check_invariants, examine
from tests.faults.ledger import body_of
from tests.faults.recorder import Line, Recorder
from tests.faults.sites import FaultyStack
from tests.faults.steps import Steps

ACTIONS = ("kill", "EIO", "ENOSPC", "EMFILE")
WORKERS = 3
TRIES = 100  # what a worker remembers for some seconds, it does not ask for again
BODY_BYTES = 70_000


class Bench:
    """The service with steps, one client, and files with names that were never used before."""

    def __init__(self, stack: FaultyStack, steps: Steps, account: Account) -> None:
        self.stack = stack
        self.steps = steps
        self.account = account
        self._count = 0

    def fresh(self) -> str:
        """A path where nothing has been."""
        self._count += 1
        return f"/{self._count}"

    def body(self, size_bytes: int = BODY_BYTES) -> bytes:
        """Bytes that nothing has had."""
        self._count += 1
        return body_of(str(self._count), size_bytes)

    async def there(self) -> str:
        """A file; the steps on the way do not count."""
        path = self.fresh()
        for _ in range(TRIES):
            reply = await self.account.put(path, self.body(100))
            if reply is not None and reply.status in (200, 201):
                return path
            await asyncio.sleep(0.1)  # a worker that was killed is not back yet
        raise AssertionError("uploads are not taken any more")

    async def settle(self) -> list[str]:
        """What is not as it was promised."""
        reply = await self.account.api.call("GET", "/file/list", expect=200)
        return self.account.ledger.settle({file["path"]: file["sha256"] for file in reply.json["files"]})


Change = Callable[[Bench], Awaitable[Callable[[], Awaitable[Reply | None]]]]


async def upload(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """A new file in a new folder."""
    path, body = f"/new{bench.fresh()}/file", bench.body()
    return lambda: bench.account.put(path, body)


async def small_upload(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """One that fits into memory, in a folder that is there."""
    path, body = bench.fresh(), bench.body(100)
    return lambda: bench.account.put(path, body)


async def form(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """By a form."""
    path, body = bench.fresh(), bench.body()
    return lambda: bench.account.post(path, body)


async def overwrite(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """Another content for a file."""
    path, body = await bench.there(), bench.body()
    return lambda: bench.account.put(path, body)


async def delete(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """Into the trash."""
    path = await bench.there()
    return lambda: bench.account.delete(path, permanent=False)


async def purge(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """For good."""
    path = await bench.there()
    return lambda: bench.account.delete(path, permanent=True)


async def _trashed(bench: Bench) -> tuple[str, str]:
    path = await bench.there()
    digest = bench.account.ledger.known[path]
    await bench.account.delete(path, permanent=False)
    items = (await bench.account.api.call("GET", "/file/trash?limit=1", expect=200)).json["items"]
    assert items[0]["path"] == path and digest is not None
    return items[0]["id"], digest


async def purge_trash(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """Out of the trash, for good."""
    item, _ = await _trashed(bench)
    return lambda: bench.account.change({}, "DELETE", f"/file/trash?id={item}")


async def restore(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """Out of the trash, back."""
    item, digest = await _trashed(bench)
    path = bench.fresh()
    return lambda: bench.account.restore(item, path, digest)


async def move(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """To another place."""
    path, to = await bench.there(), bench.fresh()
    return lambda: bench.account.move(path, to)


async def copy(bench: Bench) -> Callable[[], Awaitable[Reply | None]]:
    """The same bytes under another name."""
    path, to = await bench.there(), bench.fresh()
    return lambda: bench.account.copy(path, to)


CHANGES: tuple[Change, ...] = (
    upload, small_upload, form, overwrite, delete, purge, purge_trash, restore, move, copy)


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    """One service for all, with its steps."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "steps").mkdir()
    stack = FaultyStack(folder / "data", {"WORKERS": str(WORKERS), "ACCESS_TOKEN_TTL": "86400"}, faults="steps",
                        variables={"STEPS": str(folder / "steps")})
    try:
        stack.start()
        yield stack
    finally:
        if stack.process is not None:
            stack.stop()


def steps_of(stack: FaultyStack) -> Steps:
    """What is told to its workers."""
    return Steps(Path(stack.variables["STEPS"]))


async def hit(bench: Bench, change: Change, step: str, action: str, line: Line) -> None:
    """Do the change until the step is hit, and look at what came of it."""
    for _ in range(TRIES):
        do = await change(bench)
        bench.steps.arm(step, action)
        began = time.monotonic()
        await do()
        was_hit = bench.steps.was_hit()
        bench.steps.disarm()
        if was_hit:
            break
        await asyncio.sleep(0.05)
    assert was_hit, f"{step} is not passed any more"
    line.injected += 1
    line.in_doubt += bench.account.ledger.in_doubt
    if action == "kill":
        assert await asyncio.to_thread(
            processes.wait_until, bench.stack.all_workers_listen, 60), "the worker is not started again"
        line.recovered(time.monotonic() - began)
    wrong = await bench.settle()
    line.lost += len(wrong)
    assert not wrong, (step, action, wrong)
    await do_again(bench, change)


async def do_again(bench: Bench, change: Change) -> None:
    """The same kind of change succeeds, if not at once because a worker is still being started."""
    for _ in range(TRIES):
        reply = await (await change(bench))()
        if reply is not None and reply.status < 300:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{change.__name__} does not succeed any more")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change.__name__))
async def test_fault_at_every_step_of_a_change(
        own_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int, change: Change,
        action: str) -> None:
    account = await Account.open(session, own_stack)
    table = Bench(own_stack, steps_of(own_stack), account)
    await do_again(table, change)
    do = await change(table)
    table.steps.record()
    await do()
    table.steps.record(is_on=False)
    steps = list(dict.fromkeys(table.steps.passed()))
    # a kill before a step leaves what a kill after the one before it leaves
    chosen = steps if action != "kill" or rounds > 3 else [step for step in steps if step.endswith("after")]
    assert len(chosen) >= 4, steps
    line = recorder.line("F1 kill at every step" if action == "kill" else f"F2 {action} at every step", change.__name__)
    for step in chosen:
        await hit(table, change, step, action, line)
    line.acknowledged = account.ledger.acknowledged
    damage, words = await examine([account], own_stack.dsn, own_stack.root)
    line.add(damage)
    assert not damage, words
    assert [words for words in account.ledger.refused if " 507 " not in words] == []
    line.note = f"{len(chosen)} steps"


async def test_fault_at_every_step_of_a_sweep(
        own_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder) -> None:
    account = await Account.open(session, own_stack)
    table = Bench(own_stack, steps_of(own_stack), account)

    async def litter() -> None:
        for _ in range(3):
            await table.account.delete(await table.there(), permanent=True)

    def run() -> int:
        command = [sys.executable, "-m", "tests.faults.sweeper", own_stack.dsn, str(own_stack.root), "0"]
        return subprocess.run(command, env=os.environ | own_stack.variables, capture_output=True).returncode

    await litter()
    table.steps.record()
    assert await asyncio.to_thread(run) == 0
    table.steps.record(is_on=False)
    steps = list(dict.fromkeys(table.steps.passed()))
    assert "store.delete before" in steps
    for action in ("kill", "EIO"):
        line = recorder.line("F1 kill at every step" if action == "kill" else f"F2 {action} at every step", "sweep")
        for step in steps:
            await litter()
            table.steps.arm(step, action)
            await asyncio.to_thread(run)
            assert table.steps.was_hit(), step
            table.steps.disarm()
            line.injected += 1
            damage, words = await examine([account], own_stack.dsn, own_stack.root)
            line.add(damage)
            assert not damage, (step, words)
        line.acknowledged = account.ledger.acknowledged
        line.note = f"{len(steps)} steps"
    # a start removes what killed workers had in staging; each fault of an upload may have left a file without a row
    await asyncio.to_thread(own_stack.stop)
    await asyncio.to_thread(own_stack.start)
    faults = sum(line.injected for line in recorder.lines if line.fault.startswith(("F1", "F2")))
    await check_invariants(own_stack.dsn, own_stack.root, max_strays=faults)
