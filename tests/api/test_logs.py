"""The log from outside: a line for each action, no secret in any file, nothing that a client could write into it."""

import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import orjson
import pytest

from tests.client import PASSWORD, Api, Reply, converse, until
from tests.stack import Stack

# what moves the cursor of a terminal, begins a line or turns text around
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Log:
    """What the workers write from now on."""

    def __init__(self, stack: Stack) -> None:
        self._path = stack.root / "log" / "service.log"
        self._begin = self._path.stat().st_size

    @property
    def lines(self) -> list[str]:
        """All of it that is whole."""
        with self._path.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode("utf-8", "strict").split("\n")[:-1]

    async def about(self, reply: Reply) -> dict[str, Any]:
        """The one line about a request."""
        request_id = reply.headers["X-Request-Id"]
        await until(lambda: any(request_id in line for line in self.lines))
        (line,) = (line for line in self.lines if request_id in line)
        found = orjson.loads(line)
        assert isinstance(found, dict)
        return found


def user_of(api: Api) -> str:
    """The account's id."""
    return str(jwt.decode(api.token, options={"verify_signature": False})["sub"])


# --- a line for each action ---

async def test_each_action_has_one_line_that_says_who_did_what(api: Api) -> None:
    log = Log(api.stack)
    stored = (await api.put("/a/b.txt", b"hello")).json
    actions: list[tuple[Reply, str, str, int, dict[str, Any]]] = [
        (await api.put("/a/c.txt", b"hello"), "upload_bytes", "PUT", 201, {"path": "/a/c.txt", "size": 5}),
        (await api.put("/a/c.txt", b"hi", expect=200), "upload_bytes", "PUT", 200, {"path": "/a/c.txt", "size": 2}),
        (await api.post(b"x", path="/форма/"), "upload_form", "POST", 201, {"path": "/форма/file.bin", "size": 1}),
        (await api.call("GET", "/file/list"), "list_files", "GET", 200, {}),
        (await api.call("GET", "/file/info?path=/a"), "show_file", "GET", 200, {"path": "/a"}),
        (await api.get("/a/b.txt"), "download_file", "GET", 200, {"path": "/a/b.txt"}),
        (await api.get(stored["id"]), "download_file", "GET", 200, {"path": stored["id"]}),
        (await api.call("GET", "/file/usage_memory"), "show_usage", "GET", 200, {}),
        (await api.call("GET", "/auth/me"), "show_me", "GET", 200, {}),
        (await api.get("/none", expect=404), "download_file", "GET", 404, {"path": "/none", "code": "not_found"}),
        (await api.put("/a", b"", expect=409), "upload_bytes", "PUT", 409, {"path": "/a", "code": "is_a_folder"}),
        (await api.get("/a/b.txt", headers={"If-Match": '"x"'}, expect=412), "download_file", "GET", 412,
         {"path": "/a/b.txt", "code": "precondition_failed"}),
        (await api.delete("/a/../b", expect=422), "delete_file", "DELETE", 422,
         {"path": "/a/../b", "code": "invalid_path", "field": "path"}),
        (await api.delete("/a", permanent=True), "delete_file", "DELETE", 204, {"path": "/a"}),
        (await api.call("POST", "/auth/jwt/logout"), "log_out", "POST", 204, {}),
    ]
    for reply, event, method, status, more in actions:
        line = await log.about(reply)
        wanted = {"event": event, "method": method, "status": status, "user": user_of(api), **more}
        assert {key: line.get(key) for key in wanted} == wanted
        assert isinstance(line["duration_ms"], float)
        assert line["level"] == "info"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])


async def test_action_without_account_has_its_line_too(anonymous: Api) -> None:
    log = Log(anonymous.stack)
    name = f"log-{uuid.uuid4().hex[:12]}"
    credentials = {"username": name, "password": PASSWORD}
    for reply, event, status, more in (
            (await anonymous.call("POST", "/auth/register", json=credentials), "register", 201, {"username": name}),
            (await anonymous.call("POST", "/auth/jwt/login", json=credentials), "log_in", 200, {"username": name}),
            (await anonymous.call("POST", "/auth/jwt/login", json={**credentials, "password": "wrong"}), "log_in", 401,
             {"username": name, "code": "invalid_credentials"}),
            (await anonymous.call("POST", "/auth/jwt/refresh", json={"refresh_token": "x"}), "refresh", 401,
             {"code": "invalid_refresh_token"}),
            (await anonymous.call("GET", "/file/list"), "list_files", 401, {"code": "unauthenticated"}),
            (await anonymous.call("GET", "/ping/all"), "ping_all", 200, {})):
        line = await log.about(reply)
        wanted = {"event": event, "status": status, "user": None, **more}
        assert {key: line.get(key) for key in wanted} == wanted


async def test_upload_that_was_refused_before_its_first_byte_has_its_line(api: Api) -> None:
    log = Log(api.stack)
    stranger = Api(api.session, api.stack, "garbage")
    gzip = {"Content-Encoding": "gzip"}
    for reply, event, method, status, code, who in (
            (await stranger.put("/a.txt", b"x", expect=401), "upload_bytes", "PUT", 401, "unauthenticated", None),
            (await stranger.post(b"x", path="/a.txt", expect=401), "upload_form", "POST", 401, "unauthenticated", None),
            (await api.put("/a.txt", b"x", headers=gzip, expect=415), "upload_bytes", "PUT", 415,
             "unsupported_encoding", user_of(api)),
            (await api.put("/a/../b", expect=422), "upload_bytes", "PUT", 422, "invalid_path", user_of(api))):
        line = await log.about(reply)
        wanted = {"event": event, "method": method, "status": status, "code": code, "user": who}
        assert {key: line.get(key) for key in wanted} == wanted


# --- no secrets ---

