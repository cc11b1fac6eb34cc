"""Looking, deleting and counting from outside; what a name may be, at every door."""

import uuid
from urllib.parse import quote

import pytest

from tests.client import Api, nothing_stored

DOORS = [("GET", "/file/download"), ("GET", "/file/info"), ("DELETE", "/file"), ("PUT", "/file")]


# --- look ---

async def test_info_of_a_file_has_its_tag(api: Api) -> None:
    stored = (await api.put("/a/b.txt", b"hello")).json
    for place in ("/a/b.txt", "a/b.txt", stored["id"]):
        reply = await api.call("GET", f"/file/info?path={place}", expect=200)
        assert reply.json == stored
        assert reply.headers["ETag"] == stored["etag"]
        assert "no-store" in reply.headers["Cache-Control"]


async def test_info_of_a_folder_says_that_it_is_one(api: Api) -> None:
    await api.put("/a/б/c.txt")
    folder = await api.info("/a/б")
    assert (folder["type"], folder["name"], folder["path"]) == ("folder", "б", "/a/б")
    assert await api.info(folder["id"]) == await api.info("/a/б/") == folder
    root = await api.info("/")
    assert (root["type"], root["name"], root["path"]) == ("folder", "", "/")


async def test_info_of_nothing_is_404(api: Api) -> None:
    await api.put("/a.txt")
    for place in ("/b", "/a.txt/b", str(uuid.uuid4())):
        assert (await api.call("GET", f"/file/info?path={place}", expect=404)).code == "not_found"


# --- delete ---

async def test_deleted_file_is_gone_by_path_and_by_id(api: Api) -> None:
    for number, by_id in enumerate((False, True)):
        stored = (await api.put(f"/a/{number}.txt", b"x")).json
        reply = await api.delete(stored["id"] if by_id else stored["path"], permanent=True)
        assert reply.body == b""
        for place in (stored["path"], stored["id"]):
            await api.get(place, expect=404)
            await api.info(place, expect=404)
            await api.delete(place, permanent=True, expect=404)
    assert (await api.info("/a"))["type"] == "folder"


async def test_deleted_folder_takes_all_that_is_in_it(api: Api) -> None:
    for path in ("/a/b/1", "/a/b/c/2", "/a/3", "/4"):
        await api.put(path, b"xy")
    await api.delete("/a", permanent=True)
    assert [file["path"] for file in await api.list()] == ["/4"]
    assert ((await api.usage())["files"], (await api.usage())["count"]) == (2, 1)
    assert (await api.put("/a", b"now a file")).json["path"] == "/a"


async def test_name_of_a_deleted_file_is_free_again(api: Api) -> None:
    first = (await api.put("/a.txt", b"one")).json
    await api.delete("/a.txt", permanent=True)
    second = (await api.put("/a.txt", b"two")).json
    assert (second["version"], (await api.get("/a.txt")).body) == (1, b"two")
    assert second["id"] != first["id"]


async def test_root_cannot_be_deleted(api: Api) -> None:
    await api.put("/a.txt")
    for place in ("/", (await api.info("/"))["id"]):
        reply = await api.delete(place, permanent=True, expect=422)
        assert (reply.code, reply.json["field"]) == ("invalid_path", "path")
    assert len(await api.list()) == 1


@pytest.mark.parametrize(("headers", "status"), [
    ({"If-Match": '"other"'}, 412), ({"If-Match": "W/{etag}"}, 412), ({"If-None-Match": "*"}, 412),
    ({"If-None-Match": "W/{etag}"}, 412), ({"If-Match": "nothing"}, 400), ({"If-Match": "{etag}"}, 204),
    ({"If-None-Match": '"other"'}, 204), ({"If-Match": "*"}, 204),
])
async def test_delete_keeps_its_conditions(api: Api, headers: dict[str, str], status: int) -> None:
    stored = (await api.put("/a.txt", b"x")).json
    sent = {name: value.format(etag=stored["etag"]) for name, value in headers.items()}
    await api.delete("/a.txt", permanent=True, headers=sent, expect=status)
    assert await api.list() == ([] if status == 204 else [stored])


