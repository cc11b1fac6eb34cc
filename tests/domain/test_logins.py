"""Accounts and sessions below HTTP: who gets in, for how long, and how often anybody may try."""

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from service.cache.local import LocalCache
from service.domain.accounts import Accounts, Limits
from service.domain.audit import Audit
from service.errors import (
    InvalidCredentials, InvalidField, InvalidRefreshToken, NotFound, TooManyRequests, Unauthenticated, Unavailable,
    UsernameTaken,
)
from service.model import Tokens
from service.security.passwords import Passwords
from service.security.tokens import AccessTokens
from tests.domain.failpoints import Failpoints
from tests.invariants import check_all
from tests.world import World

PASSWORD = "correct horse battery staple"
HOME, OFFICE = "192.0.2.7", "198.51.100.7"

MakeAccounts = Callable[..., Accounts]


@pytest.fixture
async def make_accounts(world: World) -> AsyncIterator[MakeAccounts]:
    """Makes workers: each with a cache of its own, so they share nothing but the database."""
    made: list[tuple[Audit, Passwords]] = []

    def make(*, attempts: int = 1000, requests: int = 1000, quota_bytes: int | None = None) -> Accounts:
        cache, passwords = LocalCache(), Passwords(4)
        trail = Audit(world.database, cache)
        made.append((trail, passwords))
        return Accounts(world.database, cache, passwords, AccessTokens("x" * 32, 900), Limits(
            login_attempts_per_minute=attempts, requests_per_minute=requests, session_ttl_seconds=3600,
            access_token_ttl_seconds=900, quota_bytes=quota_bytes), trail)

    yield make
    for trail, passwords in made:
        await trail.drain()
        passwords.close()


@pytest.fixture
def accounts(make_accounts: MakeAccounts) -> Accounts:
    """One worker."""
    return make_accounts()


async def execute(world: World, statement: str, *values: object) -> None:
    """Something that only time or an operator does."""
    connection = await asyncpg.connect(world.dsn)
    await connection.execute(statement, *values)
    await connection.close()


# --- register ---

async def test_new_account_has_its_root_folder_and_its_quota(world: World, make_accounts: MakeAccounts) -> None:
    user = await make_accounts(quota_bytes=77).register("alice", PASSWORD, address=HOME)
    assert user.username == "alice"
    connection = await asyncpg.connect(world.dsn)
    rows = await connection.fetch("SELECT quota_bytes, password_hash FROM users WHERE id = $1", user.id)
    await connection.close()
    assert [row["quota_bytes"] for row in rows] == [77] and PASSWORD not in rows[0]["password_hash"]
    await check_all(world.dsn, world.root)


@pytest.mark.parametrize(("first", "second"), [("alice", "alice"), ("ren\u00e9", "rene\u0301"), ("\u212b", "\u00c5")])
async def test_name_that_is_taken_in_any_normal_form_is_refused(
        world: World, accounts: Accounts, first: str, second: str) -> None:
    await accounts.register(first, PASSWORD, address=HOME)
    with pytest.raises(UsernameTaken) as caught:
        await accounts.register(second, PASSWORD, address=HOME)
    assert caught.value.field == "username"
    await check_all(world.dsn, world.root)


async def test_case_of_a_name_matters(accounts: Accounts) -> None:
    await accounts.register("alice", PASSWORD, address=HOME)
    await accounts.register("Alice", PASSWORD, address=HOME)


@pytest.mark.parametrize(("username", "password", "field"), [
    (" alice", PASSWORD, "username"), ("alice\u3000", PASSWORD, "username"), ("alice", "short", "password"),
    ("alice", "x" * 1025, "password"), ("alice", "\ud800" * 8, "password")])
