"""Public links from outside: made, used by programs and by browsers, listed, revoked."""

import asyncio
import hashlib
import io
import re
import zipfile
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import asyncpg
import pytest

from tests.client import PASSWORD, Api, Reply

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
NAMES = ["привет мир.txt", "写真🌅.jpg", "a'b\"c&d<e>.txt", "100% #1?.txt"]


async def make_link(api: Api, path: str, **more: Any) -> Any:
    return (await api.call("POST", "/file/link", json={"path": path, **more}, expect=201)).json


def address(link: Any) -> str:
    """The path of a link's address."""
    return str(urlsplit(link["url"]).path)


def drop(data: bytes, filename: str) -> aiohttp.FormData:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", io.BytesIO(data), filename=filename)
    return form


def cookie_of(reply: Reply) -> str:
    """What a browser sends back."""
    return reply.headers["Set-Cookie"].partition(";")[0]


async def move_to_root(api: Api, file_id: str, name: str) -> None:
    """A move is a change of one row."""
    conn = await asyncpg.connect(api.stack.dsn)
    await conn.execute("UPDATE files SET parent_id = user_id, name = $2 WHERE id = $1", file_id, name)
    await conn.close()


async def test_link_downloads_without_an_account(api: Api, anonymous: Api) -> None:
    stored = (await api.put("/папка/файл.txt", b"hello")).json
    link = await make_link(api, "/папка/файл.txt")
    assert link["url"].startswith(f"{api.stack.url}/s/")
    assert {name: link[name] for name in ("path", "kind", "expires_at", "has_password", "max_downloads", "downloads")} \
        == {"path": "/папка/файл.txt", "kind": "download", "expires_at": None, "has_password": False,
            "max_downloads": None, "downloads": 0}
    reply = await anonymous.call("GET", address(link), expect=200)
    assert reply.body == b"hello"
    assert reply.headers["ETag"] == stored["etag"]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in reply.headers["Content-Security-Policy"]
    assert reply.headers["Content-Disposition"].endswith(f"filename*=UTF-8''{quote('файл.txt')}")
    assert "Set-Cookie" not in reply.headers
    [listed] = (await api.call("GET", "/file/link", expect=200)).json["links"]
    assert listed == {**{name: value for name, value in link.items() if name != "url"}, "downloads": 1}


async def test_address_begins_with_the_host_that_the_client_used(api: Api) -> None:
    await api.put("/a", b"")
    made = await api.call("POST", "/file/link", json={"path": "/a"}, headers={"Host": "files.example.org:8080"})
    assert made.json["url"].startswith("http://files.example.org:8080/s/")


@pytest.mark.parametrize("host", ["a/b", "a@b", "a b\"", "<x>"])
async def test_host_that_is_none_makes_no_address(api: Api, host: str) -> None:
    await api.put("/a", b"")
    reply = await api.call("POST", "/file/link", json={"path": "/a"}, headers={"Host": host})
    assert reply.status == 400
    assert not (await api.call("GET", "/file/link")).json["links"]


@pytest.mark.parametrize("change", [{"path": ""}, {"kind": "both"}, {"expires_in": 0}, {"expires_in": 10**10},
                                    {"expires_in": "1"}, {"max_downloads": 0}, {"max_downloads": 1.5},
                                    {"password": "short"}, {"password": "x" * 1025}, {"path": "/a/../b"}])
async def test_field_that_cannot_be_used_is_named(api: Api, change: dict[str, Any]) -> None:
    await api.put("/a", b"")
    reply = await api.call("POST", "/file/link", json={"path": "/a", **change}, expect=422)
    assert reply.json["field"] == next(iter(change))


