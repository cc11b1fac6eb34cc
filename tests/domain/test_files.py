"""Looking and deleting below HTTP: who sees what, what goes with what, and what it frees."""

from collections import Counter

import pytest

from service.domain.moves import Change, Moves
from service.domain.places import Target
from service.errors import InvalidPath, NotFound, PreconditionFailed
from service.model import Caller, Conditions, File, FileId, Folder, new_uuid
from service.names import split_path
from tests.domain.failpoints import Failpoints
from tests.domain.retries import links_of
from tests.invariants import check_all, take_snapshot
from tests.world import World

TREE = {"/file": b"1", "/folder/file": b"22", "/folder/below/deep": b"333", "/folder.txt": b"4444", "/folde": b"55555"}
both_ways = pytest.mark.parametrize("permanent", [True, False], ids=["for good", "to the trash"])


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account with a small tree."""
    return await fill(world)


async def fill(world: World) -> Caller:
    """Another one."""
    caller = await world.new_caller(quota_bytes=1000)
    for path, data in TREE.items():
        await world.put(caller, path, data)
    return caller


async def delete(world: World, caller: Caller, path: str, *, permanent: bool = True,
                 conditions: Conditions = Conditions()) -> None:
    """Delete what is at a path."""
    await world.files.delete(caller, split_path(path), conditions, permanent=permanent)


# --- looking ---

async def test_file_is_found_by_path_and_by_id_with_the_same_answer(world: World, caller: Caller) -> None:
    for path, data in TREE.items():
        by_path = await world.files.info(caller, split_path(path))
        assert isinstance(by_path, File)
        assert (by_path.path, by_path.size_bytes) == (path, len(data))
        assert await world.files.info(caller, by_path.id) == by_path


async def test_folder_is_found_by_path_and_by_id_with_the_same_answer(world: World, caller: Caller) -> None:
    for path in ("/", "/folder", "/folder/below"):
        by_path = await world.files.info(caller, split_path(path))
        assert isinstance(by_path, Folder) and by_path.path == path
        assert await world.files.info(caller, by_path.id) == by_path
    assert (await world.files.info(caller, ())).id == caller.user_id


@pytest.mark.parametrize("path", ["/none", "/file/below", "/folder/none", "/Folder", "/folder/file/x", "/folder/below/"
                                  "deep/deeper", "/fold%", "/fold_r", "/folder/*"])
async def test_what_is_not_there_is_not_found(world: World, caller: Caller, path: str) -> None:
    with pytest.raises(NotFound):
        await world.files.info(caller, split_path(path))


async def test_other_account_and_nothing_look_the_same(world: World, caller: Caller) -> None:
    stranger = await world.new_caller()
    said = set()
    ids = [(await world.files.info(caller, split_path(path))).id for path in ("/", *TREE)]
    for place in (*ids, FileId(new_uuid())):
        with pytest.raises(NotFound) as caught:
            await world.files.info(stranger, place)
        said.add(str(caught.value))
        with pytest.raises(NotFound):
            await world.files.delete(stranger, place)
        with pytest.raises(NotFound):
            await world.content.deliver(stranger, place)
    assert len(said) == 1
    assert set(await world.listing(caller)) == set(TREE)


async def test_names_are_compared_as_they_are(world: World, caller: Caller) -> None:
    for name in ("a", "A", "á", "%61", "a ", "a.", "'", "';--", "\\", "＠"):
        await world.put(caller, f"/n/{name}", name.encode())
    for name in ("a", "A", "á", "%61", "a ", "a.", "'", "';--", "\\", "＠"):
        assert await world.get(caller, f"/n/{name}") == name.encode()
    await check_all(world.dsn, world.root)


# --- deleting ---

@both_ways
@pytest.mark.parametrize(("path", "gone"), [
    ("/file", {"/file"}), ("/folder", {"/folder/file", "/folder/below/deep"}),
    ("/folder/below", {"/folder/below/deep"}), ("/folder.txt", {"/folder.txt"})])
async def test_deletion_takes_what_is_below_and_nothing_beside(
        world: World, caller: Caller, path: str, gone: set[str], permanent: bool) -> None:
    other = await fill(world)
    await delete(world, caller, path, permanent=permanent)
    assert set(await world.listing(caller)) == set(TREE) - gone
    assert set(await world.listing(other)) == set(TREE)
    usage = await world.usage(caller)
    freed = sum(len(TREE[path]) for path in gone)
    assert (usage.files_bytes, usage.trash_bytes) == (15 - freed, 0 if permanent else freed)
    assert usage.count == len(TREE) - len(gone)
    with pytest.raises(NotFound):
        await world.files.info(caller, split_path(path))
    await check_all(world.dsn, world.root)
    for left in set(TREE) - gone:
        assert await world.get(caller, left) == TREE[left]


@both_ways
async def test_deletion_by_id_is_the_same(world: World, caller: Caller, permanent: bool) -> None:
    for path in ("/folder/file", "/folder"):
        found = await world.files.info(caller, split_path(path))
        await world.files.delete(caller, found.id, permanent=permanent)
        with pytest.raises(NotFound):
            await world.files.info(caller, found.id)
        with pytest.raises(NotFound):
            await world.files.delete(caller, found.id, permanent=permanent)
    await check_all(world.dsn, world.root)


@both_ways
async def test_name_is_free_after_a_deletion(world: World, caller: Caller, permanent: bool) -> None:
    old = await world.files.info(caller, ("file",))
    await delete(world, caller, "/file", permanent=permanent)
    stored = await world.put(caller, "/file/now/a folder", b"new")
    assert stored.is_new and stored.file.id != old.id
    await delete(world, caller, "/file", permanent=permanent)
    assert (await world.put(caller, "/file", b"again")).file.version == 1
    await check_all(world.dsn, world.root)


@both_ways
async def test_root_cannot_be_deleted(world: World, caller: Caller, permanent: bool) -> None:
    for place in ((), FileId(caller.user_id)):
        with pytest.raises(InvalidPath):
            await world.files.delete(caller, place, permanent=permanent)
    assert set(await world.listing(caller)) == set(TREE)
    await check_all(world.dsn, world.root)


@both_ways
async def test_condition_that_does_not_hold_deletes_nothing(world: World, caller: Caller, permanent: bool) -> None:
    etag = (await world.put(caller, "/file", b"seen")).file.etag
    newer = (await world.put(caller, "/file", b"newer")).file.etag
    for path, conditions in [("/file", Conditions(if_match=(etag,))), ("/file", Conditions(if_none_match=(newer,))),
                             ("/file", Conditions(if_none_match=("*",))), ("/folder", Conditions(if_match=(newer,)))]:
        with pytest.raises(PreconditionFailed):
            await delete(world, caller, path, permanent=permanent, conditions=conditions)
    assert set(await world.listing(caller)) == set(TREE)
    await delete(world, caller, "/file", permanent=permanent, conditions=Conditions(if_match=(newer,)))
    await check_all(world.dsn, world.root)


async def test_condition_is_asked_of_the_version_that_is_deleted(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    """Between looking and locking somebody replaces the file: what the client saw must decide, not what it was."""
    seen = (await world.put(caller, "/file", b"seen")).file.etag
    failpoints.reset()
    deletion = delete(world, caller, "/file", conditions=Conditions(if_match=(seen,)))
    async with failpoints.paused("files.lock_file before", deletion) as task:
        await world.put(caller, "/file", b"not seen")
    with pytest.raises(PreconditionFailed):
        await task
    assert await world.get(caller, "/file") == b"not seen"
    await check_all(world.dsn, world.root)


async def test_deletion_frees_the_size_of_the_version_that_is_there_then(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    failpoints.reset()
    async with failpoints.paused("files.lock_file before", delete(world, caller, "/file")) as task:
        await world.put(caller, "/file", b"much longer than before")
    await task
    assert (await world.usage(caller)).files_bytes == 14
    await check_all(world.dsn, world.root)


async def test_file_that_was_moved_away_meanwhile_is_not_the_one_to_delete(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    """Its new place was never named; who moved it was told that it is there."""
    failpoints.reset()
    async with failpoints.paused("files.lock_file before", delete(world, caller, "/file")) as task:
        await move(world, caller, "/file", "/elsewhere")
    with pytest.raises(NotFound):
        await task
    assert "/elsewhere" in await world.listing(caller)
    await check_all(world.dsn, world.root)


async def test_file_that_was_replaced_by_another_one_meanwhile_is_deleted(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    """There has been a file at the path all the time: it cannot be said that there was none."""
    await world.put(caller, "/other", b"other")
    failpoints.reset()
    async with failpoints.paused("files.lock_file before", delete(world, caller, "/file")) as task:
        await move(world, caller, "/other", "/file", overwrite=True)
    await task
    assert not {"/file", "/other"} & set(await world.listing(caller))
    await check_all(world.dsn, world.root)


async def test_link_to_a_file_that_is_deleted_meanwhile_is_not_made(
        world: World, caller: Caller, failpoints: Failpoints) -> None:
    failpoints.reset()
    making = links_of(world).create(caller, split_path("/file"), kind="download", password=None, max_downloads=None,
                                    expires_in_seconds=None)
    async with failpoints.paused("files.lock_file before", making) as task:
        await world.delete(caller, "/file")
    with pytest.raises(NotFound):
        await task


async def move(world: World, caller: Caller, source: str, to: str, *, overwrite: bool = False) -> None:
    target = Target(place=split_path(to))
    await Moves(world.database).move(caller, Change(source=split_path(source), target=target, overwrite=overwrite))


async def test_deep_tree_can_be_made_and_deleted(world: World, caller: Caller) -> None:
    path = "/" + "/".join(["d"] * 127)
    await world.put(caller, f"{path}/file", b"deep")
    assert await world.get(caller, f"{path}/file") == b"deep"
    await delete(world, caller, "/d")
    now = await take_snapshot(world.dsn, world.root)
    assert Counter(row["name"] for row in now.files.values())["d"] == 0
    await check_all(world.dsn, world.root)
