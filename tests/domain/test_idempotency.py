"""Requests with a key: carried out once, whatever breaks between the first and the last of them."""

import asyncio
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.db import blobs, files, outcomes, users
from service.db import requests as request_rows
from service.db.pool import Connection
from service.domain import requests
from service.domain.moves import Moves
from service.domain.trash import Trash
from service.errors import (
    Conflict, IdempotencyKeyReused, NotFound, PreconditionFailed, QuotaExceeded, RequestInProgress, Unauthenticated,
    Unavailable,
)
from service.model import (
    BlobKey, Caller, Conditions, Contents, File, FileId, Folder, Link, LinkId, SessionId, UserId, VersionId, new_uuid,
)
from tests.client import until
from tests.domain.commit_proxy import Moment
from tests.domain.failpoints import Failpoints
from tests.domain.retries import (
    CHANGES, as_request, attempt, change, fill, make_link, retried_after_a_lost_commit, state,
)
from tests.invariants import check_all
from tests.world import MAX_UPLOAD_BYTES, World


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account."""
    return await world.new_caller()


@pytest.fixture
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a database that will not come back."""
    monkeypatch.setattr(outcomes, "LOOKS_AFTER_SECONDS", (0.0,))


# --- the same request again ---

@pytest.mark.parametrize("name", CHANGES)
async def test_change_that_is_asked_for_again_gets_its_answer_and_changes_nothing(world: World, name: str) -> None:
    act = CHANGES[name]
    world.keep_versions(9)
    caller, other = await fill(world), await fill(world)
    first = await as_request("key", lambda: act(world, caller))
    after, blobs = await state(world, caller), world.blobs()
    assert await as_request("key", lambda: act(world, caller)) == first
    assert await state(world, caller) == after and world.blobs() == blobs and world.staged() == []
    # a key belongs to its account
    await as_request("key", lambda: act(world, other))
    assert await state(world, other) == after
    await check_all(world.dsn, world.root)