async def test_links_belong_to_their_maker(
    api: Api, anonymous: Api, other_account: Callable[[], Awaitable[Api]],
) -> None:
    other = await other_account()
    stored = (await api.put("/a", b"1")).json
    await api.put("/b", b"2")
    link = await make_link(api, "/a")
    await make_link(api, "/b")
    assert (await other.call("POST", "/file/link", json={"path": stored["id"]}, expect=404)).code == "not_found"
    assert (await other.call("GET", "/file/link")).json == {"links": []}
    assert (await other.call("DELETE", f"/file/link/{link['id']}", expect=404)).code == "not_found"
    assert [found["path"] for found in (await api.call("GET", "/file/link?path=/a")).json["links"]] == ["/a"]
    assert (await api.call("GET", "/file/link?path=/none")).status == 404
    await anonymous.call("GET", address(link), expect=200)
    await api.call("DELETE", f"/file/link/{link['id']}", expect=204)
    await api.call("DELETE", f"/file/link/{link['id']}", expect=404)
    await api.call("DELETE", "/file/link/nonsense", expect=404)
    await anonymous.call("GET", address(link), expect=404)
    for method, path in (("GET", "/file/link"), ("POST", "/file/link"), ("DELETE", f"/file/link/{link['id']}")):
        await anonymous.call(method, path, expect=401)


async def test_link_follows_its_file_and_rests_while_it_is_in_the_trash(api: Api, anonymous: Api) -> None:
    stored = (await api.put("/old/a.txt", b"hello")).json
    link = await make_link(api, "/old/a.txt")
    await move_to_root(api, stored["id"], "new.txt")
    assert (await anonymous.call("GET", address(link), expect=200)).body == b"hello"
    await api.put("/new.txt", b"later", expect=200)
    assert (await anonymous.call("GET", address(link), expect=200)).body == b"later"
    await api.delete("/new.txt")
    assert (await anonymous.call("GET", address(link), expect=404)).code == "not_found"
    [listed] = (await api.call("GET", "/file/link", expect=200)).json["links"]
    assert listed["path"] is None
    [trashed] = (await api.call("GET", "/file/trash", expect=200)).json["items"]
    await api.call("POST", "/file/trash/restore", json={"id": trashed["id"]}, expect=200)
    assert (await anonymous.call("GET", address(link), expect=200)).body == b"later"
    await api.call("DELETE", "/file?path=/new.txt&permanent=true", expect=204)
    await anonymous.call("GET", address(link), expect=404)
    assert (await api.call("GET", "/file/link")).json == {"links": []}


async def test_end_of_the_session_does_not_end_its_links(api: Api, anonymous: Api) -> None:
    await api.put("/a", b"1")
    link = await make_link(api, "/a")
    await api.call("POST", "/auth/jwt/logout", expect=204)
    await anonymous.call("GET", address(link), expect=200)


# --- limits ---

async def test_limit_counts_what_sends_bytes_and_nothing_else(api: Api, anonymous: Api) -> None:
    etag = (await api.put("/a", b"0123456789")).json["etag"]
    link = await make_link(api, "/a", max_downloads=3)

    async def visit(status: int, method: str = "GET", **headers: str) -> Reply:
        return await anonymous.call(method, address(link), headers=headers, expect=status)

    for _ in range(4):
        await visit(200, "HEAD")
        await visit(200, **BROWSER)
        await visit(304, **{"If-None-Match": etag})
        await visit(412, **{"If-Match": '"other"'})
        await visit(416, Range="bytes=100-")
    assert (await api.call("GET", "/file/link")).json["links"][0]["downloads"] == 0
    await visit(200)
    await visit(206, Range="bytes=5-")
    await visit(206, Range="bytes=0-0,9-9")
    for method in ("GET", "HEAD"):
        await visit(404, method)
        await visit(404, method, Range="bytes=5-")
        await visit(404, method, **BROWSER)
    assert (await api.call("GET", "/file/link")).json["links"][0]["downloads"] == 3


