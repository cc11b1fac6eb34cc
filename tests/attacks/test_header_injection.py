"""Attack 14: text of a client that would become a header, or a line of the log."""

import re
from email.message import Message
from urllib.parse import quote, unquote

import orjson
import pytest

from tests.attacks import disk
from tests.attacks.logs import Mark
from tests.attacks.wire import Answer, ask, form, part, request, upload_form
from tests.client import PASSWORD, Api
from tests.stack import Stack

NAMES = [
    'a"; filename="evil.html', "a\\", 'a\\"', "a;b=c", "a, b", "a%0d%0aX-Evil: 1", "a%22%0d", "a' OR 1=1", "%", "%%",
    "=?utf-8?B?ZXZpbA==?=", "utf-8''evil", "a\u00a0b", "é", "日本語", "😀.html", "<script>alert(1)</script>.svg", "a`b",
    "a{b}", "a$b", "~", " a", "a ", "\u00ad", "a\u2019b", "x" * 255, "é" * 127, "€" * 85, "\U0001f600" * 63, "𝒳.txt",
    "a\u0301\u0301", "\ufeffbom", "\u200bzero", "filename*=utf-8''x", '"', '""', "'", "attachment", "inline",
]
SAFE_TYPES = re.compile(r"application/octet-stream|(image|audio|video)/[a-z0-9.+-]+|application/(pdf|json|zip|gzip)"
                        r"|text/(plain|csv); charset=utf-8")


def _shown_name(answer: Answer) -> str:
    """The name that a browser saves the file by (RFC 6266, section 4.3)."""
    value = answer.one("Content-Disposition")
    message = Message()
    message["Content-Disposition"] = value
    assert message.get_content_disposition() == "attachment"
    extended = re.search(r"; filename\*=UTF-8''([A-Za-z0-9!#$&+.^_`|~%-]*)$", value)
    if extended:
        return unquote(extended[1], errors="strict")
    plain = re.fullmatch(r'attachment; filename="([^"\\]*)"', value)
    assert plain, value
    return plain[1]


async def test_names_come_back_in_a_header_that_says_only_that(api: Api) -> None:
    for name in NAMES:
        stored = (await api.put(f"/{name}", b"mine", expect=None)).json
        for method in ("GET", "HEAD"):
            answer = ask(api.stack, request(f"{method} /file/download?path={quote(name, safe='')}", token=api.token),
                         method=method)
            assert answer.status == 200, (name, answer)
            assert _shown_name(answer) == stored["name"], name
            assert not answer.all("X-Evil")
            assert answer.one("X-Content-Type-Options") == "nosniff"
            assert SAFE_TYPES.fullmatch(answer.one("Content-Type")), (name, answer.all("Content-Type"))
            assert len(answer.all("Content-Length")) == 1


CONTROLS = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029", "\u202e", "\u2066"]


async def test_names_with_control_characters_are_refused_at_every_door(api: Api) -> None:
    for control in CONTROLS:
        name = f"a{control}X-Evil: 1"
        shots = [request(f"PUT /file?path=/{quote(name)}", token=api.token, body=b"mine")]
        if control not in "\r\n":
            shots.append(upload_form(form(part(f'name="file"; filename="{name}"', b"mine")), token=api.token))
        escaped = name.replace("\r", "%0D").replace("\n", "%0A")
        shots.append(upload_form(form(part(f'name="file"; filename="{escaped}"', b"mine")), token=api.token))
        shots.append(upload_form(form(part('name="path"', f"/{name}".encode()),
                                      part('name="file"; filename="f"', b"mine")), token=api.token))
        shots.append(upload_form(form(part(f"name=\"file\"; filename*=utf-8''{quote(name)}", b"mine")),
                                 token=api.token))
        for shot in shots:
            answer = ask(api.stack, shot)
            assert answer.status in (400, 422), (control, shot, answer)
            assert answer.code in ("invalid_path", "bad_request")
            assert not answer.all("X-Evil")
            assert b"X-Evil" not in answer.body
    assert await api.list() == []
    disk.settle(api.stack)


