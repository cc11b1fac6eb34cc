"""Links below HTTP: who may try a password how often, what is hashed for whom, how many there may be."""

import asyncio
from collections.abc import AsyncIterator, Callable

import bcrypt
import pytest

from service.cache.local import LocalCache
from service.db.pool import Connection
from service.domain import links
from service.domain.links import Key, Links
from service.errors import Conflict, InvalidLinkPassword, NotAFolder, NotFound, TooManyLinks, TooManyRequests
from service.model import Caller, Link, LinkKind
from service.security.addresses import LinkProofs
from service.security.passwords import Passwords
from tests.domain.failpoints import Failpoints
from tests.domain.retries import as_request
from tests.invariants import check_all
from tests.world import World

PASSWORD = "correct horse battery staple"
TRIES = 5
HOME, STRANGER = "198.51.100.7", "192.0.2.1"

MakeLinks = Callable[..., Links]


@pytest.fixture
async def make_links(world: World) -> AsyncIterator[MakeLinks]:
    """Makes workers: each counts by itself."""
    passwords = Passwords(4)

    def make(attempts: int = TRIES, requests: int = 1000) -> Links:
        return Links(world.database, world.content, LocalCache(), passwords, LinkProofs("a secret of this test alone"),
                     links.Limits(password_attempts_per_minute=attempts, requests_per_minute=requests))

    yield make
    passwords.close()


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account with the file /a."""
    caller = await world.new_caller()
    await world.put(caller, "/a", b"bytes")
    return caller


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The salts of the hashes that were made."""
    made, hashpw = [], bcrypt.hashpw

    def counted(password: bytes, salt: bytes) -> bytes:
        made.append(salt)
        return hashpw(password, salt)

    monkeypatch.setattr(bcrypt, "hashpw", counted)
    return made


async def create(service: Links, caller: Caller, *, path: str = "a", kind: LinkKind = "download",
                 password: str | None = PASSWORD) -> tuple[Link, str]:
    """A link to something in the root, and its token."""
    return await service.create(caller, (path,), kind=kind, password=password, max_downloads=None,
                                expires_in_seconds=None)


# --- how often a password may be tried ---

async def test_tries_from_one_network_lock_nobody_else_out(make_links: MakeLinks, caller: Caller) -> None:
    """What is refused takes nothing from the tries that all networks have together."""
    service = make_links()
    _, token = await create(service, caller)
    refused = 0
    for _ in range(20 * TRIES):
        try:
            await service.open(token, Key(password="wrong wrong", address=STRANGER))
        except InvalidLinkPassword:
            pass
        except TooManyRequests:
            refused += 1
    assert refused >= 18 * TRIES
    assert (await service.open(token, Key(password=PASSWORD, address=HOME))).link.file_id


async def test_many_networks_against_one_link_are_limited(make_links: MakeLinks, caller: Caller) -> None:
    service = make_links(attempts=1)
    _, token = await create(service, caller)
    for number in range(10):
        with pytest.raises(InvalidLinkPassword):
            await service.open(token, Key(password="wrong wrong", address=f"203.0.{number}.1"))
    with pytest.raises(TooManyRequests):
        await service.open(token, Key(password=PASSWORD, address=HOME))


async def test_one_network_against_many_links_is_limited(make_links: MakeLinks, caller: Caller) -> None:
    """Or somebody could keep all hashing to himself with links of his own, each of them with its own tries."""
    service, maker = make_links(requests=3), make_links(attempts=1000)
    tokens = [(await create(maker, caller))[1] for _ in range(4)]
    for token in tokens[:3]:
        with pytest.raises(InvalidLinkPassword):
            await service.open(token, Key(password="wrong wrong", address=STRANGER))
    with pytest.raises(TooManyRequests) as caught:
        await service.open(tokens[3], Key(password=PASSWORD, address=STRANGER))
    assert caught.value.retry_after_seconds
    await service.open(tokens[3], Key(password=PASSWORD, address=HOME))


# --- what is hashed for whom ---

async def test_nothing_is_hashed_for_what_is_not_there(
        make_links: MakeLinks, caller: Caller, hashed: list[bytes]) -> None:
    service = make_links()
    for _ in range(2 * TRIES):  # nor does it count
        with pytest.raises(NotFound):
            await create(service, caller, path="none")
    with pytest.raises(NotAFolder):
        await create(service, caller, kind="upload")
    assert hashed == []
    await create(service, caller)
    assert len(hashed) == 1


