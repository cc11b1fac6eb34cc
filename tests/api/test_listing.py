"""The list of all files from outside: PostgreSQL writes it, so each object has to equal the one of an upload."""

from collections.abc import Awaitable, Callable

import pytest

from tests.client import Api

NASTY = ['quote"quote.txt', "back\\slash.txt", "both\\\".txt", "😀 写真 привет.jpg", "comma, semi;colon.txt",
         "{json: [1]}", "%41&amp;<b>.html", "null", "\u00a0nbsp\u200b.txt", "é.txt", "trailing\\", "'single'",
         "$1 \\n \\u0041", "a" * 255]


async def test_no_files_are_an_empty_list(api: Api) -> None:
    reply = await api.call("GET", "/file/list", expect=200)
    assert reply.json == {"files": []}
    assert reply.headers["Content-Type"].startswith("application/json")
    assert "no-store" in reply.headers["Cache-Control"]


async def test_listed_file_equals_the_uploaded_one_key_by_key(api: Api) -> None:
    answers = [(await api.post(name.encode(), path="/a b/", name=name)).json for name in NASTY]
    answers += [(await api.put("/root.bin", b"", headers={"Content-Type": 'text/x; t="\\"q\\"", \\ {}'})).json]
    listed = await api.list()
    assert sorted(map(str, listed)) == sorted(map(str, answers))  # str: the order of keys, too
    by_id = {file["id"]: file for file in listed}
    for answer in answers:
        assert list(by_id[answer["id"]].items()) == list(answer.items())
        assert await api.info(answer["id"]) == answer


async def test_list_is_in_the_order_of_the_paths(api: Api) -> None:
    paths = ["/b", "/a", "/a-b/z", "/a/z", "/a.txt", "/A", "/aa", "/é", "/z/y/x/w", "/z/y-x", "/😀", "/\uffee"]
    for path in paths:
        await api.put(f"{path}.bin")
    listed = [file["path"] for file in await api.list()]
    assert listed == sorted((f"{path}.bin" for path in paths), key=str.encode)


async def test_list_has_no_folders_and_nothing_of_others(
        api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    other = await other_account()
    await api.put("/shared/name.txt", b"mine")
    await other.put("/shared/name.txt", b"theirs")
    await other.put("/only-theirs.txt")
    (mine,) = await api.list()
    assert (mine["path"], mine["size"]) == ("/shared/name.txt", 4)
    assert len(await other.list()) == 2


async def test_list_follows_overwriting_and_deleting(api: Api) -> None:
    for path in ("/a/1", "/a/2", "/b/3"):
        await api.put(path, b"x")
    replaced = (await api.put("/a/2", b"new", expect=200)).json
    await api.delete("/a/1", permanent=True)
    assert [file["path"] for file in await api.list()] == ["/a/2", "/b/3"]
    assert (await api.list())[0] == replaced
    await api.delete("/a", permanent=True)
    assert [file["path"] for file in await api.list()] == ["/b/3"]
    await api.delete("/b/3", permanent=True)
    assert await api.list() == []


async def test_list_of_three_thousand_files_is_whole(api: Api) -> None:
    for number in range(30):
        await api.put(f"/first/файл {number}.txt", b"x")
    for number in range(99):
        body = {"from": "/first", "to": f"/copy {number}"}
        await api.call("POST", "/file/copy", json=body, expect=201)
    listed = [file["path"] for file in await api.list()]
    assert len(listed) == 3000
    assert listed == sorted(set(listed), key=str.encode)
    assert (await api.usage())["count"] == 3000


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_list_takes_no_other_method(api: Api, method: str) -> None:
    reply = await api.call(method, "/file/list", expect=405)
    assert reply.code == "method_not_allowed"
    assert set(reply.headers["Allow"].split(",")) == {"GET", "HEAD"}
