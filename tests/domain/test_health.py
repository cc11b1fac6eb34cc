"""Access times: each question is measured after it was asked, and a flood of them is few measurements."""

import asyncio

import pytest

from service.cache.local import LocalCache
from service.domain.health import HealthChecks
from service.model import Health
from tests.world import World


async def test_questions_at_once_share_a_measurement_that_begins_after_them(
        world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = HealthChecks(world.database, LocalCache(), world.store)
    begun, go = asyncio.Queue[int](), asyncio.Queue[None]()
    measure_all = checks._measure_all
    count = 0

    async def stepped(timeout_seconds: float) -> Health:
        nonlocal count
        count += 1
        begun.put_nowait(count)
        await go.get()
        return await measure_all(timeout_seconds)

    monkeypatch.setattr(checks, "_measure_all", stepped)
    first = [asyncio.ensure_future(checks.measure()) for _ in range(100)]
    assert await begun.get() == 1
    late = [asyncio.ensure_future(checks.measure()) for _ in range(100)]
    await asyncio.sleep(0)
    go.put_nowait(None)
    assert len({id(health) for health in await asyncio.gather(*first)}) == 1
    assert await begun.get() == 2  # what was asked during the first is not answered by it
    late[0].cancel()  # one client that leaves takes the answer from nobody
    go.put_nowait(None)
    answers = await asyncio.gather(*late[1:])
    assert count == 2 and all(health.is_serving for health in answers)


async def test_one_question_after_another_is_measured_each_time(world: World) -> None:
    checks = HealthChecks(world.database, LocalCache(), world.store)
    found = [await checks.measure() for _ in range(3)]
    assert len({id(health) for health in found}) == 3
