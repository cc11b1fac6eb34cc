"""A fault at every step, before and after it: afterwards all invariants hold, and a client was told the truth."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from service.db import outcomes
from service.errors import Unavailable
from service.model import Caller, Conditions
from service.names import split_path
from tests.domain.commit_proxy import Moment, open_proxy
from tests.domain.failpoints import (
    Action, Failpoints, raise_lost, raise_os_error, raise_refusal, raise_surprise,
)
from tests.domain.scenarios import (
    NEW, OLD, connection_lost_around_the_commit, database_lost_around_the_commit, fault_at_every_step_of_an_upload,
)
from tests.invariants import check_all, nothing_removed_before_its_fence, take_snapshot
from tests.world import World, open_world

KINDS: dict[str, Action] = {"refusal": raise_refusal, "lost connection": raise_lost, "surprise": raise_surprise}
every_kind = pytest.mark.parametrize("kind", [*KINDS, "ended backend"])


def action_of(kind: str, failpoints: Failpoints) -> Action:
    """What happens at the step."""
    return KINDS.get(kind) or failpoints.end_backend


@every_kind
async def test_fault_at_any_step_of_an_upload_changes_nothing(world: World, failpoints: Failpoints, kind: str) -> None:
    assert await fault_at_every_step_of_an_upload(world, failpoints, action_of(kind, failpoints)) > 25


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_connection_lost_around_the_commit_is_made_good(dsn: str, tmp_path: Path, moment: Moment) -> None:
    await connection_lost_around_the_commit(dsn, tmp_path / "data", moment)


@pytest.mark.parametrize("path", ["/new/file", "/in a group"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_database_lost_around_the_commit_loses_and_tears_nothing(
        dsn: str, tmp_path: Path, moment: Moment, path: str) -> None:
    await database_lost_around_the_commit(dsn, tmp_path / "data", moment, path=path)


@pytest.mark.parametrize("path", ["/new/file", "/in a group"])
@pytest.mark.parametrize("conditions", [Conditions(), Conditions(if_none_match=("*",))], ids=["", "if it is new"])
async def test_bytes_of_a_commit_that_was_taken_for_a_failed_one_stay(
        dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, conditions: Conditions) -> None:
    """Whatever is heard of a COMMIT once it was sent, and however the next try fails on what it has committed."""
    async def be_mistaken(*_: object, **__: object) -> outcomes.Outcome:
        return "aborted"

    monkeypatch.setattr(outcomes, "find_outcome", be_mistaken)
    async with open_proxy(dsn) as (proxy, address), open_world(address, tmp_path / "data", direct_dsn=dsn) as world:
        caller = await world.new_caller()
        proxy.arm("after")
        with pytest.raises(Unavailable):
            await world.put(caller, path, NEW, conditions=conditions)
        await world.content.drain()
        assert proxy.lost == 1
        assert await world.get(caller, path) == NEW
        await check_all(dsn, tmp_path / "data")


@pytest.mark.parametrize(("path", "step"),
                         [("/a", "users.update_usages after"), ("/new/a", "users.update_usage after")],
                         ids=["in a group", "by itself"])
async def test_backend_ended_just_before_the_commit_changes_nothing(
        world: World, failpoints: Failpoints, path: str, step: str) -> None:
    caller = await world.new_caller()
    failpoints.reset()
    failpoints.arm(step, failpoints.end_backend)
    with pytest.raises(Unavailable) as caught:
        await world.put(caller, path, NEW)
    assert caught.value.retry_after_seconds
    assert failpoints.was_hit and await world.listing(caller) == {}
    await check_all(world.dsn, world.root)
    await world.put(caller, path, NEW)
    await check_all(world.dsn, world.root)


async def fill(world: World, path: str = "/folder") -> Caller:
    """An account with something to delete."""
    caller = await world.new_caller()
    for found in ("/file", "/folder/one", "/folder/below/two"):
        if found.startswith(path) or found == "/folder/one":
            await world.put(caller, found, OLD)
    return caller


@every_kind
@pytest.mark.parametrize("permanent", [True, False], ids=["for good", "to the trash"])
@pytest.mark.parametrize("path", ["/file", "/folder"])
async def test_fault_at_any_step_of_a_deletion_changes_nothing_or_all(
        world: World, failpoints: Failpoints, kind: str, permanent: bool, path: str) -> None:
    probe = await fill(world, path)
    full = await world.usage(probe)
    failpoints.reset()
    await world.files.delete(probe, split_path(path), permanent=permanent)
    points = failpoints.passed()
    done = await world.listing(probe), await world.usage(probe)
    for point in points:
        caller = await fill(world, path)
        nothing_done = await world.listing(caller), full
        failpoints.reset()
        failpoints.arm(point, action_of(kind, failpoints))
        try:
            await world.files.delete(caller, split_path(path), permanent=permanent)
            was_told = done
        except (Unavailable, ZeroDivisionError):
            was_told = nothing_done
        assert failpoints.was_hit
        assert (await world.listing(caller), await world.usage(caller)) == was_told, point
    await check_all(world.dsn, world.root)


@every_kind
async def test_fault_at_any_step_of_a_sweep_is_made_good_by_the_next_one(
        world: World, failpoints: Failpoints, kind: str) -> None:
    caller = await world.new_caller()

    async def litter() -> None:
        await world.put(caller, "/file", OLD)
        await world.put(caller, "/file", NEW)
        await world.delete(caller, "/file")

    await litter()
    failpoints.reset()
    assert await world.housekeeping.sweep(grace_seconds=0) == 2
    for point in failpoints.passed():
        if point[0].startswith("store.") and kind == "ended backend":
            continue
        await litter()
        failpoints.reset()
        failpoints.arm(point, action_of(kind, failpoints))
        with contextlib.suppress(Unavailable, ZeroDivisionError):
            await world.housekeeping.sweep(grace_seconds=0)
        assert failpoints.was_hit, point
        now = await take_snapshot(world.dsn, world.root)
        nothing_removed_before_its_fence(now)
        await world.housekeeping.sweep(grace_seconds=0)
        assert world.blobs() == set(), point
    await check_all(world.dsn, world.root)


async def test_blob_that_cannot_be_removed_does_not_keep_the_others(
        world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad sector must not end the removal of everything that was deleted after it."""
    caller = await fill(world)
    await world.put(caller, "/file", OLD)
    stuck = (await world.content.deliver(caller, ("file",))).key
    await world.delete(caller, "/file")
    await world.delete(caller, "/folder")
    delete = world.store.delete

    async def delete_unless_stuck(key: Any) -> None:
        if key == stuck:
            await raise_os_error(None)
        await delete(key)

    monkeypatch.setattr(world.store, "delete", delete_unless_stuck)
    monkeypatch.setattr("service.domain.housekeeping.BATCH", 1)
    assert await asyncio.wait_for(world.housekeeping.sweep(grace_seconds=0), 30) == 2
    assert world.blobs() == {stuck}
    monkeypatch.undo()
    assert await world.housekeeping.sweep(grace_seconds=0) == 1
    await check_all(world.dsn, world.root)
