"""Links below HTTP: who may try a password how often, what is hashed for whom, how many there may be."""

from collections.abc import AsyncIterator, Callable

import pytest

from service.cache.local import LocalCache
from service.domain import links
from service.domain.links import Key, Links
from service.errors import InvalidLinkPassword, TooManyRequests
from service.model import Caller, Link
from service.security.addresses import LinkProofs
from service.security.passwords import Passwords
from tests.world import World

PASSWORD = "correct horse battery staple"
TRIES = 5
HOME, STRANGER = "198.51.100.7", "192.0.2.1"

MakeLinks = Callable[..., Links]


@pytest.fixture
async def make_links(world: World) -> AsyncIterator[MakeLinks]:
    """Makes workers: each counts by itself."""
    passwords = Passwords(4)

    def make(attempts: int = TRIES) -> Links:
        return Links(world.database, world.content, LocalCache(), passwords, LinkProofs("a secret of this test alone"),
                     links.Limits(password_attempts_per_minute=attempts))

    yield make
    passwords.close()


@pytest.fixture
async def caller(world: World) -> Caller:
    """An account with the file /a."""
    caller = await world.new_caller()
    await world.put(caller, "/a", b"bytes")
    return caller


async def create(service: Links, caller: Caller, *, path: str = "a",
                 password: str | None = PASSWORD) -> tuple[Link, str]:
    """A link to a file in the root, and its token."""
    return await service.create(caller, (path,), kind="download", password=password, max_downloads=None,
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