async def test_download_that_broke_off_is_resumed_without_counting_again(api: Api, anonymous: Api) -> None:
    await api.put("/a", b"0123456789")
    link = await make_link(api, "/a", max_downloads=1)
    first = await anonymous.call("GET", address(link), expect=200)
    proof = {"Cookie": cookie_of(first)}
    for part in ("HttpOnly", "SameSite=Strict", f"Path={address(link)};"):
        assert part in first.headers["Set-Cookie"]

    async def visit(status: int, **headers: str) -> Reply:
        return await anonymous.call("GET", address(link), headers={**proof, **headers}, expect=status)

    assert (await visit(206, Range="bytes=4-")).body == b"456789"
    assert (await visit(206, Range="bytes=4-", **{"If-Range": first.headers["ETag"]})).body == b"456789"
    for headers in ({}, BROWSER, {"Range": "bytes=0-"}, {"Range": "bytes=-10"}, {"Range": "bytes=0-1,4-"},
                    {"Range": "bytes=4-", "If-Range": '"other"'}, {"Range": "lines=4-"}):
        await visit(404, **headers)
    proof["Cookie"] = proof["Cookie"][:-1] + ("0" if proof["Cookie"][-1] != "0" else "1")
    await visit(404, Range="bytes=4-")


async def test_resume_proof_is_for_one_version_of_one_link(api: Api, anonymous: Api) -> None:
    await api.put("/a", b"0123456789")
    one, other = await make_link(api, "/a", max_downloads=1), await make_link(api, "/a", max_downloads=1)
    proof = cookie_of(await anonymous.call("GET", address(one), expect=200))
    await anonymous.call("GET", address(other), expect=200)
    rest = {"Cookie": proof, "Range": "bytes=4-"}
    await anonymous.call("GET", address(other), headers=rest, expect=404)
    await anonymous.call("GET", address(one), headers=rest, expect=206)
    await api.put("/a", b"9876543210", expect=200)
    await anonymous.call("GET", address(one), headers=rest, expect=404)


async def test_expired_link_leads_nowhere(api: Api, anonymous: Api) -> None:
    await api.put("/a", b"1")
    link = await make_link(api, "/a", expires_in=1)
    await anonymous.call("GET", address(link), expect=200)
    await asyncio.sleep(1.1)
    await anonymous.call("GET", address(link), expect=404)
    assert len((await api.call("GET", "/file/link")).json["links"]) == 1  # its maker still sees it


# --- folders ---

async def test_folder_is_listed_walked_and_sent_as_archive(api: Api, anonymous: Api) -> None:
    for path in ("/shared/z.txt", "/shared/a.txt", "/shared/deep/er/x.bin", "/shared/b dir/c.txt", "/else.txt"):
        await api.put(path, path.encode())
    link = await make_link(api, "/shared")
    top = (await anonymous.call("GET", address(link), expect=200)).json
    assert (top["name"], top["path"], top["next"]) == ("shared", "", None)
    assert [(child["type"], child["path"]) for child in top["children"]] == [
        ("folder", "b dir"), ("folder", "deep"), ("file", "a.txt"), ("file", "z.txt")]
    deep = (await anonymous.call("GET", f"{address(link)}?path=deep/er", expect=200)).json
    assert [child["path"] for child in deep["children"]] == ["deep/er/x.bin"]
    for path in ("deep/er/x.bin", "/b dir/c.txt"):
        reply = await anonymous.call("GET", f"{address(link)}?path={quote(path)}", expect=200)
        assert reply.body == f"/shared/{path.removeprefix('/')}".encode()
    packed = await anonymous.call("GET", f"{address(link)}?download=1", expect=200)
    assert set(zipfile.ZipFile(io.BytesIO(packed.body)).namelist()) >= {"shared/a.txt", "shared/deep/er/x.bin"}
    part = await anonymous.call("GET", f"{address(link)}?download=1&path=deep", expect=200)
    assert not any("a.txt" in name for name in zipfile.ZipFile(io.BytesIO(part.body)).namelist())


