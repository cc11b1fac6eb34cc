"""F1, F2: the real service is killed, or the disk fails, at every step of every change (steps.py).

What a client was told is true, nothing is torn or dangles, trying again makes it good, and the service is back by
itself.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from service.run import processes
from tests.faults.changes import (
    ACCOUNTS, BYTES, TREE, TRIES, Bench, Change, chunked, form, keyed, small_upload, stack_with_steps, upload,
)
from tests.faults.clients import Account
from tests.faults.examine import check_invariants, examine
from tests.faults.recorder import Line, Recorder
from tests.faults.sites import FaultyStack
from tests.faults.steps import Point, chosen_points

ERRORS = ("EIO", "ENOSPC", "EMFILE")
ACTIONS = ("kill", *ERRORS)
BEHIND_NGINX = [
    *((change, action) for change in (*BYTES, *TREE) for action in ACTIONS),
    *((change, action) for change in ACCOUNTS for action in ("kill", "EIO"))]
WITHOUT_NGINX = [(change, action) for change in (upload, small_upload, form, chunked, keyed) for action in ACTIONS]


def cases(found: Sequence[tuple[Change, str]]) -> pytest.MarkDecorator:
    """Each change with each fault."""
    return pytest.mark.parametrize(("change", "action"), found,
                                   ids=[f"{change.__name__}-{action}" for change, action in found])


def run_stack(folder: Path, recorder: Recorder, nginx: str) -> Iterator[FaultyStack]:
    """One service for several tests, with its steps; after them all invariants hold."""
    before = len(recorder.lines)
    with stack_with_steps(folder, NGINX=nginx) as stack:
        yield stack
        # a start removes what killed workers had in staging; each fault may have left a file without a row
        stack.stop()
        stack.start()
        faults = sum(line.injected for line in recorder.lines[before:])
        asyncio.run(check_invariants(stack.dsn, stack.root, max_strays=faults))


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory, recorder: Recorder) -> Iterator[FaultyStack]:
    """Behind nginx."""
    yield from run_stack(tmp_path_factory.mktemp("steps"), recorder, "auto")


@pytest.fixture(scope="module")
def bare_stack(tmp_path_factory: pytest.TempPathFactory, recorder: Recorder) -> Iterator[FaultyStack]:
    """Without nginx."""
    yield from run_stack(tmp_path_factory.mktemp("bare"), recorder, "off")


async def hit(bench: Bench, change: Change, point: Point, action: str, line: Line) -> None:
    """Do the change until the step is hit, and look at what came of it."""
    for _ in range(TRIES):
        do = await change(bench)
        bench.steps.arm(point.step, action, skip=point.number)
        began = time.monotonic()
        reply = await do()
        was_hit = bench.steps.was_hit()
        bench.steps.disarm()
        if was_hit:
            break
        await asyncio.sleep(0.05)
    assert was_hit, f"{point} is not passed any more"
    # what the kernel says of the disk has an answer of its own, and a worker that is killed is no mistake of another's
    is_explained = action != "kill" and not point.is_of_disk
    assert reply is None or reply.status != 500 or is_explained, f"{action} at {point} is a 500"
    line.injected += 1
    line.in_doubt += bench.account.ledger.in_doubt
    if action == "kill":
        assert await asyncio.to_thread(
            processes.wait_until, bench.stack.all_workers_listen, 60), "the worker is not started again"
        line.recovered(time.monotonic() - began)
    wrong = await bench.settle()
    line.lost += len(wrong)
    assert not wrong, (point, action, wrong)
    await bench.do_again(change)


async def fault_at_every_step(stack: FaultyStack, session: aiohttp.ClientSession, line: Line, change: Change,
                              action: str, is_thorough: bool) -> None:
    """One change, one fault, step by step; the figures go to the line."""
    account = await Account.open(session, stack)
    bench = Bench(stack, account)
    points = await bench.points_of(change)
    chosen = chosen_points(points, action, is_thorough=is_thorough)
    assert chosen, points
    before = len(stack.mistakes())
    for point in chosen:
        await hit(bench, change, point, action, line)
    # an error that is injected may be an exception in the log, but not that a worker is gone
    assert action != "kill" or not (mistakes := stack.mistakes()[before:]), "\n".join(mistakes)
    line.acknowledged = account.ledger.acknowledged
    damage, words = await examine([account], stack.dsn, stack.root)
    line.add(damage)
    assert not damage, words
    assert [words for words in account.ledger.refused if " 507 " not in words] == []
    line.note = f"{len(chosen)} of {len(points)} steps"


def line_of(recorder: Recorder, change: Change, action: str, more: str = "") -> Line:
    """Its line in the table."""
    return recorder.line("F1 kill at every step" if action == "kill" else f"F2 {action} at every step",
                         change.__name__.replace("_", " ") + more)


@cases(BEHIND_NGINX)
async def test_fault_at_every_step_of_a_change(
        own_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int, change: Change,
        action: str) -> None:
    await fault_at_every_step(own_stack, session, line_of(recorder, change, action), change, action, rounds > 3)


@cases(WITHOUT_NGINX)
async def test_fault_at_every_step_of_an_upload_without_nginx(
        bare_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int, change: Change,
        action: str) -> None:
    line = line_of(recorder, change, action, ", without nginx")
    await fault_at_every_step(bare_stack, session, line, change, action, rounds > 3)
