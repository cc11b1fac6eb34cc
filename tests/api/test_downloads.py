"""Downloads from outside: ranges, conditions and headers, the same whether nginx sends the bytes or a worker does."""

import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import pytest

from tests.client import Api, Reply, files_on_disk, new_account
from tests.stack import Stack

CONTENT = b"".join(b"%04d" % number for number in range(250))  # 1000 bytes, no four alike at multiples of four
DISPOSITION = re.compile(
    r"""attachment; filename="([ !#-\[\]-~]*)"(?:; filename\*=UTF-8''((?:[\w.~-]|%[0-9A-F]{2})+))?""", re.ASCII)
SECURITY = {
    "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


# --- a table of requests: what each gets, and that both ways of delivery agree to the last header ---

@dataclass(frozen=True)
class Row:
    """A request and what has to come back; `parts` are first and last bytes of a 206."""

    headers: dict[str, str]
    status: int = 200
    parts: tuple[tuple[int, int], ...] = ()
    method: str = "GET"
    content: bytes = CONTENT

    @property
    def id(self) -> str:
        """The name of the test."""
        text = " ".join(f"{name}: {value}" for name, value in self.headers.items()) or "plain"
        return f"{self.method} {text[:90].encode('ascii', 'backslashreplace').decode()} {len(self.content)}"


def ranged(text: str, *parts: tuple[int, int]) -> Row:
    """A Range that is kept."""
    return Row({"Range": text}, 206, parts)


NINE = ",".join(f"{n}-{n}" for n in range(0, 18, 2))
WHOLE = (0, 999)
ROWS = [
    Row({}), Row({}, method="HEAD"),
    # one range
    ranged("bytes=0-0", (0, 0)), ranged("bytes=0-99", (0, 99)), ranged("bytes=100-", (100, 999)),
    ranged("bytes=-100", (900, 999)), ranged("bytes=-5000", WHOLE), ranged("bytes=-1000", WHOLE),
    ranged("bytes=0-", WHOLE), ranged("bytes=0-999999", WHOLE), ranged("bytes=999-999", (999, 999)),
    ranged("bytes=999-", (999, 999)), ranged("BYTES=0-1", (0, 1)), ranged("bytes=007-010", (7, 10)),
    ranged("bytes=0-99999999999999999", WHOLE), ranged("bytes=-99999999999999999", WHOLE),
    # several
    ranged("bytes=0-1,5-6", (0, 1), (5, 6)), ranged("bytes=0-1, 5-6", (0, 1), (5, 6)),
    ranged("bytes=500-,0-0,-1", (500, 999), (0, 0), (999, 999)), ranged("bytes=0-10,5-15", (0, 10), (5, 15)),
    ranged("bytes=0-0,5000-", (0, 0)), ranged("bytes=5000-,998-", (998, 999)),
    ranged("bytes=" + NINE.rpartition(",")[0], *((n, n) for n in range(0, 16, 2))),
    # too many, or more than there is: the whole
    Row({"Range": "bytes=" + NINE}), Row({"Range": "bytes=0-,0-"}), Row({"Range": "bytes=0-500,400-999"}),
    Row({"Range": "bytes=" + ",".join(f"{n}-{n}" for n in range(650))}),
    # beyond the end
    Row({"Range": "bytes=1000-"}, 416), Row({"Range": "bytes=1000-1000"}, 416), Row({"Range": "bytes=5000-6000"}, 416),
    Row({"Range": "bytes=-0"}, 416), Row({"Range": "bytes=1000-,2000-"}, 416),
    Row({"Range": "bytes=99999999999999999-"}, 416),
    # malformed: as if it were not there (RFC 9110, section 14.2)
    *(Row({"Range": text}) for text in (
        "bytes", "bytes=", "bytes=-", "bytes=abc", "bytes=1", "bytes=5-2", "bytes=1-2x", "bytes=--1", "bytes=1-2-3",
        "bytes=0-0,", "bytes=,0-0", "bytes=0-0,,1-1", "bytes=0-0;1-1", "bytes=0x0-1", "bytes=+0-1", "bytes=0 - 1",
        "bytes=5-2,0-0", "bytes=0-0,x", "items=0-1", "bytes 0-1", "bytes =0-1", "bytes=\u0660-\u0661", "none", "",
        "bytes=99999999999999999999-", "bytes=0-99999999999999999999", "bytes=18446744073709551616-0",
        f"bytes=0-{'9' * 3000}")),
    # only a GET has ranges (RFC 9110, section 14.2)
    Row({"Range": "bytes=0-1"}, method="HEAD"), Row({"Range": "bytes=5000-"}, method="HEAD"),
    # an empty file has no byte to ask for
    Row({}, content=b""), Row({"Range": "bytes=0-"}, 416, content=b""), Row({"Range": "bytes=0-0"}, 416, content=b""),
    Row({"Range": "bytes=-5"}, 416, content=b""), Row({"Range": "junk"}, content=b""),
    # If-Range
    Row({"Range": "bytes=0-1", "If-Range": "{etag}"}, 206, ((0, 1),)),
    Row({"Range": "bytes=0-1", "If-Range": "{date}"}, 206, ((0, 1),)),
    *(Row({"Range": "bytes=0-1", "If-Range": text}) for text in (
        '"stale"', "W/{etag}", "{before}", "{after}", "garbage", "*", '"a", {etag}', "")),
    Row({"Range": "bytes=5000-", "If-Range": '"stale"'}), Row({"Range": "bytes=5000-", "If-Range": "{etag}"}, 416),
    Row({"Range": "bytes=x", "If-Range": "{etag}"}), Row({"If-Range": "{etag}"}),
    Row({"Range": "bytes=0-1,5-6", "If-Range": "{etag}"}, 206, ((0, 1), (5, 6))),
    # If-None-Match: weak comparison
    *(Row({"If-None-Match": text}, 304) for text in ("{etag}", "*", '"a", {etag}', '"a",W/{etag} ,"b"', "W/{etag}")),
    *(Row({"If-None-Match": text}) for text in ('"other"', 'W/"other"', "garbage", "", '"open', "{bare}", '"*"')),
    Row({"If-None-Match": "{etag}"}, 304, method="HEAD"), Row({"If-None-Match": '"other"'}, method="HEAD"),
    Row({"If-None-Match": "{etag}", "Range": "bytes=0-1"}, 304),
    Row({"If-None-Match": "{etag}", "Range": "bytes=5000-"}, 304),
    Row({"If-None-Match": '"other"', "Range": "bytes=0-1"}, 206, ((0, 1),)),
    # If-Modified-Since, which counts only without the one before (RFC 9110, section 13.2.2)
    *(Row({"If-Modified-Since": text}, 304) for text in ("{date}", "{after}")),
    *(Row({"If-Modified-Since": text}) for text in ("{before}", "garbage", "", "0", "Mon, 99 Foo 2020 00:00:00 GMT")),
    Row({"If-Modified-Since": "{date}"}, 304, method="HEAD"),
    Row({"If-Modified-Since": "{date}", "Range": "bytes=0-1"}, 304),
    Row({"If-Modified-Since": "{before}", "Range": "bytes=0-1"}, 206, ((0, 1),)),
    Row({"If-None-Match": '"other"', "If-Modified-Since": "{after}"}),
    Row({"If-None-Match": "{etag}", "If-Modified-Since": "{before}"}, 304),
    # If-Match: strong comparison
    *(Row({"If-Match": text}) for text in ("{etag}", "*", '"a", {etag}')),
    *(Row({"If-Match": text}, 412) for text in ('"other"', "W/{etag}", '"a", "b"', "garbage", "")),
    Row({"If-Match": "{etag}"}, method="HEAD"), Row({"If-Match": '"other"'}, 412, method="HEAD"),
    Row({"If-Match": "{etag}", "Range": "bytes=0-1"}, 206, ((0, 1),)),
    Row({"If-Match": "{etag}", "Range": "bytes=0-1,5-6"}, 206, ((0, 1), (5, 6))),
    Row({"If-Match": "{etag}", "Range": "bytes=5000-"}, 416), Row({"If-Match": "{etag}", "Range": "bytes=x"}),
    Row({"If-Match": '"other"', "Range": "bytes=0-1"}, 412), Row({"If-Match": '"other"', "Range": "bytes=5000-"}, 412),
    # If-Unmodified-Since, which counts only without the one before
    *(Row({"If-Unmodified-Since": text}) for text in ("{date}", "{after}", "garbage", "")),
    Row({"If-Unmodified-Since": "{before}"}, 412),
    Row({"If-Unmodified-Since": "{date}", "Range": "bytes=0-1"}, 206, ((0, 1),)),
    Row({"If-Match": "{etag}", "If-Unmodified-Since": "{before}"}),
    Row({"If-Match": '"other"', "If-Unmodified-Since": "{date}"}, 412),
    # first If-Match or If-Unmodified-Since, then If-None-Match or If-Modified-Since
    Row({"If-Match": "{etag}", "If-None-Match": "{etag}"}, 304), Row({"If-Match": "{etag}", "If-None-Match": '"x"'}),
    Row({"If-Match": '"other"', "If-None-Match": "{etag}"}, 412),
    Row({"If-Unmodified-Since": "{before}", "If-None-Match": "{etag}"}, 412),
    Row({"If-Unmodified-Since": "{date}", "If-Modified-Since": "{date}"}, 304),
    Row({"If-Match": "{etag}", "If-None-Match": '"x"', "Range": "bytes=0-1", "If-Range": "{etag}"}, 206, ((0, 1),)),
    Row({"If-Match": "{etag}", "Range": "bytes=0-1", "If-Range": '"x"'}),
]


@dataclass(frozen=True)
class Twin:
    """One of the two services, with the same two files in it."""

    stack: Stack
    token: str
    files: dict[bytes, Any]

    async def ask(self, session: aiohttp.ClientSession, row: Row) -> tuple[Reply, dict[str, str]]:
        """Send the request; the answer, and what stands for the words in braces."""
        stored = self.files[row.content]
        changed_at = parsedate_to_datetime(stored["date"])
        words = {"etag": stored["etag"], "bare": stored["etag"].strip('"'), "date": stored["date"],
                 "before": format_datetime(changed_at - timedelta(seconds=1), usegmt=True),
                 "after": format_datetime(changed_at + timedelta(days=1), usegmt=True)}
        headers = {name: value.format_map(words) for name, value in row.headers.items()}
        api = Api(session, self.stack, self.token)
        return await api.call(row.method, f"/file/download?path={stored['id']}", headers=headers), words


@pytest.fixture(scope="module")
def kept() -> dict[str, Twin]:
    """The two services with their files, once they are there."""
    return {}


@pytest.fixture
async def twins(kept: dict[str, Twin], session: aiohttp.ClientSession, nginx_stack: Stack,
                direct_stack: Stack) -> list[Twin]:
    """Both services, each with an account that has the same files."""
    for stack in (nginx_stack, direct_stack):
        if stack.url not in kept:
            api = await new_account(session, stack)
            files = {}
            for content, path in ((CONTENT, "/отчёт.txt"), (b"", "/empty.txt")):
                stored = (await api.put(path, content, headers={"Content-Type": "text/plain"})).json
                files[content] = {**stored, "date": (await api.get(path)).headers["Last-Modified"]}
            kept[stack.url] = Twin(stack, api.token, files)
    return list(kept.values())


def boundary_of(reply: Reply) -> bytes:
    """Between the parts of an answer with several."""
    found = re.fullmatch(r"multipart/byteranges; boundary=([\w-]+)", reply.headers["Content-Type"])
    assert found
    return found[1].encode()


def parts_of(reply: Reply, size: int) -> list[tuple[int, int, bytes]]:
    """First byte, last byte and content of each part of a 206 (RFC 9110, section 14.6)."""
    if "Content-Range" in reply.headers:
        blocks = [(reply.headers["Content-Range"], reply.body)]
    else:
        boundary = boundary_of(reply)
        assert reply.body.endswith(b"\r\n--" + boundary + b"--\r\n")
        blocks = []
        for block in reply.body.split(b"\r\n--" + boundary)[1:-1]:
            head, _, content = block.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n"))
            assert set(fields) == {"Content-Type", "Content-Range"}
            assert fields["Content-Type"] == "text/plain; charset=utf-8"
            blocks.append((fields["Content-Range"], content))
    found = []
    for text, content in blocks:
        match = re.fullmatch(rf"bytes (\d+)-(\d+)/{size}", text)
        assert match, text
        found.append((int(match[1]), int(match[2]), content))
    return found


def check(row: Row, reply: Reply, words: dict[str, str]) -> None:
    """Whether this is the answer that RFC 9110 wants."""
    size = len(row.content)
    assert reply.status == row.status
    assert {name: reply.headers.get(name) for name in SECURITY} == SECURITY
    assert "private" in reply.headers["Cache-Control"] or "no-store" in reply.headers["Cache-Control"]
    if row.status in (200, 206, 304):
        assert (reply.headers["ETag"], reply.headers["Last-Modified"]) == (words["etag"], words["date"])
    if row.status in (200, 206):
        assert reply.headers["Content-Disposition"].startswith("attachment; filename=")
        assert int(reply.headers["Content-Length"]) == len(reply.body) or row.method == "HEAD"
    if row.status == 200:
        assert reply.headers["Content-Length"] == str(size)
        assert reply.headers["Accept-Ranges"] == "bytes"
        assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    if row.status == 206:
        assert parts_of(reply, size) == [(first, last, row.content[first:last + 1]) for first, last in row.parts]
    elif row.method == "HEAD" or row.status == 304:
        assert reply.body == b""
    elif row.status == 200:
        assert reply.body == row.content
    else:
        assert reply.code == {412: "precondition_failed", 416: "range_not_satisfiable"}[row.status]
    assert reply.headers.get("Content-Range") == (f"bytes */{size}" if row.status == 416 else (
        reply.headers.get("Content-Range") if row.status == 206 else None))


def comparable(reply: Reply, words: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """The answer without what has to differ between two services."""
    boundary = boundary_of(reply) if reply.headers.get("Content-Type", "").startswith("multipart/") else b"\0"
    swaps = {boundary: b"BOUNDARY", reply.headers["X-Request-Id"].encode(): b"ID",
             words["etag"].encode(): b"ETAG", words["date"].encode(): b"DATE"}

    def plain(text: bytes) -> bytes:
        for old, new in swaps.items():
            text = text.replace(old, new)
        return text

    headers = {name.title(): plain(value.encode()).decode() for name, value in reply.headers.items()}
    for name in ("Date", "Server", "Connection", "X-Request-Id"):
        headers.pop(name, None)
    if boundary != b"\0" or reply.status >= 400:
        headers.pop("Content-Length", None)  # boundaries and ids have their own lengths
    return reply.status, headers, plain(reply.body)


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
async def test_request_gets_what_rfc_9110_says_and_the_same_from_both(
        session: aiohttp.ClientSession, row: Row, twins: list[Twin]) -> None:
    answers = [await twin.ask(session, row) for twin in twins]
    for reply, words in answers:
        check(row, reply, words)
    one, other = (comparable(reply, words) for reply, words in answers)
    assert one == other


# --- who gets what from where ---

async def test_path_and_id_and_both_addresses_give_the_file(api: Api) -> None:
    stored = (await api.put("/a/b c+d.txt", b"hello")).json
    for place in (quote(stored["path"]), "/a/b+c%2Bd.txt", stored["id"], stored["id"].upper(), "a/b%20c%2bd.txt"):
        for address in ("/file/download", "/file/download/"):
            for method, body in (("GET", b"hello"), ("HEAD", b"")):
                reply = await api.call(method, f"{address}?path={place}", expect=200)
                assert (reply.body, reply.headers["Content-Length"]) == (body, "5")


async def test_download_tells_the_digest_of_the_file(api: Api) -> None:
    await api.put("/a.txt", b"hello")
    assert (await api.get("/a.txt")).headers["Repr-Digest"] == "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"


async def test_download_after_overwrite_is_the_new_file_with_a_new_tag(api: Api) -> None:
    first = (await api.put("/a.txt", b"one")).json
    await api.put("/a.txt", b"three", expect=200)
    reply = await api.get("/a.txt", headers={"If-None-Match": first["etag"]})
    assert reply.body == b"three"
    assert reply.headers["ETag"] != first["etag"]
    reply = await api.get("/a.txt", headers={"Range": "bytes=1-", "If-Range": first["etag"]})
    assert reply.body == b"three"
    await api.get("/a.txt", headers={"If-Match": first["etag"]}, expect=412)


async def test_parts_joined_under_one_tag_are_the_file(api: Api) -> None:
    content = bytes(range(256)) * 1200
    stored = (await api.put("/a.bin", content)).json
    joined = b""
    while len(joined) < len(content):
        reply = await api.get("/a.bin", expect=206, headers={
            "Range": f"bytes={len(joined)}-{len(joined) + 99_999}", "If-Range": stored["etag"]})
        assert reply.headers["ETag"] == stored["etag"]
        joined += reply.body
    assert joined == content


async def test_download_without_a_place_is_refused(api: Api) -> None:
    for address in ("/file/download", "/file/download/", "/file/download?path=", "/file/download?id=1"):
        reply = await api.call("GET", address, expect=422)
        assert (reply.code, reply.json["field"]) == ("invalid_field", "path")


async def test_download_of_a_folder_is_a_conflict(api: Api) -> None:
    await api.put("/a/b/file.txt")
    for place in ("/a", "/a/b/", "/", (await api.info("/a/b"))["id"]):
        assert (await api.get(place, expect=409)).code == "is_a_folder"


async def test_download_of_what_is_not_there_is_404(api: Api) -> None:
    stored = (await api.put("/a.txt")).json
    await api.delete("/a.txt", permanent=True)
    for place in ("/a.txt", "/a.txt/b", "/b", stored["id"], str(uuid.uuid4()), "00000000-0000-0000-0000-000000000000"):
        assert (await api.get(place, expect=404)).code == "not_found"


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-1"}, {"If-Match": "*"}, {"If-None-Match": "*"}], ids=str)
async def test_file_of_another_account_looks_as_if_it_were_not_there(
        api: Api, other_account: Callable[[], Awaitable[Api]], headers: dict[str, str]) -> None:
    foreign = (await (await other_account()).put("/secret/plan.txt", b"x")).json
    pairs = [("/secret/plan.txt", "/secret/none.txt"), (foreign["id"], str(uuid.uuid4()))]
    addresses = [("GET", "/file/download"), ("HEAD", "/file/download/"), ("GET", "/file/info"), ("DELETE", "/file")]
    for there, nowhere in pairs:
        for method, address in addresses:
            seen = []
            for place in (there, nowhere):
                reply = await api.call(method, f"{address}?path={place}", headers=headers, expect=404)
                request_id = reply.headers["X-Request-Id"]
                kept = {name: value for name, value in reply.headers.items()
                        if name.lower() not in ("date", "x-request-id")}
                seen.append((kept, reply.body.replace(request_id.encode(), b"ID")))
            assert seen[0] == seen[1]


# --- names and types that want to be more ---

NAMES = [
    "plain.txt", "два слова.txt", "写真 😀.jpg", 'a"b.txt', "a\\b.txt", 'evil"; filename="x.html', "semi;colon,comma.txt",
    "100%.txt", "%41.txt", "a'b.txt", "<script>.txt", "naïve.txt", " lead", "trail ", "x" * 255, "я" * 127, "~",
    "=?utf-8?q?x?=",
]


async def test_name_of_a_download_comes_back_the_same(api: Api) -> None:
    for name in NAMES:
        await api.put(f"/{name}", b"x")
        for headers in ({}, {"Range": "bytes=0-0"}, {"If-Match": "*"}):
            reply = await api.get(f"/{name}", headers=headers, expect=None)
            assert reply.status in (200, 206)
            header = reply.headers["Content-Disposition"]
            # nothing but what is written here: an attacker's quote would end up outside of the quotes
            match = DISPOSITION.fullmatch(header)
            assert match, header
            assert (match[1] if match[2] is None else unquote(match[2], errors="strict")) == name


DANGEROUS = [
    "text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml",
    "text/javascript", "application/javascript", "text/css", "application/x-shockwave-flash", "multipart/mixed",
    "text/html;image/png", "message/rfc822", "application/wasm",
]


async def test_type_that_could_run_is_never_sent_as_itself(api: Api) -> None:
    for number, declared in enumerate(DANGEROUS):
        await api.put(f"/{number}", b"<script>alert(1)</script>", headers={"Content-Type": declared})
        assert (await api.info(f"/{number}"))["content_type"] == declared
        for headers in ({}, {"Range": "bytes=0-0"}, {"If-Match": "*"}, {"Range": "bytes=0-0,2-2"}):
            reply = await api.get(f"/{number}", headers=headers, expect=None)
            if "multipart" in reply.headers["Content-Type"]:
                assert re.findall(rb"Content-Type: (.*)\r\n", reply.body) == [b"application/octet-stream"] * 2
            else:
                assert reply.headers["Content-Type"] == "application/octet-stream"
            assert {name: reply.headers[name] for name in SECURITY} == SECURITY


async def test_type_guessed_by_the_name_is_sent_if_harmless(api: Api) -> None:
    plain = "application/octet-stream"
    for name, sent in (("a.html", plain), ("a.svg", plain), ("a.js", plain), ("a.xml", plain), ("a.png", "image/png"),
                       ("a.pdf", "application/pdf"), ("a.txt", "text/plain; charset=utf-8"), ("a.mp4", "video/mp4"),
                       ("a", plain)):
        await api.put(f"/{name}", b"x", headers={"Content-Type": plain})
        assert (await api.get(f"/{name}")).headers["Content-Type"] == sent


# --- when the bytes are gone ---

@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-1"}, {"If-Match": "*"}], ids=str)
async def test_lost_bytes_are_a_clear_problem(api: Api, headers: dict[str, str], tmp_path: Path) -> None:
    before = files_on_disk(api.stack)
    await api.put("/a.txt", b"hello")
    (blob,) = (name for name in files_on_disk(api.stack) - before if name.startswith("blobs/"))
    aside = tmp_path / "aside"
    (api.stack.root / blob).rename(aside)
    reply = await api.get("/a.txt", headers=headers, expect=500)
    assert reply.code == "content_unavailable"
    assert b"hello" not in reply.body
    assert "Content-Range" not in reply.headers
    await api.call("HEAD", "/file/download?path=/a.txt", headers=headers, expect=500)
    aside.rename(api.stack.root / blob)  # or the service would report it, in the midst of another test
    await api.delete("/a.txt", permanent=True)