async def test_archives_count_too(api: Api, anonymous: Api) -> None:
    await api.put("/shared/a.txt", b"1")
    link = await make_link(api, "/shared", max_downloads=2)
    packed = await anonymous.call("GET", f"{address(link)}?download=1", expect=200)
    await anonymous.call("GET", f"{address(link)}?download=1", expect=304,
                         headers={"If-None-Match": packed.headers["ETag"]})
    await anonymous.call("HEAD", f"{address(link)}?download=1", expect=200)
    await anonymous.call("GET", f"{address(link)}?path=a.txt", expect=200)
    await anonymous.call("GET", f"{address(link)}?download=1", expect=404)


async def test_long_folder_comes_in_parts_that_neither_skip_nor_repeat(api: Api, anonymous: Api) -> None:
    names = [f"{number:03} 文.txt" for number in range(230)]
    await asyncio.gather(*(api.put(f"/many/{name}", b"") for name in names),
                         *(api.put(f"/many/dir {number:02}/x", b"") for number in range(30)))
    link = await make_link(api, "/many")
    seen: list[str] = []
    after = ""
    while True:
        part = (await anonymous.call("GET", f"{address(link)}?after={quote(after)}" if after else address(link),
                                     expect=200)).json
        seen += [child["name"] for child in part["children"]]
        assert len(part["children"]) <= 200
        if part["next"] is None:
            break
        after = part["next"]
    assert seen == [f"dir {number:02}" for number in range(30)] + names
    text = (await anonymous.call("GET", address(link), headers=BROWSER, expect=200)).body.decode()
    [more] = re.findall(r'href="([^"]+after=[^"]+)"', text)
    following = await anonymous.call("GET", more.replace("&amp;", "&"), headers=BROWSER, expect=200)
    assert names[-1] in following.body.decode()
    assert (await anonymous.call("GET", f"{address(link)}?after=nonsense", expect=422)).json["field"] == "after"


async def test_root_folder_can_be_shared(api: Api, anonymous: Api) -> None:
    await api.put("/a/b.txt", b"hello")
    link = await make_link(api, "/")
    assert (await anonymous.call("GET", f"{address(link)}?path=a/b.txt", expect=200)).body == b"hello"
    page = await anonymous.call("GET", f"{address(link)}?path=a", headers=BROWSER, expect=200)
    assert "Files" in page.body.decode()


# --- the page ---

@pytest.mark.parametrize("name", NAMES)
async def test_page_shows_any_name_as_text(api: Api, anonymous: Api, name: str) -> None:
    await api.put(f"/{name}", b"x" * 1234)
    link = await make_link(api, f"/{name}", expires_in=3600, max_downloads=7)
    page = await anonymous.call("GET", address(link), headers=BROWSER, expect=200)
    text = page.body.decode()
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = escaped.replace("'", "&#39;").replace('"', "&#34;")
    assert f"<h1><bdi>{escaped}</bdi></h1>" in text
    assert "1.2 kB" in text and "Available until" in text and "7 downloads left" in text
    download = f'{address(link)}?download=1'
    assert f'href="{download}"' in text
    sent = await anonymous.call("GET", download, headers=BROWSER, expect=200)
    assert sent.body == b"x" * 1234


async def test_page_has_a_strict_policy_and_nothing_inline(api: Api, anonymous: Api) -> None:
    await api.put("/dir/a.txt", b"1")
    shared, dropped = await make_link(api, "/dir"), await make_link(api, "/dir", kind="upload")
    locked = await make_link(api, "/dir", password=PASSWORD)
    pages = [(address(shared), 200), (f"{address(shared)}?path=a.txt", 200), (address(dropped), 200),
             (address(locked), 401), ("/s/nothing", 404)]
    for path, status in pages:
        page = await anonymous.call("GET", path, headers=BROWSER, expect=status)
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        expected = {"Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex, nofollow",
                    "Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff", "Vary": "Accept"}
        assert {name: page.headers[name] for name in expected} == expected
        text = page.body.decode()
        assert not re.search(r"<style|style=|\son\w+=|javascript:|https?://", text)
        assert all(re.fullmatch(r'<script src="/assets/upload\.js\?v=\w+" defer>', tag)
                   for tag in re.findall(r"<script[^>]*>", text))
        assert '<html lang="en">' in text and 'name="viewport"' in text
        for asset in re.findall(r'(?:href|src)="(/assets/[^"]+)"', text):
            assert "immutable" in (await anonymous.call("GET", asset, expect=200)).headers["Cache-Control"]
        assert (await anonymous.call("HEAD", path, headers=BROWSER, expect=status)).body == b""
    await anonymous.call("GET", "/assets/..%2fpages.py", expect=404)


