"""Accounts and sessions from outside: register, log in, refresh, log out."""

import asyncio
import re
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
import pytest

from tests.client import PASSWORD, Api, Reply, converse, new_account
from tests.stack import Stack

DEAD_WITHIN_SECONDS = 5.0


def fresh_name() -> str:
    """A username that nobody has."""
    return f"имя-{uuid.uuid4().hex[:12]}"


async def register(api: Api, expect: int | None = 201, **fields: Any) -> Reply:
    """Make an account from these fields."""
    return await api.call("POST", "/auth/register", json=fields, expect=expect)


async def log_in(api: Api, expect: int | None = 200, **fields: Any) -> Reply:
    """Begin a session with these fields as JSON."""
    return await api.call("POST", "/auth/jwt/login", json=fields, expect=expect)


async def refresh(api: Api, token: str, expect: int | None = 200) -> Reply:
    """Exchange a refresh token."""
    return await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": token}, expect=expect)


async def ask(api: Api, token: str) -> int:
    """Whether some worker takes the access token: a new connection each time, which any of them may get."""
    headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
    return (await api.call("GET", "/auth/me", headers=headers)).status


async def is_refused_in_time(api: Api, *tokens: str) -> None:
    """No worker takes one of the access tokens when five seconds have passed."""
    promised = time.monotonic() + DEAD_WITHIN_SECONDS
    left = list(tokens)
    while left:
        sent_at = time.monotonic()
        statuses = await asyncio.gather(*(ask(api, left[0]) for _ in range(12)))
        if set(statuses) == {401}:
            left.pop(0)
        else:
            assert set(statuses) <= {200, 401}
            assert sent_at < promised


async def is_known_to_all(api: Api, *tokens: str) -> None:
    """Every worker has seen each token, and may remember it."""
    for token in tokens:
        assert set(await asyncio.gather(*(ask(api, token) for _ in range(12)))) == {200}


# --- register ---

async def test_register_answers_with_the_account(anonymous: Api) -> None:
    name = fresh_name()
    reply = await register(anonymous, username=name, password=PASSWORD)
    assert set(reply.json) == {"id", "username", "created_at"}
    assert reply.json["username"] == name
    assert uuid.UUID(reply.json["id"])
    created_at = datetime.fromisoformat(reply.json["created_at"])
    assert reply.json["created_at"].endswith("Z")
    assert abs(created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("alias", ["username", "login", "email"])
async def test_register_and_log_in_by_each_name_of_the_name(anonymous: Api, alias: str) -> None:
    name = f"{fresh_name()}@example.org"
    assert (await register(anonymous, 201, **{alias: name}, password=PASSWORD)).json["username"] == name
    for other in ("username", "login", "email"):
        await log_in(anonymous, 200, **{other: name}, password=PASSWORD)
        await anonymous.call("POST", "/auth/jwt/login", data={other: name, "password": PASSWORD}, expect=200)


async def test_register_twice_is_a_conflict(anonymous: Api) -> None:
    name = fresh_name()
    await register(anonymous, username=name, password=PASSWORD)
    for password in (PASSWORD, "another good password"):
        reply = await register(anonymous, username=name, password=password, expect=409)
        assert (reply.code, reply.json["field"]) == ("username_taken", "username")
    await log_in(anonymous, username=name, password=PASSWORD)


async def test_register_at_the_same_time_makes_one_account(anonymous: Api) -> None:
    name = fresh_name()
    replies = await asyncio.gather(*(register(anonymous, username=name, password=PASSWORD, expect=None)
                                     for _ in range(8)))
    assert sorted(reply.status for reply in replies) == [201] + [409] * 7


async def test_usernames_that_look_the_same_are_one(anonymous: Api) -> None:
    name = fresh_name()
    await register(anonymous, username=f"caf\u00e9-{name}", password=PASSWORD)
    assert (await register(anonymous, username=f"cafe\u0301-{name}", password=PASSWORD, expect=409)
            ).code == "username_taken"
    await log_in(anonymous, username=f"cafe\u0301-{name}", password=PASSWORD)


async def test_usernames_that_differ_in_case_are_two(anonymous: Api) -> None:
    name = fresh_name()
    await register(anonymous, username=f"a{name}", password=PASSWORD)
    await register(anonymous, username=f"A{name}", password="another good password")
    await log_in(anonymous, username=f"A{name}", password=PASSWORD, expect=401)


UNUSABLE_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({}, "password"), ({"username": "a"}, "password"), ({"password": PASSWORD}, "username"),
    ({"username": "", "password": PASSWORD}, "username"), ({"username": None, "password": PASSWORD}, "username"),
    ({"username": 5, "password": PASSWORD}, "username"), ({"username": ["a"], "password": PASSWORD}, "username"),
    ({"username": "a\0b", "password": PASSWORD}, "username"), ({"username": "a\nb", "password": PASSWORD}, "username"),
    ({"username": "a\u2028b", "password": PASSWORD}, "username"),
    ({"username": " a", "password": PASSWORD}, "username"), ({"username": "a\u00a0", "password": PASSWORD}, "username"),
    ({"username": "x" * 256, "password": PASSWORD}, "username"),
    ({"username": "я" * 128, "password": PASSWORD}, "username"),
    ({"username": "a", "login": "b", "password": PASSWORD}, "username"),
    ({"username": "new", "password": ""}, "password"), ({"username": "new", "password": "1234567"}, "password"),
    ({"username": "new", "password": "x" * 1025}, "password"), ({"username": "new", "password": None}, "password"),
    ({"username": "new", "password": 12345678}, "password"), ({"username": "new", "password": {"a": 1}}, "password"),
]