async def test_passwords_of_links_are_counted_for_each_account_before_they_are_hashed(
        world: World, make_links: MakeLinks, caller: Caller, hashed: list[bytes]) -> None:
    service, other = make_links(), await world.new_caller()
    await world.put(other, "/a", b"bytes")
    for _ in range(TRIES):
        await create(service, caller)
    with pytest.raises(TooManyRequests) as caught:
        await create(service, caller)
    assert 1 <= (caught.value.retry_after_seconds or 0) <= 60
    assert len(hashed) == TRIES
    await create(service, caller, password=None)
    await create(service, other)
    await check_all(world.dsn, world.root)


async def test_link_that_is_asked_for_again_is_neither_looked_for_nor_hashed_nor_counted(
        world: World, make_links: MakeLinks, caller: Caller, hashed: list[bytes]) -> None:
    service = make_links(attempts=1)
    made = await as_request("key", lambda: create(service, caller))
    await world.delete(caller, "/a")
    for _ in range(3):
        assert await as_request("key", lambda: create(service, caller)) == made
    assert len(hashed) == 1


async def test_link_never_loses_its_password_to_a_key_that_is_forgotten_meanwhile(
        world: World, make_links: MakeLinks, caller: Caller, failpoints: Failpoints) -> None:
    async def forget(conn: Connection) -> None:
        await conn.execute("DELETE FROM requests")

    service = make_links()
    await as_request("key", lambda: create(service, caller))
    failpoints.reset()
    failpoints.arm("requests.insert_request before", forget)
    with pytest.raises(Conflict):
        await as_request("key", lambda: create(service, caller))
    assert failpoints.was_hit
    assert [link.password_hash is None for link in await service.list(caller, None)] == [False]


# --- how many there may be ---

@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many links of an account, fewer than usual."""
    monkeypatch.setattr(links, "MAX_LINKS", 3)
    return 3


async def test_account_has_at_most_so_many_links(
        world: World, make_links: MakeLinks, caller: Caller, bound: int) -> None:
    service, other = make_links(), await world.new_caller()
    await world.put(other, "/a", b"bytes")
    made = [(await create(service, caller, password=None))[0] for _ in range(bound)]
    for _ in range(2):
        with pytest.raises(TooManyLinks):
            await create(service, caller, password=None)
    await create(service, other, password=None)
    await service.revoke(caller, made[1].id)
    await create(service, caller, password=None)
    with pytest.raises(TooManyLinks):
        await create(service, caller, password=None)
    assert len(await service.list(caller, None)) == bound
    await check_all(world.dsn, world.root)


async def test_many_at_once_do_not_get_past_the_bound(
        world: World, make_links: MakeLinks, caller: Caller, bound: int) -> None:
    service = make_links()
    await world.put(caller, "/b", b"bytes")
    outcomes = await asyncio.gather(*(create(service, caller, password=None, path="ab"[number % 2])
                                      for number in range(4 * bound)), return_exceptions=True)
    assert sum(isinstance(outcome, tuple) for outcome in outcomes) == bound
    assert sum(isinstance(outcome, TooManyLinks) for outcome in outcomes) == 3 * bound
    assert len(await service.list(caller, None)) == bound


async def test_links_that_expired_make_room_at_the_bound_the_oldest_first(
        world: World, make_links: MakeLinks, caller: Caller, bound: int) -> None:
    service = make_links()
    kept, later, sooner = [(await create(service, caller, password=None))[0].id for _ in range(bound)]
    for link_id, hours in ((later, 1), (sooner, 2)):
        await world.observer.execute(
            "UPDATE links SET expires_at = now() - make_interval(hours => $2) WHERE id = $1", link_id, hours)
    for gone in ({sooner}, {sooner, later}):
        await create(service, caller, password=None)
        held = {link.id for link in await service.list(caller, None)}
        assert len(held) == bound and not held & gone and held >= {kept, later} - gone
    with pytest.raises(TooManyLinks):
        await create(service, caller, password=None)


async def test_links_below_the_bound_stay_in_the_list_when_they_expire(
        world: World, make_links: MakeLinks, caller: Caller, bound: int) -> None:
    service = make_links()
    first, _ = await create(service, caller, password=None)
    await world.observer.execute("UPDATE links SET expires_at = now() - interval '1 hour'")
    await create(service, caller, password=None)
    assert first.id in {link.id for link in await service.list(caller, None)}