# --- password ---

async def test_password_by_header_or_by_cookie(api: Api, anonymous: Api) -> None:
    await api.put("/a.txt", b"hello")
    link = await make_link(api, "/a.txt", password=PASSWORD)
    assert link["has_password"] is True
    locked = await anonymous.call("GET", address(link), expect=401)
    assert locked.code == "link_password_required"
    assert locked.headers["WWW-Authenticate"] == "Link-Password"
    assert (await anonymous.call("GET", address(link), headers={"X-Link-Password": PASSWORD}, expect=200)
            ).body == b"hello"
    wrong = await anonymous.call("GET", address(link), headers={"X-Link-Password": "wrong"}, expect=401)
    assert wrong.code == "invalid_link_password"
    opened = await anonymous.call("POST", f"{address(link)}/open", json={"password": PASSWORD}, expect=204)
    for part in ("HttpOnly", "SameSite=Strict", f"Path={address(link)};", "Max-Age=3600"):
        assert part in opened.headers["Set-Cookie"]
    cookie = {"Cookie": cookie_of(opened)}
    assert (await anonymous.call("GET", address(link), headers=cookie, expect=200)).body == b"hello"


async def test_password_page_leads_on_to_the_file(api: Api, anonymous: Api) -> None:
    await api.put("/a.txt", b"hello")
    link = await make_link(api, "/a.txt", password=PASSWORD)
    page = await anonymous.call("GET", address(link), headers=BROWSER, expect=401)
    assert f'action="{address(link)}/open"' in page.body.decode() and "a.txt" not in page.body.decode()
    wrong = await anonymous.call("POST", f"{address(link)}/open", data={"password": "wrong"}, headers=BROWSER,
                                 expect=401)
    assert "not the password" in wrong.body.decode()
    right = await anonymous.call("POST", f"{address(link)}/open", data={"password": PASSWORD}, headers=BROWSER,
                                 expect=303, allow_redirects=False)
    assert right.headers["Location"] == address(link)
    page = await anonymous.call("GET", address(link), headers={**BROWSER, "Cookie": cookie_of(right)}, expect=200)
    assert "a.txt" in page.body.decode()


# --- uploads ---

