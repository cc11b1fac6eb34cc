"""Plausible mistakes, each of which the scenarios must catch: a fault test that nothing can fail proves nothing.

The numbers are those of `tests/mutants.py`; other mutants are beside the tests of what they break.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.db import blobs, outcomes, users
from service.db.pool import Connection
from service.domain.content import Content, Stored
from service.domain.housekeeping import Housekeeping
from service.domain.places import Target
from service.errors import QuotaExceeded, ServiceError
from service.model import BlobKey, Caller, Conditions, File, FileId, Staged, UserId, VersionId, new_uuid
from tests.domain.failpoints import Failpoints, raise_os_error
from tests.domain.scenarios import (
    TOGETHER, connection_lost_around_the_commit, database_lost_around_the_commit, fault_at_every_step_of_an_upload,
    groups_at_the_edge_of_the_quota, reference_added_while_sweeping, uploads_at_the_edge_of_the_quota,
)
from tests.world import World


# --- the service itself passes what the mutants below must not ---

async def test_service_stores_exactly_what_fits_the_quota(world: World, failpoints: Failpoints) -> None:
    await uploads_at_the_edge_of_the_quota(world, failpoints)


async def test_service_stores_exactly_what_fits_the_quota_in_groups(world: World, failpoints: Failpoints) -> None:
    await groups_at_the_edge_of_the_quota(world, failpoints)


async def test_service_refuses_a_reference_to_what_it_is_removing(world: World, failpoints: Failpoints) -> None:
    await reference_added_while_sweeping(world, failpoints)


# --- M3: the row first, then the bytes ---

class CommittingFirst(Content):
    """Names the bytes before they have their place."""

    async def store(self, caller: Caller, target: Target, staged: Staged, *, content_type: str | None,
                    conditions: Conditions = Conditions(), **more: Any) -> Stored:
        """Commit, then place."""
        try:
            stored = await self._commit(caller, target, staged, content_type, conditions, None)
            await self._store.place(staged)
        except BaseException:
            self._store.discard(staged.key)
            raise
        return stored


@pytest.mark.mutant("M3", "the row is committed before the bytes are placed")
async def test_m3_commit_before_the_placement_is_caught(world: World, failpoints: Failpoints) -> None:
    world.content = CommittingFirst(world.database, world.store, world.limits)
    with pytest.raises(AssertionError, match="an error was reported, but something changed"):
        await fault_at_every_step_of_an_upload(world, failpoints, raise_os_error)


# --- M4: an error of COMMIT is taken for "nothing happened" ---

class RemovingOnAnyError(Content):
    """Takes the bytes back whenever the transaction raised."""

    async def store(self, caller: Caller, target: Target, staged: Staged, **more: Any) -> Stored:
        """Store, and clean up too eagerly."""
        try:
            return await super().store(caller, target, staged, **more)
        except ServiceError:
            with contextlib.suppress(OSError):
                self._store.path(staged.key).unlink()
            raise


@pytest.mark.mutant("M4", "bytes removed on an error of COMMIT")
async def test_m4_bytes_removed_on_an_error_of_the_commit_are_caught(dsn: str, tmp_path: Path) -> None:
    def mutate(world: World) -> None:
        world.content = RemovingOnAnyError(world.database, world.store, world.limits)

    with pytest.raises(FileNotFoundError):
        await database_lost_around_the_commit(dsn, tmp_path / "data", "after", mutate)


# --- M18: an error of COMMIT is not looked into ---

@pytest.mark.mutant("M18", "a lost COMMIT taken for a failed one, and done again")
async def test_m18_lost_commit_that_is_done_again_is_caught(
        dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_nothing(*_: object, **__: object) -> outcomes.Outcome:
        return "aborted"

    monkeypatch.setattr(outcomes, "find_outcome", find_nothing)
    with pytest.raises(AssertionError, match="the outcome could be known|it was not stored exactly once"):
        await connection_lost_around_the_commit(dsn, tmp_path / "data", "after")


# --- M5: garbage is removed without a fence ---

class Unfenced(Housekeeping):
    """Looks for what nothing refers to, removes it, forgets it."""

    async def sweep(self, *, grace_seconds: float = 0) -> int:
        """Sweep by looking first."""
        async with self._database.connection() as conn:
            rows = await conn.fetch("SELECT id FROM blobs WHERE unref_since < now() AND NOT EXISTS "
                                    "(SELECT FROM versions WHERE versions.blob_id = blobs.id)")
            for row in rows:
                await self._store.delete(BlobKey(row["id"]))
            await conn.execute("DELETE FROM blobs WHERE id = ANY($1::uuid[]) AND NOT EXISTS "
                               "(SELECT FROM versions WHERE versions.blob_id = blobs.id)", [row["id"] for row in rows])
        return len(rows)


@pytest.mark.mutant("M5", "removal without a fence")
async def test_m5_removal_without_a_fence_is_caught(world: World, failpoints: Failpoints) -> None:
    world.housekeeping = Unfenced(world.database, world.store)
    with pytest.raises(AssertionError, match="bytes of version .* are gone"):
        await reference_added_while_sweeping(world, failpoints)
    assert world.store.violations  # noticed a second way
    world.store.violations.clear()


@pytest.mark.mutant("M5", "a fence that fences nothing")
async def test_m5_removal_of_what_was_only_looked_for_is_caught(
        world: World, failpoints: Failpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fence_nothing(conn: Connection, keys: list[BlobKey]) -> None:
        pass

    async def list_unreferenced(conn: Connection, *, skip: list[BlobKey], limit: int) -> list[tuple[BlobKey, int]]:
        rows = await conn.fetch("SELECT id, size_bytes FROM blobs WHERE unref_since < now()")
        return [(BlobKey(row["id"]), row["size_bytes"]) for row in rows if row["id"] not in world.store.deleted]

    monkeypatch.setattr(blobs, "fence_blobs", fence_nothing)
    monkeypatch.setattr(blobs, "list_fenced", list_unreferenced)
    with pytest.raises(AssertionError, match="bytes of version .* are gone"):
        await reference_added_while_sweeping(world, failpoints)
    world.store.violations.clear()


# --- M7: the quota is read, compared, and written ---

@pytest.mark.mutant("M7", "the quota read, compared, then written")
async def test_m7_quota_that_is_read_first_is_caught(
        world: World, failpoints: Failpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    together = asyncio.Barrier(TOGETHER)

    async def read_then_write(conn: Connection, user_id: UserId, *, files_bytes: int = 0, versions_bytes: int = 0,
                              trash_bytes: int = 0, file_count: int = 0) -> None:
        usage = await users.get_usage(conn, user_id)
        await together.wait()  # the moment at which everybody has looked and nobody has written
        if usage.available_bytes is not None and files_bytes > usage.available_bytes:
            raise QuotaExceeded()
        await conn.execute("UPDATE users SET files_bytes = files_bytes + $2, file_count = file_count + $3 "
                           "WHERE id = $1", user_id, files_bytes, file_count)

    monkeypatch.setattr(users, "update_usage", read_then_write)
    with pytest.raises(AssertionError, match=r"\d+ uploads were taken where 12 fit"):
        await uploads_at_the_edge_of_the_quota(world, failpoints)


@pytest.mark.mutant("M7", "the quota of a group read, compared, then written")
async def test_m7_quota_of_a_group_that_is_read_first_is_caught(
        world: World, failpoints: Failpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    together = asyncio.Barrier(2)

    async def read_then_write(conn: Connection, charges: Mapping[UserId, users.Charge]) -> None:
        for user_id, charge in charges.items():
            usage = await users.get_usage(conn, user_id)
            await together.wait()  # the same moment
            if usage.available_bytes is not None and charge.files_bytes > usage.available_bytes:
                raise QuotaExceeded()
            await conn.execute("UPDATE users SET files_bytes = files_bytes + $2, file_count = file_count + $3 "
                               "WHERE id = $1", user_id, charge.files_bytes, charge.file_count)

    monkeypatch.setattr(users, "update_usages", read_then_write)
    with pytest.raises(AssertionError, match="2 uploads were taken where 1 fit"):
        await groups_at_the_edge_of_the_quota(world, failpoints)


# --- M11: the answer before the commit ---

class AnsweringEarly(Content):
    """Says "stored" while the transaction is still under way."""

    async def store(self, caller: Caller, target: Target, staged: Staged, *, content_type: str | None,
                    conditions: Conditions = Conditions(), **more: Any) -> Stored:
        """Place, begin to commit, answer."""
        try:
            await self._store.place(staged)
        except BaseException:
            self._store.discard(staged.key)
            raise
        task = asyncio.create_task(self._commit(caller, target, staged, content_type, conditions, None))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        task.add_done_callback(lambda done: done.exception())  # nobody asks for it any more
        place = target.place
        assert isinstance(place, tuple)
        async with self._database.connection() as conn:
            now = await conn.fetchval("SELECT now()")
        return Stored(is_new=True, file=File(
            id=FileId(new_uuid()), name=place[-1], path="/".join(place), size_bytes=staged.size_bytes,
            sha256=staged.sha256, content_type="x/y", version=1, version_id=VersionId(new_uuid()),
            blob_key=staged.key, created_at=now, updated_at=now))


@pytest.mark.mutant("M11", "the answer before the commit")
async def test_m11_answer_before_the_commit_is_caught(world: World, failpoints: Failpoints) -> None:
    world.content = AnsweringEarly(world.database, world.store, world.limits)
    with pytest.raises(AssertionError, match="what was acknowledged is not there"):
        await fault_at_every_step_of_an_upload(world, failpoints, raise_os_error)


@pytest.mark.mutant("M11", "the answer before the commit")
async def test_m11_is_caught_by_a_lost_connection_too(dsn: str, tmp_path: Path) -> None:
    def mutate(world: World) -> None:
        world.content = AnsweringEarly(world.database, world.store, world.limits)

    with pytest.raises(AssertionError, match="what was acknowledged is not there"):
        await database_lost_around_the_commit(dsn, tmp_path / "data", "before", mutate)