TYPES = [
    "text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/javascript", "text/javascript",
    "TEXT/HTML", "text/html ", "text/html;charset=utf-7", "text/html\t", "text/plain;x=\"text/html",
    "text/plain, text/html", "text/plain\x0bX-Evil: 1", "text/plain\rX-Evil: 1", "text/plain\x00",
    "text/plain; a=\"\x7f\"", "multipart/mixed", "application/x-shockwave-flash", "message/rfc822", "x" * 4000, "/",
    "a/", "/b", "", " ", "*/*", "text/плейн", "text", "text/html/x", "image/png;text/html", "application/xml-dtd",
    "application/pdf\r", "text/cache-manifest", "text/calendar",
]


async def test_types_of_a_client_never_carry_a_script_or_a_header(api: Api) -> None:
    """What a browser could run is plain bytes to it, whatever it was declared as and named like."""
    for number, kind in enumerate(TYPES):
        for name in (f"{number}.html", f"{number}.svg"):
            declared, script = f"Content-Type: {kind}", b"<script>alert(1)</script>"
            body = form(part(f'name="file"; filename="{name}"', script, declared))
            answers = [ask(api.stack, request(f"PUT /file?path=/{name}", declared, token=api.token, body=script)),
                       ask(api.stack, upload_form(body, token=api.token))]
            for answer in answers:
                assert answer.status in (200, 201, 400, 413), (kind, answer)
                assert not answer.all("X-Evil")
            if all(answer.status >= 400 for answer in answers):
                continue
            shown = ask(api.stack, request(f"GET /file/download?path=/{name}", token=api.token))
            assert shown.status == 200
            assert SAFE_TYPES.fullmatch(shown.one("Content-Type")), (kind, shown.all("Content-Type"))
            assert shown.one("Content-Disposition").startswith("attachment")
            assert shown.one("X-Content-Type-Options") == "nosniff"
            assert "sandbox" in shown.one("Content-Security-Policy")
            assert not shown.all("X-Evil")


DATA_NAMES = [
    "data:text/html,x", "data:text/html;base64,x", "data:image/svg+xml,x/y", f"data:{'x' * 300}/b,c",
    "data:a%0D%0Ab/c,d", "data:a\x0bb/c,d", "data:,x", "data:a/b;c=d,e", "http://evil.example/x.html", "data:text/html",
    "file:///etc/passwd",
]


async def test_filename_that_is_an_address_declares_no_type(api: Api) -> None:
    """Python's guess of a media type reads one out of `data:` addresses, of any length and with any characters."""
    for number, name in enumerate(DATA_NAMES):
        for kind in ((), ("Content-Type: application/octet-stream",)):
            answer = ask(api.stack, upload_form(form(
                part('name="path"', f"/{number}".encode()), part(f'name="file"; filename="{name}"', b"mine", *kind)),
                token=api.token))
            assert answer.status in (200, 201, 400, 422), (name, answer)
            if answer.status in (200, 201):
                kept = orjson.loads(answer.body)["content_type"]
                assert re.fullmatch(r"[a-z0-9.+-]+/[a-z0-9.+-]+", kept), kept
                assert kept not in ("text/html", "image/svg+xml")


CONDITIONS = [
    '"a"\tb', 'a"b', '"', '""""', '"a', 'a"', "x" * 8000, '"' + "x" * 8000 + '"', ",,,", '"a",' * 500, "W/", 'W/"',
    "**", "* , *", '"\x80"', '"é"', "%0d%0aX-Evil: 1", '"a"; X-Evil: 1', "null", "0", "-1", "{}", "'a'", '"\\""', "W/*",
    "w/\"a\"",
]


PROBES = [
    ("GET /file/download?path=/a", None), ("PUT /file?path=/b", b"x"), ("PUT /file?path=/a", b"mine"),
    ("DELETE /file?path=/nothing", None), ("HEAD /file/download?path=/a", None), ("GET /docs", None),
    ("GET /openapi.json", None),
]


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
async def test_conditions_of_any_kind_are_a_clear_answer(api: Api, header: str) -> None:
    await api.put("/a", b"mine")
    for value in CONDITIONS:
        for line, body in PROBES:
            method = line.partition(" ")[0]
            answer = ask(api.stack, request(line, f"{header}: {value}", token=api.token, body=body), method=method)
            assert answer.status in (200, 201, 304, 400, 404, 412), (value, line, answer)
            assert not answer.all("X-Evil")
            if answer.status >= 400 and method != "HEAD":
                assert answer.code
    assert (await api.get("/a")).body == b"mine"