# --- count ---

async def test_usage_counts_bytes_and_files(api: Api) -> None:
    assert await api.usage() == {"files": 0, "count": 0, "quota": None, "available": None, "trash": 0, "versions": 0}
    await api.put("/a/1", b"x" * 700)
    await api.post(b"x" * 300, path="/2")
    assert await api.usage() == {"files": 1000, "count": 2, "quota": None, "available": None, "trash": 0, "versions": 0}
    await api.put("/2", b"", expect=200)
    usage = await api.usage()
    assert (usage["files"], usage["count"]) == (700, 2)
    await api.delete("/a", permanent=True)
    usage = await api.usage()
    assert (usage["files"], usage["count"], usage["trash"]) == (0, 1, 0)


# --- names: reliability.md 2.5 ---

BROKEN_PATHS = [
    "/..", "/../x", "/a/../b", "/a/..", "..", ".", "/.", "/./a", "/a/./b", "//a", "/a//b", "//", "/a//",
    "/a\0b", "/a\nb", "/a\rb", "/a\tb", "/a\x1bb", "/a\x7fb", "/a\x85b", "/a\u2028b", "/a\u202eb", "/a\u2066b",
    "/" + "x" * 256, "/" + "я" * 128, "/" + "😀" * 64, "/" + "e\u0301" * 128, "/" + "a/" * 129,
    "/" + "/".join(["x" * 200] * 21), "/" + "x" * 12_000,
]
BROKEN_ADDRESSES = ["/%ff", "/%c0%af", "/%ed%a0%80", "/%", "/%2", "/%zz", "/a%", "/%f0%9f%98"]
EDGE_PATHS = [
    "/" + "x" * 255, "/" + "я" * 127, "/" + "😀" * 63, "/" + "e\u0301" * 127, "/" + "a/" * 127 + "z",
    "/" + "/".join(["x" * 200] * 20), "/...", "/..a", "/a..", "/ ", "/%2e%2e", "/CON", "/a:b*c?d|e<f>", "/-rf", "/~",
    "/\u200b", "/\u0300", "/etc/passwd",
]


@pytest.mark.parametrize(("method", "address"), DOORS)
async def test_path_that_breaks_the_rules_is_named(api: Api, method: str, address: str) -> None:
    async with nothing_stored(api):
        for path in BROKEN_PATHS:
            reply = await api.call(method, f"{address}?path={quote(path)}")
            assert (reply.status, reply.code, reply.json["field"]) == (422, "invalid_path", "path"), path


async def test_path_of_a_form_that_breaks_the_rules_is_named(api: Api) -> None:
    async with nothing_stored(api):
        for path in BROKEN_PATHS:
            reply = await api.post(b"x", path=path, expect=None)
            assert (reply.status, reply.code, reply.json["field"]) == (422, "invalid_path", "path"), path


async def test_address_with_broken_escapes_is_refused_at_every_door(api: Api) -> None:
    async with nothing_stored(api):
        for method, door in DOORS:
            for address in BROKEN_ADDRESSES:
                reply = await api.call(method, f"{door}?path={address}")
                assert (reply.status, reply.code) == (400, "bad_request"), (method, address)


async def test_path_at_the_edge_of_the_rules_is_a_path(api: Api) -> None:
    for path in EDGE_PATHS:
        stored = (await api.put(path, b"x")).json
        assert (await api.get(stored["path"])).body == b"x"
        assert (await api.info(path))["id"] == stored["id"]
        await api.delete(path, permanent=True)


async def test_two_addresses_are_never_one_file(api: Api) -> None:
    await api.call("PUT", "/file?path=/%25ff", data=b"x", expect=201)
    assert (await api.call("GET", "/file/info?path=/%25ff", expect=200)).json["path"] == "/%ff"
    await api.call("GET", "/file/info?path=/%2525ff", expect=404)
    await api.call("GET", "/file/info?path=/%ff", expect=400)
