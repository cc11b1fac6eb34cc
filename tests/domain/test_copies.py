"""What the copies of one request may make: copies of copies double, and nothing that is empty counts to the quota."""

import pytest

from service.domain import moves
from service.domain.batch import Batch, Operation, Transfer
from service.domain.folders import Folders
from service.domain.moves import Change, Moves
from service.domain.places import Target
from service.errors import InvalidField
from service.model import Caller
from service.names import split_path
from tests.world import World

AT_MOST = 20


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "MAX_COPIED", AT_MOST)


def change(source: str, target: str) -> Change:
    return Change(source=split_path(source), target=Target(place=split_path(target)))


async def make(world: World, caller: Caller, *paths: str) -> None:
    for path in paths:
        await Folders(world.database).make(caller, split_path(path))


async def count(world: World, caller: Caller) -> int:
    return int(await world.observer.fetchval("SELECT count(*) FROM files WHERE user_id = $1", caller.user_id))


async def test_copy_of_too_much_is_refused_and_makes_nothing(world: World, few: None) -> None:
    caller = await world.new_caller()
    await make(world, caller, *(f"/a/{number}" for number in range(AT_MOST - 2)))
    await world.put(caller, "/a/file", b"1")
    await Moves(world.database).copy(caller, change("/a", "/exactly"))
    await make(world, caller, "/a/one too many")
    before, usage = await count(world, caller), await world.usage(caller)
    with pytest.raises(InvalidField) as refused:
        await Moves(world.database).copy(caller, change("/a", "/b"))
    assert refused.value.field == "from"
    assert (await count(world, caller), await world.usage(caller)) == (before, usage)
    await Moves(world.database).move(caller, change("/a", "/b"))


async def test_copies_of_a_batch_count_together(world: World, few: None) -> None:
    caller = await world.new_caller()
    await make(world, caller, "/a", "/b")
    before = await count(world, caller)
    doubling: list[Operation] = [
        Transfer(kind="copy", change=change(*pair))
        for number in range(3) for pair in (("/a", f"/b/{number}"), ("/b", f"/a/{number}"))]
    with pytest.raises(InvalidField) as refused:
        await Batch(world.database).run(caller, doubling)
    assert refused.value.operation == 5  # 1 + 2 + 3 + 5 + 8 so far, and 13
    assert await count(world, caller) == before
    await Batch(world.database).run(caller, doubling[:5])
    assert await count(world, caller) == before + 19
