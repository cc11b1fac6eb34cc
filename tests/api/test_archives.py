"""A folder as one zip, from outside."""

import hashlib
import io
import os
import zipfile
from typing import Any
from urllib.parse import quote

import pytest

from tests.client import Api

FILES = {
    "a.txt": b"hello", "empty": b"", "папка/写真 😀.jpg": os.urandom(300_000), "deep/er/x.bin": b"x" * 70_000,
    'q"uote?.txt': b"1", "con.txt": b"2", "Case.txt": b"3", "case.txt": b"4", "dot.": b"5",
}
PORTABLE = {"q\"uote?.txt": "q_uote_.txt", "con.txt": "_con.txt", "case.txt": "case (2).txt", "dot.": "dot_"}


async def archive(api: Api, path: str, **more: Any) -> bytes:
    return (await api.call("GET", f"/file/archive?path={quote(path)}", expect=200, **more)).body


async def fill(api: Api) -> None:
    for name, body in FILES.items():
        await api.put(f"/folder/{name}", body)


async def test_archive_holds_every_file_under_portable_names(api: Api) -> None:
    await fill(api)
    body = await archive(api, "/folder")
    with zipfile.ZipFile(io.BytesIO(body)) as opened:
        assert opened.testzip() is None
        found = {info.filename: opened.read(info) for info in opened.infolist() if not info.is_dir()}
        assert [name for name in opened.namelist() if name.endswith("/")] == [
            "folder/", "folder/deep/", "folder/папка/", "folder/deep/er/"]
    assert found == {f"folder/{PORTABLE.get(name, name)}": content for name, content in FILES.items()}


async def test_length_is_known_and_head_agrees(api: Api) -> None:
    await fill(api)
    reply = await api.call("GET", "/file/archive?path=/folder", expect=200)
    head = await api.call("HEAD", "/file/archive?path=/folder", expect=200)
    assert int(reply.headers["Content-Length"]) == len(reply.body) == int(head.headers["Content-Length"])
    assert reply.headers["ETag"] == head.headers["ETag"]
    assert reply.headers["Content-Type"] == "application/zip"
    assert 'filename="folder.zip"' in reply.headers["Content-Disposition"]
    assert reply.headers.getall("Accept-Ranges") == ["bytes"]


@pytest.mark.parametrize("pieces", [2, 7, 50])
async def test_parts_of_an_archive_joined_are_the_archive(api: Api, pieces: int) -> None:
    await fill(api)
    whole = await archive(api, "/folder")
    step = len(whole) // pieces + 1
    joined = b""
    for first in range(0, len(whole), step):
        part = await api.call("GET", "/file/archive?path=/folder", expect=206,
                              headers={"Range": f"bytes={first}-{first + step - 1}"})
        assert part.headers["Content-Range"].startswith(f"bytes {first}-")
        joined += part.body
    assert hashlib.sha256(joined).digest() == hashlib.sha256(whole).digest()


async def test_conditions_and_ranges_follow_the_tree(api: Api) -> None:
    await fill(api)
    etag = (await api.call("HEAD", "/file/archive?path=/folder", expect=200)).headers["ETag"]
    await api.call("GET", "/file/archive?path=/folder", headers={"If-None-Match": etag}, expect=304)
    await api.call("GET", "/file/archive?path=/folder", headers={"Range": "bytes=99999999-"}, expect=416)
    resume = {"Range": "bytes=5-9", "If-Range": etag}
    await api.call("GET", "/file/archive?path=/folder", headers=resume, expect=206)
    await api.put("/folder/new.txt", b"new")
    await api.call("GET", "/file/archive?path=/folder", headers={"If-None-Match": etag}, expect=200)
    await api.call("GET", "/file/archive?path=/folder", headers=resume, expect=200)


async def test_root_and_empty_folder_have_archives(api: Api) -> None:
    with zipfile.ZipFile(io.BytesIO(await archive(api, "/"))) as opened:
        assert opened.namelist() == ["files/"]
    await api.put("/a/b.txt", b"1")
    await api.delete("/a/b.txt")
    with zipfile.ZipFile(io.BytesIO(await archive(api, "/a"))) as opened:
        assert opened.namelist() == ["a/"]


async def test_file_or_nothing_has_no_archive(api: Api) -> None:
    await api.put("/a.txt", b"1")
    assert (await api.call("GET", "/file/archive?path=/a.txt")).code == "not_a_folder"
    assert (await api.call("GET", "/file/archive?path=/b")).code == "not_found"
