"""Every route and whoever may ask it; what is no route; the shape of every error; the documentation."""

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import jwt
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.api.routes import ROUTES
from tests.api.test_accounts import is_refused_in_time
from tests.client import PASSWORD, Api, Reply, converse, files_on_disk
from tests.stack import Stack


class Row(NamedTuple):
    """What a bare request gets, without parameters and body, if it may ask; and why it needs no account, if so."""

    status: int | set[int]
    public: str = ""

    def fits(self, reply: Reply) -> bool:
        """Whether the answer is the expected one."""
        return reply.status in (self.status if isinstance(self.status, set) else {self.status})


# A new route needs its line here.
EXPECTED = {
    ("GET", "/ping/all"): Row(200, "probe"),
    ("GET", "/livez"): Row(200, "probe"),
    ("GET", "/readyz"): Row(200, "probe"),
    ("GET", "/metrics"): Row(404, "only on a worker's own socket: from outside there is no such address"),
    ("POST", "/auth/register"): Row(400, "makes an account"),
    ("POST", "/auth/jwt/login"): Row(400, "has the password"),
    ("POST", "/auth/jwt/refresh"): Row(400, "has the refresh token"),
    ("POST", "/auth/jwt/logout"): Row(204),
    ("GET", "/auth/me"): Row(200),
    ("DELETE", "/auth/me"): Row(400),
    ("POST", "/auth/password"): Row(400),
    ("GET", "/auth/session"): Row(200),
    ("DELETE", "/auth/session"): Row(204),
    ("DELETE", "/auth/session/{id}"): Row(404),
    ("GET", "/auth/audit"): Row(200),
    ("POST", "/file"): Row(415),
    ("PUT", "/file"): Row(422),
    ("DELETE", "/file"): Row(422),
    ("GET", "/file/list"): Row(200),
    ("POST", "/file/folder"): Row(400),
    ("POST", "/file/move"): Row(400),
    ("POST", "/file/copy"): Row(400),
    ("POST", "/file/batch"): Row(400),
    ("GET", "/file/info"): Row(422),
    ("GET", "/file/download"): Row(422),
    ("GET", "/file/download/"): Row(422),
    ("GET", "/file/usage_memory"): Row(200),
    ("GET", "/file/archive"): Row(422),
    ("GET", "/file/trash"): Row(200),
    ("POST", "/file/trash/restore"): Row(400),
    ("DELETE", "/file/trash"): Row(204),
    ("GET", "/file/versions"): Row(422),
    ("POST", "/file/versions/restore"): Row(400),
    ("DELETE", "/file/versions"): Row(422),
    ("POST", "/file/link"): Row(400),
    ("GET", "/file/link"): Row(200),
    ("DELETE", "/file/link/{id}"): Row(404),
    ("POST", "/file/sign"): Row(400),
    ("GET", "/s/{token}"): Row(404, "has the link"),
    ("POST", "/s/{token}"): Row(404, "has the link"),
    ("POST", "/s/{token}/open"): Row({400, 415}, "has the link"),
    ("GET", "/assets/{name}"): Row(404, "the pages of links"),
    ("GET", "/d/{name:[^/]+}"): Row(403, "has the signature"),
    ("GET", "/docs"): Row(200, "documentation"),
    ("GET", "/docs/{name}"): Row(404, "documentation"),
    ("GET", "/openapi.json"): Row(200, "documentation"),
    ("GET", "/_preflight"): Row(404, "nginx's question, which asks for the account by itself"),
    ("GET", "/_decide"): Row(404, "nginx's question, which asks for the account by itself"),
}


def address_of(path: str) -> str:
    """A route's address, with something in place of its variables."""
    return re.sub(r"\{[^}]*\}", "nothing", path)


def is_unauthenticated(reply: Reply) -> bool:
    """Whether the answer is the one that RFC 6750 has for a missing or invalid token."""
    return reply.status == 401 and reply.headers["WWW-Authenticate"] == "Bearer"


async def test_every_route_has_its_line_in_this_file() -> None:
    assert {(route.method, route.path): route.is_public for route in ROUTES} == {
        key: row.public != "" for key, row in EXPECTED.items()}


# --- who may ask what ---

def expired(api: Api) -> str:
    """A token that was good until a minute ago, and of right length of life."""
    claims = jwt.decode(api.token, options={"verify_signature": False})
    lifetime = claims["exp"] - claims["iat"]
    claims |= {"exp": int(time.time()) - 60, "iat": int(time.time()) - 60 - lifetime}
    return jwt.encode(claims, (api.stack.root / "jwt_secret").read_text(encoding="ascii").strip(), "HS256")


def foreign(api: Api) -> str:
    """A token as ours, signed by somebody else."""
    return jwt.encode(jwt.decode(api.token, options={"verify_signature": False}), "x" * 64, "HS256")


