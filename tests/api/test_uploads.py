"""Uploads from outside: where they go, what they replace, what is refused."""

import hashlib

import pytest

from tests.client import Api

NAMES = ["привет.txt", "写真.jpg", "naïve 😀.pdf", "a+b & c?d#e%20.txt", "quote\"back\\slash.txt", "x" * 255]


@pytest.mark.parametrize("name", NAMES)
async def test_put_any_name_comes_back_the_same(api: Api, name: str) -> None:
    stored = (await api.put(f"/папка/{name}", b"hello")).json
    assert stored["path"] == f"/папка/{name}"
    assert stored["name"] == name
    assert stored["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert (await api.get(f"/папка/{name}")).body == b"hello"
    assert (await api.get(stored["id"])).body == b"hello"


async def test_put_again_replaces_and_counts_versions(api: Api) -> None:
    first = (await api.put("/a.txt", b"one")).json
    second = (await api.put("/a.txt", b"three", expect=200)).json
    assert (first["id"], first["created_at"]) == (second["id"], second["created_at"])
    assert (first["version"], second["version"]) == (1, 2)
    assert first["etag"] != second["etag"]
    assert (await api.usage())["files"] == 5
