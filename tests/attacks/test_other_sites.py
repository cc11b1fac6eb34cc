"""Attack 16: what another site can make a visitor's browser send here, and what it gets to see of the answer.

A browser sends "simple" requests (Fetch, "CORS-safelisted") without asking, with the cookies of the service.
"""

import re

import pytest

from service.api.routes import ROUTES
from tests.attacks.wire import ask, form, part, request
from tests.client import PASSWORD, Api

ORIGINS = ("http://evil.example", "null", "http://localhost:1", "https://127.0.0.1")
PUBLIC = [(route.method, re.sub(r"\{[^}]*\}", "x", route.path)) for route in ROUTES if not route.path.startswith("/_")]


@pytest.mark.parametrize("origin", ORIGINS)
async def test_no_answer_lets_another_site_read_it(api: Api, origin: str) -> None:
    """On every route, with a token and without, and when the browser asks first (a preflight)."""
    for method, path in PUBLIC:
        if (method, path) in (("POST", "/auth/jwt/logout"), ("DELETE", "/auth/session")):
            continue  # they would end the session; the preflight for them is asked below
        for token in ("", api.token):
            shot = request(f"{method} {path}", f"Origin: {origin}", token=token, body=b"")
            answer = ask(api.stack, shot, method=method)
            assert not [name for name, _ in answer.headers if name.startswith("access-control-")], (method, path)
    for path in {path for _, path in PUBLIC}:
        for method in ("PUT", "DELETE", "POST", "GET"):
            answer = ask(api.stack, request(
                f"OPTIONS {path}", f"Origin: {origin}", f"Access-Control-Request-Method: {method}",
                "Access-Control-Request-Headers: authorization, content-type",
                "Access-Control-Request-Private-Network: true"))
            assert not [name for name, _ in answer.headers if name.startswith("access-control-")], (path, answer)


async def test_no_cookie_stands_for_an_account(api: Api) -> None:
    """So whatever another site makes a browser send is a request of nobody."""
    await api.put("/a", b"mine")
    for path, data in (("/auth/jwt/login", {"username": api.username, "password": PASSWORD}),
                       ("/auth/jwt/refresh", {"refresh_token": api.refresh_token})):
        reply = await api.call("POST", path, json=data, expect=200)
        assert "Set-Cookie" not in reply.headers
        api.token = reply.json["access_token"]
    cookies = "; ".join(f"{name}={value}" for name in (
        "token", "access_token", "session", "jwt", "Authorization", "link_password", "auth") for value in (
        api.token, f"Bearer%20{api.token}"))
    body = form(part('name="file"; filename="a"', b"theirs"))
    for line, kind, content in (
            ("POST /file?path=/a", "multipart/form-data; boundary=b0undary", body),
            ("PUT /file?path=/a", "text/plain", b"theirs"), ("DELETE /file?path=/a", "text/plain", b""),
            ("POST /file/folder", "text/plain", b'{"path": "/b"}'), ("GET /file/list", "text/plain", b""),
            ("POST /file/move", "application/x-www-form-urlencoded", b"from=/a&to=/b"),
            ("DELETE /file/trash", "text/plain", b""), ("POST /auth/jwt/logout", "text/plain", b""),
            ("DELETE /auth/me", "text/plain", b'{"password": "x"}')):
        for origin in ORIGINS:
            answer = ask(api.stack, request(line, f"Cookie: {cookies}", f"Origin: {origin}", f"Content-Type: {kind}",
                                            "Sec-Fetch-Site: cross-site", body=content))
            assert (answer.status, answer.code) == (401, "unauthenticated"), (line, answer)
    assert [file["path"] for file in await api.list()] == ["/a"]
    assert (await api.get("/a")).body == b"mine"


async def test_json_in_a_form_that_needs_no_leave_is_not_taken(api: Api) -> None:
    """A form with enctype="text/plain" can say JSON; the type says that it is none."""
    for path, body in (("/file/folder", b'{"path": "/b", "x": "="}'), ("/file/link", b'{"path": "/"}'),
                       ("/auth/jwt/login", b'{"username": "x", "password": "="}')):
        answer = ask(api.stack, request(f"POST {path}", "Content-Type: text/plain", token=api.token, body=body))
        assert (answer.status, answer.code) == (415, "unsupported_media_type"), (path, answer)


async def test_pages_cannot_be_framed_or_opened_into(api: Api) -> None:
    """A link's page in a frame of another site could be clicked on by somebody who sees something else."""
    made = await api.call("POST", "/file/link", json={"path": "/"}, expect=201)
    page = await api.call("GET", "/s/" + made.json["url"].rpartition("/")[2], headers={"Accept": "text/html"},
                          expect=200)
    policy = page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "unsafe-eval" not in policy