async def ended(api: Api) -> str:
    """A token whose session has ended everywhere."""
    tokens = (await api.call("POST", "/auth/jwt/login", expect=200,
                             json={"username": api.username, "password": PASSWORD})).json
    token = str(tokens["access_token"])
    await api.call("POST", "/auth/jwt/logout", headers={"Authorization": f"Bearer {token}"}, expect=204)
    await is_refused_in_time(api, token)
    return token


def requests() -> Iterator[tuple[str, str, Row]]:
    """Method, address and expectation of each route, and of the HEAD beside each GET."""
    for (method, path), row in EXPECTED.items():
        yield method, address_of(path), row
        if method == "GET":
            yield "HEAD", address_of(path), row


async def refuses_all_but_public(api: Api, headers: dict[str, str]) -> None:
    """Ask each route with these headers instead of a token."""
    stranger = Api(api.session, api.stack)
    for method, address, row in requests():
        reply = await stranger.call(method, address, headers=headers)
        if row.public:
            assert row.fits(reply), (method, address, reply.body)
        else:
            assert is_unauthenticated(reply), (method, address, reply.status, reply.body)
            assert method == "HEAD" or reply.code == "unauthenticated"


async def test_without_token_only_public_routes_answer(api: Api) -> None:
    await refuses_all_but_public(api, {})


@pytest.mark.parametrize("kind", ["garbage", "foreign", "expired"])
async def test_with_invalid_token_only_public_routes_answer(api: Api, kind: str) -> None:
    token = {"garbage": "garbage", "foreign": foreign(api), "expired": expired(api)}[kind]
    await refuses_all_but_public(api, {"Authorization": f"Bearer {token}"})


async def test_with_token_of_ended_session_only_public_routes_answer(api: Api) -> None:
    await refuses_all_but_public(api, {"Authorization": f"Bearer {await ended(api)}"})


async def test_with_valid_token_every_route_answers(api: Api) -> None:
    for method, address, row in requests():
        if address == "/auth/jwt/logout":
            continue
        reply = await api.call(method, address)
        assert row.fits(reply), (method, address, reply.body)
        assert method == "HEAD" or reply.status < 400 or reply.code
    await api.call("POST", "/auth/jwt/logout", expect=204)


# --- what is no route ---

NOWHERE = ["/nope", "/file/", "/file/nope", "/FILE/list", "/file/list/", "/auth", "/auth/", "/docs/", "/docs/a/b",
           "/.git/config", "/index.html", "/ping", "/file%2flist", "/wp-login.php", "/static/x",
           "/file/download/x", "/%ff", "/a b"]


async def test_unknown_address_is_404_for_everybody(api: Api, anonymous: Api) -> None:
    for address in NOWHERE:
        for asking in (api, anonymous):
            for method in ("GET", "POST", "DELETE"):
                reply = await asking.call(method, address.replace(" ", "%20"))
                assert (reply.status, reply.code) == (404, "not_found"), (method, address)


async def test_wrong_method_is_405_and_told_which_are_right(api: Api) -> None:
    allowed: dict[str, set[str]] = {}
    for (method, path), row in EXPECTED.items():
        if not (row.public and row.status == 404):  # those do not show that they are there
            allowed.setdefault(address_of(path), set()).update({method, "HEAD"} if method == "GET" else {method})
    for address, methods in allowed.items():
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"} - methods:
            reply = await api.call(method, address)
            assert (reply.status, reply.code) == (405, "method_not_allowed"), (method, address)
            assert set(re.split(r",\s*", reply.headers.get("Allow", ""))) == methods, (method, address)


INTERNAL = [
    "/_preflight", "/_preflight/", "/_refuse/401", "/_refuse/", "/_refused", "/_problem", "/_unreadable/200",
    "/_unreadable/", "/_unsatisfiable", "/_blobs", "/_blobs/", "/_blobs/00/x", "/_blobs../jwt_secret",
    "/_linked", "/_linked/", "/_linked/00/x", "/_linked../jwt_secret", "/_linked/%2e%2e/jwt_secret",
    "/_blobs/../jwt_secret", "/_blobs/%2e%2e/jwt_secret", "/_blobs..%2fjwt_secret", "/_", "/_anything", "/metrics",
    "/metrics/", "/metrics?name=x", "/%5fpreflight", "/%5Fblobs/", "/x/../_preflight", "//_preflight", "/./_refused",
    "/_preflight?x=1", "/_decide", "/_decide/", "/_decide?path=/x", "/_decided/",
    "/_decided/image-png/00/x", "/_decided/image-png/..%2f..%2fjwt_secret", "/_decided/image-png/../../jwt_secret",
    "/m%65trics", "/%2e/metrics", "//metrics",
]


