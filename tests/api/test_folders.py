"""Folders from outside: made with all above them, kept when empty, counted."""

import asyncio
import uuid
from typing import Any

import pytest

from tests.client import Api, Reply


async def make(api: Api, path: str, expect: int | None = 201) -> Reply:
    return await api.call("POST", "/file/folder", json={"path": path}, expect=expect)


@pytest.mark.parametrize("path", ["/a", "/a/b/c", "/a/", "a/b", "/папка/写真 😀", "/" + "x" * 255])
async def test_a_folder_is_made_with_all_above_it(api: Api, path: str) -> None:
    made = (await make(api, path)).json
    assert set(made) == {"type", "id", "name", "path", "created_at", "updated_at"}
    assert made["type"] == "folder"
    assert made["path"] == "/" + path.strip("/")
    assert made["name"] == made["path"].rpartition("/")[2]
    assert (await make(api, path, expect=200)).json == made
    assert (await make(api, made["id"], expect=200)).json == made
    assert (await api.info(path))["id"] == made["id"]


async def test_the_root_is_always_there(api: Api) -> None:
    assert (await make(api, "/", expect=200)).json["path"] == "/"


async def test_an_empty_folder_stays_when_its_last_file_goes(api: Api) -> None:
    await api.put("/a/b/c.txt", b"x")
    await api.delete("/a/b/c.txt")
    assert (await api.info("/a/b"))["files"] == 0
    assert (await make(api, "/a/b", expect=200)).json["path"] == "/a/b"


async def test_info_counts_everything_below(api: Api) -> None:
    assert {name: (await api.info("/"))[name] for name in ("files", "folders", "size")} == {
        "files": 0, "folders": 0, "size": 0}
    for path, size in (("/a/1", 10), ("/a/b/2", 20), ("/a/b/c/3", 40), ("/d", 80)):
        await api.put(path, b"x" * size)
    await make(api, "/a/empty")
    await api.put("/a/b/2", b"x" * 21, expect=200)
    await api.put("/a/b/gone", b"x")
    await api.delete("/a/b/gone")
    found = await api.info("/a")
    assert (found["files"], found["folders"], found["size"]) == (3, 3, 71)
    found = await api.info("/")
    assert (found["files"], found["folders"], found["size"]) == (4, 4, 151)
    assert "files" not in await api.info("/d")


@pytest.mark.parametrize(("body", "status", "code", "field"), [
    ({}, 422, "invalid_field", "path"), ({"path": 5}, 422, "invalid_field", "path"),
    ({"path": "/a/../b"}, 422, "invalid_path", "path"), ({"path": "/" + "x" * 256}, 422, "invalid_path", "path"),
    ({"path": "/a\x00"}, 422, "invalid_path", "path"), ({"path": "/x" * 129}, 422, "invalid_path", "path"),
    ({"path": "/file.txt"}, 409, "not_a_folder", "path"), ({"path": "/file.txt/below"}, 409, "not_a_folder", "path"),
    ({"path": str(uuid.uuid4())}, 404, "not_found", None), ([], 422, "invalid_field", None),
])
async def test_what_cannot_be_made_says_why(api: Api, body: Any, status: int, code: str, field: str | None) -> None:
    await api.put("/file.txt")
    reply = await api.call("POST", "/file/folder", json=body, expect=status)
    assert reply.code == code
    assert reply.json.get("field") == field
    assert (await api.info("/"))["folders"] == 0


async def test_many_at_once_make_one(api: Api) -> None:
    replies = await asyncio.gather(*(make(api, "/a/b/c/d", expect=None) for _ in range(20)))
    assert {reply.status for reply in replies} <= {200, 201}
    assert len({reply.json["id"] for reply in replies}) == 1
    assert (await api.info("/"))["folders"] == 4