def files_below(stack: Stack) -> list[Path]:
    """Every file that the service and its PostgreSQL wrote, but the bytes that were uploaded."""
    return [stack.root.parent / f"{stack.root.name}.out", *(
        path for path in stack.root.rglob("*") if path.is_file() and path.relative_to(stack.root).parts[0] != "blobs")]


async def test_no_secret_is_in_any_file(api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    log = Log(api.stack)
    name, right = f"secret-{uuid.uuid4().hex[:12]}", f"right {uuid.uuid4()}"
    wrong, short, mistyped = f"wrong {uuid.uuid4()}", uuid.uuid4().hex[:7], f"mistyped {uuid.uuid4()}"
    guess = f"{uuid.uuid4().hex}.{uuid.uuid4().hex}{uuid.uuid4().hex[:11]}"
    stranger = Api(api.session, api.stack)
    for password in (short, right, wrong):
        await stranger.call("POST", "/auth/register", json={"username": name, "password": password})
    await stranger.call("POST", "/auth/jwt/login", json={"username": name, "password": wrong}, expect=401)
    await stranger.call("POST", "/auth/jwt/login", data={"username": name, "password": wrong}, expect=401)
    await stranger.call("POST", "/auth/jwt/login", json={"username": "", "password": mistyped}, expect=422)
    for body in (f'{{"username": "{name}", "password": "{mistyped}"', f"username={name}&password={mistyped}&%%"):
        for content_type in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
            await stranger.call("POST", "/auth/jwt/login", data=body.encode(), headers={"Content-Type": content_type})
    tokens = (await stranger.call("POST", "/auth/jwt/login", json={"username": name, "password": right},
                                  expect=200)).json
    known = Api(api.session, api.stack, tokens["access_token"])
    await known.put("/a.txt", b"x")
    await known.get("/none", expect=404)
    await known.put("/a.txt/b", b"x", expect=409)
    await known.call("POST", "/file", data=b"x", expect=415)
    await known.call("GET", "/nope", expect=404)
    head = f"Host: localhost\r\nAuthorization: Bearer {known.token}\r\n"
    await converse(api.stack, (f"GET /livez HTTP/1.1\r\n{head}broken\r\n\r\n".encode(), ""))
    chunks = "Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    await converse(api.stack, (f"PUT /file?path=/b HTTP/1.1\r\n{head}{chunks}".encode(), ""))
    await stranger.call("POST", "/auth/jwt/refresh", json={"refresh_token": guess}, expect=401)
    fresh = (await stranger.call("POST", "/auth/jwt/refresh", json={"refresh_token": tokens["refresh_token"]},
                                 expect=200)).json
    await stranger.call("POST", "/auth/jwt/refresh", json={"refresh_token": tokens["refresh_token"]}, expect=401)
    await known.call("POST", "/auth/jwt/logout")
    await log.about(await stranger.call("GET", "/ping/all"))  # so all before it is written
    secrets = {"password": right, "wrong password": wrong, "short password": short, "mistyped password": mistyped,
               "access token": tokens["access_token"], "signature": tokens["access_token"].rpartition(".")[2],
               "refresh token": tokens["refresh_token"], "its secret": tokens["refresh_token"].rpartition(".")[2],
               "new refresh token": fresh["refresh_token"], "new access token": fresh["access_token"],
               "guessed refresh token": guess}
    for path in files_below(api.stack):
        try:
            written = path.read_bytes()
        except FileNotFoundError:  # PostgreSQL makes and removes files all the time
            continue
        for kind, secret in secrets.items():
            assert secret.encode() not in written, (kind, path)


# --- nothing of a client's own making ---

EVIL = ["a\r\nb", '{"event": "forged"}\n{"event": "forged", "status": 200}', "\x1b[2J\x1b[31mred", "\x9b31m",
        "a\u2028b", "\u202etxt.exe", "\x00", "\x7f\x08\x08", '", "event": "forged', "%0d%0aforged", "\\u000aforged"]


@pytest.mark.parametrize("text", EVIL, ids=ascii)
async def test_text_of_a_client_never_becomes_a_line_of_its_own(api: Api, text: str) -> None:
    log = Log(api.stack)
    form = (b'--B\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--B\r\n'
            b'Content-Disposition: form-data; name="path"\r\n\r\n' + text.encode() + b"\r\n--B--\r\n")
    replies = [
        await api.put(f"/{text}", b"x", expect=None), await api.get(f"/{text}", expect=None),
        await api.call("GET", f"/file/info?path={quote(text)}&x={quote(text)}"),
        await api.call("POST", "/file", data=form, headers={"Content-Type": "multipart/form-data; boundary=B"}),
        await api.call("POST", "/auth/register", json={"username": text, "password": PASSWORD}),
        await api.call("POST", "/auth/jwt/login", json={"username": text, "password": PASSWORD}),
        await api.call("POST", "/file/folder", json={"path": f"/{text}"}),
        await api.call("GET", f"/{quote(text)}"),
    ]
    header = re.sub(r"[\r\n\0]", " ", text)
    replies.append(await converse(api.stack, (
        f"GET /file/list HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {header}\r\nReferer: {header}\r\nX-Request-Id: "
        f"{header}\r\nX-Forwarded-For: {header}\r\nX-Real-IP: {header}\r\nConnection: close\r\n\r\n".encode(), "")))
    assert all(reply.status < 500 for reply in replies)
    await log.about(await api.call("GET", "/ping/all"))
    assert not any(CONTROLS.search(line) for line in log.lines)
    entries = [orjson.loads(line) for line in log.lines]
    assert all(isinstance(entry, dict) and entry["event"] != "forged" for entry in entries)
    requests = [entry["request_id"] for entry in entries if "request_id" in entry]
    assert len(requests) == len(set(requests))