async def test_internal_address_is_not_there_from_outside(api: Api) -> None:
    before = files_on_disk(api.stack)
    await api.put("/a.txt", b"hello")
    blobs = [f"/_{name}" for name in files_on_disk(api.stack) - before if name.startswith("blobs/")]
    assert blobs
    blobs += [address.replace("/_blobs/", "/_linked/") for address in blobs]
    for address in (*INTERNAL, *blobs):
        for method in ("GET", "HEAD", "POST", "PUT"):
            for token in ("none", api.token):
                reply = await converse(api.stack, (
                    f"{method} {address} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
                    "X-Original-Method: PUT\r\nX-Original-Uri: /file?path=/x\r\nContent-Length: 0\r\n"
                    "Connection: close\r\n\r\n".encode(), ""), is_head=method == "HEAD")
                # without nginx an address shows that it is one, but not what is there
                # so does /metrics, and which methods it would have is in the document
                hidden = 404 if method in ("GET", "HEAD") or (
                    api.stack.is_behind_nginx and "trics" not in address) else reply.status
                assert reply.status == hidden in (404, 405), (method, address, reply.status, reply.body)
                assert method == "HEAD" or reply.code in ("not_found", "method_not_allowed")
                assert not {"X-Next", "X-Reject-Body", "X-Uploader"} & set(reply.headers)


# --- every error looks the same ---

@pytest.mark.parametrize(("request_bytes", "statuses"), [
    (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 414}),
    (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n", {400, 431}),
    (b"garbage\r\n\r\n", {400}), (b"GET / HTTP/1.1\r\nHost: a\r\nbroken header\r\n\r\n", {400}),
    (b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n", {400, 505}),
    (b"POST /auth/jwt/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", {413}),
    (b"POST /auth/jwt/login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", {400}),
    (b"POST /auth/jwt/login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", {400, 501}),
    (b"POST /auth/jwt/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", {400}),
], ids=lambda value: ascii(value)[:50])
async def test_what_is_hardly_a_request_gets_a_problem_too(
        stack: Stack, request_bytes: bytes, statuses: set[int]) -> None:
    reply = await converse(stack, (request_bytes, ""))
    assert reply.status in statuses
    assert reply.code
    assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["X-Request-Id"])
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert b"Traceback" not in reply.body
    assert b"<html" not in reply.body


async def test_title_is_the_status_in_the_words_of_rfc_9110(api: Api) -> None:
    await api.put("/a.txt", b"x")
    too_large = await api.call("POST", "/auth/jwt/login", json={"username": "x" * 70_000}, expect=413)
    for reply, title in (
            (too_large, "Content Too Large"),
            (await api.get("/a.txt", headers={"Range": "bytes=5-"}, expect=416), "Range Not Satisfiable"),
            (await api.get("/..", expect=422), "Unprocessable Content"),
            (await api.get("/b", expect=404), "Not Found")):
        assert reply.code
        assert (reply.json["title"], reply.json["type"]) == (title, "about:blank")


async def test_request_id_is_new_each_time_and_never_the_clients(anonymous: Api) -> None:
    seen = {(await anonymous.call("GET", address, headers={"X-Request-Id": "evil"})).headers["X-Request-Id"]
            for address in ("/livez", "/nope", "/file/list", "/ping/all", "/docs") for _ in range(2)}
    assert len(seen) == 10
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in seen)


# --- documentation ---

async def test_openapi_document_is_valid_and_has_every_route(anonymous: Api) -> None:
    reply = await anonymous.call("GET", "/openapi.json", expect=200)
    assert reply.headers["Content-Type"].startswith("application/json")
    OpenAPIV31SpecValidator(reply.json).validate()
    described = {(method.upper(), path) for path, item in reply.json["paths"].items() for method in item}
    questions = {("GET", "/_preflight"), ("GET", "/_decide")}
    assert {(method, re.sub(r":[^}]*", "", path)) for method, path in EXPECTED} - questions <= described
    paths = {path for _, path in described}
    assert not any(path.startswith("/_") for path in paths)


async def test_documentation_page_needs_nothing_from_elsewhere(anonymous: Api) -> None:
    page = await anonymous.call("GET", "/docs", expect=200)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert len(parts) >= 4
    assert all(part.startswith("/") and not part.startswith("//") for part in parts)
    for part in parts:
        await anonymous.call("GET", part, expect=200)


async def test_documentation_is_not_sent_twice(anonymous: Api) -> None:
    for address in ("/docs", "/openapi.json", "/docs/swagger-ui.css"):
        etag = (await anonymous.call("GET", address, expect=200)).headers["ETag"]
        assert (await anonymous.call("GET", address, headers={"If-None-Match": etag}, expect=304)).body == b""