async def test_unfit_name_or_password_makes_no_account(
        world: World, accounts: Accounts, username: str, password: str, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        await accounts.register(username, password, address=HOME)
    assert caught.value.field == field
    await check_all(world.dsn, world.root)


async def test_of_ten_registrations_of_one_name_one_succeeds(world: World, accounts: Accounts) -> None:
    outcomes = await asyncio.gather(*(accounts.register("alice", PASSWORD, address=HOME) for _ in range(10)),
                                    return_exceptions=True)
    assert sum(isinstance(outcome, UsernameTaken) for outcome in outcomes) == 9
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    await check_all(world.dsn, world.root)


async def test_account_is_made_with_its_root_or_not_at_all(world: World, accounts: Accounts,
                                                           failpoints: Failpoints) -> None:
    failpoints.arm("files.insert_root before", failpoints.end_backend)
    with pytest.raises(Unavailable):
        await accounts.register("alice", PASSWORD, address=HOME)
    await check_all(world.dsn, world.root)
    await accounts.register("alice", PASSWORD, address=HOME)
    await check_all(world.dsn, world.root)


# --- log in ---

async def logged_in(accounts: Accounts) -> Tokens:
    """The tokens of a new account."""
    await accounts.register("alice", PASSWORD, address=HOME)
    return await accounts.log_in("alice", PASSWORD, address=HOME)


async def test_login_gives_tokens_that_say_who_it_is(accounts: Accounts) -> None:
    tokens = await logged_in(accounts)
    caller = await accounts.authenticate(tokens.access_token)
    assert (await accounts.me(caller)).username == "alice"
    assert tokens.expires_in_seconds == 900


async def test_unknown_name_and_wrong_password_are_refused_alike(accounts: Accounts) -> None:
    await accounts.register("alice", PASSWORD, address=HOME)
    said = set()
    for username, password in (("alice", "wrong" * 3), ("bob", PASSWORD), ("Alice", PASSWORD), ("alice", ""),
                               ("alice", PASSWORD + " ")):
        with pytest.raises(InvalidCredentials) as caught:
            await accounts.log_in(username, password, address=HOME)
        said.add((str(caught.value), caught.value.field, caught.value.retry_after_seconds))
    assert len(said) == 1


async def test_each_login_is_a_session_of_its_own(accounts: Accounts) -> None:
    first = await logged_in(accounts)
    second = await accounts.log_in("alice", PASSWORD, address=OFFICE)
    caller = await accounts.authenticate(first.access_token)
    other = await accounts.authenticate(second.access_token)
    assert caller.user_id == other.user_id and caller.session_id != other.session_id
    await accounts.log_out(caller)
    with pytest.raises(Unauthenticated):
        await accounts.authenticate(first.access_token)
    assert await accounts.authenticate(second.access_token) == other


# --- refresh, log out ---

async def test_refresh_token_is_exchanged_for_the_next_one(accounts: Accounts) -> None:
    first = await logged_in(accounts)
    caller = await accounts.authenticate(first.access_token)
    second = await accounts.refresh(first.refresh_token, address=HOME)
    third = await accounts.refresh(second.refresh_token, address=HOME)
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
    assert await accounts.authenticate(third.access_token) == caller


async def test_refresh_token_used_twice_ends_its_session(accounts: Accounts) -> None:
    first = await logged_in(accounts)
    second = await accounts.refresh(first.refresh_token, address=HOME)
    await accounts.authenticate(second.access_token)
    with pytest.raises(InvalidRefreshToken):
        await accounts.refresh(first.refresh_token, address=OFFICE)
    with pytest.raises(InvalidRefreshToken):
        await accounts.refresh(second.refresh_token, address=HOME)
    for tokens in (first, second):
        with pytest.raises(Unauthenticated):
            await accounts.authenticate(tokens.access_token)


async def test_of_ten_exchanges_of_one_refresh_token_at_most_one_succeeds_and_the_session_ends(
        accounts: Accounts) -> None:
    tokens = await logged_in(accounts)
    outcomes = await asyncio.gather(*(accounts.refresh(tokens.refresh_token, address=HOME) for _ in range(10)),
                                    return_exceptions=True)
    winners = [outcome for outcome in outcomes if isinstance(outcome, Tokens)]
    assert len(winners) <= 1 and sum(isinstance(outcome, InvalidRefreshToken) for outcome in outcomes) >= 9
    for winner in winners:
        with pytest.raises(InvalidRefreshToken):
            await accounts.refresh(winner.refresh_token, address=HOME)


async def test_session_ends_for_other_workers_too(make_accounts: MakeAccounts) -> None:
    one, other = make_accounts(), make_accounts()
    tokens = await logged_in(one)
    await one.log_out(await one.authenticate(tokens.access_token))
    with pytest.raises(Unauthenticated):
        await other.authenticate(tokens.access_token)
    with pytest.raises(InvalidRefreshToken):
        await other.refresh(tokens.refresh_token, address=HOME)


async def test_session_that_expired_is_over(world: World, make_accounts: MakeAccounts) -> None:
    tokens = await logged_in(make_accounts())
    await execute(world, "UPDATE sessions SET expires_at = now() - interval '1 second'")
    with pytest.raises(Unauthenticated):
        await make_accounts().authenticate(tokens.access_token)
    with pytest.raises(InvalidRefreshToken):
        await make_accounts().refresh(tokens.refresh_token, address=HOME)


async def test_account_that_is_gone_is_nobody(world: World, make_accounts: MakeAccounts) -> None:
    accounts = make_accounts()
    tokens = await logged_in(accounts)
    caller = await accounts.authenticate(tokens.access_token)
    await execute(world, "DELETE FROM users WHERE id = $1", caller.user_id)
    with pytest.raises(Unauthenticated):
        await make_accounts().authenticate(tokens.access_token)
    with pytest.raises(Unauthenticated):
        await accounts.me(caller)
    with pytest.raises(Unauthenticated):
        await world.usage(caller)
    with pytest.raises(NotFound):
        await world.put(caller, "/a", b"x")
    await check_all(world.dsn, world.root)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "x" * 10_000, "\u0000", "é"])
