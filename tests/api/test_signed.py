"""Signed addresses from outside: what they give, how long, and that nothing of them can be changed."""

import asyncio
import os
import stat
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.client import Api, Reply

NAMES = ["notes.txt", "привет мир.txt", "写真🌅.jpg", "a'b\"c&d=e<f>.txt", "100% #1?+x.txt", "a;b|c\\d$e{f}.txt",
         "x" * 255]
TYPES = {"text/plain": "text/plain; charset=utf-8", "image/png": "image/png",
         "text/html": "application/octet-stream", "image/svg+xml": "application/octet-stream"}


async def sign(api: Api, path: str, *, expires_in: int = 600) -> Any:
    return (await api.call("POST", "/file/sign", json={"path": path, "expires_in": expires_in}, expect=201)).json


def address(signed: Any) -> str:
    """The address without its host, still encoded."""
    parts = urlsplit(signed["url"])
    return f"{parts.path}?{parts.query}"


async def get(api: Api, path: str, status: int, method: str = "GET", **headers: str) -> Reply:
    return await api.call(method, path, headers=headers, expect=status)


@pytest.mark.parametrize("name", NAMES)
async def test_signed_address_serves_any_name(api: Api, anonymous: Api, name: str) -> None:
    await api.put(f"/папка/{name}", b"hello")
    signed = await sign(api, f"/папка/{name}")
    assert signed["url"].startswith(f"{api.stack.url}/d/")
    left = datetime.fromisoformat(signed["expires_at"]) - datetime.now(UTC)
    assert 590 < left.total_seconds() <= 600
    reply = await get(anonymous, address(signed), 200)
    assert reply.body == b"hello"
    disposition = reply.headers["Content-Disposition"]
    assert disposition.startswith("attachment; filename=") and disposition.isascii()
    encoded = quote(name, safe="")
    assert f"filename*=UTF-8''{encoded}" in disposition or f'filename="{name}"' in disposition
    assert (await get(anonymous, address(signed), 200, "HEAD")).body == b""


@pytest.mark.parametrize("content_type", TYPES)
async def test_headers_are_those_of_every_download(api: Api, anonymous: Api, content_type: str) -> None:
    await api.put("/a.bin", b"<script>alert(1)</script>", headers={"Content-Type": content_type})
    reply = await get(anonymous, address(await sign(api, "/a.bin")), 200)
    expected = {"Content-Type": TYPES[content_type], "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private, no-cache",
                "Cross-Origin-Resource-Policy": "same-origin", "Accept-Ranges": "bytes"}
    assert {name: reply.headers.getall(name) for name in expected} == {name: [text] for name, text in expected.items()}


async def test_ranges_and_conditions(api: Api, anonymous: Api) -> None:
    await api.put("/a.txt", b"0123456789")
    signed = address(await sign(api, "/a.txt"))
    etag = (await get(anonymous, signed, 200)).headers["ETag"]
    assert etag.startswith('"')
    assert (await get(anonymous, signed, 206, Range="bytes=2-4")).body == b"234"
    assert (await get(anonymous, signed, 206, Range="bytes=2-4", **{"If-Range": etag})).body == b"234"
    assert (await get(anonymous, signed, 200, Range="bytes=2-4", **{"If-Range": '"x"'})).body == b"0123456789"
    assert (await get(anonymous, signed, 416, Range="bytes=10-")).headers["Content-Range"] == "bytes */10"
    assert (await get(anonymous, signed, 304, **{"If-None-Match": etag})).body == b""
    await get(anonymous, signed, 200, **{"If-Match": etag})
    assert (await get(anonymous, signed, 412, **{"If-Match": '"x"'})).code == "precondition_failed"
    # signed again, it is the same file to a client that goes on with a download
    assert (await get(anonymous, address(await sign(api, "/a.txt", expires_in=700)), 200)).headers["ETag"] == etag


async def test_address_means_one_version_for_ever(api: Api, anonymous: Api) -> None:
    await api.put("/a.txt", b"first")
    signed = address(await sign(api, "/a.txt"))
    await api.put("/a.txt", b"second", expect=200)
    assert (await get(anonymous, signed, 200)).body == b"first"
    assert (await get(anonymous, address(await sign(api, "/a.txt")), 200)).body == b"second"


