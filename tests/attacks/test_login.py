"""Attack 15: whatever can be typed where a name and a password belong."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import bcrypt
import orjson
import pytest
from aiohttp import web

from service.api.keys import DOMAIN
from service.app import build
from service.config import PREFIX, Config
from service.domain.accounts import Accounts
from service.errors import ServiceError, TooManyRequests
from tests.attacks.wire import Answer, ask, request
from tests.client import PASSWORD, Api
from tests.stack import Stack

JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"


def _post(stack: Stack, what: str, body: bytes, kind: str = JSON) -> Answer:
    return ask(stack, request(f"POST /auth/{what}", kind, body=body))


def _register(stack: Stack, password: str) -> tuple[str, Answer]:
    name = uuid.uuid4().hex
    return name, _post(stack, "register", orjson.dumps({"username": name, "password": password}))


def _log_in(stack: Stack, name: str, password: str) -> Answer:
    return _post(stack, "jwt/login", orjson.dumps({"username": name, "password": password}))


# --- passwords ---

LONG = ["x" * 73, "x" * 100, "ж" * 37, "😀" * 19, "x" * 1024, "ж" * 512, "😀" * 256]


@pytest.mark.parametrize("password", LONG, ids=lambda text: f"{text[0]}{len(text)}")
def test_password_beyond_72_bytes_counts_to_its_last_character(stack: Stack, password: str) -> None:
    name, answer = _register(stack, password)
    assert answer.status == 201, answer
    assert _log_in(stack, name, password).status == 200
    for wrong in (password[:-1], password[:-1] + "y", password[:72 // len(password[0].encode())],
                  password + "x" if len(password.encode()) < 1024 else "y" + password[1:]):
        answer = _log_in(stack, name, wrong)
        assert (answer.status, answer.code) == (401, "invalid_credentials")


@pytest.mark.parametrize("password", ["a\0bcdefgh", "\0" * 8, "password\0", "\x01\x02\x03\x04\x05\x06\x07\x08", " " * 8,
                                      "pass\r\nword", "пароль пароль", "\u202epassword", "%00%00%00",
                                      "'; DROP TABLE users"])
def test_password_of_any_characters_counts_to_its_last_one(stack: Stack, password: str) -> None:
    name, answer = _register(stack, password)
    assert answer.status == 201, answer
    assert _log_in(stack, name, password).status == 200
    for wrong in (password.rstrip("\0") or "x", password.partition("\0")[0] or "x", password + "\0", password[:-1],
                  password.strip() or "x", password + " "):
        if wrong != password:
            answer = _log_in(stack, name, wrong)
            assert (answer.status, answer.code) == (401, "invalid_credentials"), wrong


async def test_password_too_large_is_a_clear_refusal(api: Api) -> None:
    for length in (1025, 5000, 60_000, 65_536, 200_000, 1_000_000):
        for text in ("x" * length, "ж" * (length // 2 + 1)):
            for what in ("register", "jwt/login"):
                answer = _post(api.stack, what, orjson.dumps({"username": api.username, "password": text}))
                assert (answer.status, answer.code) in ((422, "invalid_field"), (413, "too_large")), (length, answer)
                assert text[:50].encode() not in answer.body
                answer = _post(api.stack, what, f"username={api.username}&password={quote(text)}".encode(), FORM)
                assert (answer.status, answer.code) in ((422, "invalid_field"), (413, "too_large")), (length, answer)
    assert _log_in(api.stack, api.username, PASSWORD).status == 200


def test_short_passwords_are_refused_when_they_are_made(stack: Stack) -> None:
    for password in ("", "x", "x" * 7, "ﬃ", "é", "😀"):
        _, answer = _register(stack, password)
        assert (answer.status, answer.code) == (422, "invalid_field"), password
        assert orjson.loads(answer.body)["field"] == "password"


# --- bodies ---

def _deep(levels: int, begin: str, end: str) -> bytes:
    return (begin * levels + "1" + end * levels).encode()


ODD_JSON: list[bytes] = [
    b"", b" ", b"{", b"}", b"{}", b"[]", b"null", b"true", b"1", b'"x"', b"nan", b"NaN", b"-", b"{}{}", b"\xff",
    b"\xef\xbb\xbf{}", b"[1,2,3]", b'[{"username":"a","password":"b"}]', b'{"username"}', b"{'username':'a'}",
    b'{"username":"a",}', b'{"username":"a" "password":"b"}', b'{"username": undefined}', b"\0",
    b'{"username":"\\ud800","password":"x"}', b'{"username":"\\udfff\\ud800","password":"correct horse"}',
    b'{"username":"a","password":"\\ud800\\ud800\\ud800"}', b'{"username":"\xed\xa0\x80","password":"x"}',
    b'{"username":"\xc0\xae","password":"x"}', b'{"\\ud800":1}', b'{"username":"a\\u0000b","password":"correct horse"}',
    b'{"username":"\\x61","password":"x"}', b'{"username":"a\tb","password":"correct horse"}',
    b'{"username":"a\nb","password":"correct horse"}', b'{"username":1,"password":"correct horse"}',
    b'{"username":"a","password":12345678}', b'{"username":null,"password":null}',
    b'{"username":["a"],"password":["b"]}', b'{"username":{},"password":{}}',
    b'{"username":{"$ne":""},"password":{"$ne":""}}', b'{"username":true,"password":false}',
    b'{"username":1e999,"password":"x"}', b'{"username":' + b"9" * 5000 + b',"password":"x"}',
    b'{"username":-' + b"9" * 400 + b"." + b"9" * 400 + b'e-99999,"password":"x"}', b'{"username":"a"}',
    b'{"password":"b"}', b'{"username":"","password":""}', b'{"username":" ","password":"        "}',
    b'{"username":"a","login":"a","password":"x"}', b'{"username":"a","email":"b","password":"correct horse"}',
    b'{"Username":"a","Password":"correct horse"}', b'{"__proto__":{"username":"a"},"constructor":{}}',
    _deep(100, "[", "]"), _deep(10_000, "[", "]"), _deep(10_000, '{"a":', "}"),
    b'{"username":' + _deep(5000, "[", "]") + b',"password":"x"}', b"[" * 60_000, b'{"a":' * 12_000,
    b'{"username":"' + b"x" * 60_000 + b'","password":"x"}', b'"' + b"\\" * 60_001, b"{" + b'"a":1,' * 9000 + b'"b":2}',
    b'{"username":"' + "é".encode() * 30_000 + b'"}',
    b'{"username":"' + "\u0301".encode() * 20_000 + b'","password":"x"}',
    b'{"username":"' + "\ufdfa".encode() * 20_000 + b'","password":"x"}',
    json.dumps({"username": "a" * 256}).encode("utf-16"),
    json.dumps({"username": "a", "password": PASSWORD}).encode("utf-32"), b"\x80\x02}q\x00.", b"<xml/>",
    b"--x\r\n\r\n--x--",
]


REFUSALS = {400: {"bad_request"}, 401: {"invalid_credentials", "invalid_refresh_token"}, 413: {"too_large"},
            415: {"unsupported_media_type"}, 422: {"invalid_field"}}


def _assert_refused(answer: Answer, body: bytes) -> None:
    assert answer.status in REFUSALS, (body[:80], answer)
    assert answer.code in REFUSALS[answer.status], (body[:80], answer)
    assert len(answer.body) < 1000, "an answer does not grow with the question"


@pytest.mark.parametrize("what", ["register", "jwt/login", "jwt/refresh"])
async def test_odd_json_is_a_clear_refusal(stack: Stack, what: str) -> None:
    for body in ODD_JSON:
        _assert_refused(_post(stack, what, body), body)


async def test_name_given_twice_is_refused_or_one_of_the_two(api: Api) -> None:
    """JSON leaves open which one counts; never may one be checked and the other be used."""
    for body in (f'{{"username":"{api.username}","username":"nobody","password":"{PASSWORD}"}}',
                 f'{{"username":"nobody","username":"{api.username}","password":"{PASSWORD}"}}',
                 f'{{"username":"{api.username}","password":"wrong wrong","password":"{PASSWORD}"}}',
                 f'{{"username":"{api.username}","password":"{PASSWORD}","password":"wrong wrong"}}'):
        answer = _post(api.stack, "jwt/login", body.encode())
        assert answer.status in (200, 400, 401, 422), (body, answer)
        if answer.status == 200:
            token = orjson.loads(answer.body)["access_token"]
            seen = ask(api.stack, request("GET /auth/me", token=token))
            assert orjson.loads(seen.body)["username"] == api.username
    for text in (f"username={api.username}&username=nobody&password={quote(PASSWORD)}",
                 f"username={api.username}&password=wrong&password={quote(PASSWORD)}",
                 f"username={api.username}&login=nobody&password={quote(PASSWORD)}"):
        answer = _post(api.stack, "jwt/login", text.encode(), FORM)
        assert (answer.status, answer.code) in ((400, "bad_request"), (422, "invalid_field")), (text, answer)


ODD_FORMS: list[bytes] = [
    b"", b"&&&&", b"=", b"username", b"username=a", b"password=b", b"username=%ff&password=correct%20horse",
    b"username=%&password=x", b"username=%zz&password=%u0041", b"username=a%00b&password=correct%20horse",
    b"username=a%0d%0ab&password=correct%20horse", b"username=\xff&password=x", "username=é&password=x".encode(),
    b"username=%ed%a0%80&password=x", b"username=%c0%ae&password=x",
    b"&".join(b"f%d=x" % number for number in range(10_000)),
    b"username=a&" + b"&".join(b"f%d=x" % number for number in range(5000)), b"username=" + b"x" * 60_000,
    b"a" * 60_000, b"&" * 60_000, b"username[]=a&password[]=b", b"username[$ne]=&password[$ne]=",
    b"username=a;password=b", b"%", b"user%6eame=a&username=b&password=correct%20horse",
]


@pytest.mark.parametrize("what", ["register", "jwt/login", "jwt/refresh"])
async def test_odd_form_is_a_clear_refusal(stack: Stack, what: str) -> None:
    for body in ODD_FORMS:
        _assert_refused(_post(stack, what, body, FORM), body)


KINDS = [
    "text/plain", "text/html", "application/xml", "multipart/form-data", "multipart/form-data; boundary=x",
    "application/jsonp", "text/json; charset=utf-7", "application/x-www-form-urlencoded2", "image/svg+xml",
    "application/json" + "x" * 3000, "application/problem+json", "application/vnd.api+json", "a/b", "*/*",
]
# What is no media type at all counts as none, and the body as the JSON that it usually is.
NO_KINDS = [
    "application", "/", "json", "é", "\x80\x81", "", ";", "application/json; charset=utf-16",
    "application/json; charset=\xff", "application/json; charset=nonsense", "application/json;;;=",
    'application/json; charset="', "APPLICATION/JSON", "application/ json",
]


@pytest.mark.parametrize("what", ["register", "jwt/login", "jwt/refresh"])
async def test_body_of_another_kind_is_a_clear_refusal(stack: Stack, what: str) -> None:
    good = orjson.dumps({"username": uuid.uuid4().hex, "password": PASSWORD})
    for kind in KINDS:  # text/plain among them: a page of another site can send that without asking
        answer = _post(stack, what, good, f"Content-Type: {kind}")
        assert (answer.status, answer.code) == (415, "unsupported_media_type"), (kind, answer)
    for kind in NO_KINDS:
        _assert_refused(_post(stack, what, b"{}", f"Content-Type: {kind}"), kind.encode())


# --- usernames ---

async def test_usernames_that_look_the_same_are_one_account(stack: Stack) -> None:
    base = uuid.uuid4().hex
    composed, decomposed = f"{base}é", f"{base}e\u0301"
    first = _post(stack, "register", orjson.dumps({"username": composed, "password": PASSWORD}))
    assert first.status == 201
    second = _post(stack, "register", orjson.dumps({"username": decomposed, "password": PASSWORD}))
    assert (second.status, second.code) == (409, "username_taken")
    assert _log_in(stack, decomposed, PASSWORD).status == 200
    third = _post(stack, "register", orjson.dumps({"email": decomposed, "password": PASSWORD}))
    assert (third.status, third.code) == (409, "username_taken")


async def test_one_name_registered_by_many_at_once_is_one_account(api: Api) -> None:
    name = uuid.uuid4().hex
    replies = await asyncio.gather(*(
        api.call("POST", "/auth/register", json={"username": name, "password": PASSWORD}) for _ in range(12)))
    assert sorted(reply.status for reply in replies) == [201] + [409] * 11
    assert {reply.code for reply in replies if reply.status == 409} == {"username_taken"}


UNKNOWN = [
    "nobody", "", " ", "x" * 255, "x" * 256, "'; --", "admin\0", "é", "\u0301" * 50, "\U0001e4ec\U0001e4ee",
    "\U000105d2\u0307", "\U000e0041", "\uffff", "a/../b", "%00", "null", "*", "\\", "${jndi:ldap://x}", "a" * 765,
]


async def test_unknown_and_odd_names_log_in_as_nobody(stack: Stack) -> None:
    for name in UNKNOWN:
        answer = _log_in(stack, name, PASSWORD)
        assert (answer.status, answer.code) in ((401, "invalid_credentials"), (422, "invalid_field")), (name, answer)


# --- the same work for everybody, and none for the throttled ---

TRIES, TRIES_OF_A_NETWORK = 10, 40


@dataclass
class Bench:
    """Accounts in this process, so that the work for passwords can be counted; one of them is `known`."""

    accounts: Accounts
    checked: list[bytes]  # the hashes that bcrypt was asked about

    async def log_in(self, username: str, password: str, address: str = "192.0.2.1") -> str:
        """What it came to: the code of the error, or "in"."""
        try:
            await self.accounts.log_in(username, password, address=address)
        except ServiceError as error:
            return error.code
        return "in"


@pytest.fixture
async def bench(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """The service as it is put together, without its doors."""
    settings = {"DATABASE_URL": dsn, "DATA_ROOT": str(tmp_path / "data"), "BCRYPT_COST": "4",
                "LOGIN_ATTEMPTS_PER_MINUTE": str(TRIES), "REQUESTS_PER_MINUTE": str(TRIES_OF_A_NETWORK)}
    app = build(Config.from_environment({f"{PREFIX}{name}": value for name, value in settings.items()}),
                behind_nginx=False)
    runner = web.AppRunner(app)
    await runner.setup()
    accounts, checked, check = app[DOMAIN].accounts, [], bcrypt.checkpw
    await accounts.register("known", PASSWORD, address="192.0.2.1")

    def counted(password: bytes, hashed: bytes) -> bool:
        checked.append(hashed)
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    yield Bench(accounts, checked)
    await runner.cleanup()


async def test_unknown_name_and_wrong_password_are_the_same_work(bench: Bench) -> None:
    """One run of bcrypt each, with as many rounds: the time cannot tell who has an account."""
    for name, password, outcome in (
            ("known", PASSWORD, "in"), ("known", "wrong wrong", "invalid_credentials"),
            ("unknown", PASSWORD, "invalid_credentials"), ("unknown", "", "invalid_credentials"),
            ("known", "", "invalid_credentials"), ("known", "short", "invalid_credentials"),
            ("x" * 255, "x" * 1024, "invalid_credentials"), ("known", "x" * 1024, "invalid_credentials")):
        bench.checked.clear()
        assert await bench.log_in(name, password) == outcome
        assert [hashed[:7] for hashed in bench.checked] == [b"$2b$04$"], (name, password)


async def test_password_too_long_to_be_one_is_no_work_whoever_it_is_for(bench: Bench) -> None:
    for name in ("known", "unknown"):
        assert await bench.log_in(name, "x" * 1025) == "invalid_field"
    assert bench.checked == []


async def test_throttled_login_is_no_work(bench: Bench) -> None:
    """Refused before anything is hashed: or the throttle would not spare the processor."""
    outcomes = [await bench.log_in("known", "wrong wrong") for _ in range(3 * TRIES)]
    assert outcomes[:TRIES] == ["invalid_credentials"] * TRIES
    assert outcomes.count("too_many_requests") >= 2 * TRIES - 2  # a minute gives some back
    assert len(bench.checked) == outcomes.count("invalid_credentials")
    bench.checked.clear()
    # the right password does not get past it either, nor does another spelling of the address
    for address in ("192.0.2.1", "192.0.2.77", "::ffff:192.0.2.5"):
        assert await bench.log_in("known", PASSWORD, address) == "too_many_requests"
    assert bench.checked == []
    # whoever comes from elsewhere is not locked out
    assert await bench.log_in("known", PASSWORD, "198.51.100.7") == "in"
    assert await bench.log_in("known", PASSWORD, "2001:db8::1") == "in"


async def test_tries_from_one_network_lock_nobody_else_out(bench: Bench) -> None:
    """What is refused takes nothing from the tries that all networks have together."""
    outcomes = [await bench.log_in("known", "wrong wrong") for _ in range(20 * TRIES)]
    assert outcomes[-1] == "too_many_requests"
    owner = "198.51.100.7"
    assert await bench.log_in("known", PASSWORD, owner) == "in"
    tokens = await bench.accounts.log_in("known", PASSWORD, address=owner)
    caller = await bench.accounts.authenticate(tokens.access_token)
    await bench.accounts.change_password(caller, PASSWORD, PASSWORD, address=owner)
    await bench.accounts.delete(caller, PASSWORD, address=owner)


async def test_throttle_of_a_network_counts_all_names_together(bench: Bench) -> None:
    outcomes = [await bench.log_in(f"name-{number}", PASSWORD, f"2001:db8:1:2:{number:x}::1")
                for number in range(2 * TRIES_OF_A_NETWORK)]
    assert set(outcomes) == {"invalid_credentials", "too_many_requests"}
    assert len(bench.checked) == outcomes.count("invalid_credentials") <= TRIES_OF_A_NETWORK + 5
    bench.checked.clear()
    assert await bench.log_in("known", PASSWORD, "2001:db8:1:2::ffff") == "too_many_requests"
    assert bench.checked == []


async def test_spellings_of_one_name_share_their_tries(bench: Bench) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    outcomes = [await bench.log_in((composed, decomposed)[number % 2], "wrong wrong") for number in range(2 * TRIES)]
    assert outcomes.count("invalid_credentials") <= TRIES + 2
    assert outcomes[-1] == "too_many_requests"


async def test_many_registrations_from_one_network_are_throttled_before_hashing(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made, hashpw = [], bcrypt.hashpw

    def counted(password: bytes, salt: bytes) -> bytes:
        made.append(salt)
        return hashpw(password, salt)

    monkeypatch.setattr(bcrypt, "hashpw", counted)
    outcomes = []
    for number in range(2 * TRIES_OF_A_NETWORK):
        try:
            await bench.accounts.register(f"new-{number}", PASSWORD, address="203.0.113.9")
            outcomes.append("made")
        except TooManyRequests as error:
            assert error.retry_after_seconds and error.retry_after_seconds > 0
            outcomes.append(error.code)
    assert len(made) == outcomes.count("made") <= TRIES_OF_A_NETWORK + 5
    assert outcomes[-1] == "too_many_requests"


async def test_throttled_login_says_how_long_to_wait_at_every_door(small: Stack) -> None:
    name = uuid.uuid4().hex
    answers = [_log_in(small, name, PASSWORD) for _ in range(40)]
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.status for answer in answers} == {401, 429} and len(refused) >= 20
    for answer in refused:
        assert answer.code == "too_many_requests"
        assert 0 < int(answer.one("Retry-After")) <= 60
