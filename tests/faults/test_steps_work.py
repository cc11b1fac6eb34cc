"""F1, F2: housekeeping, upkeep, `check --repair` and `backup` are killed, or the disk fails, at every step of theirs.

What clients have is untouched, the next time makes everything good, and nobody sees a traceback.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.run.postgres import EmbeddedPostgres
from tests import databases
from tests.faults.recorder import Line, Recorder
from tests.faults.steps import Point, chosen_points
from tests.faults.work import KEPT, Backup, Repair, Sweep, Watch, Work
from tests.world import World, open_world

WORKS: tuple[type[Work], ...] = (Sweep, Watch, Repair, Backup)


@pytest.fixture
async def world(postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[World]:
    """Where the work is done."""
    dsn = databases.make_shared(postgres, f"work_{os.urandom(8).hex()}")
    (tmp_path / "steps").mkdir()
    async with open_world(dsn, tmp_path / "data", versions_keep=5) as opened:
        yield opened


async def begin(world: World, kind: type[Work]) -> Work:
    """An account with files that nothing of this is about, and the work."""
    caller = await world.new_caller()
    for path, data in KEPT.items():
        await world.put(caller, path, data)
    return kind(world, caller, world.root.parent)


@pytest.mark.parametrize("action", ["kill", "EIO", "ENOSPC", "EMFILE"])
@pytest.mark.parametrize("kind", WORKS, ids=lambda kind: str(kind.__name__))
async def test_fault_at_every_step_of_work(
        world: World, recorder: Recorder, rounds: int, kind: type[Work], action: str) -> None:
    line = recorder.line("F1 kill at every step" if action == "kill" else f"F2 {action} at every step", kind.name)
    work = await begin(world, kind)
    points = [point for point in await work.points() if point.number == 0 or rounds > 3]
    # a command takes a second to start: what fails after a step is tried by an error before the next one
    chosen = [point for point in chosen_points(points, action, is_thorough=rounds > 3)
              if action == "kill" or rounds > 3 or point.step.endswith(" before")]
    if action not in ("kill", "EIO"):
        chosen = [point for point in chosen if point.step.startswith("os.")]  # which alone can say so
    assert chosen, points
    await faults_at(work, chosen, action, line)
    line.acknowledged = len(KEPT) + work.count
    line.note = f"{len(chosen)} of {len(points)} steps; the next time made all good"


async def faults_at(work: Work, points: list[Point], action: str, line: Line) -> None:
    """The work, with a fault at each of these; after each it is done again."""
    for point in points:
        await work.litter()
        work.steps.arm(point.step, action, skip=point.number)
        done = await asyncio.to_thread(work.run)
        assert work.steps.was_hit(), f"{point} is not passed any more"
        work.steps.disarm()
        line.injected += 1
        assert done.returncode < 0 if action == "kill" else done.returncode in work.codes, (point, done)
        assert not (work.is_command and "Traceback" in done.stderr), (point, done.stderr)
        line.lost += await work.kept()
        assert not line.lost, point
        await work.finish()
