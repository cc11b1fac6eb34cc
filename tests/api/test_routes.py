"""Who may use which address: every route with every kind of caller, and what is behind nginx alone."""

import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.api.routes import ROUTES, Route
from service.model import Caller, SessionId, UserId
from service.security.tokens import AccessTokens
from tests.client import Api, until

# All routes that work without an account, and why; a route that becomes public by mistake is not in this list.
PUBLIC = {
    "GET /ping/all": "probe", "GET /livez": "probe", "GET /readyz": "probe",
    "GET /metrics": "only on a worker's socket: nginx has no such address, and without nginx it is 404",
    "POST /auth/register": "makes an account", "POST /auth/jwt/login": "has the password",
    "POST /auth/jwt/refresh": "has the refresh token",
    "GET /s/{token}": "has the link", "POST /s/{token}": "has the link", "POST /s/{token}/open": "has the link",
    "GET /d/{name}": "has the signature", "GET /assets/{name}": "the pages of links",
    "GET /docs": "documentation", "GET /docs/{name}": "documentation", "GET /openapi.json": "documentation",
    "GET /_preflight": "nginx's question, which asks for the account by itself",
}
SOMETHING = {"id": str(uuid.uuid4()), "token": "x" * 32, "name": "x"}


def name_of(route: Route) -> str:
    return f"{route.method} {re.sub(r':[^}]+', '', route.path)}"


def address_of(route: Route) -> str:
    return re.sub(r"\{(\w+)(?::[^}]+)?\}", lambda match: SOMETHING[match[1]], route.path)


def test_public_routes_are_the_known_ones() -> None:
    assert {name_of(route) for route in ROUTES if route.is_public} == set(PUBLIC)


PRIVATE = [route for route in ROUTES if not route.is_public]


async def refused(api: Api, route: Route, headers: dict[str, str]) -> None:
    body: dict[str, Any] = {"json": {}} if route.method in ("POST", "PUT") else {}
    reply = await api.call(route.method, address_of(route), headers=headers, **body)
    assert (reply.status, reply.code) == (401, "unauthenticated"), (route, reply)
    assert reply.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("route", PRIVATE, ids=name_of)
async def test_without_a_valid_token_every_private_route_is_401(anonymous: Api, route: Route) -> None:
    stranger = AccessTokens("not the secret of this service, but long enough", 900)
    forged = stranger.issue(Caller(user_id=UserId(uuid.uuid4()), session_id=SessionId(uuid.uuid4())))
    for authorization in (None, "", "Bearer", "Bearer ", "Bearer x.y.z", f"Bearer {forged}", f"Basic {forged}", forged):
        await refused(anonymous, route, {} if authorization is None else {"Authorization": authorization})


@pytest.mark.parametrize("route", PRIVATE, ids=name_of)
async def test_with_a_token_no_private_route_is_401(api: Api, route: Route) -> None:
    if name_of(route) in ("POST /auth/jwt/logout", "DELETE /auth/session"):
        await api.call(route.method, address_of(route), expect=204)
        return
    body: dict[str, Any] = {"json": {}} if route.method in ("POST", "PUT", "DELETE") else {}
    reply = await api.call(route.method, address_of(route), **body)
    assert reply.status not in (401, 403) and reply.status < 500, (route, reply)


async def test_token_of_an_ended_session_is_refused_everywhere(api: Api) -> None:
    await api.call("POST", "/auth/jwt/logout", expect=204)

    async def is_refused() -> bool:
        return (await api.call("GET", "/auth/me")).status == 401

    await until(is_refused)
    for route in PRIVATE:
        async def route_is_refused(route: Route = route) -> bool:
            body: dict[str, Any] = {"json": {}} if route.method in ("POST", "PUT") else {}
            return (await api.call(route.method, address_of(route), **body)).status == 401

        await until(route_is_refused)  # each worker believes in a session for a few seconds


@pytest.mark.parametrize("path", [
    "/nothing", "/_preflight", "/_blobs/", "/_blobs/00/00000000-0000-0000-0000-000000000000", "/_blobs../MARKER",
    "/_refuse/401", "/_refused", "/_problem", "/_unreadable/", "/metrics", "/file/", "/file/nothing", "/static/x",
    "/.git/config"])
async def test_what_is_not_there_or_not_for_clients_is_404(api: Api, path: str) -> None:
    reply = await api.call("GET", path)
    assert (reply.status, reply.code) == (404, "not_found")


@pytest.mark.parametrize(("method", "path"), [
    ("PATCH", "/file"), ("POST", "/file/list"), ("PUT", "/auth/register"), ("GET", "/auth/register"),
    ("DELETE", "/livez"), ("GET", "/file/move")])
async def test_other_method_is_405_and_says_which_are_taken(api: Api, method: str, path: str) -> None:
    reply = await api.call(method, path)
    assert (reply.status, reply.code) == (405, "method_not_allowed")
    assert reply.headers["Allow"]


async def test_another_account_sees_nothing(api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    stored = (await api.put("/mine.txt", b"1")).json
    other = await other_account()
    assert await other.list() == []
    for path in (stored["id"], "/mine.txt"):
        assert (await other.get(path, expect=404)).code == "not_found"
