"""service.security.passwords."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import bcrypt
import pytest
from structlog.testing import capture_logs

from service.errors import InvalidField, Unavailable
from service.security.passwords import MAX_WAITING, Passwords

COST = 4
GOOD = "correct horse battery staple"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    result = Passwords(COST)
    yield result
    result.close()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The hashes that bcrypt was run against, in order."""
    hashes: list[bytes] = []
    original = bcrypt.checkpw

    def checkpw(password: bytes, hashed: bytes) -> bool:
        hashes.append(hashed)
        return original(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    return hashes


class Gate:
    """Stands in for bcrypt.hashpw and holds every call until it is opened."""

    def __init__(self, original: Callable[[bytes, bytes], bytes]) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.calls = 0
        self._original = original

    def __call__(self, password: bytes, salt: bytes) -> bytes:
        self.calls += 1
        self.entered.release()
        self.opened.wait()
        return self._original(password, salt)

    async def wait_entered(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    result = Gate(bcrypt.hashpw)
    monkeypatch.setattr(bcrypt, "hashpw", result)
    yield result
    result.opened.set()


async def test_right_password_verifies(passwords: Passwords) -> None:
    assert await passwords.verify(GOOD, await passwords.hash(GOOD)) is True


async def test_wrong_password_does_not_verify(passwords: Passwords) -> None:
    assert await passwords.verify(GOOD + "r", await passwords.hash(GOOD)) is False


async def test_hash_has_the_cost_that_was_set_and_a_salt_of_its_own() -> None:
    passwords = Passwords(5)
    first, second = await passwords.hash(GOOD), await passwords.hash(GOOD)
    passwords.close()
    assert first.startswith("$2b$05$") and len(first) == 60
    assert first[:29] != second[:29]


async def test_stored_hash_of_an_earlier_release_still_verifies(passwords: Passwords) -> None:
    # Every stored hash depends on the domain key, NFKC and base64: this one fails if any of them ever changes.
    stored = "$2b$04$T2sp/TIRaxlNVEIeLusttuIjDDzd7OGqoK1EZyx4QvUyqWaX3nXvS"
    assert await passwords.verify("Grüße, ﬁle storage", stored) is True


@pytest.mark.parametrize(("one", "other"), [
    pytest.param("x" * 100 + "a", "x" * 100 + "b", id="beyond-72-bytes"),
    pytest.param("before\0 after", "before\0 other", id="after-nul"),
    pytest.param("password", "Password", id="case"),
    pytest.param("password", "password ", id="trailing-space"),
])
async def test_passwords_that_differ_anywhere_do_not_match(passwords: Passwords, one: str, other: str) -> None:
    hashed = await passwords.hash(one)
    assert await passwords.verify(one, hashed) is True
    assert await passwords.verify(other, hashed) is False


@pytest.mark.parametrize(("typed", "retyped"), [
    pytest.param("caf\u00e9 au lait", "cafe\u0301 au lait", id="composed"),
    pytest.param("ｐａｓｓｗｏｒｄ", "password", id="full-width"),
])
async def test_same_text_in_another_unicode_form_verifies(passwords: Passwords, typed: str, retyped: str) -> None:
    assert await passwords.verify(retyped, await passwords.hash(typed)) is True


@pytest.mark.parametrize("password", ["12345678", "é" * 8, "x" * 1024, "é" * 512, "\0" * 8, "\U0001f600" * 256])
async def test_password_at_the_edge_of_the_limits_is_taken(passwords: Passwords, password: str) -> None:
    assert await passwords.verify(password, await passwords.hash(password)) is True


@pytest.mark.parametrize("password", [
    pytest.param("", id="empty"),
    pytest.param("1234567", id="short"),
    pytest.param("e\u0301" * 7, id="short-in-nfkc"),
    pytest.param("x" * 1025, id="long"),
    pytest.param("é" * 513, id="long-in-bytes"),
    pytest.param("x" * 2**20, id="a-megabyte"),
    pytest.param("password\ud800", id="lone-surrogate"),
])
async def test_hash_of_unusable_password_names_the_field(passwords: Passwords, password: str) -> None:
    with pytest.raises(InvalidField) as caught:
        await passwords.hash(password)
    assert caught.value.field == "password"


@pytest.mark.parametrize("password", ["x" * 1025, "x" * 2**20, "password\ud800"])
@pytest.mark.parametrize("is_known", [True, False])
async def test_verify_of_impossible_password_is_refused_without_work(
    passwords: Passwords, checked: list[bytes], password: str, is_known: bool,
) -> None:
    hashed = await passwords.hash(GOOD) if is_known else None
    with pytest.raises(InvalidField) as caught:
        await passwords.verify(password, hashed)
    assert caught.value.field == "password"
    assert checked == []


@pytest.mark.parametrize("password", ["", "short"])
async def test_verify_of_short_password_is_false_after_equal_work(
    passwords: Passwords, checked: list[bytes], password: str,
) -> None:
    hashed = await passwords.hash(GOOD)
    assert await passwords.verify(password, hashed) is False
    assert checked == [hashed.encode()]


async def test_verify_of_short_password_is_false_even_if_it_is_the_right_one(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("service.security.passwords.MIN_CHARACTERS", 1)
        hashed = await passwords.hash("short")
        assert await passwords.verify("short", hashed) is True
    assert await passwords.verify("short", hashed) is False


async def test_unknown_user_is_false_whatever_bcrypt_says(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed: True)
    assert await passwords.verify(GOOD, None) is False


async def test_unknown_user_costs_one_check_at_the_same_cost(passwords: Passwords, checked: list[bytes]) -> None:
    assert await passwords.verify(GOOD, None) is False
    assert [hashed[:7] for hashed in checked] == [b"$2b$04$"]


@pytest.mark.parametrize("hashed", [
    "", "x", "$2b$04$", "$2b$04$" + "." * 52, "$2b$04$" + "." * 54, "$2b$04$" + "." * 53 + "\n", "$2b$99$" + "." * 53,
    "$2b$03$" + "." * 53, "$2x$04$" + "." * 53, "$2b$04$" + "A" * 53, "$2b$04$" + "\0" * 53, "$2b$٠٤$" + "." * 53,
    "\ud800" * 60, "x" * 10**6,
])
async def test_malformed_stored_hash_is_false_with_a_warning_after_equal_work(
    passwords: Passwords, checked: list[bytes], hashed: str,
) -> None:
    with capture_logs() as logs:
        assert await passwords.verify(GOOD, hashed) is False
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("password_hash_malformed", "warning")]
    assert [hashed[:7] for hashed in checked] == [b"$2b$04$"]


async def test_both_run_in_threads_of_their_own(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def hashpw(password: bytes, salt: bytes) -> bytes:
        names.append(threading.current_thread().name)
        return b"hash"

    def checkpw(password: bytes, hashed: bytes) -> bool:
        names.append(threading.current_thread().name)
        return False

    monkeypatch.setattr(bcrypt, "hashpw", hashpw)
    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    await passwords.hash(GOOD)
    await passwords.verify(GOOD, None)
    assert [name[:8] for name in names] == ["password", "password"]


async def test_event_loop_goes_on_while_a_hash_is_made(passwords: Passwords, gate: Gate) -> None:
    task = asyncio.create_task(passwords.hash(GOOD))
    await gate.wait_entered()  # would hang here if the loop were held
    gate.opened.set()
    assert (await task).startswith("$2b$")


async def test_more_waiting_calls_than_allowed_are_refused_at_once(passwords: Passwords, gate: Gate) -> None:
    tasks = [asyncio.create_task(passwords.hash(GOOD)) for _ in range(1 + MAX_WAITING)]
    await gate.wait_entered()
    with pytest.raises(Unavailable) as caught:
        await passwords.verify(GOOD, None)
    assert caught.value.retry_after_seconds == 1
    gate.opened.set()
    assert len(await asyncio.gather(*tasks)) == 1 + MAX_WAITING
    assert await passwords.verify(GOOD, None) is False  # the places are free again


NICE = """
import asyncio, os, sys, threading
from service.security import passwords

os.nice(int(sys.argv[1]))
if os.geteuid() == 0:
    os.setuid(65534)  # who may not take back any niceness
made = passwords.Passwords(4)
print(asyncio.run(made._run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))))
"""


@pytest.mark.parametrize(("nice", "of_thread"), [("0", 5), ("10", 15), ("19", 19)])
def test_hashing_gives_way_to_the_rest_of_the_process_however_nice_that_is(nice: str, of_thread: int) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    done = subprocess.run([sys.executable, "-c", NICE, nice], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == min(of_thread + before, 19)


async def test_cancelled_waiting_call_gives_its_place_back_without_work(passwords: Passwords, gate: Gate) -> None:
    running = asyncio.create_task(passwords.hash(GOOD))
    await gate.wait_entered()
    for _ in range(2 * MAX_WAITING):
        waiting = asyncio.create_task(passwords.hash(GOOD))
        await asyncio.sleep(0)  # let it start
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    gate.opened.set()
    await running
    await passwords.hash(GOOD)
    assert gate.calls == 2


async def test_cancelled_running_call_keeps_its_place_until_the_work_is_over(gate: Gate) -> None:
    passwords = Passwords(COST)
    running = asyncio.create_task(passwords.hash(GOOD))
    await gate.wait_entered()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    tasks = [asyncio.create_task(passwords.hash(GOOD)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await passwords.hash(GOOD)
    gate.opened.set()
    await asyncio.gather(*tasks)
    passwords.close()


async def test_call_after_close_is_unavailable() -> None:
    passwords = Passwords(COST)
    passwords.close()
    for _ in range(2 * MAX_WAITING):
        with pytest.raises(Unavailable):
            await passwords.hash(GOOD)
