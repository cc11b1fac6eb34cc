"""Costly requests are counted: of an account, and of a network for those who have none."""

import pytest

from service.cache.local import LocalCache
from service.domain.throttle import Slots, Throttles, throttle
from service.errors import TooManyRequests
from service.model import Caller, SessionId, UserId, new_uuid

LIMIT = 3


def make_caller(user_id: UserId | None = None) -> Caller:
    """A session of a new account, or of that one."""
    return Caller(user_id=user_id or UserId(new_uuid()), session_id=SessionId(new_uuid()))


async def test_account_has_its_number_a_minute_whatever_its_sessions() -> None:
    throttles = Throttles(LocalCache(), LIMIT)
    caller = make_caller()
    for _ in range(LIMIT):
        await throttles.spend(make_caller(caller.user_id))
    with pytest.raises(TooManyRequests) as caught:
        await throttles.spend(caller)
    assert caught.value.retry_after_seconds and caught.value.retry_after_seconds <= 60 / LIMIT + 1
    await throttles.spend(make_caller())


@pytest.mark.parametrize(("same", "other"), [
    (["192.0.2.1", "192.0.2.254", "::ffff:192.0.2.7"], "192.0.3.1"),
    (["2001:db8:0:1::1", "2001:db8:0:1:ffff::9", "2001:db8::1:0:0:0:1"], "2001:db8:0:2::1")])
async def test_strangers_of_a_network_share_their_number(same: list[str], other: str) -> None:
    throttles = Throttles(LocalCache(), LIMIT)
    for address in same:
        await throttles.spend_visit(address)
    for address in same:
        with pytest.raises(TooManyRequests):
            await throttles.spend_visit(address)
    await throttles.spend_visit(other)


async def test_zero_is_no_limit() -> None:
    throttles = Throttles(LocalCache(), 0)
    caller = make_caller()
    for _ in range(1000):
        await throttles.spend(caller)
        await throttles.spend_visit("192.0.2.1")


async def test_try_that_is_refused_takes_nothing_from_the_wider_buckets() -> None:
    cache = LocalCache()
    for number in range(20 * LIMIT):
        try:
            await throttle(cache, [("network and account", LIMIT), ("network", 2 * LIMIT), ("account", 2 * LIMIT)])
            assert number < LIMIT + 1
        except TooManyRequests as error:
            assert number >= LIMIT and error.retry_after_seconds and error.retry_after_seconds <= 60 / LIMIT + 1
    for wide in ("network", "account"):
        for _ in range(LIMIT - 1):  # a slow machine may have had one try more
            await throttle(cache, [(wide, 2 * LIMIT)])


def test_slots_are_refused_when_all_are_taken_and_free_afterwards() -> None:
    slots = Slots()
    with slots.take([("a", 1), ("all", 2)]):
        with pytest.raises(TooManyRequests) as caught, slots.take([("a", 1), ("all", 2)]):
            pass
        assert caught.value.retry_after_seconds
        with slots.take([("b", 1), ("all", 2)]), pytest.raises(TooManyRequests), slots.take([("c", 1), ("all", 2)]):
            pass
    with slots.take([("a", 1), ("all", 1)]):
        pass
