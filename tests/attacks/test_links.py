"""Attack 9: what a public link must not give: names, siblings, more downloads, guesses of its password, scripts."""

import asyncio
import io
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import asyncpg
import pytest

from tests.client import PASSWORD, Api, Reply, new_account
from tests.stack import Stack

BROWSER = {"Accept": "text/html"}
SECRET_NAME = "payroll-осень.txt"
SECRET = b"0123456789 confidential"


async def make_link(api: Api, path: str, **more: Any) -> str:
    """The path of the address of a new link."""
    made = await api.call("POST", "/file/link", json={"path": path, **more}, expect=201)
    return str(urlsplit(made.json["url"]).path)


def drop(data: bytes, filename: str = "dropped.bin") -> aiohttp.FormData:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", io.BytesIO(data), filename=filename)
    return form


def without_what_differs(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    """All of an answer but the time and the id of the request."""
    request_id = reply.headers["X-Request-Id"]
    headers = {name: value for name, value in reply.headers.items() if name.lower() not in ("date", "x-request-id")}
    return reply.status, headers, reply.body.replace(request_id.encode(), b"ID")


# --- the password ---

DOORS: list[tuple[str, str, dict[str, str]]] = [
    (method, query, headers)
    for method in ("GET", "HEAD")
    for query in ("", "?download=1", f"?path={quote(SECRET_NAME)}", "?path=none",
                  f"?path={quote(SECRET_NAME)}&download=1", "?after=f/a", "?sent=1")
    for headers in ({}, BROWSER, {"Range": "bytes=0-3"}, {"If-None-Match": "*"}, {"If-Match": '"x"'},
                    {"Cookie": "link_password=1; link_resume=1"}, {"X-Link-Password": ""},
                    {"X-Link-Password": "wrong password"}, {"Authorization": "Basic OnBhc3N3b3Jk"})
]


@pytest.mark.parametrize("shared", ["/secret", f"/secret/{SECRET_NAME}"])
async def test_password_guards_every_door(api: Api, anonymous: Api, shared: str) -> None:
    etag = (await api.put(f"/secret/{SECRET_NAME}", SECRET)).json["etag"]
    link = await make_link(api, shared, password=PASSWORD)
    for method, query, headers in DOORS:
        reply = await anonymous.call(method, link + query, headers=headers)
        assert reply.status in (401, 429), (method, query, headers, reply.status)
        told = reply.body.decode() + str(reply.headers)
        for secret in ("payroll", "secret", quote(SECRET_NAME), etag.strip('"'), str(len(SECRET)) + " bytes"):
            assert secret not in told, (method, query, headers)
        assert not {"ETag", "Last-Modified", "Content-Disposition", "Repr-Digest", "Set-Cookie", "Accept-Ranges"} \
            & set(reply.headers)
    assert (await api.call("GET", "/file/link")).json["links"][0]["downloads"] == 0


async def test_password_guards_uploads_before_their_first_byte(api: Api, anonymous: Api) -> None:
    await api.put("/box/kept", b"")
    link = await make_link(api, "/box", kind="upload", password=PASSWORD)
    for headers in ({}, BROWSER, {"X-Link-Password": "wrong password"}, {"Cookie": "link_password=1"}):
        reply = await anonymous.call("POST", link, data=drop(b"x" * 100_000), headers=headers)
        assert reply.status in (401, 429)
        assert (await anonymous.call("GET", link, headers=headers)).status in (401, 429)
    assert [file["name"] for file in await api.list()] == ["kept"]


async def test_proof_of_one_password_opens_no_other_link(api: Api, anonymous: Api) -> None:
    await api.put("/a.txt", SECRET)
    one, two = [await make_link(api, "/a.txt", password=PASSWORD) for _ in range(2)]
    opened = await anonymous.call("POST", f"{one}/open", json={"password": PASSWORD}, expect=204)
    cookie = opened.headers["Set-Cookie"].partition(";")[0]
    await anonymous.call("GET", one, headers={"Cookie": cookie}, expect=200)
    await anonymous.call("GET", two, headers={"Cookie": cookie}, expect=401)
    name, _, proof = cookie.partition("=")
    seconds, _, tag = proof.partition(".")
    for forged in (f"{int(seconds) + 1}.{tag}", f"{seconds}.{tag[:-1]}", f"{seconds}.{tag.upper()}", f".{tag}",
                   f"{seconds}.", f"{seconds}.{'0' * 64}", f"0{seconds}.{tag}"):
        await anonymous.call("GET", one, headers={"Cookie": f"{name}={forged}"}, expect=401)
        await anonymous.call("GET", one, headers={"Cookie": f"link_resume={forged}", "Range": "bytes=1-"}, expect=401)
    resume = f"link_resume={proof}"  # a proof of one thing is none of another
    limited = await make_link(api, "/a.txt", max_downloads=1)
    await anonymous.call("GET", limited, expect=200)
    await anonymous.call("GET", limited, headers={"Cookie": resume, "Range": "bytes=1-"}, expect=404)


async def test_guesses_of_a_password_are_throttled_before_they_are_hashed(
    session: aiohttp.ClientSession, small: Stack,
) -> None:
    api = await new_account(session, small)
    visitor = Api(session, small)
    await api.put("/a.txt", SECRET)
    locked, other = [await make_link(api, "/a.txt", password=PASSWORD) for _ in range(2)]
    tries: list[Callable[[str], Awaitable[Reply]]] = [
        lambda guess: visitor.call("GET", locked, headers={"X-Link-Password": guess}),
        lambda guess: visitor.call("HEAD", locked, headers={"X-Link-Password": guess}),
        lambda guess: visitor.call("POST", f"{locked}/open", json={"password": guess}),
        lambda guess: visitor.call("POST", f"{locked}/open", data={"password": guess}, headers=BROWSER),
        lambda guess: visitor.call("GET", locked, headers={"X-Link-Password": guess, "X-Forwarded-For": guess,
                                                           "X-Real-IP": f"192.0.2.{len(guess)}", "Forwarded": "for=1"}),
    ]
    replies = [await tries[number % len(tries)]("guess" + "x" * number) for number in range(40)]
    hashed = [reply for reply in replies if reply.status == 401]
    assert len(hashed) <= 6 * 2 + 2  # six for each of two workers that count by themselves, and a minute goes on
    assert {reply.status for reply in replies} == {401, 429}
    for reply in replies:
        assert reply.status == 401 or int(reply.headers["Retry-After"]) >= 1
    for attempt in tries[:3]:
        assert (await attempt(PASSWORD)).status == 429, "the right one is not told from the others either"
    assert (await visitor.call("GET", other, headers={"X-Link-Password": PASSWORD})).status == 200


# --- what is over ---

async def test_links_that_are_over_cannot_be_told_from_what_never_was(api: Api, anonymous: Api) -> None:
    for name in ("expired", "revoked", "used", "trashed", "deleted"):
        await api.put(f"/{name}/a.txt", SECRET)
    links = {"unknown": "/s/" + "A" * 32, "malformed": "/s/nonsense"}
    for kind in ("download", "upload"):
        links |= {f"expired {kind}": await make_link(api, "/expired", expires_in=1, kind=kind),
                  f"revoked {kind}": await make_link(api, "/revoked", kind=kind),
                  f"trashed {kind}": await make_link(api, "/trashed", kind=kind),
                  f"locked {kind}": await make_link(api, "/trashed", kind=kind, password=PASSWORD),
                  f"deleted {kind}": await make_link(api, "/deleted", kind=kind)}
    links["used"] = await make_link(api, "/used/a.txt", max_downloads=1)
    links["used up box"] = await make_link(api, "/used", kind="upload", max_downloads=1)
    await anonymous.call("GET", links["used"], expect=200)
    await anonymous.call("POST", links["used up box"], data=drop(b"x"), expect=201)
    for link in (await api.call("GET", "/file/link?path=/revoked")).json["links"]:
        await api.call("DELETE", f"/file/link/{link['id']}", expect=204)
    await api.delete("/trashed")
    await api.call("DELETE", "/file?path=/deleted&permanent=true", expect=204)
    await asyncio.sleep(1.1)
    asked: list[tuple[str, str, dict[str, str], Callable[[], Any]]] = [
        ("GET", "", {}, lambda: None), ("GET", "", BROWSER, lambda: None), ("HEAD", "", {}, lambda: None),
        ("GET", "?path=a.txt", {}, lambda: None), ("GET", "?download=1", {}, lambda: None),
        ("GET", "", {"Range": "bytes=1-"}, lambda: None), ("POST", "", {}, lambda: drop(b"x")),
        ("POST", "/open", {}, lambda: {"password": PASSWORD}), ("POST", "/open", BROWSER, lambda: {"password": "x"}),
    ]
    for method, rest, headers, data in asked:
        replies = {name: without_what_differs(await anonymous.call(method, link + rest, headers=headers, data=data()))
                   for name, link in links.items()}
        assert replies["unknown"][0] == 404
        different = {name: reply for name, reply in replies.items() if reply != replies["unknown"]}
        assert not different, (method, rest, headers)


async def test_links_end_with_their_account(api: Api, anonymous: Api) -> None:
    await api.put("/a.txt", SECRET)
    link = await make_link(api, "/a.txt")
    conn = await asyncpg.connect(api.stack.dsn)
    user_id = (await api.call("GET", "/auth/me", expect=200)).json["id"]
    async with conn.transaction():
        await conn.execute("DELETE FROM files WHERE user_id = $1", user_id)
        await conn.execute("DELETE FROM users WHERE id = $1", user_id)
    await conn.close()
    await anonymous.call("GET", link, expect=404)


# --- beyond the folder ---

OUTSIDE = ["..", "../", "../ab/b.txt", "../a.b/b.txt", "../top.txt", "/..", "a/../../ab/b.txt", "./a.txt", "./../ab",
           "%2e%2e/ab/b.txt", "..%2fab%2fb.txt", "%252e%252e/ab/b.txt", "..\\ab\\b.txt", "sub/..", "sub/../../ab/b.txt",
           "b/b.txt", ".b/b.txt", "/a/a.txt", "/ab/b.txt", "//ab/b.txt", "ab/b.txt", "a", "/a", "/", "%00", "a.txt%00",
           "a.txt/", "a.txt/.", "sub//x.txt", "%ff", "..%c0%af", "\u2025/ab/b.txt"]


@pytest.mark.parametrize("headers", [{}, BROWSER])
async def test_no_path_leads_out_of_the_folder(api: Api, anonymous: Api, headers: dict[str, str]) -> None:
    for path in ("/a/a.txt", "/a/sub/x.txt", "/ab/b.txt", "/a.b/b.txt", "/top.txt"):
        await api.put(path, b"outside" if "b.txt" in path or "top" in path else b"inside")
    link = await make_link(api, "/a")
    ids = [file["id"] for file in await api.list() if file["path"].startswith(("/ab", "/a.b", "/top"))]
    ids.append((await api.call("GET", "/auth/me")).json["id"])
    for path in (*OUTSIDE, *ids):
        for text in {path, quote(path, safe="%")}:
            if not text.isascii():
                continue
            for query in (f"?path={text}", f"?path={text}&download=1"):
                reply = await anonymous.call("GET", link + query, headers=headers)
                assert b"outside" not in reply.body, path
                if reply.status == 200:  # a spelling of what is inside
                    assert text in ("/", "%2F", "a.txt/", "a.txt%2F"), path
                else:
                    assert reply.status in (400, 404, 422), path
    for path in ("/../ab/b.txt", "/ab/b.txt", "/%2e%2e/ab/b.txt", "%2f..%2fab"):
        assert (await anonymous.call("GET", link + path)).status in (400, 404)


async def test_file_that_was_moved_out_is_out(api: Api, anonymous: Api) -> None:
    stored = (await api.put("/a/x.txt", SECRET)).json
    link = await make_link(api, "/a")
    await anonymous.call("GET", f"{link}?path=x.txt", expect=200)
    conn = await asyncpg.connect(api.stack.dsn)  # a move is a change of one row
    await conn.execute("UPDATE files SET parent_id = user_id, name = 'a x.txt' WHERE id = $1", stored["id"])
    await conn.close()
    await anonymous.call("GET", f"{link}?path=x.txt", expect=404)
    assert (await anonymous.call("GET", link)).json["children"] == []
    assert (await api.get("/a x.txt")).body == SECRET


# --- more than is allowed ---

@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-"}, {"Range": "bytes=1-"}, {"Range": "bytes=0-1,3-4"}])
async def test_hundred_clients_get_exactly_ten_downloads(api: Api, anonymous: Api, headers: dict[str, str]) -> None:
    await api.put("/a.txt", SECRET)
    link = await make_link(api, "/a.txt", max_downloads=10)
    replies = await asyncio.gather(*(anonymous.call("GET", link, headers=headers) for _ in range(100)))
    sent = [reply for reply in replies if reply.status in (200, 206)]
    assert (len(sent), sum(reply.status == 404 for reply in replies)) == (10, 90)
    assert headers or {reply.body for reply in sent} == {SECRET}
    [listed] = (await api.call("GET", "/file/link")).json["links"]
    assert listed["downloads"] == 10


async def test_uploads_hold_to_the_limits_of_the_account(session: aiohttp.ClientSession, small: Stack) -> None:
    api = await new_account(session, small)
    visitor = Api(session, small)
    await api.put("/box/kept", b"x" * 150_000)
    link = await make_link(api, "/box", kind="upload", max_downloads=100)
    assert (await visitor.call("POST", link, data=drop(b"x" * 400_000), expect=413)).code == "too_large"
    replies = await asyncio.gather(*(visitor.call("POST", link, data=drop(b"x" * 60_000)) for _ in range(6)))
    assert sorted(reply.status for reply in replies) == [201, 201, 507, 507, 507, 507]
    assert (await api.usage())["files"] == 270_000
    [listed] = (await api.call("GET", "/file/link")).json["links"]
    assert listed["downloads"] == 2  # what was not stored was not counted


async def test_upload_names_stay_in_the_folder(api: Api, anonymous: Api) -> None:
    await api.put("/box/kept", b"mine")
    await api.put("/top.txt", b"mine")
    link = await make_link(api, "/box", kind="upload")
    for name in ("../top.txt", "/top.txt", "/etc/passwd", "..", ".", "a/../../top.txt", "kept", "x" * 300,
                 "\u202etxt.exe", "kept.", "kept "):
        reply = await anonymous.call("POST", link, data=drop(b"theirs", name))
        assert reply.status in (201, 400, 422), name
    assert (await api.get("/top.txt")).body == (await api.get("/box/kept")).body == b"mine"
    assert {file["path"].rpartition("/")[0] for file in await api.list() if file["path"] != "/top.txt"} == {"/box"}


async def test_tokens_are_in_no_log(api: Api, anonymous: Api) -> None:
    await api.put("/a.txt", SECRET)
    links = [await make_link(api, "/a.txt"), await make_link(api, "/a.txt", password=PASSWORD)]
    for link in links:
        await anonymous.call("GET", link)
        await anonymous.call("POST", link, data=drop(b"x"))
        await anonymous.call("POST", f"{link}/open", json={"password": "a guess of it"})
    text = "".join(path.read_text(encoding="utf-8") for path in (api.stack.root / "log").iterdir())
    assert not any(link.removeprefix("/s/") in text for link in links)
    assert "a guess of it" not in text and PASSWORD not in text
    stored = await _everything_stored(api.stack)
    assert not any(link.removeprefix("/s/") in stored for link in links)


async def _everything_stored(stack: Stack) -> str:
    conn = await asyncpg.connect(stack.dsn)
    rows = await conn.fetch("SELECT links::text AS line FROM links")
    await conn.close()
    return "".join(row["line"] for row in rows)


# --- scripts ---

HOSTILE = ["<img src=x onerror=document.title='pwned'>.txt", "<script>document.title='pwned'<\u2215script>.txt",
           "\"><svg onload=document.title='pwned'>.txt", "' autofocus onfocus='document.title=`pwned`.txt",
           "{{7*7}}{% raise %}.txt", "</title><img src=x onerror=document.title='pwned'>".replace("/", "\u2215"),
           "javascript:document.title='pwned'"]


async def _hostile_pages(api: Api) -> list[str]:
    for name in HOSTILE:
        await api.put(f"/{HOSTILE[0]}/{name}", b"x")
    folder = await make_link(api, f"/{HOSTILE[0]}")
    files = [await make_link(api, f"/{HOSTILE[0]}/{name}") for name in HOSTILE]
    return [folder, *(f"{folder}?path={quote(name)}" for name in HOSTILE), *files]


async def test_hostile_names_are_text_on_the_page(api: Api, anonymous: Api) -> None:
    for page in await _hostile_pages(api):
        text = (await anonymous.call("GET", page, headers=BROWSER, expect=200)).body.decode()
        assert not re.search(r"<img|<script|<svg (?!class=\"icon\")|\"javascript:|\son\w+=(?![^<]*</bdi>|[^<]*</title>"
                             r"|[^\"<]*\">)", text), page
        assert "49" not in re.sub(r"v=\w+|/s/\S+|[\d.]+", "", text)
