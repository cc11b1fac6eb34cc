"""Whose part of the connections a request takes: who waits in vain leaves nothing, visitors are not their host."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from service.cache.local import LocalCache
from service.db import pool
from service.db.shares import Shares
from service.domain import links
from service.domain.archives import Archives
from service.domain.links import Key, Links, Opened
from service.domain.places import Target
from service.errors import Unavailable
from service.model import Caller
from service.security.addresses import LinkProofs
from service.security.passwords import Passwords
from tests.domain.retries import as_request
from tests.invariants import check_all
from tests.world import World


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account with a folder."""
    caller = await world.new_caller()
    await world.put(caller, "/folder/a", b"bytes")
    return caller


@pytest.fixture
async def visited(world: World, caller: Caller) -> AsyncIterator[tuple[Links, Opened]]:
    """The folder, through a link that takes uploads."""
    passwords = Passwords(4)
    service = Links(world.database, world.content, LocalCache(), passwords, LinkProofs("a secret of this test alone"),
                    links.Limits(password_attempts_per_minute=9, requests_per_minute=9))
    _, token = await service.create(caller, ("folder",), kind="upload", password=None, max_downloads=None,
                                    expires_in_seconds=None)
    yield service, await service.open(token, Key(address="192.0.2.1"))
    passwords.close()


@asynccontextmanager
async def taken(shares: Shares, caller: Caller) -> AsyncIterator[None]:
    """All places of this share are taken."""
    async with AsyncExitStack() as held:
        for _ in range(shares._places):
            await held.enter_async_context(shares.place(caller.share))
        yield


@pytest.mark.parametrize("key", [None, "a key"])
async def test_upload_that_waits_for_its_share_in_vain_leaves_no_bytes(
        world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 0.1)
    before = world.blobs()
    async with taken(world.database._shares, caller):
        with pytest.raises(Unavailable, match="of this account"):
            # a folder that is not there keeps it out of a group, which waits for nobody
            await as_request(key, lambda: world.put(caller, "/other/b", b"refused"), "/other/b")
    assert world.blobs() == before and world.staged() == []
    await check_all(world.dsn, world.root)


async def test_victim_of_too_many_changes_leaves_no_bytes(
        world: World, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL chose it each time, before its COMMIT was sent."""
    before = world.blobs()

    async def is_victim(*_: object) -> None:
        raise pool._RETRIED[1]("deadlock detected")

    monkeypatch.setattr("service.domain.content.make_folders", is_victim)
    with pytest.raises(Unavailable, match="changes at once"):
        await world.put(caller, "/other/b", b"refused")
    assert world.blobs() == before and world.staged() == []


async def test_visitors_of_links_take_nothing_of_their_owners_share(
        world: World, caller: Caller, visited: tuple[Links, Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 0.1)
    service, opened = visited
    archives = Archives(world.database, world.store)
    changes: dict[str, tuple[Caller, Callable[[], Awaitable[object]]]] = {
        "owner": (caller, lambda: world.put(caller, "/other/b", b"mine")),
        "visitor": (opened.owner, lambda: service.store(opened, "c", world.stage(b"theirs"), content_type=None))}

    async def plan(whose: Caller) -> None:
        (await archives.plan(whose, ("folder",))).close()

    plans: dict[str, tuple[Caller, Callable[[], Awaitable[object]]]] = {
        "owner": (caller, lambda: plan(caller)), "visitor": (opened.owner, lambda: plan(opened.owner))}
    for shares, requests in ((world.database._shares, changes), (world.database._lane_shares, plans)):
        for busy in requests:
            async with taken(shares, requests[busy][0]):
                for who, (_, ask) in requests.items():
                    if who == busy:
                        with pytest.raises(Unavailable):
                            await ask()
                    else:
                        await ask()
    await check_all(world.dsn, world.root)


async def test_visitor_is_another_share_than_the_owner_and_the_same_as_other_visitors(
        caller: Caller, visited: tuple[Links, Opened]) -> None:
    service, opened = visited
    _, token = await service.create(caller, ("folder",), kind="upload", password=None, max_downloads=None,
                                    expires_in_seconds=None)
    other = await service.open(token, Key(address="192.0.2.2"))
    assert other.owner.link_id != opened.owner.link_id
    assert other.owner.share == opened.owner.share != caller.share


async def test_upload_in_a_group_waits_for_no_share(world: World, caller: Caller) -> None:
    async with taken(world.database._shares, caller):
        await world.content.store(caller, Target(place=("small",)), world.stage(b"small"), content_type=None)
