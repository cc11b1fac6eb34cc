"""service.security.secrets."""

import hashlib
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidRefreshToken
from service.model import SessionId, new_uuid
from service.security.secrets import digests_equal, new_refresh_token, parse_refresh_token

SESSION = SessionId(UUID("0190a5b8-1c2d-7e3f-8a4b-5c6d7e8f9a0b"))
SECRET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN-_0"


def test_new_token_parses_to_its_session_and_digest() -> None:
    text, digest = new_refresh_token(SESSION)
    assert parse_refresh_token(text) == (SESSION, digest)


def test_new_token_holds_the_session_and_256_random_bits() -> None:
    session, _, secret = new_refresh_token(SESSION)[0].partition(".")
    assert session == SESSION.hex
    assert len(secret) == 43


def test_new_tokens_of_one_session_all_differ() -> None:
    texts, digests = zip(*(new_refresh_token(SESSION) for _ in range(100)), strict=True)
    assert len(set(texts)) == len(set(digests)) == 100


def test_digest_is_the_sha256_of_the_secret_as_text() -> None:
    assert parse_refresh_token(f"{SESSION.hex}.{SECRET}") == (SESSION, hashlib.sha256(SECRET.encode()).digest())


def test_texts_that_decode_to_the_same_bytes_have_different_digests() -> None:
    # 43 characters hold 258 bits, so the last one has two to spare.
    digests = {parse_refresh_token(f"{SESSION.hex}.{SECRET[:-1]}{last}")[1] for last in "0123"}
    assert len(digests) == 4


@pytest.mark.parametrize("text", [
    "", ".", SESSION.hex, SECRET, f"{SESSION}.{SECRET}", f"{SESSION.hex.upper()}.{SECRET}", f"{SESSION.hex}{SECRET}",
    f"{SESSION.hex}.{SECRET}=", f"{SESSION.hex}.{SECRET[:-1]}", f"{SESSION.hex}.{SECRET}A", f"{SESSION.hex}.{SECRET}\n",
    f" {SESSION.hex}.{SECRET}", f"{SESSION.hex}.{SECRET[:-1]}+", f"{SESSION.hex}.{SECRET[:-1]}\0",
    f"{SESSION.hex}.{SECRET[:-1]}é", f"{SESSION.hex[:-1]}٣.{SECRET}", f"{SESSION.hex}.{SECRET}.{SECRET}", "\ud800",
    "x" * 10**6,
])
def test_malformed_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidRefreshToken):
        parse_refresh_token(text)


@settings(deadline=None)
@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    with pytest.raises(InvalidRefreshToken):
        parse_refresh_token(text)


@settings(deadline=None)
@given(st.text(alphabet="0123456789abcdef", min_size=32, max_size=32),
       st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True))
def test_any_text_of_the_right_shape_parses(session: str, secret: str) -> None:
    assert parse_refresh_token(f"{session}.{secret}")[0].hex == session


def test_equal_digests_are_equal_and_others_are_not() -> None:
    digest = new_refresh_token(SessionId(new_uuid()))[1]
    assert digests_equal(digest, bytes(digest)) is True
    assert digests_equal(digest, digest[:-1] + bytes([digest[-1] ^ 1])) is False
    assert digests_equal(digest, b"") is False