async def test_without_a_key_each_request_is_another_one(world: World, caller: Caller) -> None:
    assert [(await world.put(caller, "/a", b"same")).file.version for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_change_whose_commit_was_lost_is_made_once(
        dsn: str, tmp_path: Path, one_look: None, moment: Moment) -> None:
    await retried_after_a_lost_commit(dsn, tmp_path / "data", moment)


async def test_many_at_once_store_one_version_and_all_get_its_answer(world: World, caller: Caller) -> None:
    stored = await asyncio.gather(*(
        as_request("key", lambda: world.put(caller, "/a", b"bytes")) for _ in range(20)))
    assert {found.file for found in stored} == {stored[0].file} and all(found.is_new for found in stored)
    assert stored[0].file.version == 1
    assert await world.observer.fetchval("SELECT count(*) FROM versions") == 1 == len(world.blobs())
    assert (await world.usage(caller)).files_bytes == 5
    await check_all(world.dsn, world.root)


async def test_request_that_takes_long_is_not_waited_for_without_an_end(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    async def be_impatient(conn: Any) -> None:
        await conn.execute("SET LOCAL lock_timeout = '20ms'")

    first = as_request("key", lambda: world.put(caller, "/a", b"bytes"))
    async with failpoints.paused("users.update_usage before", first) as task:
        failpoints.arm(("requests.insert_request before", 1), be_impatient)
        with pytest.raises(RequestInProgress) as caught:
            await as_request("key", lambda: world.put(caller, "/a", b"bytes"))
        assert caught.value.retry_after_seconds and failpoints.was_hit
    assert (await task).file.version == 1
    await check_all(world.dsn, world.root)


async def test_fault_at_any_step_is_made_good_by_the_next_request(world: World, failpoints: Failpoints) -> None:
    async def put(caller: Caller) -> Any:
        return await as_request("key", lambda: world.put(caller, "/folder/file", b"bytes"))

    caller = await world.new_caller()
    failpoints.reset()
    await put(caller)
    points = [point for point in failpoints.passed() if not point[0].startswith("store.")]
    assert {"requests.insert_request after", "requests.update_result after"} <= {name for name, _ in points}
    for point in points:
        caller = await world.new_caller()
        failpoints.reset()
        failpoints.arm(point, failpoints.end_backend)
        first = await attempt("key", lambda: world.put(caller, "/folder/file", b"bytes"))
        # what was lost with the COMMIT is known to be lost, and done again at once
        assert failpoints.was_hit and (first.error is None or isinstance(first.error, Unavailable)), point
        stored = await put(caller)
        assert stored.is_new and stored == await put(caller), point
    assert await world.observer.fetchval("SELECT count(*) FROM versions") == len(points) + 1
    failpoints.reset()
    await check_all(world.dsn, world.root)


@pytest.mark.parametrize("point", ["requests.insert_request after", "blobs.insert_blob after",
                                   "requests.update_result after", "the answer"])
async def test_worker_killed_at_any_moment_has_stored_all_or_nothing(world: World, caller: Caller, point: str) -> None:
    """The next request with the key, to another worker, stores it or gets the answer that nobody heard."""
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.domain.killed_upload", world.dsn, world.root, caller.user_id.hex, point)
    assert await killed.wait() == -signal.SIGKILL
    for _ in range(2):
        stored = await as_request("key", lambda: world.put(caller, "/a", b"bytes"))
        assert stored.is_new and stored.file == await world.files.info(caller, ("a",))
        assert stored.file.version == 1
    assert (await world.usage(caller)).files_bytes == 5
    await check_all(world.dsn, world.root, strays=int(point != "the answer"))


# --- mutants ---

@pytest.mark.mutant("M15", "a key kept in a transaction of its own")
@pytest.mark.parametrize("name", ["new file", "move"])
async def test_m15_key_outside_of_the_transaction_is_caught(
        dsn: str, tmp_path: Path, one_look: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    observer = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
    insert_request = request_rows.insert_request

    async def insert_aside(_: Connection, *args: Any, **kwargs: Any) -> bool:
        async with observer.acquire() as conn:
            return await insert_request(conn, *args, **kwargs)

    monkeypatch.setattr(request_rows, "insert_request", insert_aside)
    with pytest.raises(AssertionError, match="the second request failed"):
        await retried_after_a_lost_commit(dsn, tmp_path / "data", "before", [name])
    await observer.close()


@pytest.mark.mutant("M16", "a key without its result")
@pytest.mark.parametrize("name", ["new file", "move"])
async def test_m16_result_that_is_not_kept_is_caught(
        dsn: str, tmp_path: Path, one_look: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def keep_nothing(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr(request_rows, "update_result", keep_nothing)
    with pytest.raises(AssertionError, match="the second request failed"):
        await retried_after_a_lost_commit(dsn, tmp_path / "data", "after", [name])


# --- another request under the same key ---

async def test_key_of_another_request_is_refused_and_nothing_changes(world: World, caller: Caller) -> None:
    await as_request("key", lambda: world.put(caller, "/a", b"bytes", content_type="x/y"))
    before, blobs = await state(world, caller), world.blobs()
    for other in (lambda: world.put(caller, "/a", b"other", content_type="x/y"),
                  lambda: world.put(caller, "/b", b"bytes", content_type="x/y"),
                  lambda: world.put(caller, "/a", b"bytes", content_type="x/z"),
                  lambda: world.put(caller, "/a/", b"bytes", content_type="x/y", own_name="a"),
                  lambda: world.files.delete(caller, ("a",)),
                  lambda: Trash(world.database).empty(caller)):
        with pytest.raises(IdempotencyKeyReused):
            await as_request("key", other)
    with pytest.raises(IdempotencyKeyReused):
        await as_request("key", lambda: world.put(caller, "/a", b"bytes", content_type="x/y"), "If-Match", "x")
    assert await state(world, caller) == before and world.blobs() == blobs and world.staged() == []
    await check_all(world.dsn, world.root)


async def test_parts_of_a_request_are_not_taken_for_one(world: World, caller: Caller) -> None:
    await as_request("key", lambda: world.put(caller, "/a"), "ab", "c")
    with pytest.raises(IdempotencyKeyReused):
        await as_request("key", lambda: world.put(caller, "/a"), "a", "bc")


# --- a request that was refused ---

async def test_refused_request_leaves_its_key(world: World) -> None:
    caller = await world.new_caller(quota_bytes=5)
    for refused, kind in ((lambda: world.put(caller, "/a", b"too much"), QuotaExceeded),
                          (lambda: world.put(caller, "/a", b"x", conditions=Conditions(if_match=("*",))),
                           PreconditionFailed),
                          (lambda: world.files.delete(caller, ("a",)), NotFound),
                          (lambda: Moves(world.database).move(caller, change("/a", "/b")), NotFound),
                          (lambda: Trash(world.database).purge(caller, FileId(new_uuid())), NotFound)):
        with pytest.raises(kind):
            await as_request("key", refused)
    assert await world.observer.fetchval("SELECT count(*) FROM requests") == 0
    assert (await as_request("key", lambda: world.put(caller, "/a", b"bytes"))).is_new
    await check_all(world.dsn, world.root)


async def test_upload_that_was_stored_is_admitted_without_room(world: World) -> None:
    caller = await world.new_caller(quota_bytes=10)
    size = MAX_UPLOAD_BYTES
    await as_request("key", lambda: world.put(caller, "/folder/a", b"0123456789"))
    with pytest.raises(QuotaExceeded):
        await world.content.admit(caller, size, ("folder",))
    with pytest.raises(QuotaExceeded):
        await world.content.admit(caller, size, ("folder",), key="another")
    with pytest.raises(QuotaExceeded):
        await world.content.admit(await world.new_caller(quota_bytes=10), size, ("folder",), key="key")
    await world.content.admit(caller, size, ("folder",), key="key")


async def test_request_of_an_account_that_is_gone_is_refused(world: World, caller: Caller) -> None:
    await world.observer.execute("DELETE FROM users WHERE id = $1", caller.user_id)
    assert isinstance((await attempt("key", lambda: world.put(caller, "/a"))).error, Unauthenticated)
    await check_all(world.dsn, world.root)


async def test_account_deleted_while_a_request_has_its_key_goes_with_all_of_it(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    """The two wait for each other, until PostgreSQL ends one of them, which is tried again."""
    async def delete(conn: Connection) -> None:
        await files.lock_tree(conn, caller.user_id)
        await users.lock_user(conn, caller.user_id, "x")
        await blobs.release_user(conn, caller.user_id)
        await users.delete_user(conn, caller.user_id)

    async def is_blocked() -> bool:
        return bool(await world.observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"))

    upload = attempt("key", lambda: world.put(caller, "/a", b"bytes"))
    async with failpoints.paused("files.lock_tree_shared before", upload) as task:
        deletion = asyncio.create_task(world.database.in_transaction(delete))
        await until(is_blocked)
    ended = await task
    await deletion
    assert ended.error is None or isinstance(ended.error, NotFound | Unauthenticated)
    assert await world.observer.fetchval("SELECT count(*) FROM users") == 0
    assert await world.observer.fetchval("SELECT count(*) FROM requests") == 0
    await check_all(world.dsn, world.root)


async def test_neither_keys_nor_secrets_are_kept(world: World) -> None:
    caller = await fill(world)
    tokens = [(await as_request(key, lambda: make_link(world, caller), b"a secret word"))[1]
              for key in ("one", "other")]
    rows = await world.observer.fetch("SELECT * FROM requests")
    assert len({row["fingerprint"] for row in rows}) == 2, "the same digest, although the keys differ"
    kept = repr([tuple(row.values()) for row in rows])
    assert not any(secret in kept for secret in ("'one'", "secret", *tokens))


# --- the trash, which takes several transactions to empty ---

async def test_trash_that_was_emptied_keeps_what_came_later(world: World) -> None:
    """Of two requests at the same time one is answered; what is deleted then is not the other one's to take."""
    caller = await fill(world)
    late = Trash(world.database)
    looked, go = asyncio.Event(), asyncio.Event()
    page = late.list

    async def list_later(*args: Any, **kwargs: Any) -> Any:
        looked.set()
        await go.wait()
        return await page(*args, **kwargs)

    late.list = list_later  # type: ignore[method-assign]
    slow = asyncio.create_task(as_request("key", lambda: late.empty(caller)))
    await looked.wait()
    await as_request("key", lambda: Trash(world.database).empty(caller))
    await world.files.delete(caller, ("file",))
    go.set()
    await slow
    await as_request("key", lambda: Trash(world.database).empty(caller))
    assert [item.name for item in await Trash(world.database).list(caller, after=None, limit=9)] == ["file"]
    await check_all(world.dsn, world.root)


# --- how long ---

async def test_key_is_kept_for_a_day_by_the_clock_of_the_database(world: World, caller: Caller) -> None:
    for key, age in (("old", timedelta(hours=24, seconds=1)), ("young", timedelta(hours=23, minutes=59))):
        await as_request(key, lambda: world.put(caller, f"/{key}", b"x"))
        await world.observer.execute("UPDATE requests SET created_at = now() - $1::interval WHERE created_at > "
                                     "now() - interval '1 hour'", age)
    await world.housekeeping.run()
    assert await world.observer.fetchval("SELECT count(*) FROM requests") == 1
    assert (await as_request("old", lambda: world.put(caller, "/old", b"x"))).file.version == 2
    assert (await as_request("young", lambda: world.put(caller, "/young", b"x"))).file.version == 1


async def test_more_old_keys_than_one_part_are_all_forgotten(
        world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.domain.housekeeping.BATCH", 2)
    for number in range(5):
        await as_request(str(number), lambda: world.put(caller, f"/{number}"))
    await world.observer.execute("UPDATE requests SET created_at = now() - interval '2 days'")
    assert await world.housekeeping.forget_requests() == 5


# --- what a result is kept as ---

NOW = datetime(2020, 9, 11, 17, 22, 5, 123456, tzinfo=UTC)
FILE = File(id=FileId(new_uuid()), name="n\u00e4\"\n", path="/n", size_bytes=2**62, sha256=bytes(range(32)),
            content_type="x/y", version=1, version_id=VersionId(new_uuid()), blob_key=BlobKey(new_uuid()),
            created_at=NOW, updated_at=NOW + timedelta(microseconds=1))
FOLDER = Folder(id=FileId(new_uuid()), name="", path="/", created_at=NOW, updated_at=NOW)
LINK = Link(id=LinkId(new_uuid()), user_id=UserId(new_uuid()), file_id=FILE.id, is_folder=True, kind="upload",
            path=None, password_hash="x", max_downloads=None, downloads=0, created_at=NOW, expires_at=NOW)


@pytest.mark.parametrize("result", [
    None, True, 0, -1, "", "text", FILE, FOLDER, LINK, [], [FILE, None, FOLDER], (FOLDER, False), ((), []),
    replace(FOLDER, contents=Contents(file_count=1, folder_count=2, size_bytes=3))], ids=lambda result: str(result)[:9])
def test_result_comes_back_as_it_was(result: object) -> None:
    back = requests.load(requests.dump(result))
    assert back == result and type(back) is type(result)


@pytest.mark.parametrize("result", [1.5, {"a": 1}, Conditions(), Caller(
    user_id=UserId(new_uuid()), session_id=SessionId(new_uuid())), object()], ids=lambda result: type(result).__name__)
def test_result_of_an_unknown_kind_is_a_mistake(result: object) -> None:
    with pytest.raises(TypeError):
        requests.dump(result)


@pytest.mark.parametrize("text", ['{"File": {"name": "x"}}', '{"Gone": {}}', '{"id": "x"}', '{"id": "a", "at": "b"}',
                                  "{}"])
def test_result_of_another_version_is_a_conflict(text: str) -> None:
    with pytest.raises(Conflict):
        requests.load(text)


async def test_two_changes_in_one_request_with_a_key_are_a_mistake(world: World, caller: Caller) -> None:
    async def twice() -> None:
        await world.put(caller, "/a")
        await world.put(caller, "/b")

    with pytest.raises(RuntimeError):
        await as_request("key", twice)


def test_nothing_is_described_and_nothing_kept_without_a_key() -> None:
    requests.begin(None)
    requests.describe(object())
    assert not requests.is_keyed() and not requests.is_replay()
