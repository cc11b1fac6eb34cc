"""Attack 11: bodies that would grow.  None is ever unpacked: 415, whatever is in them."""

import bz2
import gzip
import lzma
import os
import zlib

import pytest

from tests.attacks import disk
from tests.attacks.wire import BOUNDARY, Wire, ask, form, head, part, request, upload_form
from tests.client import Api

BOMB = gzip.compress(bytes(32 * 2**20), 9)  # 32 KiB
SMALL_BYTES = 65536  # of an upload
EMPTY_MEMBERS = gzip.compress(b"") * 50_000  # a megabyte; quadratic in some readers
BODIES = {
    "gzip": gzip.compress(b"{}"), "x-gzip": gzip.compress(b"{}"), "deflate": zlib.compress(b"{}"),
    "br": b"\x0b\x00\x80{}\x03", "zstd": b"\x28\xb5\x2f\xfd\x20\x02\x11\x00\x00{}", "compress": b"\x1f\x9d\x90",
    "x": b"{}", "bzip2": bz2.compress(b"{}"), "xz": lzma.compress(b"{}"), "GZIP": gzip.compress(b"{}"), " gzip ": b"{}",
    "gzip, gzip": gzip.compress(gzip.compress(b"{}")), "identity, gzip": gzip.compress(b"{}"), "gzip;q=1": b"{}",
    "gzip,": gzip.compress(b"{}"), "aws-chunked": b"{}", "exi": b"{}", "*": b"{}", "identity;q=0": b"{}",
}
LINES = ["PUT /file?path=/x", "POST /file", "POST /auth/register", "POST /auth/jwt/login", "POST /auth/jwt/refresh"]


@pytest.mark.parametrize("line", LINES)
async def test_encoded_body_is_415_on_every_address(api: Api, line: str) -> None:
    kind = f"multipart/form-data; boundary={BOUNDARY}" if line == "POST /file" else "application/json"
    for encoding, body in BODIES.items():
        answer = ask(api.stack, request(line, f"Content-Type: {kind}", f"Content-Encoding: {encoding}",
                                        token=api.token, body=body))
        assert (answer.status, answer.code) == (415, "unsupported_encoding"), (encoding, answer)
    disk.settle(api.stack)
    assert await api.list() == []


@pytest.mark.parametrize("headers", [
    ("Content-Encoding: identity", "Content-Encoding: gzip"), ("Content-Encoding: gzip", "Content-Encoding: identity"),
    ("Content-Encoding:", "Content-Encoding: br"),
])
async def test_encoding_in_a_second_header_is_415(api: Api, headers: tuple[str, ...]) -> None:
    for line in LINES:
        answer = ask(api.stack, request(line, "Content-Type: application/json", *headers, token=api.token, body=b"{}"))
        # nginx itself may refuse a header that is there twice
        assert (answer.status, answer.code) in ((415, "unsupported_encoding"), (400, "bad_request")), (line, answer)
    assert await api.list() == []


@pytest.mark.parametrize("bomb", [BOMB, EMPTY_MEMBERS], ids=["zeros", "empty members"])
@pytest.mark.parametrize("line", LINES)
async def test_bomb_is_415_before_it_is_read(api: Api, line: str, bomb: bytes) -> None:
    with Wire(api.stack) as wire:
        wire.send(head(line, "Content-Type: application/json", "Content-Encoding: gzip",
                       f"Content-Length: {len(bomb)}", token=api.token))
        if len(bomb) <= SMALL_BYTES or not line.endswith(("/x", "/file")):
            wire.send(bomb)  # nginx reads what is small before it asks a worker
        answer = wire.read_last()
    # at most 64 KiB may be sent to /auth/, and nginx looks at that first
    assert (answer.status, answer.code) in ((415, "unsupported_encoding"), (413, "too_large"))
    assert disk.bytes_in_flight(api.stack) == 0


async def test_packed_content_without_the_header_is_stored_as_it_is(api: Api) -> None:
    """An archive is a file like any other: neither unpacked on its way in nor on its way out."""
    for number, content in enumerate((BOMB, EMPTY_MEMBERS[:100_000], zlib.compress(b"x"), os.urandom(1000))):
        await api.put(f"/{number}.gz", content, expect=201)
        reply = await api.get(f"/{number}.gz", headers={"Accept-Encoding": "gzip, deflate, br, zstd"})
        assert reply.body == content
        assert "Content-Encoding" not in reply.headers
        assert int(reply.headers["Content-Length"]) == len(content)


@pytest.mark.parametrize("coding", ["gzip, chunked", "deflate, chunked", "x-gzip,chunked", "gzip", "compress, chunked"])
async def test_transfer_coding_other_than_chunked_is_refused(api: Api, coding: str) -> None:
    packed = gzip.compress(b"hello")
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
    for line in LINES:
        answer = ask(api.stack, head(line, "Content-Type: application/json", f"Transfer-Encoding: {coding}",
                                     "Connection: close", token=api.token) + body)
        assert answer.status in (400, 415, 501), (line, answer)
        assert answer.code
    disk.settle(api.stack)
    assert await api.list() == []


async def test_encodings_within_a_form_change_nothing(api: Api) -> None:
    """RFC 7578, section 4.7: such headers of a part are to be ignored."""
    packed = gzip.compress(b"hello")
    for number, line in enumerate(("Content-Encoding: gzip", "Content-Transfer-Encoding: base64",
                                   "Content-Transfer-Encoding: quoted-printable", "Content-Transfer-Encoding: x")):
        answer = ask(api.stack, upload_form(
            form(part(f'name="file"; filename="{number}"', packed, line)), token=api.token))
        assert answer.status == 201, answer
        assert (await api.get(f"/{number}")).body == packed
    for charset in ("utf-7", "utf-16", "base64", "rot13", "zlib", "bz2", "hex", "idna", "punycode", "unicode_escape"):
        answer = ask(api.stack, upload_form(
            form(part('name="_charset_"', charset.encode()), part('name="path"', b"/charset"),
                 part('name="file"; filename="f"', packed, f"Content-Type: text/plain; charset={charset}")),
            token=api.token))
        assert answer.status in (200, 201), (charset, answer)
        assert (await api.get("/charset")).body == packed