async def test_expired_address_is_gone(api: Api, anonymous: Api) -> None:
    await api.put("/a.txt", b"hello")
    signed = address(await sign(api, "/a.txt", expires_in=1))
    await get(anonymous, signed, 200)
    await asyncio.sleep(2.1)  # whole seconds, the last one included
    assert (await get(anonymous, signed, 410)).code == "address_expired"
    parameters = dict(pair.split("=", 1) for pair in signed.partition("?")[2].split("&"))
    later = signed.replace(f"e={parameters['e']}", f"e={int(parameters['e']) + 600}")
    assert (await get(anonymous, later, 403)).code == "forbidden"


async def test_nothing_of_an_address_can_be_changed(api: Api, anonymous: Api) -> None:
    """Also not to another file's parameters, each of which is right in its own address."""
    await api.put("/a.txt", b"mine")
    await api.put("/b.pdf", b"other")
    path, _, query = address(await sign(api, "/a.txt")).partition("?")
    other_path, _, other_query = address(await sign(api, "/b.pdf", expires_in=900)).partition("?")
    one, two = (dict(pair.split("=", 1) for pair in text.split("&")) for text in (query, other_query))
    assert list(one) == ["b", "e", "n", "t", "s"]

    def joined(changed: dict[str, str], path: str = path) -> str:
        return f"{path}?" + "&".join(f"{name}={value}" for name, value in changed.items())

    assert (await get(anonymous, joined(one), 200)).body == b"mine"
    wrong = [joined({**one, name: two[name]}) for name in one] + [joined(one, other_path)]
    wrong += [joined({key: value for key, value in one.items() if key != name}) for name in one]
    wrong += [joined({**one, name: one[name] + "x"}) for name in one] + [joined({**one, name: ""}) for name in one]
    wrong += [joined({**one, "b": text}) for text in ("../../jwt_secret", "..%2f..%2fjwt_secret", "%2e%2e/jwt_secret")]
    wrong += [joined({**one, "e": text}) for text in ("0", "-1", "99999999999", one["e"] + "0", "0x7fffffff")]
    wrong += [joined({**one, "t": text}) for text in ("text-html", "../_blobs", "..%2f_blobs", "")]
    wrong += [joined(one, "/d/b.txt"), path]
    for changed in wrong:
        assert (await get(anonymous, changed, 403)).code == "forbidden", changed


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_other_methods_are_refused(api: Api, anonymous: Api, method: str) -> None:
    await api.put("/a.txt", b"hello")
    reply = await get(anonymous, address(await sign(api, "/a.txt")), 405, method)
    assert reply.code == "method_not_allowed"


@pytest.mark.parametrize("change", [{"path": ""}, {"expires_in": 0}, {"expires_in": 7 * 86400 + 1},
                                    {"expires_in": "60"}, {"path": "/a/../b"}])
async def test_field_that_cannot_be_used_is_named(api: Api, change: dict[str, Any]) -> None:
    await api.put("/a.txt", b"")
    reply = await api.call("POST", "/file/sign", json={"path": "/a.txt", "expires_in": 60, **change}, expect=422)
    assert reply.json["field"] == next(iter(change))


async def test_only_own_files_are_signed(api: Api, anonymous: Api) -> None:
    await api.put("/dir/a.txt", b"")
    assert (await api.call("POST", "/file/sign", json={"path": "/dir", "expires_in": 60}, expect=409)
            ).code == "is_a_folder"
    for path in ("/none", "01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60"):
        assert (await api.call("POST", "/file/sign", json={"path": path, "expires_in": 60}, expect=404)
                ).code == "not_found"
    await anonymous.call("POST", "/file/sign", json={"path": "/dir/a.txt", "expires_in": 60}, expect=401)


async def test_secret_is_for_the_service_alone(api: Api) -> None:
    root = api.stack.root
    held = [root / "address_secret", *([root / "run" / "nginx.conf"] if api.stack.is_behind_nginx else [])]
    for path in held:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert len(held[0].read_text().strip()) >= 64
