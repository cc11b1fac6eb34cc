"""Uploads and downloads without HTTP: where a file goes, what it replaces, what is refused and leaves nothing."""

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain import content
from service.domain.places import Place, Target
from service.domain.versions import Versions
from service.errors import (
    DiskFailed, InvalidPath, IsAFolder, NotAFolder, NotFound, PreconditionFailed, QuotaExceeded, ServiceError,
    StorageFull, TooLarge, Unavailable,
)
from service.model import Caller, Conditions, FileId, Folder, SessionId, UserId, new_uuid
from service.storage.base import Room
from tests.domain.failpoints import Failpoints
from tests.invariants import check_all
from tests.world import MAX_UPLOAD_BYTES, World, open_world


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account."""
    return await world.new_caller()


async def refused(world: World, caller: Caller, kind: type[ServiceError], target: Target,
                  conditions: Conditions = Conditions()) -> None:
    """An upload that must be refused in exactly this way, and leave nothing at all."""
    before = await world.listing(caller), await world.usage(caller), world.blobs()
    with pytest.raises(kind) as caught:
        await world.content.store(caller, target, world.stage(b"refused"), content_type="x/y", conditions=conditions)
    assert type(caught.value) is kind
    assert (await world.listing(caller), await world.usage(caller), world.blobs()) == before
    assert world.staged() == []


# --- new, replaced ---

async def test_new_file_is_there_with_all_that_is_known_of_it(world: World, caller: Caller) -> None:
    stored = await world.put(caller, "/документы/план.txt", b"plan", content_type="text/plain")
    file = stored.file
    assert stored.is_new
    assert (file.name, file.path, file.size_bytes, file.content_type, file.version) == (
        "план.txt", "/документы/план.txt", 4, "text/plain", 1)
    assert file.sha256 == hashlib.sha256(b"plan").digest()
    assert file.created_at == file.updated_at
    assert await world.files.info(caller, ("документы", "план.txt")) == file
    assert await world.files.info(caller, file.id) == file
    assert await world.get(caller, "/документы/план.txt") == b"plan"
    await check_all(world.dsn, world.root)


async def test_replaced_file_keeps_its_identity_and_gets_another_content(world: World, caller: Caller) -> None:
    old = (await world.put(caller, "/a", b"old", content_type="text/plain")).file
    stored = await world.put(caller, "/a", b"newer", content_type="image/png")
    new = stored.file
    assert not stored.is_new
    assert (new.id, new.created_at, new.version) == (old.id, old.created_at, 2)
    assert (new.size_bytes, new.content_type) == (5, "image/png")
    assert new.etag != old.etag and new.blob_key != old.blob_key and new.updated_at > old.updated_at
    assert await world.files.info(caller, ("a",)) == new
    usage = await world.usage(caller)
    assert (usage.files_bytes, usage.versions_bytes, usage.count) == (5, 0, 1)
    await check_all(world.dsn, world.root)
    assert world.blobs() == {new.blob_key}


async def test_same_bytes_again_are_a_new_version_in_a_blob_of_its_own(world: World, caller: Caller) -> None:
    first, second = (await world.put(caller, "/a", b"same")).file, (await world.put(caller, "/a", b"same")).file
    assert (first.sha256, first.version, second.version) == (second.sha256, 1, 2)
    assert first.etag != second.etag and first.blob_key != second.blob_key
    await check_all(world.dsn, world.root)


async def test_empty_file_is_a_file(world: World, caller: Caller) -> None:
    stored = await world.put(caller, "/empty")
    assert stored.file.size_bytes == 0 and await world.get(caller, "/empty") == b""
    assert (await world.usage(caller)).count == 1
    await check_all(world.dsn, world.root)


async def test_former_versions_are_kept_as_many_as_wanted(dsn: str, tmp_path: Path) -> None:
    async with open_world(dsn, tmp_path / "data", versions_keep=2) as world:
        caller = await world.new_caller(quota_bytes=12)
        # with the sixth there is no room for two former versions: all history gives way to the present
        held = [(1, 0), (2, 1), (3, 3), (4, 5), (5, 7), (6, 0)]
        for number, (files_bytes, versions_bytes) in enumerate(held, start=1):
            assert (await world.put(caller, "/a", b"x" * files_bytes)).file.version == number
            usage = await world.usage(caller)
            assert (usage.files_bytes, usage.versions_bytes) == (files_bytes, versions_bytes)
        await check_all(dsn, world.root)


async def test_version_that_is_brought_back_counts_as_a_change(dsn: str, tmp_path: Path) -> None:
    """A client that only knows Last-Modified has to notice it too."""
    async with open_world(dsn, tmp_path / "data", versions_keep=2) as world:
        caller = await world.new_caller()
        await world.put(caller, "/a", b"old")
        newer = (await world.put(caller, "/a", b"newer")).file
        restored = await Versions(world.database, keep=2).restore(caller, ("a",), 1)
        assert (restored.version, await world.get(caller, "/a")) == (3, b"old")
        assert restored.updated_at > newer.updated_at
        await check_all(dsn, world.root)


ALONE = Conditions(if_match=("*",))  # a transaction of its own
IN_A_GROUP = Conditions()


@pytest.mark.parametrize(("step", "slow_way", "fast_way"), [
    ("files.walk before", ALONE, IN_A_GROUP), ("uploads.put_files before", IN_A_GROUP, ALONE)])
async def test_overwrite_that_began_earlier_but_ended_later_has_the_later_time(
        world: World, caller: Caller, failpoints: Failpoints, step: str, slow_way: Conditions,
        fast_way: Conditions) -> None:
    """A client that only knows Last-Modified must not be told "not modified" about the newer one."""
    await world.put(caller, "/a", b"1")
    failpoints.reset()
    async with failpoints.paused(step, world.put(caller, "/a", b"slow", conditions=slow_way)) as slow:
        fast = (await world.put(caller, "/a", b"fast", conditions=fast_way)).file
    later = (await slow).file
    assert (fast.version, later.version) == (2, 3)
    assert later.updated_at >= fast.updated_at
    assert await world.files.info(caller, ("a",)) == later


# --- where to ---

@pytest.fixture
async def tree(world: World, caller: Caller) -> dict[str, FileId]:
    """/folder/file and /file, by path."""
    await world.put(caller, "/folder/file", b"in folder")
    await world.put(caller, "/file", b"in root")
    return {path: (await world.files.info(caller, tuple(path.split("/")[1:]))).id
            for path in ("/folder", "/folder/file", "/file")}


@pytest.mark.parametrize(("target", "path"), [
    (Target(place=("new",)), "/new"),
    (Target(place=("new",), own_name="own"), "/new"),
    (Target(place=("a", "b", "c")), "/a/b/c"),
    (Target(place=("folder",), own_name="own"), "/folder/own"),
    (Target(place=("folder",), in_folder=True, own_name="own"), "/folder/own"),
    (Target(place=("folder",), own_name="file"), "/folder/file"),
    (Target(place=("made",), in_folder=True, own_name="own"), "/made/own"),
    (Target(place=(), own_name="own"), "/own"),
    (Target(place=(), in_folder=True, own_name="own"), "/own"),
    (Target(place=("file",), own_name="own"), "/file"),
    (Target(place=("FILE",)), "/FILE"),
], ids=lambda value: value if isinstance(value, str) else "")
async def test_upload_goes_where_its_target_says(
        world: World, caller: Caller, tree: dict[str, FileId], target: Target, path: str) -> None:
    staged = world.stage(b"new")
    stored = await world.content.store(caller, target, staged, content_type="x/y")
    assert stored.file.path == path and stored.is_new == (path not in tree)
    assert await world.get(caller, path) == b"new"
    await check_all(world.dsn, world.root)


async def test_target_may_be_an_id(world: World, caller: Caller, tree: dict[str, FileId]) -> None:
    for target, path in [(Target(place=tree["/folder/file"]), "/folder/file"),
                         (Target(place=tree["/folder"], own_name="own"), "/folder/own"),
                         (Target(place=FileId(caller.user_id), own_name="in root"), "/in root")]:
        stored = await world.content.store(caller, target, world.stage(b"x"), content_type="x/y")
        assert stored.file.path == path
    await check_all(world.dsn, world.root)


@pytest.mark.parametrize(("target", "kind"), [
    (Target(place=("folder",)), IsAFolder),
    (Target(place=()), IsAFolder),
    (Target(place=("folder",), in_folder=True), IsAFolder),
    (Target(place=("none",), in_folder=True), InvalidPath),
    (Target(place=("file",), in_folder=True, own_name="own"), NotAFolder),
    (Target(place=("file", "below")), NotAFolder),
    (Target(place=("folder", "file", "a", "b")), NotAFolder),
    (Target(place=("folder", "file"), in_folder=True), NotAFolder),
    (Target(place=("a",) * 128, in_folder=True, own_name="b"), InvalidPath),
    (Target(place=("x" * 255,) * 15, in_folder=True, own_name="x" * 255 + "y"), InvalidPath),
], ids=lambda value: value.__name__ if isinstance(value, type) else "")
async def test_upload_to_an_impossible_place_is_refused_and_leaves_nothing(
        world: World, caller: Caller, tree: dict[str, FileId], target: Target, kind: type[ServiceError]) -> None:
    await refused(world, caller, kind, target)
    await check_all(world.dsn, world.root)


async def test_other_account_and_unknown_id_are_refused_alike(world: World, caller: Caller,
                                                              tree: dict[str, FileId]) -> None:
    stranger = await world.new_caller()
    for place in (*tree.values(), FileId(caller.user_id), FileId(new_uuid())):
        await refused(world, stranger, NotFound, Target(place=place, own_name="x"))
        with pytest.raises(NotFound):
            await world.content.deliver(stranger, place)
    await check_all(world.dsn, world.root)


async def test_account_that_is_gone_has_nothing_and_can_store_nothing(world: World) -> None:
    nobody = Caller(user_id=UserId(new_uuid()), session_id=SessionId(new_uuid()))
    assert await world.listing(nobody) == {}
    for place in ((), ("a",), FileId(nobody.user_id)):
        with pytest.raises(NotFound):
            await world.content.store(nobody, Target(place=place, own_name="x"), world.stage(b"x"), content_type="x/y")
        with pytest.raises(NotFound):
            await world.content.deliver(nobody, place)
    await check_all(world.dsn, world.root)


async def test_folders_that_were_made_for_a_refused_upload_are_not_there(world: World) -> None:
    caller = await world.new_caller(quota_bytes=3)
    with pytest.raises(QuotaExceeded):
        await world.put(caller, "/a/b/c", b"four")
    with pytest.raises(NotFound):
        await world.files.info(caller, ("a",))
    await check_all(world.dsn, world.root)


# --- conditions ---

TAG = '"00000000000000000000000000000000"'


@pytest.mark.parametrize(("if_match", "if_none_match", "on_new", "on_existing"), [
    ((), (), True, True),
    (("*",), (), False, True),
    ((), ("*",), True, False),
    (("right",), (), False, True),
    ((TAG, "right"), (), False, True),
    ((TAG,), (), False, False),
    ((), (TAG,), True, True),
    ((), ("right",), True, False),
    (("right",), ("right",), False, False),
    (("*",), (TAG,), False, True),
])
async def test_conditions_decide_as_rfc_9110_has_it(
        world: World, caller: Caller, if_match: tuple[str, ...], if_none_match: tuple[str, ...], on_new: bool,
        on_existing: bool) -> None:
    etag = (await world.put(caller, "/existing", b"1")).file.etag

    def with_tag(tags: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(etag if tag == "right" else tag for tag in tags)

    conditions = Conditions(if_match=with_tag(if_match), if_none_match=with_tag(if_none_match))
    for path, is_allowed in (("new", on_new), ("existing", on_existing)):
        if is_allowed:
            await world.put(caller, path, b"2", conditions=conditions)
        else:
            await refused(world, caller, PreconditionFailed, Target(place=(path,)), conditions)
    await check_all(world.dsn, world.root)


async def test_weak_tag_never_matches_a_change(world: World, caller: Caller) -> None:
    etag = (await world.put(caller, "/a", b"1")).file.etag
    await refused(world, caller, PreconditionFailed, Target(place=("a",)), Conditions(if_match=(f"W/{etag}",)))


# --- limits ---

async def test_file_of_the_greatest_size_is_taken_and_a_byte_more_refused(world: World, caller: Caller) -> None:
    staged = world.stage(b"x")
    await world.content.store(caller, Target(place=("a",)), staged, content_type="x/y")
    with pytest.raises(TooLarge):
        staged = replace(world.stage(b"x"), size_bytes=MAX_UPLOAD_BYTES + 1)
        await world.content.store(caller, Target(place=("b",)), staged, content_type="x/y")
    assert world.staged() == []
    await check_all(world.dsn, world.root)


async def test_quota_is_filled_to_its_last_byte_and_not_beyond(world: World) -> None:
    caller = await world.new_caller(quota_bytes=10)
    await world.put(caller, "/a", b"x" * 10)
    await world.put(caller, "/empty", b"")
    await refused(world, caller, QuotaExceeded, Target(place=("b",)))
    await world.put(caller, "/a", b"x" * 3)
    await refused_at_size(world, caller, 8)
    await world.put(caller, "/b", b"x" * 7)
    await world.put(caller, "/a", b"y" * 3)
    assert (await world.usage(caller)).available_bytes == 0
    await check_all(world.dsn, world.root)


async def refused_at_size(world: World, caller: Caller, size: int) -> None:
    """An upload of that size has no room."""
    with pytest.raises(QuotaExceeded):
        await world.put(caller, "/too much", b"x" * size)


async def test_account_over_a_lowered_quota_may_shrink_but_not_grow(world: World) -> None:
    caller = await world.new_caller(quota_bytes=10)
    await world.put(caller, "/a", b"x" * 10)
    async with world.database.connection() as conn:
        await conn.execute("UPDATE users SET quota_bytes = 5 WHERE id = $1", caller.user_id)
    with pytest.raises(QuotaExceeded):
        await world.put(caller, "/a", b"x" * 11)
    await world.put(caller, "/a", b"x" * 9)
    assert (await world.usage(caller)).available_bytes == 0
    await world.delete(caller, "/a")
    await check_all(world.dsn, world.root)


async def test_account_without_a_quota_has_no_limit(world: World, caller: Caller) -> None:
    await world.put(caller, "/a", b"x" * 100_000)
    usage = await world.usage(caller)
    assert (usage.quota_bytes, usage.available_bytes) == (None, None)


async def test_admission_refuses_early_what_cannot_end_well(world: World) -> None:
    caller = await world.new_caller(quota_bytes=1_000_000)
    await world.put(caller, "/a", b"x" * 800_000)
    await world.content.admit(caller, 200_000, ("new",))
    await world.content.admit(caller, None, ("new",))
    await world.content.admit(caller, 1_000_000, ("a",))
    await world.content.admit(caller, 1_000_000, None)  # it may replace whatever there is
    for size, place in ((200_001, ("new",)), (1_000_001, ("a",)), (1_000_001, None)):
        with pytest.raises(QuotaExceeded):
            await world.content.admit(caller, size, place)
    with pytest.raises(TooLarge):
        await world.content.admit(caller, MAX_UPLOAD_BYTES + 1, None)


async def test_admission_keeps_the_free_space_that_is_to_be_kept(world: World, caller: Caller,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(free_bytes: int, free_files: int | None) -> None:
        room = Room(free_bytes=free_bytes, free_files=free_files, is_read_only=False)
        monkeypatch.setattr(world.store, "room", lambda: room)

    for free_files in (None, 64):  # None: a file system that does not count them
        leave(100, free_files)
        await world.content.admit(caller, 100, None)
        with pytest.raises(StorageFull):
            await world.content.admit(caller, 101, None)
    leave(100, 63)
    with pytest.raises(StorageFull):
        await world.content.admit(caller, 0, None)
    # of unknown length: it may be as large as a file may be
    leave(MAX_UPLOAD_BYTES, None)
    await world.content.admit(caller, None, None)
    leave(MAX_UPLOAD_BYTES - 1, None)
    with pytest.raises(StorageFull, match="Content-Length"):
        await world.content.admit(caller, None, None)
    monkeypatch.setattr(content, "UNANNOUNCED_BYTES", 1000)
    await world.content.admit(caller, None, None)
    leave(999, None)
    with pytest.raises(StorageFull):
        await world.content.admit(caller, None, None)


async def test_disk_that_is_gone_is_a_failed_disk_and_keeps_no_list(world: World, caller: Caller) -> None:
    staging = world.root / "staging"
    staging.rename(world.root / "elsewhere")
    assert not world.content.may_put_aside(1)
    for size in (None, 100, 2**20):
        with pytest.raises(DiskFailed):
            await world.content.admit(caller, size, None)
    (world.root / "elsewhere").rename(staging)
    assert world.content.may_put_aside(1)


# --- downloads ---

async def test_delivery_says_all_that_a_response_needs(world: World, caller: Caller) -> None:
    file = (await world.put(caller, "/a/name.txt", b"bytes", content_type="text/plain")).file
    for place in (("a", "name.txt"), file.id):
        delivery = await world.content.deliver(caller, place)
        assert (delivery.key, delivery.name, delivery.content_type, delivery.size_bytes, delivery.sha256) == (
            file.blob_key, "name.txt", "text/plain", 5, file.sha256)
        assert (delivery.etag, delivery.modified_at) == (file.etag, file.updated_at)


async def test_folder_and_nothing_cannot_be_downloaded(world: World, caller: Caller, tree: dict[str, FileId]) -> None:
    folders: list[Place] = [(), ("folder",), tree["/folder"]]
    for place in folders:
        assert isinstance(await world.files.info(caller, place), Folder)
        with pytest.raises(IsAFolder):
            await world.content.deliver(caller, place)
    nowhere: list[Place] = [("none",), ("file", "below"), ("folder", "none"), FileId(new_uuid())]
    for place in nowhere:
        with pytest.raises(NotFound):
            await world.content.deliver(caller, place)


# --- clients that go away ---

async def test_client_that_leaves_during_the_transaction_has_stored_its_file(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    async with failpoints.paused("users.update_usages before", world.put(caller, "/a", b"stays")) as upload:
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        draining = asyncio.create_task(world.content.drain())
        assert not draining.done()
    await draining
    assert await world.get(caller, "/a") == b"stays"
    await check_all(world.dsn, world.root)


async def test_client_that_leaves_before_the_placement_has_stored_nothing(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    async with failpoints.paused("store.place before", world.put(caller, "/a", b"goes")) as upload:
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
    assert await world.listing(caller) == {}
    await check_all(world.dsn, world.root)


async def test_database_that_is_gone_is_unavailable_and_comes_back(world: World, caller: Caller,
                                                                   failpoints: Failpoints) -> None:
    await world.put(caller, "/a", b"1")
    failpoints.reset()
    failpoints.arm("files.get_by_path before", failpoints.end_backend)
    with pytest.raises(Unavailable) as caught:
        await world.content.deliver(caller, ("a",))
    assert caught.value.retry_after_seconds is not None
    assert await world.get(caller, "/a") == b"1"