async def test_register_with_unusable_field_names_it(anonymous: Api) -> None:
    for fields, field in UNUSABLE_FIELDS:
        reply = await register(anonymous, 422, **fields)
        assert (reply.code, reply.json["field"]) == ("invalid_field", field), fields
        assert PASSWORD not in reply.body.decode()


@pytest.mark.parametrize("address", ["/auth/register", "/auth/jwt/login", "/auth/jwt/refresh"])
async def test_body_that_is_none_is_refused(anonymous: Api, address: str) -> None:
    json, form = {"Content-Type": "application/json"}, {"Content-Type": "application/x-www-form-urlencoded"}
    for body, headers, status in (
            (b"", json, 400), (b"{", json, 400), (b'{"username": "\xff"}', json, 400), (b"[" * 50_000, json, 400),
            (b'{"username": "\\ud800", "password": "x"}', json, 400), (b"[]", json, 422), (b"null", json, 422),
            (b'"text"', json, 422), (b"{}", json, 422), (b"", form, 422), (b"username=%ff&password=x", form, 400),
            (b"username=a&username=b&password=x", form, 422), ("username=я".encode(), form, 400),
            (b'{"username": "' + b"x" * 70_000 + b'"}', json, 413), (b"{}", {"Content-Type": "text/plain"}, 415),
            (b"{}", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
            (b"{}", {**json, "Content-Encoding": "gzip"}, 415)):
        reply = await anonymous.call("POST", address, data=body, headers=headers)
        assert reply.status == status, (body[:40], reply.body)
        assert reply.code


# --- log in ---

async def test_log_in_by_json_and_by_form_gives_tokens(api: Api) -> None:
    credentials = {"username": api.username, "password": PASSWORD}
    by_json = await api.call("POST", "/auth/jwt/login", json=credentials, expect=200)
    by_form = await api.call("POST", "/auth/jwt/login", data={
        **credentials, "grant_type": "password", "scope": "", "client_id": "x"}, expect=200)
    by_bare_json = await api.call("POST", "/auth/jwt/login", data=orjson.dumps(credentials),
                                  headers={"Content-Type": "application/octet-stream"}, expect=200)
    for reply in (by_json, by_form, by_bare_json):
        assert set(reply.json) == {"access_token", "token_type", "expires_in", "refresh_token"}
        assert reply.json["token_type"] == "bearer"
        assert reply.json["expires_in"] == 900
        assert reply.headers["Cache-Control"] == "no-store"
        me = await api.call("GET", "/auth/me", headers={"Authorization": f"Bearer {reply.json['access_token']}"})
        assert me.json["username"] == api.username


async def test_log_in_does_not_tell_a_wrong_password_from_an_unknown_user(api: Api) -> None:
    seen = []
    for name in (api.username, fresh_name(), "x" * 255):
        for password in ("wrong password", "short", "x" * 1024):
            reply = await log_in(api, username=name, password=password, expect=401)
            assert reply.code == "invalid_credentials"
            assert reply.headers["WWW-Authenticate"] == "Bearer"
            headers = {key: value for key, value in reply.headers.items()
                       if key.lower() not in ("date", "x-request-id")}
            seen.append((headers, re.sub(rb'"request_id":"[^"]*"', b"", reply.body)))
    assert all(answer == seen[0] for answer in seen)


PASSWORDS = [
    "x" * 72 + "one", "я" * 36 + "one", "nul \0 inside", "\0" * 8, " spaces around ", "q\"u'o\\t&=%+e", "😀" * 8,
    "x" * 1024, "line\nbreak\r\ttab",
]


async def test_password_counts_to_its_last_character(anonymous: Api) -> None:
    for password in PASSWORDS:
        name = fresh_name()
        await register(anonymous, username=name, password=password)
        await log_in(anonymous, username=name, password=password)
        await anonymous.call("POST", "/auth/jwt/login", data={"username": name, "password": password}, expect=200)
        for wrong in (password[:-1] + "?", password[:-1], password[:72] + "!"):
            await log_in(anonymous, username=name, password=wrong, expect=401)


async def test_password_is_the_same_from_every_keyboard(anonymous: Api) -> None:
    name = fresh_name()
    await register(anonymous, username=name, password="caf\u00e9 \ufb01ne")
    await log_in(anonymous, username=name, password="cafe\u0301 fine")


async def test_log_in_with_expectation_is_invited(api: Api) -> None:
    body = orjson.dumps({"username": api.username, "password": PASSWORD})
    head = (f"POST /auth/jwt/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n").encode()
    assert (await converse(api.stack, (head, "100 Continue\r\n\r\n"), (body, ""))).status == 200


async def test_guesses_are_throttled_and_told_when_to_come_back(
        session: aiohttp.ClientSession, tight_stack: Stack) -> None:
    api = await new_account(session, tight_stack)  # which takes the first of three attempts
    for _ in range(2):
        await log_in(api, username=api.username, password="wrong password", expect=401)
    for password in ("wrong password", PASSWORD):
        reply = await log_in(api, username=api.username, password=password, expect=429)
        assert reply.code == "too_many_requests"
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
    await api.call("GET", "/auth/me", expect=200)
    await new_account(session, tight_stack)  # others go on
    unknown = fresh_name()
    statuses = [(await log_in(api, username=unknown, password="wrong password", expect=None)).status for _ in range(4)]
    assert statuses == [401, 401, 401, 429]


# --- me, refresh, log out ---

async def test_me_is_who_registered(api: Api) -> None:
    found = (await api.call("GET", "/auth/me", expect=200)).json
    assert set(found) == {"id", "username", "created_at"}
    assert found["username"] == api.username


AUTHORIZATIONS = [
    "", "Bearer", "Bearer ", "Bearer garbage", "Bearer a.b.c", "Basic dXNlcjpwYXNz", "{token}", "Token {token}",
    "Bearer {token} x", "Bearer, {token}", "Bearer \"{token}\"", "Bearer {token}x", "Bearer x{token}",
    "Bearer " + "x" * 8000,
]


async def test_authorization_that_is_none_is_refused(api: Api) -> None:
    for authorization in AUTHORIZATIONS:
        reply = await api.call("GET", "/auth/me", headers={"Authorization": authorization.format(token=api.token)})
        assert (reply.status, reply.code) == (401, "unauthenticated"), authorization
        assert reply.headers["WWW-Authenticate"] == "Bearer"


async def test_scheme_is_read_in_any_case_and_only_from_the_header(api: Api) -> None:
    token, api.token = api.token, ""
    for scheme in ("bearer", "BEARER"):
        await api.call("GET", "/auth/me", headers={"Authorization": f"{scheme} {token}"}, expect=200)
    await api.call("GET", f"/auth/me?access_token={token}", expect=401)
    await api.call("GET", "/auth/me", headers={"Cookie": f"access_token={token}"}, expect=401)


async def test_refresh_gives_new_tokens_of_the_same_session(api: Api) -> None:
    tokens = (await refresh(api, api.refresh_token)).json
    assert set(tokens) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert tokens["refresh_token"] != api.refresh_token
    for token in (api.token, tokens["access_token"]):
        assert await ask(api, token) == 200
    await refresh(api, tokens["refresh_token"])


async def test_refresh_at_the_same_time_gives_tokens_once(api: Api) -> None:
    replies = await asyncio.gather(*(refresh(api, api.refresh_token, expect=None) for _ in range(8)))
    assert sorted(reply.status for reply in replies) == [200] + [401] * 7


async def test_refresh_with_something_else_is_refused(api: Api) -> None:
    session, secret = api.refresh_token.split(".")
    for token in (api.token, f"{uuid.uuid4().hex}.{secret}", "", "x", f"{session}.", secret, "я" * 43,
                  f" {api.refresh_token}", f"{api.refresh_token}\n", api.refresh_token.upper()):
        assert (await refresh(api, token, expect=401)).code == "invalid_refresh_token", token
    for value in (None, 5, ["x"]):
        reply = await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": value}, expect=422)
        assert reply.json["field"] == "refresh_token"
    await refresh(api, api.refresh_token)


async def test_log_out_and_a_refresh_token_used_again_end_the_session_and_no_other(api: Api) -> None:
    left, reused = (await asyncio.gather(*(log_in(api, username=api.username, password=PASSWORD) for _ in range(2))))
    renewed = (await refresh(api, reused.json["refresh_token"])).json
    ended = [left.json["access_token"], reused.json["access_token"], renewed["access_token"]]
    await is_known_to_all(api, *ended)
    logout = await api.call("POST", "/auth/jwt/logout", headers={"Authorization": f"Bearer {ended[0]}"}, expect=204)
    assert logout.body == b""
    assert (await refresh(api, reused.json["refresh_token"], expect=401)).code == "invalid_refresh_token"
    await is_refused_in_time(api, *ended)
    for tokens in (left.json, reused.json, renewed):
        assert (await refresh(api, tokens["refresh_token"], expect=401)).code == "invalid_refresh_token"
    assert await ask(api, api.token) == 200
    await refresh(api, api.refresh_token)