async def test_text_that_is_no_token_is_refused(accounts: Accounts, token: str) -> None:
    with pytest.raises(Unauthenticated):
        await accounts.authenticate(token)
    with pytest.raises(InvalidRefreshToken):
        await accounts.refresh(token, address=HOME)


# --- how often ---

async def test_logins_to_one_account_from_one_network_are_limited_also_with_the_right_password(
        make_accounts: MakeAccounts) -> None:
    accounts = make_accounts(attempts=3)
    await accounts.register("alice", PASSWORD, address=HOME)
    for _ in range(3):
        with pytest.raises(InvalidCredentials):
            await accounts.log_in("alice", "wrong password", address=HOME)
    for address in (HOME, "192.0.2.255", "::ffff:192.0.2.1"):
        with pytest.raises(TooManyRequests) as caught:
            await accounts.log_in("alice", PASSWORD, address=address)
        assert 1 <= (caught.value.retry_after_seconds or 0) <= 60
    await accounts.log_in("alice", PASSWORD, address=OFFICE)
    with pytest.raises(InvalidCredentials):
        await accounts.log_in("bob", PASSWORD, address=HOME)


async def test_many_networks_against_one_account_are_limited(make_accounts: MakeAccounts) -> None:
    accounts = make_accounts(attempts=1)
    await accounts.register("alice", PASSWORD, address=HOME)
    for number in range(10):
        with pytest.raises(InvalidCredentials):
            await accounts.log_in("alice", "wrong password", address=f"203.0.{number}.1")
    with pytest.raises(TooManyRequests):
        await accounts.log_in("alice", PASSWORD, address=OFFICE)


async def test_one_network_against_many_accounts_is_limited(make_accounts: MakeAccounts) -> None:
    accounts = make_accounts(requests=5)
    for number in range(5):
        with pytest.raises(InvalidCredentials):
            await accounts.log_in(f"user-{number}", PASSWORD, address=f"2001:db8::{number}")
    with pytest.raises(TooManyRequests):
        await accounts.log_in("another", PASSWORD, address="2001:db8::ffff:1")
    with pytest.raises(InvalidCredentials):
        await accounts.log_in("another", PASSWORD, address="2001:db8:0:1::1")


async def test_registrations_from_one_network_are_limited(world: World, make_accounts: MakeAccounts) -> None:
    accounts = make_accounts(requests=2)
    for name in ("one", "two"):
        await accounts.register(name, PASSWORD, address=HOME)
    with pytest.raises(TooManyRequests):
        await accounts.register("three", PASSWORD, address=HOME)
    await accounts.register("three", PASSWORD, address=OFFICE)
    await check_all(world.dsn, world.root)
