"""Changes of one tree at the same time: whatever wins, the tree stays a tree and every byte is charged once."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.db.files import lock_tree_shared
from service.db.pool import Connection
from service.domain.folders import Folders
from service.domain.listing import Listing, Selection
from service.domain.moves import Change, Moves
from service.domain.places import Target
from service.errors import Conflict, NameTaken, NotFound, QuotaExceeded, ServiceError
from service.model import Caller, File, Folder, Page, Sort
from service.names import split_path
from service.security.cursors import Cursors
from tests import invariants
from tests.world import World


Action = Callable[[], Awaitable[object]]


def change(source: str, to: str, *, overwrite: bool = False) -> Change:
    return Change(source=split_path(source), target=Target(place=split_path(to), in_folder=to.endswith("/")),
                  overwrite=overwrite)


async def outcome(work: Awaitable[object]) -> object:
    """What came out, an error of the catalogue included; anything else is a failure of the test."""
    try:
        return await work
    except ServiceError as error:
        return error


async def paths(world: World, caller: Caller) -> set[str]:
    return set(await world.listing(caller))


async def test_two_moves_that_would_make_a_circle(world: World) -> None:
    caller, moves = await world.new_caller(), Moves(world.database)
    for number in range(10):
        await world.put(caller, f"/{number}/a/x", b"x")
        await world.put(caller, f"/{number}/b/y", b"y")
        results = await asyncio.gather(
            outcome(moves.move(caller, change(f"/{number}/a", f"/{number}/b/"))),
            outcome(moves.move(caller, change(f"/{number}/b", f"/{number}/a/"))))
        kinds = sorted(type(result).__name__ for result in results)
        # the second finds its source elsewhere, or makes the folder that went away anew
        assert "Folder" in kinds
        left = [path for path in await paths(world, caller) if path.startswith(f"/{number}/")]
        assert {path.rpartition("/")[2] for path in left} == {"x", "y"}
    await invariants.check_all(world.dsn, world.root)


async def test_a_move_a_deletion_and_an_upload_of_one_folder(world: World) -> None:
    caller, moves = await world.new_caller(), Moves(world.database)
    for number in range(12):
        await world.put(caller, f"/{number}/in/a", b"first")
        moved, deleted, stored = await asyncio.gather(
            outcome(moves.move(caller, change(f"/{number}/in", f"/{number}/out"))),
            outcome(world.files.delete(caller, split_path(f"/{number}/in"), permanent=number % 2 == 0)),
            outcome(world.put(caller, f"/{number}/in/b", b"second")))
        assert not isinstance(stored, ServiceError)
        assert isinstance(moved, Folder | NotFound)
        assert deleted is None or isinstance(deleted, NotFound | Conflict)
    await invariants.check_all(world.dsn, world.root)


async def test_a_file_moved_by_many_arrives_once(world: World) -> None:
    caller, moves = await world.new_caller(), Moves(world.database)
    await world.put(caller, "/a", b"content")
    results = await asyncio.gather(*(
        outcome(moves.move(caller, change("/a", f"/to/{number}"))) for number in range(20)))
    assert sum(isinstance(result, File) for result in results) == 1
    assert all(isinstance(result, File | NotFound | Conflict) for result in results)
    assert len(await paths(world, caller)) == 1
    await invariants.check_all(world.dsn, world.root)


async def test_many_files_to_one_name(world: World) -> None:
    caller, moves = await world.new_caller(), Moves(world.database)
    for number in range(20):
        await world.put(caller, f"/{number}", b"x" * number)
    results = await asyncio.gather(*(outcome(moves.move(caller, change(f"/{number}", "/one"))) for number in range(20)))
    assert sum(isinstance(result, File) for result in results) == 1
    assert all(isinstance(result, File | NameTaken) for result in results)
    results = await asyncio.gather(*(
        outcome(moves.move(caller, change(f"/{number}", "/one", overwrite=True))) for number in range(20)))
    assert all(isinstance(result, File | NotFound | Conflict) for result in results)
    await invariants.check_all(world.dsn, world.root)


async def test_two_files_that_change_places_do_not_wait_for_each_other_for_ever(world: World) -> None:
    caller, moves = await world.new_caller(), Moves(world.database)
    for _ in range(10):
        await world.put(caller, "/a", b"a")
        await world.put(caller, "/b", b"b")
        results = await asyncio.gather(outcome(moves.move(caller, change("/a", "/b", overwrite=True))),
                                       outcome(moves.move(caller, change("/b", "/a", overwrite=True))))
        assert any(isinstance(result, File) for result in results)
        assert all(isinstance(result, File | NotFound | Conflict) for result in results)
    await invariants.check_all(world.dsn, world.root)


async def test_a_copy_while_its_source_is_deleted_and_swept_without_grace(world: World) -> None:
    caller, moves = await world.new_caller(), Moves(world.database)
    is_over = False

    async def sweep() -> None:
        while not is_over:
            await world.housekeeping.sweep(grace_seconds=0)

    async def copy_and_delete(number: int) -> None:
        source, target = f"/{number}/a", f"/{number}/b"
        await world.put(caller, source, str(number).encode())
        copied, _ = await asyncio.gather(outcome(moves.copy(caller, change(source, target))),
                                         outcome(world.files.delete(caller, split_path(source), permanent=True)))
        assert isinstance(copied, File | NotFound | Conflict)
        if isinstance(copied, File):
            assert await world.get(caller, target) == str(number).encode()
        else:
            assert target not in await paths(world, caller)

    sweeping = asyncio.create_task(sweep())
    for begin in range(0, 40, 4):
        await asyncio.gather(*(copy_and_delete(number) for number in range(begin, begin + 4)))
    is_over = True
    await sweeping
    await invariants.check_all(world.dsn, world.root)


async def test_the_last_two_references_deleted_at_once_let_go_of_the_blob(world: World) -> None:
    caller, moves = await world.new_caller(), Moves(world.database)
    for number in range(15):
        await world.put(caller, f"/{number}/a", b"x")
        await moves.copy(caller, change(f"/{number}/a", f"/{number}/b"))
        await asyncio.gather(*(world.delete(caller, f"/{number}/{name}") for name in "ab"))
    await world.housekeeping.sweep(grace_seconds=0)
    assert world.blobs() == set()
    await invariants.check_all(world.dsn, world.root)


@pytest.mark.parametrize("source", ["/d", "/d/a"])
async def test_two_copies_at_the_edge_of_the_quota(world: World, source: str) -> None:
    caller, moves = await world.new_caller(quota_bytes=250), Moves(world.database)
    await world.put(caller, "/d/a", b"x" * 100)
    results = await asyncio.gather(*(outcome(moves.copy(caller, change(source, f"/{number}"))) for number in range(5)))
    assert sorted(type(result).__name__ for result in results).count("QuotaExceeded") == 4
    assert all(isinstance(result, File | Folder | QuotaExceeded) for result in results)
    assert (await world.usage(caller)).files_bytes == 200
    await invariants.check_all(world.dsn, world.root)


async def test_a_folder_waits_for_changes_of_files_in_it(world: World) -> None:
    caller, moves = await world.new_caller(), Moves(world.database)
    await world.put(caller, "/a/x", b"x")
    locked, may_end = asyncio.Event(), asyncio.Event()

    async def hold(conn: Connection) -> None:
        await lock_tree_shared(conn, caller.user_id)
        locked.set()
        await may_end.wait()

    holding = asyncio.create_task(world.database.in_transaction(hold))
    await locked.wait()
    moving = asyncio.create_task(moves.move(caller, change("/a", "/b")))
    done, _ = await asyncio.wait([moving], timeout=0.3)
    assert not done
    may_end.set()
    assert (await moving).path == "/b"
    await holding


async def test_many_changes_of_all_kinds(world: World) -> None:
    caller, moves, folders = await world.new_caller(), Moves(world.database), Folders(world.database)
    chance = random.Random(7)
    places = ["/" + "/".join(names) for depth in (1, 2, 3) for names in itertools.product("abc", repeat=depth)]

    async def some() -> None:
        for _ in range(25):
            one, other = chance.choice(places), chance.choice(places)
            actions: list[Action] = [
                lambda: moves.move(caller, change(one, other, overwrite=chance.random() < 0.5)),
                lambda: moves.copy(caller, change(one, other, overwrite=chance.random() < 0.5)),
                lambda: world.files.delete(caller, split_path(one), permanent=chance.random() < 0.5),
                lambda: world.put(caller, one + "/f", b"x" * chance.randrange(9)),
                lambda: folders.make(caller, split_path(one))]
            await outcome(chance.choice(actions)())
            if len(await paths(world, caller)) > 300:
                await outcome(world.files.delete(caller, ("a",), permanent=True))

    await asyncio.gather(*(some() for _ in range(6)))
    await invariants.check_all(world.dsn, world.root)


# --- pages under changes ----------------------------------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.sampled_from(["put", "delete", "move", "folder"]), st.integers(0, 5)), max_size=10)
STAYING = ["/top/k1", "/top/k2.K", "/top/a/k1", "/top/a/b/k3", "/top/a.k", "/top/z/1"]


@pytest.mark.parametrize("sort", get_args(Sort))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, is_descending=st.booleans(), is_recursive=st.booleans(), with_folders=st.booleans(),
       part=st.sampled_from([None, "K", "1"]), limit=st.integers(1, 4))
async def test_pages_meet_each_entry_that_stays_exactly_once(
        world: World, steps: list[tuple[str, int]], is_descending: bool, is_recursive: bool, with_folders: bool,
        part: str | None, limit: int, sort: Sort) -> None:
    caller, listing = await world.new_caller(), Listing(world.database, Cursors(""))
    selection = Selection(place=("top",), is_recursive=is_recursive, with_folders=with_folders, part=part, sort=sort,
                          is_descending=is_descending)
    for number, path in enumerate(STAYING):
        await world.put(caller, path, b"x" * (number % 3))
    for number in range(3):
        await world.put(caller, f"/top/a/m{number}k1", b"x")
    whole = await listing.page(caller, selection, limit=1000, cursor=None)
    expected = [entry.id for entry in _entries(whole) if not entry.name.startswith("m")]
    staying = set(expected)
    met, cursor = [], None
    while True:
        page = await listing.page(caller, selection, limit=limit, cursor=cursor)
        met += [entry.id for entry in _entries(page)]
        if (cursor := page.cursor) is None:
            break
        if steps:
            await _step(world, caller, *steps.pop())
    assert [entry_id for entry_id in met if entry_id in staying] == expected


def _entries(page: Page) -> list[File | Folder]:
    return [*page.folders, *page.files]


async def _step(world: World, caller: Caller, action: str, number: int) -> None:
    """A change of something that does not stay."""
    path = f"/top/{'a/' if number % 2 else ''}m{number // 2}k1"
    actions: dict[str, Action] = {
        "put": lambda: world.put(caller, path, b"x" * number),
        "delete": lambda: world.files.delete(caller, split_path(path)),
        "move": lambda: Moves(world.database).move(caller, change(path, f"/top/m{(number + 1) % 3}k1", overwrite=True)),
        "folder": lambda: Folders(world.database).make(caller, (*split_path(path), "k1")),
    }
    await outcome(actions[action]())
