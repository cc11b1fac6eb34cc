"""service.security.tokens."""

import base64
import hashlib
import hmac
import json
import multiprocessing
import os
import stat
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Unauthenticated
from service.model import Caller, SessionId, UserId
from service.security import tokens
from service.security.tokens import AccessTokens, read_or_create_secret

SECRET = "0123456789abcdef" * 4
TTL = 900
CALLER = Caller(user_id=UserId(UUID("0190a5b8-1c2d-7e3f-8a4b-5c6d7e8f9a0b")),
                session_id=SessionId(UUID("0190a5b8-4455-7d6e-9f00-a1b2c3d4e5f6")))
DEEP = "[" * 1500 + "]" * 1500


class Clock:
    """Stands in for the module time."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock()
    monkeypatch.setattr(tokens, "time", result)
    return result


@pytest.fixture
def access() -> AccessTokens:
    return AccessTokens(SECRET, TTL)


def encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def sign(payload: str, header: str = '{"alg":"HS256","typ":"JWT"}', *, secret: str = SECRET) -> str:
    """A token with a right HS256 signature over whatever is given."""
    text = f"{encode(header.encode())}.{encode(payload.encode())}"
    return f"{text}.{encode(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": tokens.ISSUER, "aud": tokens.AUDIENCE, "sub": str(CALLER.user_id), "sid": str(CALLER.session_id),
            "jti": "1", "iat": now, "exp": now + TTL} | changes


def refuse(access: AccessTokens, token: str) -> None:
    for _ in range(2):  # a refused token must not be remembered either
        with pytest.raises(Unauthenticated) as caught:
            access.verify(token)
        assert caught.value.__cause__ is None and caught.value.detail == Unauthenticated().detail


def test_issued_token_verifies_to_its_caller(access: AccessTokens) -> None:
    token = access.issue(CALLER)
    assert access.verify(token) == CALLER
    assert access.verify(token) == CALLER  # remembered


def test_issued_token_verifies_in_another_worker_with_the_same_secret(access: AccessTokens) -> None:
    assert AccessTokens(SECRET, TTL).verify(access.issue(CALLER)) == CALLER


def test_issued_token_has_all_claims_and_its_lifetime(access: AccessTokens, clock: Clock) -> None:
    payload = jwt.decode(access.issue(CALLER), SECRET, algorithms=["HS256"], audience=tokens.AUDIENCE)
    assert set(payload) == set(tokens.CLAIMS)
    assert (payload["iat"], payload["exp"]) == (int(clock.now), int(clock.now) + TTL)
    assert (payload["sub"], payload["sid"]) == (str(CALLER.user_id), str(CALLER.session_id))


def test_two_tokens_of_one_caller_differ(access: AccessTokens, clock: Clock) -> None:
    assert access.issue(CALLER) != access.issue(CALLER)


def test_hand_made_token_with_the_right_claims_verifies(access: AccessTokens) -> None:
    assert access.verify(sign(json.dumps(claims()))) == CALLER  # so the refusals below are for what they change


@pytest.mark.parametrize("name", tokens.CLAIMS)
def test_missing_claim_is_refused(access: AccessTokens, name: str) -> None:
    payload = claims()
    del payload[name]
    refuse(access, sign(json.dumps(payload)))
    refuse(access, sign(json.dumps(claims(**{name: None}))))


@pytest.mark.parametrize(("name", "value"), [
    ("iss", "someone-else"), ("iss", tokens.ISSUER[:-1]), ("iss", [tokens.ISSUER]), ("iss", {}),
    ("aud", "someone-else"), ("aud", [tokens.AUDIENCE]), ("aud", {}), ("aud", ""),
    ("sub", 1), ("sub", "1"), ("sub", ""), ("sub", []), ("sub", CALLER.user_id.hex), ("sub", f"{{{CALLER.user_id}}}"),
    ("sub", f"urn:uuid:{CALLER.user_id}"), ("sub", str(CALLER.user_id).upper()), ("sub", "x" * 36),
    ("sid", 1), ("sid", "1"), ("sid", {"a": 1}), ("sid", True), ("sid", CALLER.session_id.hex), ("sid", "\ud800"),
    ("jti", 1), ("jti", []),
    ("nbf", 10**12), ("nbf", "soon"),
])
def test_claim_with_a_wrong_value_is_refused(access: AccessTokens, name: str, value: object) -> None:
    refuse(access, sign(json.dumps(claims(**{name: value}))))


@pytest.mark.parametrize("name", ["iat", "exp"])
@pytest.mark.parametrize("value", [
    "1", "soon", [], {}, True, 1.5, 10**30, -10**30, 10**4000, float("nan"), float("inf"), -float("inf"),
])
def test_absurd_time_is_refused(access: AccessTokens, name: str, value: object) -> None:
    refuse(access, sign(json.dumps(claims(**{name: value}))))


@pytest.mark.parametrize("name", ["iat", "exp"])
def test_time_that_is_right_but_no_integer_is_refused(access: AccessTokens, name: str) -> None:
    refuse(access, sign(json.dumps(claims(**{name: float(int(time.time()) + 1)}))))


@pytest.mark.parametrize(("issued", "expires"), [
    pytest.param(-TTL - 1, -1, id="expired"),
    pytest.param(-TTL, 0, id="expires-now"),
    pytest.param(0, TTL + tokens.MAX_SKEW_SECONDS + 1, id="good-for-too-long"),
    pytest.param(-10**6, TTL, id="issued-long-ago"),
    pytest.param(tokens.MAX_SKEW_SECONDS + 2, TTL, id="issued-in-the-future"),
    pytest.param(0, -10, id="expires-before-it-is-issued"),
])
def test_token_outside_its_time_is_refused(access: AccessTokens, issued: int, expires: int) -> None:
    now = int(time.time())
    refuse(access, sign(json.dumps(claims(iat=now + issued, exp=now + expires))))


def test_token_of_a_host_whose_clock_is_a_little_ahead_verifies(access: AccessTokens) -> None:
    now = int(time.time()) + tokens.MAX_SKEW_SECONDS
    assert access.verify(sign(json.dumps(claims(iat=now, exp=now + TTL)))) == CALLER


def test_token_is_good_until_it_expires_and_not_longer(access: AccessTokens, clock: Clock) -> None:
    clock.now = float(int(clock.now))
    token = access.issue(CALLER)
    clock.now += TTL - 0.001
    assert access.verify(token) == CALLER
    clock.now += 0.001
    refuse(access, token)


def test_remembered_token_is_refused_once_it_expires(access: AccessTokens, clock: Clock) -> None:
    token = access.issue(CALLER)
    assert access.verify(token) == CALLER
    clock.now += TTL + 1
    refuse(access, token)


@pytest.mark.parametrize("header", [
    '{"alg":"none"}', '{"alg":"None"}', '{"alg":"NONE"}', '{"alg":""}', '{"alg":null}', '{"alg":"HS384"}',
    '{"alg":"HS512"}', '{"alg":"RS256"}', '{"alg":"ES256"}', '{"alg":"hs256"}', '{"alg":["HS256"]}', '{"alg":{"a":1}}',
    '{"alg":1}', '{"typ":"JWT"}', "{}", "[]", '"HS256"', "null", "", "{", "\ufeff{}", '{"alg":' + DEEP + "}", DEEP,
    '{"alg":"HS256","crit":["b64"],"b64":true}', '{"alg":"HS256","crit":["b64"],"b64":false}',
    '{"alg":"HS256","b64":false}', '{"alg":"HS256","crit":[]}', '{"alg":"HS256","crit":["exp"],"exp":1}',
    '{"alg":"HS256","crit":"b64","b64":true}', '{"alg":"HS256","crit":null}', '{"alg":"HS256","kid":1}',
])
def test_header_that_is_not_plain_hs256_is_refused(access: AccessTokens, header: str) -> None:
    token = sign(json.dumps(claims()), header)
    refuse(access, token)
    refuse(access, token.rpartition(".")[0] + ".")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_right_signature_by_another_algorithm_is_refused(access: AccessTokens, algorithm: str) -> None:
    refuse(access, jwt.encode(claims(), SECRET, algorithm=algorithm))


def test_key_named_by_the_token_is_ignored(access: AccessTokens) -> None:
    foreign = "f" * 64
    header = {"alg": "HS256", "kid": "../../dev/null", "jku": "http://localhost/", "x5u": "http://localhost/",
              "jwk": {"kty": "oct", "k": encode(foreign.encode())}}
    refuse(access, sign(json.dumps(claims()), json.dumps(header), secret=foreign))
    assert access.verify(sign(json.dumps(claims()), json.dumps(header))) == CALLER


def test_token_signed_with_a_foreign_secret_is_refused(access: AccessTokens) -> None:
    refuse(access, AccessTokens("f" * 64, TTL).issue(CALLER))


@pytest.mark.parametrize("payload", ["", "{", "[]", "null", "1", '"text"', DEEP, '{"a":' + DEEP + "}", "1" * 3000])
def test_signed_payload_that_is_no_object_is_refused(access: AccessTokens, payload: str) -> None:
    refuse(access, sign(payload))


def test_token_without_a_signature_is_refused(access: AccessTokens) -> None:
    head = access.issue(CALLER).rpartition(".")[0]
    for token in (head, head + ".", head + ".AAAA"):
        refuse(access, token)


def test_change_of_any_character_is_refused(access: AccessTokens) -> None:
    token = access.issue(CALLER)
    assert access.verify(token) == CALLER
    for position, character in enumerate(token):
        refuse(access, token[:position] + ("B" if character == "A" else "A") + token[position + 1:])


@pytest.mark.parametrize("text", [
    "", ".", "..", "...", "a.b.c", "é", "a.b.é", "\ud800", "\0", "x" * 4097, "." * 4096, " ", "\n",
])
def test_text_that_is_no_token_is_refused(access: AccessTokens, text: str) -> None:
    refuse(access, text)


def test_token_with_anything_around_it_is_refused(access: AccessTokens) -> None:
    token = access.issue(CALLER)
    for text in (f" {token}", f"{token} ", f"{token}\n", f"{token}.", f".{token}", f"Bearer {token}", f"{token}\u00a0"):
        refuse(access, text)


def test_right_token_over_4096_characters_is_refused(access: AccessTokens) -> None:
    assert len(sign(json.dumps(claims(pad="x" * 2300)))) <= 4096
    assert access.verify(sign(json.dumps(claims(pad="x" * 2300)))) == CALLER
    refuse(access, sign(json.dumps(claims(pad="x" * 3000))))


def test_padded_twin_is_no_longer_good_than_the_token_itself(access: AccessTokens, clock: Clock) -> None:
    token = access.issue(CALLER)
    assert access.verify(token) == access.verify(token + "=") == CALLER
    clock.now += TTL + 1
    refuse(access, token)
    refuse(access, token + "=")


def test_only_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch, access: AccessTokens) -> None:
    monkeypatch.setattr(tokens, "MAX_REMEMBERED", 2)
    checks: list[str] = []
    original = jwt.decode_complete

    def decode_complete(token: str, *args: Any, **options: Any) -> dict[str, Any]:
        checks.append(token)
        return original(token, *args, **options)

    monkeypatch.setattr(jwt, "decode_complete", decode_complete)
    first, second, third = (access.issue(CALLER) for _ in range(3))
    for token in (first, second, first, third, first, second):
        assert access.verify(token) == CALLER
    assert checks == [first, second, third, second]  # second was the one not used for longest


def test_surprise_in_the_parser_is_a_refusal(access: AccessTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_complete(*args: Any, **options: Any) -> dict[str, Any]:
        raise RuntimeError

    token = access.issue(CALLER)
    monkeypatch.setattr(jwt, "decode_complete", decode_complete)
    refuse(access, token)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    refuse(AccessTokens(SECRET, TTL), text)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
       st.sampled_from(tokens.CLAIMS))
def test_any_signed_value_of_a_claim_is_refused(value: Any, name: str) -> None:
    if name == "jti" and isinstance(value, str):
        value = 0
    refuse(AccessTokens(SECRET, TTL), sign(json.dumps(claims(**{name: value}))))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jku", "jwk", "cty", "zip", "enc"]),
                       st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()), min_size=1))
def test_any_header_gives_the_caller_or_a_refusal(header: dict[str, Any]) -> None:
    token = sign(json.dumps(claims()), json.dumps(header))
    try:
        caller = AccessTokens(SECRET, TTL).verify(token)
    except Unauthenticated:
        return
    assert caller == CALLER and header["alg"] == "HS256" and "crit" not in header


@pytest.mark.parametrize("secret", ["", "short", "x" * 31])
def test_short_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        AccessTokens(secret, TTL)


# --- the secret's file ---

def test_first_start_makes_a_secret_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "jwt_secret"
    secret = read_or_create_secret(path)
    assert len(bytes.fromhex(secret)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["jwt_secret"]  # nothing temporary is left
    AccessTokens(secret, TTL)


def test_later_start_reads_the_same_secret(tmp_path: Path) -> None:
    assert read_or_create_secret(tmp_path / "s") == read_or_create_secret(tmp_path / "s")


def test_secrets_of_two_instances_differ(tmp_path: Path) -> None:
    assert read_or_create_secret(tmp_path / "one") != read_or_create_secret(tmp_path / "other")


def test_generous_umask_does_not_open_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        read_or_create_secret(tmp_path / "s")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 31, b"x" * 31 + b"\n\n", b"\xff" * 64])
def test_file_with_a_short_or_unreadable_secret_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="at least 32 bytes"):
        read_or_create_secret(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o777])
def test_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    path.write_text("x" * 64)
    path.chmod(mode)
    with pytest.raises(ValueError, match="chmod 600"):
        read_or_create_secret(path)


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_file_of_the_operator_is_read_without_the_space_around_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    path.write_text("  a secret of the operator's own making\r\n")
    path.chmod(mode)
    assert read_or_create_secret(path) == "a secret of the operator's own making"


def test_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_or_create_secret(tmp_path / "nowhere" / "s")


def test_file_is_forced_to_disk_before_its_name_and_the_name_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def spy_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        steps.append("folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")
        fsync(descriptor)

    def spy_link(source: str, target: Path) -> None:
        steps.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "link", spy_link)
    read_or_create_secret(tmp_path / "s")
    assert steps == ["65 bytes", "link", "folder"]


def test_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        read_or_create_secret(tmp_path / "s")
    assert os.listdir(tmp_path) == []


def test_process_that_comes_second_takes_the_secret_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "s"
    link = os.link
    winner: list[str] = []

    def slow_link(source: str, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        winner.append(read_or_create_secret(path))  # the other process is faster
        link(source, target)

    monkeypatch.setattr(os, "link", slow_link)
    assert read_or_create_secret(path) == winner[0]
    assert os.listdir(tmp_path) == ["s"]


def _start(barrier: Any, path: Path, results: Any) -> None:
    barrier.wait()
    results.put(read_or_create_secret(path))


def test_processes_that_start_at_once_get_one_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_start, args=(barrier, tmp_path / "s", results)) for _ in range(4)]
    for process in processes:
        process.start()
    secrets = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    results.close()
    assert secrets == {read_or_create_secret(tmp_path / "s")}


def test_caller_ids_keep_their_types(access: AccessTokens) -> None:
    caller = access.verify(access.issue(CALLER))
    assert isinstance(caller.user_id, UUID) and isinstance(caller.session_id, UUID)