async def test_text_of_the_address_comes_back_in_no_header(api: Api) -> None:
    evil = "%0d%0aX-Evil:%201%0d%0a%0d%0a<html>"
    for line in (f"GET /file/info?path={evil}", f"GET /file/download?path=/{evil}", f"GET /{evil}", f"GET /docs/{evil}",
                 f"GET /file/download/?{evil}=1", f"GET /file/list?{evil}", f"DELETE /file?path={evil}",
                 f"GET /file/download?path=/x&{evil}", f"GET /file{evil}", f"OPTIONS /{evil}", f"GET //{evil}",
                 f"GET /file/list?cursor={evil}&sort={evil}&order={evil}", "GET //evil.example/%2f..",
                 "GET /%5cevil.example",
                 "GET /file/download//evil.example", "GET https://evil.example/nowhere"):
        answer = ask(api.stack, request(line, token=api.token))
        assert not answer.all("X-Evil"), line
        assert not answer.all("Location"), (line, answer)
        assert b"<html>" not in answer.body
        assert answer.one("Content-Type").startswith(("application/problem+json", "application/json")), (line, answer)


@pytest.mark.parametrize("name", ["alice\r\nX-Evil: 1", "alice\n", "\x00alice", "alice\x1b[2J", "a\u2028b", "\x7f",
                                  "a\u0085b"])
async def test_username_with_control_characters_is_refused(stack: Stack, name: str) -> None:
    for line in ("POST /auth/register", "POST /auth/jwt/login"):
        for field in ("username", "login", "email"):
            body = orjson.dumps({field: name, "password": PASSWORD})
            answer = ask(stack, request(line, "Content-Type: application/json", body=body))
            assert (answer.status, answer.code) == (422, "invalid_field"), answer
            assert orjson.loads(answer.body)["field"] in ("username", "login", "email")
            assert not answer.all("X-Evil")


async def test_nothing_of_a_client_begins_a_line_of_the_log(api: Api) -> None:
    """CR, LF, escape sequences and quotes, in everything that a client says."""
    forged = '\n{"event":"forged","level":"error"}'
    mark = Mark.now(api.stack)
    body = orjson.dumps({"username": f"a{forged}", "password": PASSWORD})
    ask(api.stack, request("POST /auth/jwt/login", "Content-Type: application/json", body=body))
    for name in (f"/a{forged}", "/\x1b[31mred", '/"}\u2028{', "/\u202eevil", "/ok'\"\\"):
        ask(api.stack, request(f"PUT /file?path={quote(name)}", token=api.token, body=b"x"))
        ask(api.stack, request(f"GET /file/info?path={quote(name)}", f"User-Agent: {quote(forged)}\x1b[31m",
                               f"Referer: {quote(forged)}", "X-Request-Id: x\ty", token=api.token))
        ask(api.stack, upload_form(form(part('name="path"', name.encode()), part(f'name="{quote(name)}"', b"x"),
                                        part('name="file"; filename="f"', b"x")), token=api.token))
    lines = mark.lines("service.log")
    assert len(lines) >= 10
    for line in lines:
        entry = orjson.loads(line)
        assert entry["event"] != "forged"
        assert not set(line) & (set(range(32)) | {0x7F})


async def test_secrets_of_a_client_are_in_no_log(api: Api) -> None:
    mark = Mark.now(api.stack)
    password = "a secret that nobody may read"
    for body in (orjson.dumps({"username": api.username, "password": password}),
                 orjson.dumps({"username": api.username, "password": PASSWORD}),
                 orjson.dumps({"username": "x" * 300, "password": password}),
                 b'{"username": "a", "password": "' + password.encode() + b'"'):
        ask(api.stack, request("POST /auth/jwt/login", "Content-Type: application/json", body=body))
        ask(api.stack, request("POST /auth/register", "Content-Type: application/json", body=body))
    ask(api.stack, request("POST /auth/jwt/login", "Content-Type: application/x-www-form-urlencoded",
                           body=f"username={api.username}&password={quote(password)}".encode()))
    ask(api.stack, request(f"GET /auth/me?access_token={api.token}", token=api.token))
    ask(api.stack, request("GET /auth/me", token=api.token + "x"))
    ask(api.stack, request("POST /auth/jwt/refresh", "Content-Type: application/json",
                           body=orjson.dumps({"refresh_token": api.refresh_token + "x"})))
    text = mark.text()
    for secret in (password, PASSWORD, api.token, api.token.rpartition(".")[2], api.refresh_token.partition(".")[2],
                   quote(password)):
        assert secret not in text
