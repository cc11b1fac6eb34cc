"""Uploads from outside: where they go, what they replace, what is refused and leaves nothing behind."""

import asyncio
import base64
import hashlib
import re
import unicodedata
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import aiohttp
import pytest

from tests.client import Api, Reply, converse, new_account, nothing_stored
from tests.stack import Stack

NAMES = ["привет.txt", "写真.jpg", "naïve 😀.pdf", "a+b & c?d#e%20.txt", "quote\"back\\slash.txt", "x" * 255, "%ff",
         "..hidden", "a;b=c.txt", " spaces ", "COM1", "<img src=x>.html", "ё" * 127]
BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
ANY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MIB = 2**20


def part(disposition: str, content: bytes = b"", *more: str) -> bytes:
    """A part of a form, its head as a client wrote it."""
    lines = [f"--{BOUNDARY}", f"Content-Disposition: form-data; {disposition}", *more, "", ""]
    return "\r\n".join(lines).encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FILE = part('name="file"; filename="own.txt"', b"hello", "Content-Type: text/plain")


async def send_form(api: Api, body: bytes, *, query: str = "", content_type: str | None = None,
                    expect: int | None = 201) -> Reply:
    """Send a form as it is."""
    return await api.call("POST", f"/file{query}", data=body, expect=expect, headers={
        "Content-Type": content_type if content_type is not None else f"multipart/form-data; boundary={BOUNDARY}"})