async def test_upload_link_takes_files_and_never_replaces(api: Api, anonymous: Api) -> None:
    await api.put("/box/report.txt", b"mine")
    link = await make_link(api, "/box", kind="upload")
    for number in range(3):
        data = f"theirs {number}".encode()
        reply = await anonymous.call("POST", address(link), data=drop(data, "report.txt"), expect=201)
        assert reply.json == {"name": "report.txt", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    found = {file["path"]: (await api.get(file["path"])).body for file in await api.list()}
    assert found == {"/box/report.txt": b"mine", "/box/report (2).txt": b"theirs 0",
                     "/box/report (3).txt": b"theirs 1", "/box/report (4).txt": b"theirs 2"}
    assert (await api.call("GET", "/file/link")).json["links"][0]["downloads"] == 3
    assert (await api.usage())["files"] == 4 + 3 * 8


async def test_numbered_upload_has_a_path_that_a_request_can_name(api: Api, anonymous: Api) -> None:
    """A number makes a name longer: the stem gives way before the path gets too long."""
    folder = f"/{'x' * 255}" * 15 + f"/{'z' * 150}"
    await api.call("POST", "/file/folder", json={"path": folder}, expect=201)
    link = await make_link(api, folder, kind="upload")
    for name in (f"{'y' * 100}.txt", "y" * 104):
        assert len(f"{folder}/{name}") == 4096
        for data in (b"1", b"2"):
            await anonymous.call("POST", address(link), data=drop(data, name), expect=201)
    paths = [file["path"] for file in await api.list()]
    assert [len(path) for path in paths] == [4096] * 4
    assert sorted([(await api.get(path)).body for path in paths]) == [b"1", b"1", b"2", b"2"]


async def test_uploads_of_one_name_at_once_all_arrive(api: Api, anonymous: Api) -> None:
    await api.put("/box/kept", b"")
    link = await make_link(api, "/box", kind="upload")
    await asyncio.gather(*(anonymous.call("POST", address(link), data=drop(b"%d" % number, "写真.tar.gz"), expect=201)
                           for number in range(12)))
    stored = [file for file in await api.list() if file["name"] != "kept"]
    assert len(stored) == 12
    assert {(await api.get(file["id"])).body for file in stored} == {b"%d" % number for number in range(12)}


async def test_upload_limit_is_exact(api: Api, anonymous: Api) -> None:
    await api.put("/box/kept", b"")
    link = await make_link(api, "/box", kind="upload", max_downloads=3)
    replies = await asyncio.gather(*(anonymous.call("POST", address(link), data=drop(b"x", f"{number}.txt"))
                                     for number in range(20)))
    assert sorted(reply.status for reply in replies) == [201] * 3 + [404] * 17
    assert len(await api.list()) == 3 + 1
    assert (await api.usage())["files"] == 3


async def test_upload_page_works_without_scripts(api: Api, anonymous: Api) -> None:
    await api.put("/box/secret plan.txt", b"mine")
    link = await make_link(api, "/box", kind="upload")
    page = await anonymous.call("GET", address(link), headers=BROWSER, expect=200)
    text = page.body.decode()
    assert 'enctype="multipart/form-data"' in text and f'action="{address(link)}"' in text
    assert "secret" not in text and "box" not in text
    sent = await anonymous.call("POST", address(link), data=drop(b"hi", "a.txt"), headers=BROWSER, expect=303,
                                allow_redirects=False)
    page = await anonymous.call("GET", sent.headers["Location"], headers=BROWSER, expect=200)
    assert "has arrived" in page.body.decode()
    empty = await anonymous.call("POST", address(link), data=drop(b"", ""), headers=BROWSER, expect=422)
    assert "<h1>" in empty.body.decode()


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
async def test_upload_of_any_size_arrives_whole(api: Api, anonymous: Api, size: int) -> None:
    await api.put("/box/kept", b"")
    link = await make_link(api, "/box", kind="upload", password=PASSWORD)
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    await anonymous.call("POST", address(link), data=drop(data, "a.bin"), expect=401)
    await anonymous.call("POST", address(link), data=drop(data, "a.bin"), headers={"X-Link-Password": PASSWORD},
                         expect=201)
    assert (await api.get("/box/a.bin")).body == data


async def test_links_are_for_one_purpose(api: Api, anonymous: Api) -> None:
    await api.put("/box/a.txt", b"1")
    shared, dropped = await make_link(api, "/box"), await make_link(api, "/box", kind="upload")
    assert (await anonymous.call("POST", address(shared), data=drop(b"2", "b.txt"), expect=405)
            ).code == "method_not_allowed"
    for query in ("", "?download=1", "?after=f/"):
        assert (await anonymous.call("GET", address(dropped) + query, expect=405)).code == "method_not_allowed"
    assert (await anonymous.call("GET", f"{address(dropped)}?path=a.txt", expect=404)).code == "not_found"
    assert (await anonymous.call("POST", address(dropped), data=b"plain", expect=415)).code == "unsupported_media_type"
    assert (await api.call("POST", "/file/link", json={"path": "/box/a.txt", "kind": "upload"}, expect=409)
            ).code == "not_a_folder"
    assert [file["path"] for file in await api.list()] == ["/box/a.txt"]