def digest_of(content: bytes) -> str:
    """RFC 9530, section 2."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


# --- what comes back ---

async def test_put_any_name_comes_back_the_same(api: Api) -> None:
    for name in NAMES:
        stored = (await api.put(f"/папка/{name}", b"hello")).json
        assert stored["path"] == f"/папка/{name}"
        assert stored["name"] == name
        assert stored["sha256"] == hashlib.sha256(b"hello").hexdigest()
        assert (await api.get(f"/папка/{name}")).body == b"hello"
        assert (await api.get(stored["id"])).body == b"hello"


async def test_upload_answers_with_the_whole_object(api: Api) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    reply = await api.post(b"hello", path="/homework/test-folder/notes.txt", content_type="text/plain")
    stored = reply.json
    assert set(stored) == {"type", "id", "name", "path", "size", "sha256", "content_type", "version", "etag",
                           "created_ad", "created_at", "updated_at"}
    assert ANY_ID.fullmatch(stored["id"])
    assert stored["type"] == "file"
    assert (stored["name"], stored["path"]) == ("notes.txt", "/homework/test-folder/notes.txt")
    assert (stored["size"], stored["version"], stored["content_type"]) == (5, 1, "text/plain")
    assert stored["created_ad"] == stored["created_at"]
    for moment in (stored["created_at"], stored["updated_at"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", moment)
        assert before < datetime.fromisoformat(moment) < datetime.now(UTC) + timedelta(minutes=1)
    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', stored["etag"])
    assert reply.headers["ETag"] == stored["etag"]
    assert reply.headers["Content-Type"].startswith("application/json")
    assert await api.info(stored["path"]) == await api.info(stored["id"]) == stored


# --- forms: where to ---

async def test_form_with_full_path_stores_there_and_makes_folders(api: Api) -> None:
    stored = (await api.post(b"x", filename="own.txt", path="/a/b/c.txt")).json
    assert stored["path"] == "/a/b/c.txt"
    assert [(await api.info(path))["type"] for path in ("/", "/a", "/a/b")] == ["folder"] * 3


@pytest.mark.parametrize(("path", "stored_at"), [
    ("/a/b/", "/a/b/own.txt"), ("/", "/own.txt"), ("a/b/", "/a/b/own.txt"), ("a.txt", "/a.txt"),
])
async def test_form_with_folder_stores_under_own_name(api: Api, path: str, stored_at: str) -> None:
    assert (await api.post(b"x", filename="own.txt", path=path)).json["path"] == stored_at


async def test_form_with_existing_folder_stores_in_it(api: Api) -> None:
    await api.put("/a/b/first.txt")
    assert (await api.post(b"x", filename="own.txt", path="/a/b")).json["path"] == "/a/b/own.txt"
    folder = await api.info("/a")
    assert (await api.post(b"x", filename="own.txt", path=folder["id"])).json["path"] == "/a/own.txt"


async def test_form_without_path_stores_in_the_root(api: Api) -> None:
    assert (await api.post(b"x", filename="own.txt")).json["path"] == "/own.txt"


async def test_form_with_name_and_folder_stores_under_that_name(api: Api) -> None:
    assert (await api.post(b"x", filename="own.txt", path="/a/", name="given.txt")).json["path"] == "/a/given.txt"
    assert (await api.post(b"x", filename="own.txt", path="/a", name="other.txt")).json["path"] == "/a/other.txt"
    assert (await api.post(b"x", filename="own.txt", name="root.txt")).json["path"] == "/root.txt"


WORDINGS = [
    ({"name": "notes.txt", "file": "/homework/test-folder/notes.txt"}, "/homework/test-folder/notes.txt"),
    ({"name": "notes.txt", "file": "/homework/test-folder/"}, "/homework/test-folder/notes.txt"),
    ({"file": "/homework/"}, "/homework/own.txt"),
    ({"file": "/same.txt", "path": "/same.txt"}, "/same.txt"),
]


async def test_form_in_the_words_of_the_assignment_is_understood(
        session: aiohttp.ClientSession, stack: Stack) -> None:
    for fields, stored_at in WORDINGS:
        api = await new_account(session, stack)
        assert (await api.post(b"x", filename="own.txt", expect=201, **fields)).json["path"] == stored_at


async def test_form_with_two_different_paths_is_refused(api: Api) -> None:
    async with nothing_stored(api):
        reply = await api.post(b"x", path="/a.txt", file="/b.txt", expect=422)
    assert reply.json["field"] == "path"


async def test_form_with_fields_after_the_file_is_the_same(api: Api) -> None:
    body = FILE + part('name="path"', b"/a/") + part('name="name"', "имя.txt".encode()) + END
    assert (await send_form(api, body)).json["path"] == "/a/имя.txt"


@pytest.mark.parametrize(("query", "stored_at"), [
    ("?path=/q/c.txt", "/q/c.txt"), ("?path=/q/", "/q/own.txt"), ("?path=/q/&name=given.txt", "/q/given.txt"),
    ("?file=/q/c.txt&name=c.txt", "/q/c.txt"), ("?name=given.txt", "/given.txt"),
    ("?path=%2Fq%2F%D1%8F+b%2Bc.txt", "/q/я b+c.txt"),
])
async def test_form_with_parameters_in_the_address_is_the_same(api: Api, query: str, stored_at: str) -> None:
    assert (await send_form(api, FILE + END, query=query)).json["path"] == stored_at


async def test_form_and_address_disagree_form_wins(api: Api) -> None:
    body = FILE + part('name="path"', b"/form/") + part('name="name"', b"form.txt") + END
    assert (await send_form(api, body, query="?path=/query/&name=query.txt")).json["path"] == "/form/form.txt"


async def test_form_with_unknown_fields_ignores_them(api: Api) -> None:
    body = part('name="csrf"', b"1") + FILE + part('name="submit"', b"Send") + END
    assert (await send_form(api, body)).json["path"] == "/own.txt"


async def test_form_with_text_around_it_ignores_that(api: Api) -> None:
    assert (await send_form(api, FILE + END + b"epilogue" + END)).json["size"] == 5


# --- forms: how clients write names ---

FILENAMES = [
    ('name="file"; filename="отчёт 😀.txt"', "отчёт 😀.txt"),
    ('name="file"; filename="写真.jpg"', "写真.jpg"),
    ("name=file; filename=bare.txt", "bare.txt"),
    ('filename="swapped.txt"; name="file"', "swapped.txt"),
    ('name="anything"; filename="any-field.txt"', "any-field.txt"),
    ('name="file"; filename="a%22b.txt"', 'a"b.txt'),  # browsers write a quote so
    ('name="file"; filename="a\\"b.txt"', 'a"b.txt'),  # curl wrote it so
    ('name="file"; filename="semi;colon.txt"', "semi;colon.txt"),
    ('name="file"; filename="a; filename*=utf-8\'\'b.txt"', "a; filename*=utf-8''b.txt"),
    ('name="file"; filename="per%cent 100%.txt"', "per%cent 100%.txt"),
    ('name="file"; filename="folder/sub/deep.txt"', "deep.txt"),
    ('name="file"; filename="../../etc/passwd"', "passwd"),
    ('name="file"; filename="C:\\Users\\me\\old.txt"', "old.txt"),
    ("name=\"file\"; filename*=utf-8''%D0%BE%D1%82%D1%87%D1%91%D1%82.txt", "отчёт.txt"),
    ("name=\"file\"; filename*=UTF-8'en'caf%C3%A9.txt", "café.txt"),
    # .NET writes both; the extended form is the one that says what is meant (RFC 6266, section 4.3)
    ("name=file; filename=\"=?utf-8?B?0Y8udHh0?=\"; filename*=utf-8''%D1%8F.txt", "я.txt"),
    ("name=file; filename*=utf-8''%D1%8F.txt; filename=\"ya.txt\"", "я.txt"),
]
BAD_FILENAMES = [
    'name="file"; filename=".."', 'name="file"; filename="."', 'name="file"; filename="a/.."',
    f'name="file"; filename="{"x" * 256}"', 'name="file"; filename="a%0D%0Ab.txt"', 'name="file"; filename="a\tb.txt"',
    'name="file"; filename="\u202etxt.exe"', 'name="file"; filename="folder/"',
    "name=\"file\"; filename*=utf-8''%ff", "name=\"file\"; filename*=utf-8''a%00b",
]


async def test_form_filename_as_clients_write_it_is_understood(api: Api) -> None:
    for number, (disposition, name) in enumerate(FILENAMES):
        body = part(disposition, b"hello") + part('name="path"', f"/{number}/".encode()) + END
        stored = (await send_form(api, body)).json
        assert stored["name"] == unicodedata.normalize("NFC", name)
        assert (await api.get(f"/{number}/{name}")).body == b"hello"


async def test_form_filename_that_no_file_may_have_is_refused(api: Api) -> None:
    async with nothing_stored(api):
        for disposition in BAD_FILENAMES:
            reply = await send_form(api, part(disposition, b"hello") + END, expect=None)
            assert (reply.status, reply.code) in ((400, "bad_request"), (422, "invalid_path"), (409, "is_a_folder"))


async def test_form_filename_that_no_file_may_have_does_not_matter_beside_a_path(api: Api) -> None:
    body = part('name="file"; filename="folder/"', b"hello") + part('name="path"', b"/a.txt") + END
    assert (await send_form(api, body)).json["path"] == "/a.txt"


# --- forms: what is refused ---

@pytest.mark.parametrize("body", [
    FILE + FILE + END,
    FILE + part('name="second"; filename="second.txt"', b"x") + END,
    FILE + part("name=\"second\"; filename*=utf-8''second.txt", b"x") + END,
])
async def test_form_with_several_files_stores_nothing(api: Api, body: bytes) -> None:
    async with nothing_stored(api):
        reply = await send_form(api, body, expect=422)
    assert reply.code == "several_files"


@pytest.mark.parametrize("body", [
    END,
    part('name="path"', b"/a.txt") + END,
    part('name="file"', b"/a.txt") + part('name="name"', b"a.txt") + END,
    # what a browser sends when no file was chosen
    part('name="file"; filename=""', b"", "Content-Type: application/octet-stream") + part('name="path"', b"/a") + END,
])
async def test_form_without_file_is_refused(api: Api, body: bytes) -> None:
    async with nothing_stored(api):
        reply = await send_form(api, body, expect=422)
    assert (reply.code, reply.json["field"]) == ("missing_file", "file")


@pytest.mark.parametrize(("body", "content_type"), [
    (b"", None),
    (FILE, None),
    (FILE[:-30], None),
    (FILE + END[:-10], None),
    (FILE.replace(b"\r\n", b"\n") + END, None),
    (b"no form at all", None),
    (FILE + END, "multipart/form-data; boundary=another"),
    (FILE + END, "multipart/form-data"),
    (FILE + END, "multipart/form-data; boundary="),
    (FILE + END, f"multipart/form-data; boundary={'x' * 5000}"),
    (f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nhello\r\n".encode() + END, None),
    (f"--{BOUNDARY}\r\nno header\r\n\r\nhello\r\n".encode() + END, None),
    (f"--{BOUNDARY}\r\nContent-Disposition: attachment; filename=x\r\n\r\nhello\r\n".encode() + END, None),
    (part('name="file"; filename="a\0b"', b"x") + END, None),
    (part('name="file"; filename="x"', b"x", f"X-Long: {'x' * 10_000}") + END, None),
    (FILE.replace(b"own", b"\xff\xfe") + END, None),
], ids=str)
async def test_form_that_is_broken_stores_nothing(api: Api, body: bytes, content_type: str | None) -> None:
    async with nothing_stored(api):
        reply = await send_form(api, body, content_type=content_type, expect=None)
    assert reply.status in (400, 413, 422), reply.body
    assert reply.code in ("bad_request", "incomplete_body", "too_large", "invalid_path")


UNUSABLE_FIELDS = [
    (part('name="path"', b"x" * 65536), 413, "path"),
    (part('name="name"', b"x" * 65536), 413, "name"),
    (part('name="other"', b"x" * 65536), 413, "other"),
    (part('name="path"', b"/a\xff"), 422, "path"),
    (part('name="path"', b"/a") + part('name="path"', b"/b"), 422, "path"),
    (part('name="path"', b"/a/../b"), 422, "path"),
    (part('name="path"', b"/a\0b"), 422, "path"),
    (part('name="name"', b"a/b"), 422, "name"),
    (part('name="name"', b".."), 422, "name"),
]


async def test_form_with_unusable_field_stores_nothing(api: Api) -> None:
    async with nothing_stored(api):
        for fields, status, field in UNUSABLE_FIELDS:
            for body in (FILE + fields + END, fields + FILE + END):
                reply = await send_form(api, body, expect=status)
                assert reply.code in ("too_large", "invalid_field", "invalid_path")
                assert reply.json["field"] == field


async def test_form_with_very_many_parts_is_refused(api: Api) -> None:
    async with nothing_stored(api):
        reply = await send_form(api, FILE + b"".join(part(f'name="f{number}"') for number in range(5000)) + END,
                                expect=413)
    assert reply.code == "too_large"


async def test_post_of_anything_but_a_form_is_refused(api: Api) -> None:
    async with nothing_stored(api):
        for content_type in ("application/json", "text/plain", "application/x-www-form-urlencoded",
                             "multipart/mixed; boundary=x", "", "нет"):
            reply = await send_form(api, b'{"path": "/a"}', content_type=content_type, expect=415)
            assert reply.code == "unsupported_media_type"


# --- new, replaced, in the way ---

async def test_put_again_replaces_and_counts_versions(api: Api) -> None:
    first = (await api.put("/a.txt", b"one")).json
    second = (await api.put("/a.txt", b"three", expect=200)).json
    assert (first["id"], first["created_at"]) == (second["id"], second["created_at"])
    assert (first["version"], second["version"]) == (1, 2)
    assert first["etag"] != second["etag"]
    assert first["updated_at"] < second["updated_at"]
    assert (await api.usage())["files"] == 5


async def test_form_again_replaces_what_is_there(api: Api) -> None:
    first = (await api.post(b"one", path="/a/b.txt", content_type="text/plain")).json
    second = (await api.post(b"two!", path="/a/b.txt", content_type="image/png", expect=200)).json
    third = (await api.post(b"3", path="/a", filename="b.txt", expect=200)).json
    assert first["id"] == second["id"] == third["id"]
    assert (second["content_type"], second["size"], third["version"]) == ("image/png", 4, 3)
    assert (await api.get("/a/b.txt")).body == b"3"
    assert [file["version"] for file in await api.list()] == [3]


async def test_same_bytes_again_is_a_new_version(api: Api) -> None:
    first = (await api.put("/a.txt", b"same")).json
    second = (await api.put("/a.txt", b"same", expect=200)).json
    assert (second["version"], second["sha256"]) == (2, first["sha256"])
    assert second["etag"] != first["etag"]


async def test_put_with_id_replaces_that_file(api: Api) -> None:
    first = (await api.put("/a/b.txt", b"one", headers={"Content-Type": "text/csv"})).json
    second = (await api.put(first["id"], b"two", expect=200)).json
    assert (second["id"], second["path"], second["version"]) == (first["id"], "/a/b.txt", 2)
    assert second["content_type"] == "text/plain"  # guessed by the file's name
    third = (await api.put(first["id"].upper(), b"3", expect=200)).json
    assert third["version"] == 3


async def test_form_with_id_replaces_that_file(api: Api) -> None:
    first = (await api.put("/a/b.txt", b"one")).json
    assert (await api.post(b"two", filename="own.txt", path=first["id"], expect=200)).json["path"] == "/a/b.txt"


async def test_upload_to_an_id_that_is_not_there_or_another_accounts_is_404(
        api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    foreign = (await (await other_account()).put("/a.txt", b"one")).json["id"]
    async with nothing_stored(api):
        for place in (foreign, str(uuid.uuid4())):
            assert (await api.put(place, b"x", expect=404)).code == "not_found"
            assert (await api.post(b"x", path=place, expect=404)).code == "not_found"


async def test_upload_below_a_file_is_a_conflict(api: Api) -> None:
    await api.put("/a/file.txt")
    async with nothing_stored(api):
        for path in ("/a/file.txt/b", "/a/file.txt/b/c.txt"):
            assert (await api.put(path, b"x", expect=409)).code == "not_a_folder"
            assert (await api.post(b"x", path=path, expect=409)).code == "not_a_folder"
        assert (await api.post(b"x", path="/a/file.txt/", expect=409)).code == "not_a_folder"
    with_field = await api.put("/a/file.txt/b", b"x", expect=409)
    assert with_field.json["field"] == "path"


async def test_put_over_a_folder_is_a_conflict(api: Api) -> None:
    await api.put("/a/b/file.txt")
    async with nothing_stored(api):
        for place in ("/a", "/a/b", "/", (await api.info("/a"))["id"]):
            assert (await api.put(place, b"x", expect=409)).code == "is_a_folder"


async def test_form_with_the_name_of_a_folder_is_a_conflict(api: Api) -> None:
    await api.put("/a/b/file.txt")
    async with nothing_stored(api):
        assert (await api.post(b"x", path="/a/", filename="b", expect=409)).code == "is_a_folder"
        assert (await api.post(b"x", path="/a/", name="b", expect=409)).code == "is_a_folder"


async def test_put_without_a_name_is_refused(api: Api) -> None:
    async with nothing_stored(api):
        assert (await api.put("/new/", b"x", expect=422)).code == "invalid_path"
        for address in ("/file", "/file?path=", "/file?name=a.txt"):
            reply = await api.call("PUT", address, data=b"x", expect=422)
            assert (reply.code, reply.json["field"]) == ("invalid_field", "path")


async def test_put_into_folder_takes_name_parameter(api: Api) -> None:
    assert (await api.call("PUT", "/file?path=/new/&name=a.txt", data=b"x", expect=201)).json["path"] == "/new/a.txt"
    assert (await api.call("PUT", "/file?path=/new&name=b.txt", data=b"x", expect=201)).json["path"] == "/new/b.txt"


async def test_put_with_a_parameter_twice_is_refused(api: Api) -> None:
    async with nothing_stored(api):
        assert (await api.call("PUT", "/file?path=/a&path=/b", data=b"x", expect=400)).code == "bad_request"


async def test_names_that_look_the_same_are_one_file(api: Api) -> None:
    composed, decomposed = "/caf\u00e9.txt", "/cafe\u0301.txt"
    first = (await api.put(decomposed, b"one")).json
    second = (await api.put(composed, b"two", expect=200)).json
    assert first["path"] == second["path"] == composed
    assert first["id"] == second["id"]
    assert (await api.get(decomposed)).body == b"two"


async def test_names_that_differ_in_case_are_two_files(api: Api) -> None:
    await api.put("/Case.txt", b"upper")
    await api.put("/case.txt", b"lower")
    assert (await api.get("/Case.txt")).body == b"upper"


# --- conditions (RFC 9110, section 13.1) ---

@pytest.mark.parametrize(("header", "status"), [
    ({"If-Match": "{etag}"}, 200), ({"If-Match": "*"}, 200), ({"If-Match": '"a", {etag}, "b"'}, 200),
    ({"If-Match": '"other"'}, 412), ({"If-Match": "W/{etag}"}, 412), ({"If-Match": '"a", "b"'}, 412),
    ({"If-None-Match": "*"}, 412), ({"If-None-Match": "{etag}"}, 412), ({"If-None-Match": '"a",{etag}'}, 412),
    ({"If-None-Match": "W/{etag}"}, 412), ({"If-None-Match": '"other"'}, 200), ({"If-None-Match": 'W/"other"'}, 200),
    ({"If-Match": "{etag}", "If-None-Match": '"other"'}, 200), ({"If-Match": "{etag}", "If-None-Match": "*"}, 412),
    ({"If-Match": "unquoted"}, 400), ({"If-Match": ""}, 400), ({"If-None-Match": "'single'"}, 400),
    ({"If-Match": '"open'}, 400),
])
async def test_put_over_a_file_keeps_its_conditions(api: Api, header: dict[str, str], status: int) -> None:
    etag = (await api.put("/a.txt", b"one")).json["etag"]
    headers = {name: value.format(etag=etag) for name, value in header.items()}
    if status == 200:
        assert (await api.put("/a.txt", b"two", headers=headers, expect=200)).json["version"] == 2
        return
    async with nothing_stored(api):
        reply = await api.put("/a.txt", b"two", headers=headers, expect=status)
    assert reply.code == ("precondition_failed" if status == 412 else "bad_request")
    assert (await api.get("/a.txt")).body == b"one"


async def test_put_of_a_new_file_keeps_its_conditions(api: Api) -> None:
    async with nothing_stored(api):
        for text in ("*", '"any"'):
            await api.put("/a/b.txt", b"x", headers={"If-Match": text}, expect=412)
    await api.info("/a", expect=404)
    for number, text in enumerate(("*", '"any"')):
        await api.put(f"/a/{number}.txt", b"x", headers={"If-None-Match": text})


async def test_form_keeps_its_conditions(api: Api) -> None:
    await api.put("/own.txt", b"one")
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "If-None-Match": "*"}
    async with nothing_stored(api):
        reply = await api.call("POST", "/file", data=FILE + END, headers=headers, expect=412)
    assert reply.code == "precondition_failed"


# --- digests (RFC 9530) and encodings ---

@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
async def test_put_with_right_digest_is_stored(api: Api, header: str) -> None:
    await api.put("/a.txt", b"hello", headers={header: digest_of(b"hello")})
    await api.put("/b.txt", b"hello", headers={header: f"sha-512=:AAAA:, {digest_of(b'hello')}"})
    await api.put("/c.txt", b"hello", headers={header: "sha-512=:AAAA:"})  # not ours to check
    await api.put("/d.txt", b"", headers={header: digest_of(b"")})


@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
async def test_put_with_wrong_digest_stores_nothing(api: Api, header: str) -> None:
    async with nothing_stored(api):
        for body in (b"hello", b"", b"x" * MIB):
            reply = await api.put("/new/a.txt", body, headers={header: digest_of(b"other")}, expect=400)
            assert reply.code == "digest_mismatch"
    await api.info("/new", expect=404)


MALFORMED_DIGESTS = [
    "sha-256=LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=", "sha-256=:LPJN:", "sha-256=:!!!!:", "sha-256=::", "sha-256",
    f"{digest_of(b'a')}, {digest_of(b'b')}",
]


async def test_put_with_malformed_digest_stores_nothing(api: Api) -> None:
    async with nothing_stored(api):
        for value in MALFORMED_DIGESTS:
            reply = await api.put("/a.txt", b"hello", headers={"Content-Digest": value}, expect=400)
            assert reply.code == "bad_request"


async def test_upload_that_is_encoded_is_refused(api: Api) -> None:
    async with nothing_stored(api):
        for encoding in ("gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity", "unknown"):
            reply = await api.put("/a.txt", b"\x1f\x8b", headers={"Content-Encoding": encoding}, expect=415)
            assert reply.code == "unsupported_encoding"
            headers = {"Content-Encoding": encoding, "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
            reply = await api.call("POST", "/file", data=FILE + END, headers=headers, expect=415)
            assert reply.code == "unsupported_encoding"


async def test_upload_with_encoding_identity_is_stored(api: Api) -> None:
    await api.put("/a.txt", b"hello", headers={"Content-Encoding": "identity"})


# --- media types ---

MEDIA_TYPES = [
    ("image/png", "a.txt", "image/png"),
    ("text/plain; charset=utf-8", "a", "text/plain; charset=utf-8"),
    ('text/plain; title="a, b"', "a", 'text/plain; title="a, b"'),
    ("application/vnd.api+json", "a", "application/vnd.api+json"),
    ("application/octet-stream", "photo.jpeg", "image/jpeg"),
    ("application/x-www-form-urlencoded", "photo.PNG", "image/png"),
    (None, "doc.pdf", "application/pdf"),
    (None, "archive.tar.gz", "application/gzip"),
    (None, "notes.txt.gz", "application/gzip"),
    (None, "unknown.zzz", "application/octet-stream"),
    (None, "no-ending", "application/octet-stream"),
    (None, "data:text,x.png", "image/png"),
    (None, "http:a.png", "image/png"),
    ("absurd", "a.png", "image/png"),
    ("a/b/c", "a.png", "image/png"),
    ("*/*", "a.png", "image/png"),
    ("text/", "a.png", "image/png"),
    ("; charset=utf-8", "a.png", "image/png"),
    ("text/тест", "a.png", "image/png"),
    ("text/" + "x" * 300, "a.png", "image/png"),
]


async def test_media_type_is_what_was_declared_or_what_the_name_says(api: Api) -> None:
    for number, (declared, name, kept) in enumerate(MEDIA_TYPES):
        headers = {} if declared is None else {"Content-Type": declared}
        reply = await api.put(f"/put/{number}/{name}", b"x", headers=headers, skip_auto_headers=("Content-Type",))
        assert reply.json["content_type"] == kept, (declared, name)
        more = [] if declared is None else [f"Content-Type: {declared}"]
        body = (part(f'name="file"; filename="{name}"', b"x", *more)
                + part('name="path"', f"/post/{number}/".encode()) + END)
        assert (await send_form(api, body)).json["content_type"] == kept, (declared, name)
    kept_types = {file["path"]: file["content_type"] for file in await api.list()}
    for number, (_, name, kept) in enumerate(MEDIA_TYPES):
        assert kept_types[f"/put/{number}/{name}"] == kept_types[f"/post/{number}/{name}"] == kept


async def test_media_type_is_never_taken_from_an_odd_filename(api: Api) -> None:
    for number, filename in enumerate((
            "data:a/b,.txt", f"data:a/{'b' * 300},.txt", "data:тест/я,.txt", "data:text/html,.txt",
            "http://x/y?z.png")):
        body = (part(f'name="file"; filename="{filename}"', b"x")
                + part('name="path"', f"/{number}.zzz".encode()) + END)
        assert (await send_form(api, body)).json["content_type"] == "application/octet-stream"


async def test_media_type_follows_the_name_that_the_file_gets(api: Api) -> None:
    body = part('name="file"; filename="tmp123"', b"x", "Content-Type: application/octet-stream")
    for fields in (part('name="path"', b"/a.pdf"), part('name="name"', b"b.pdf")):
        assert (await send_form(api, body + fields + END)).json["content_type"] == "application/pdf"


# --- sizes and ways to send ---

async def test_empty_file_is_a_file(api: Api) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    for stored in ((await api.put("/put", b"")).json, (await api.post(b"", path="/post")).json):
        assert (stored["size"], stored["sha256"]) == (0, empty)
        reply = await api.get(stored["path"])
        assert (reply.body, reply.headers["Content-Length"]) == (b"", "0")
    assert (await api.usage())["count"] == 2


async def test_sizes_around_the_buffers_come_back_equal(api: Api) -> None:
    for size in (1, 4095, 256 * 1024, 256 * 1024 + 1, MIB - 1, MIB, MIB + 1):
        content = (b"0123456789abcde" * (size // 15 + 1))[:size]
        await api.put(f"/put-{size}", content)
        await api.post(content, path=f"/post-{size}")
        assert (await api.get(f"/put-{size}")).body == (await api.get(f"/post-{size}")).body == content


async def test_ten_mebibytes_come_back_equal(api: Api) -> None:
    content = hashlib.shake_256(b"ten").digest(10 * MIB)
    wanted = hashlib.sha256(content).hexdigest()
    assert (await api.put("/put.bin", content)).json["sha256"] == wanted
    assert (await api.post(content, path="/post.bin")).json["sha256"] == wanted
    for path in ("/put.bin", "/post.bin"):
        assert hashlib.sha256((await api.get(path)).body).hexdigest() == wanted
    assert (await api.usage())["files"] == 20 * MIB


async def test_content_that_looks_like_a_form_comes_back_equal(api: Api) -> None:
    content = FILE.replace(BOUNDARY.encode(), BOUNDARY[:-1].encode()) + b"\r\n--" + BOUNDARY[:-2].encode() + b"--\r\n"
    await send_form(api, part('name="file"; filename="a"', content) + END)
    assert (await api.get("/a")).body == content


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    """A body without a length."""
    for piece in given:
        yield piece


async def test_upload_without_length_is_stored(api: Api) -> None:
    stored = (await api.put("/a.bin", pieces(b"one", b"x" * MIB, b"two"))).json
    assert stored["size"] == MIB + 6
    assert stored["sha256"] == hashlib.sha256(b"one" + b"x" * MIB + b"two").hexdigest()
    assert (await api.put("/empty", pieces())).json["size"] == 0
    form = await api.call("POST", "/file", data=pieces(FILE[:50], FILE[50:], END), expect=201,
                          headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    assert form.json["size"] == 5


def head_of(api: Api, method: str, path: str, *lines: str, token: str | None = None) -> bytes:
    """The head of a request."""
    authorization = f"Authorization: Bearer {api.token if token is None else token}"
    return "\r\n".join([f"{method} /file?path={quote(path)} HTTP/1.1", "Host: localhost", "Connection: close",
                        authorization, *lines, "", ""]).encode()


async def test_put_with_expectation_is_invited_and_stored(api: Api) -> None:
    head = head_of(api, "PUT", "/a.txt", "Content-Length: 5", "Expect: 100-continue")
    reply = await converse(api.stack, (head, "100 Continue\r\n\r\n"), (b"hello", ""))
    assert reply.status == 201
    assert (await api.get("/a.txt")).body == b"hello"


async def test_form_with_expectation_is_invited_and_stored(api: Api) -> None:
    head = head_of(api, "POST", "/a.txt", f"Content-Length: {len(FILE + END)}", "Expect: 100-continue",
                   f"Content-Type: multipart/form-data; boundary={BOUNDARY}")
    reply = await converse(api.stack, (head, "100 Continue\r\n\r\n"), (FILE + END, ""))
    assert reply.status == 201


@pytest.mark.parametrize(("lines", "token", "status", "code"), [
    (["Content-Length: 5"], "garbage", 401, "unauthenticated"),
    (["Content-Length: 10737418240"], "garbage", 401, "unauthenticated"),
    (["Content-Length: 5", "Content-Encoding: gzip"], None, 415, "unsupported_encoding"),
    (["Content-Length: 5", "If-Match: x"], None, 400, "bad_request"),
    (["Content-Length: 5", "Content-Digest: sha-256=:x:"], None, 400, "bad_request"),
    (["Content-Length: 70368744177664"], None, 413, "too_large"),
    (["Content-Length: 99999999999999999999999999"], None, (400, 413), ("bad_request", "too_large")),
    (["Content-Length: -1"], None, 400, "bad_request"),
    (["Content-Length: 5", "Content-Length: 6"], None, 400, "bad_request"),
    (["Content-Length: 5", "Transfer-Encoding: chunked"], None, 400, "bad_request"),
])
async def test_upload_that_cannot_be_is_refused_before_its_first_byte(
        api: Api, lines: list[str], token: str | None, status: int | tuple[int, ...],
        code: str | tuple[str, ...]) -> None:
    async with nothing_stored(api):
        reply = await converse(api.stack, (head_of(api, "PUT", "/a.txt", *lines, "Expect: 100-continue",
                                                   token=token), ""))
    assert reply.status in (status if isinstance(status, tuple) else (status,))
    assert reply.code in (code if isinstance(code, tuple) else (code,))


async def test_anonymous_large_upload_ends_in_401_and_leaves_nothing(api: Api) -> None:
    async with nothing_stored(api):
        for method in ("PUT", "POST"):
            head = head_of(api, method, "/a.bin", "Content-Length: 10737418240", token="none")
            reply = await converse(api.stack, (head + b"x" * 2 * MIB, ""))
            assert (reply.status, reply.code) == (401, "unauthenticated")


@pytest.mark.parametrize(("head", "body"), [
    (["Content-Length: 100000"], b"x" * 50_000),
    (["Content-Length: 3000000"], b"x" * 2 * MIB),
    (["Transfer-Encoding: chunked"], b"5\r\nhello\r\n"),
    (["Transfer-Encoding: chunked"], b"ffff\r\nhello"),
    (["Content-Length: 3000000", f"Content-Type: multipart/form-data; boundary={BOUNDARY}"], FILE[:-30] + b"x" * MIB),
])
async def test_upload_that_is_cut_off_leaves_nothing(api: Api, head: list[str], body: bytes) -> None:
    async with nothing_stored(api):
        for method in ("PUT", "POST") if "Content-Type" in str(head) else ("PUT",):
            _, writer = await asyncio.open_connection("127.0.0.1", api.stack.port)
            writer.write(head_of(api, method, "/a.bin", *head) + body)
            await writer.drain()
            writer.close()


@pytest.mark.parametrize("body", [b"zz\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n"])
async def test_put_with_broken_chunks_leaves_nothing(api: Api, body: bytes) -> None:
    async with nothing_stored(api):
        reply = await converse(api.stack, (head_of(api, "PUT", "/a.bin", "Transfer-Encoding: chunked") + body, ""))
    assert (reply.status, reply.code) in ((400, "bad_request"), (400, "incomplete_body"))


# --- limits ---

async def test_upload_over_the_quota_is_refused_and_leaves_nothing(
        session: aiohttp.ClientSession, tight_stack: Stack) -> None:
    api = await new_account(session, tight_stack)
    await api.put("/a", b"x" * 600)
    assert (await api.usage())["available"] == 400
    async with nothing_stored(api):
        for reply in (await api.put("/b", b"x" * 401, expect=507), await api.post(b"x" * 401, path="/b", expect=507),
                      await api.put("/b", pieces(b"x" * 401), expect=507)):
            assert reply.code == "quota_exceeded"
    await api.put("/a", b"y" * 600, expect=200)
    await api.put("/b", b"x" * 400)
    usage = await api.usage()
    assert (usage["quota"], usage["available"], usage["files"]) == (1000, 0, 1000)
    await api.put("/c", b"")
    assert (await api.put("/d", b"x", expect=507)).code == "quota_exceeded"
    await api.delete("/a", permanent=True)
    assert (await api.usage())["available"] == 600


async def test_uploads_at_the_same_time_never_go_over_the_quota(
        session: aiohttp.ClientSession, tight_stack: Stack) -> None:
    api = await new_account(session, tight_stack)
    replies = await asyncio.gather(*(api.put(f"/{number}", b"x" * 300, expect=None) for number in range(12)))
    assert sorted(reply.status for reply in replies) == [201] * 3 + [507] * 9
    assert (await api.usage())["files"] == 900


async def test_upload_over_the_limit_of_a_file_is_refused_and_leaves_nothing(
        session: aiohttp.ClientSession, tight_stack: Stack) -> None:
    api = await new_account(session, tight_stack)
    async with nothing_stored(api):
        for reply in (await api.put("/a", b"x" * 601, expect=413), await api.post(b"x" * 601, path="/a", expect=413),
                      await api.put("/a", pieces(b"x" * 601), expect=413)):
            assert reply.code == "too_large"
    await api.put("/a", b"x" * 600)


async def test_form_with_a_digest_is_refused_as_it_cannot_be_checked(api: Api) -> None:
    digest = base64.b64encode(hashlib.sha256(b"1").digest()).decode()
    for name in ("Content-Digest", "Repr-Digest"):
        form = aiohttp.FormData()
        form.add_field("file", b"1", filename="a.txt")
        reply = await api.call("POST", "/file", data=form, headers={name: f"sha-256=:{digest}:"})
        assert (reply.status, reply.code) == (400, "bad_request")
    assert await api.list() == []
