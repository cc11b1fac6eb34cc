"""Whatever a client gets wrong (reliability.md 2.2, 2.5): a clear 4xx, nothing stored, no 500."""

import uuid

import orjson
import pytest

from service.api.routes import ROUTES
from tests.attacks import disk
from tests.attacks.wire import BOUNDARY, Wire, ask, chunked, form, head, part, request, upload_form
from tests.client import Api

FORM = f"multipart/form-data; boundary={BOUNDARY}"
FILE = part('name="file"; filename="f"', b"mine")


async def _assert_refused(api: Api, shots: dict[str, bytes], *codes: str) -> None:
    """Each is a problem with one of these codes; afterwards there is as little as before."""
    before = disk.blob_count(api.stack)
    for name, shot in shots.items():
        answer = ask(api.stack, shot)
        assert 400 <= answer.status < 500, (name, answer)
        assert answer.code in codes, (name, answer)
        assert len(answer.body) < 1000, name
    disk.settle(api.stack)
    assert disk.blob_count(api.stack) == before
    assert await api.list() == []
    assert (await api.usage())["files"] == 0


# --- forms ---

async def test_forms_of_another_kind_are_refused(api: Api) -> None:
    body = form(FILE)
    kinds = ["", "text/plain", "application/json", "application/octet-stream", "application/x-www-form-urlencoded",
             "multipart/mixed; boundary=b0undary", "multipart/related; boundary=b0undary", "multipart", "multipart/",
             "multipart/form-data2; boundary=b0undary", "form-data", "multipart/byteranges; boundary=b0undary", "/",
             "multipart/form-data, multipart/form-data; boundary=b0undary", "MULTIPART/FORM", "\xff", "x" * 5000]
    await _assert_refused(api, {kind: upload_form(body, token=api.token, content_type=kind) for kind in kinds},
                          "unsupported_media_type", "bad_request")
    await _assert_refused(api, {"none": request("POST /file", token=api.token, body=body)}, "unsupported_media_type")


async def test_forms_without_a_boundary_that_is_one_are_refused(api: Api) -> None:
    body = form(FILE)
    kinds = ["multipart/form-data", "multipart/form-data;", "multipart/form-data; boundary",
             "multipart/form-data; boundary=",
             'multipart/form-data; boundary=""', "multipart/form-data; boundary=other",
             "multipart/form-data; boundary= ",
             'multipart/form-data; boundary="', f"multipart/form-data; boundary={'x' * 2000}",
             "multipart/form-data; boundary=" + "x" * 9000, "multipart/form-data; boundary*=utf-8''b0undary",
             'multipart/form-data; boundary="b0\\undary"', "multipart/form-data; charset=utf-8",
             "multipart/form-data; =b0undary",
             "multipart/form-data; boundary=b0undary2", "multipart/form-data; boundary=B0UNDARY"]
    await _assert_refused(api, {kind: upload_form(body, token=api.token, content_type=kind) for kind in kinds},
                          "bad_request", "missing_file")


async def test_forms_with_a_bad_frame_are_refused(api: Api) -> None:
    begin, end = f"--{BOUNDARY}".encode(), f"--{BOUNDARY}--\r\n".encode()
    disposition = b'Content-Disposition: form-data; name="file"; filename="f"'

    def headed(*lines: bytes) -> bytes:
        return begin + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\nmine\r\n" + end

    bodies = {
        "empty": b"", "only the end": end, "no end": FILE, "no end of the end": FILE + begin + b"\r\n",
        "megabyte before": b"x" * 2**20 + form(FILE),
        "line feeds": form(FILE).replace(b"\r\n", b"\n"), "carriage returns": form(FILE).replace(b"\r\n", b"\r"),
        "no empty line": begin + b"\r\n" + disposition + b"\r\nmine\r\n" + end,
        "no head": headed(), "only a head": begin + b"\r\nContent-Disposition: form-data",
        "head without a colon": headed(b"Content-Disposition"),
        "folded head": headed(b"Content-Disposition: form-data;", b' name="file"; filename="f"'),
        "space before a head": headed(b" " + disposition), "bad name of a head": headed(disposition, b"X Y: z"),
        "another disposition": headed(disposition.replace(b"form-data", b"attachment")),
        "no disposition": headed(b"Content-Type: text/plain"),
        "no name": headed(b'Content-Disposition: form-data; filename="f"'),
        "NUL in a head": headed(b'Content-Disposition: form-data; name="f\0"; filename="\0"'),
        "length of a part": headed(disposition, b"Content-Length: 3"),
        "length of a part is no number": headed(disposition, b"Content-Length: x"),
        "length of a part is huge": headed(disposition, b"Content-Length: 99999999999999999999999"),
        "negative length of a part": headed(disposition, b"Content-Length: -4"),
        "rubbish": bytes(range(256)) * 100, "zeros": bytes(100_000), "boundaries": begin * 1000,
        "empty parts": (begin + b"\r\n\r\n\r\n") * 1000 + end,
    }
    await _assert_refused(api, {name: upload_form(body, token=api.token) for name, body in bodies.items()},
                          "bad_request", "incomplete_body", "missing_file", "invalid_path", "too_large")
    chunks = head("POST /file", f"Content-Type: {FORM}", "Transfer-Encoding: chunked", "Connection: close",
                  token=api.token)
    await _assert_refused(api, {name: chunks + chunked(body[at:at + 50_000] for at in range(0, len(body), 50_000))
                                for name, body in bodies.items()},
                          "bad_request", "incomplete_body", "missing_file", "invalid_path", "too_large")


async def test_forms_with_too_much_of_something_are_refused(api: Api) -> None:
    many_heads = [f"X-{number}: x" for number in range(1000)]
    bodies = {
        "10,000 fields": form(*(part(f'name="f{number}"', b"x") for number in range(10_000)), FILE),
        "10,000 fields after": form(FILE, *(part(f'name="f{number}"', b"x") for number in range(10_000))),
        "10,000 files": form(*(part(f'name="f"; filename="{number}"', b"x") for number in range(10_000))),
        "two files": form(FILE, part('name="second"; filename="g"', b"x")),
        "the same file twice": form(FILE, FILE),
        "huge head": form(part('name="file"; filename="f"', b"x", "X-A: " + "a" * 100_000)),
        "huge head, unfinished": FILE + f"--{BOUNDARY}\r\nX-A: ".encode() + b"a" * 3_000_000,
        "huge name": form(part(f'name="{"n" * 100_000}"', b"x"), FILE),
        "huge filename": form(part(f'name="file"; filename="{"n" * 100_000}"', b"x")),
        "long filename": form(part(f'name="file"; filename="{"n" * 3000}"', b"x")),
        "1,000 heads": form(part('name="file"; filename="f"', b"x", *many_heads)),
        "huge field": form(part('name="path"', b"x" * 1_000_000), FILE),
        "huge unknown field": form(part('name="x"', b"x" * 1_000_000), FILE),
        "path twice": form(part('name="path"', b"/a"), part('name="path"', b"/b"), FILE),
        "name twice": form(part('name="name"', b"a"), part('name="name"', b"a"), FILE),
        "two paths": form(part('name="path"', b"/a"), part('name="file"', b"/b"), FILE),
        "no file": form(part('name="path"', b"/a")), "no file but a name": form(part('name="file"', b"/a")),
        "quotes": form(part('name="file; filename="f', b"x")),
    }
    await _assert_refused(api, {name: upload_form(body, token=api.token) for name, body in bodies.items()},
                          "bad_request", "too_large", "several_files", "invalid_field", "invalid_path", "missing_file",
                          "incomplete_body")


async def test_parts_that_are_many_cost_no_time(api: Api) -> None:
    """A hundred thousand empty parts, and a boundary that nearly matches everywhere."""
    near = f"\r\n--{BOUNDARY[:-1]}".encode()
    for body in (form(*([part('name=""', b"")] * 100_000)), form(part('name="file"; filename="f"', near * 200_000)),
                 form(part('name="file"; filename="f"', b"\r" * 3_000_000)), b"--" * 1_500_000,
                 form(part('name="file"; filename="f"', b"\r\n" * 1_500_000))):
        answer = ask(api.stack, upload_form(body, token=api.token))
        assert answer.status in (200, 201, 400, 413, 422), answer
    disk.settle(api.stack)


# --- addresses ---

QUERIES = [
    "path=%", "path=%2", "path=%zz", "path=/a%", "path=/a%e", "path=%%", "path=/%u0041", "path=%00", "path=/a%00b",
    "path", "path=", "=", "", "&&&", "path=/a&path=/b", "path=/a&path=/a", "path=/a&%70ath=/b", "path[]=/a",
    "path=/a&x=%zz", "path=/a&%zz", "Path=/a", "path=&name=x", "path=/a;b&path=/c",
    "&".join(f"p{number}=x" for number in range(1000)), "path=/a&" + "&".join(f"p{number}=x" for number in range(100)),
    "path=/../a", "path=..", "path=/.", "path=//", "path=/a//b", "path=" + "a" * 256, "path=/" + "a/" * 200,
    "path=/%7f", "path=/%c2%80", "path=/a%0ab", "path=/%e2%80%ae",
]


@pytest.mark.parametrize("line", ["PUT /file", "GET /file/info", "GET /file/download", "HEAD /file/download",
                                  "GET /file/download/", "DELETE /file"])
async def test_addresses_that_name_nothing_are_refused(api: Api, line: str) -> None:
    method = line.partition(" ")[0]
    for query in QUERIES:
        for address in (f"{line}?{query}", f"{line}?{query}#fragment") if query else (line, f"{line}?"):
            answer = ask(api.stack, request(address, token=api.token, body=b"mine" if method == "PUT" else None),
                         method=method)
            if answer.status in (200, 201):  # ';' is a character like any other, and other parameters are not looked at
                assert method == "PUT" and query.startswith("path=/a"), (query, answer)
                await api.delete(orjson.loads(answer.body)["path"])
                continue
            assert answer.status in (400, 404, 422), (query, answer)
            if method != "HEAD":
                assert answer.code in ("bad_request", "invalid_field", "invalid_path", "not_found"), (query, answer)
    disk.settle(api.stack)
    assert await api.list() == []


ALMOST_UUIDS = [
    "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "0", "-1", "1" * 36, "-" * 36,
    "g0000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-00000000000",
    "00000000-0000-0000-0000-0000000000000", "00000000000000000000000000000000",
    "{00000000-0000-0000-0000-000000000000}", "urn:uuid:00000000-0000-0000-0000-000000000000",
    "00000000-0000-0000-0000-000000000000%00", "00000000-0000-0000-0000-000000000000%0a",
    "00000000–0000–0000–0000–000000000000", "٠٠٠٠٠٠٠٠-0000-0000-0000-000000000000",
    "00000000-0000-0000-0000-000000000000/x", "1e10", "NaN", "null", "true", "2147483648", "9223372036854775808",
    "0x10", "1' OR '1'='1", "1;DROP TABLE files", "${7*7}", "{{7*7}}", "../0", "*",
]


@pytest.mark.parametrize("line", ["GET /file/info", "GET /file/download", "DELETE /file"])
async def test_ids_that_are_almost_ids_find_nothing(api: Api, line: str) -> None:
    for text in ALMOST_UUIDS:
        answer = ask(api.stack, request(f"{line}?path={text}".replace(" ", "%20"), token=api.token))
        assert answer.status in (400, 404, 422), (text, answer)
        assert answer.code in ("bad_request", "not_found", "invalid_path"), (text, answer)


# --- headers ---

RANGES = [
    "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-x", "bytes=5-2", "bytes=-0", "bytes=--1", "bytes=0--1",
    "bytes=1-2-3", "bytes=0-0,", "bytes=,", "bytes= 0-1", "bytes =0-1", "Bytes=0-1", "octets=0-1", "items=0-1",
    "bytes=0-1;q=1", "0-1", "=0-1", "bytes=99999999999999999999-", "bytes=0-99999999999999999999",
    "bytes=-99999999999999999999", "bytes=9223372036854775807-", "bytes=18446744073709551616-18446744073709551617",
    "bytes=0x0-0x1", "bytes=٠-١", "bytes=0-1,2-3,4-4,0-0,1-1,2-2,3-3,4-4,0-1", "bytes=" + "0-0," * 1500 + "0-0",
    "bytes=" + "0-," * 500 + "0-", "bytes=4-", "bytes=5-", "bytes=10-20", "bytes=0-4", "bytes=\xff", "bytes=0-1, 1-2",
    "bytes=-1,-1", "bytes=1e3-", "bytes=+0-+1", "bytes=0 - 1", "bytes=" + "9" * 5000 + "-", "bytes=0-0\tx",
]


async def test_ranges_of_any_kind_are_a_clear_answer(api: Api) -> None:
    await api.put("/a", b"12345")
    for value in RANGES:
        for extra in ((), ('If-Range: "x"',), ("If-Range: x",), ("If-Match: *",)):
            answer = ask(api.stack, request("GET /file/download?path=/a", f"Range: {value}", *extra, token=api.token))
            assert answer.status in (200, 206, 400, 416), (value, answer)
            if answer.status == 200:
                assert answer.body == b"12345", value
            elif answer.status == 206:
                assert len(answer.body) < 4000, "a small request does not become a large answer"
            elif answer.status == 416:
                assert answer.code == "range_not_satisfiable"
                assert answer.one("Content-Range") == "bytes */5"
            else:
                assert answer.code == "bad_request"


HEADERS = {
    "If-Modified-Since": ["", "x", "0", "-1", "Fri, 99 Foo 99999 99:99:99 GMT", "Mon, 01 Jan 0001 00:00:00 GMT",
                          "2020-01-01", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -2359",
                          "Mon, 01 Jan 0001 00:00:00 +2359", "Thu, 01 Jan 99999999999 00:00:00 GMT",
                          "Thu, 01 Jan 1970 00:00:00 +99999999999", "Thu, 30 Feb 2020", "1" * 5000,
                          "Thu, 01 Jan 1970 00:00:00 \xff", ",,,", "Thu, 01 Jan 1970 24:00:00 GMT",
                          "Thu, 1 Jan 70 0:0:0"],
    "If-Unmodified-Since": ["", "x", "Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359", "1" * 5000,
                            "Thu, 0 0 0"],
    "If-Range": ["", "x", '"', "Fri, 31 Dec 9999 23:59:59 -2359", "W/", "1" * 5000, "\xff"],
    "Content-Digest": ["", "x", "sha-256", "sha-256=", "sha-256=::", "sha-256=:AAAA:", "sha-256=:!!!!:",
                       "sha-256=:" + "A" * 5000 + ":", "sha-256=x", "sha-256=:AAAA", "sha-512=:AAAA:", "md5=:AAAA:",
                       "sha-256=:\xff:", ",", "sha-256=:=:", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=:"],
    "Repr-Digest": ["x", "sha-256=:AAAA:", "sha-256=:!!!!:"],
    "Accept": ["", "x", "text/html", "*/*;q=99", ",", "\xff" * 100],
    "Accept-Encoding": ["gzip;q=x", "\xff", "*;q=0", "br, zstd"],
    "Accept-Language": ["\xff", "x" * 5000],
    "Cookie": ["\xff", "=", "a" * 5000, "a=b; " * 500, "\x80=\x81"],
    "User-Agent": ["", "\xff" * 100, "x" * 8000],
    "Referer": ["\xff", "javascript:alert(1)"],
    "Origin": ["null", "http://evil.example"],
    "Content-Type": ["", "\xff", "/", ";" * 1000, "a/b; " + "c=d; " * 1000],
    "Date": ["x"],
    "TE": ["trailers, x", "\xff"],
    "Expect": ["", "x", "100-continue, x", "200-ok", "\xff"],
    "Max-Forwards": ["-1", "x"],
    "Via": ["x" * 5000],
    "Upgrade": ["h2c", "\xff"],
    "Content-Length": ["0"],
    "Content-Range": ["bytes 0-3/4", "x"],
    "Content-MD5": ["x"],
    "Idempotency-Key": ["", "\xff", "x" * 5000],
    "X-Link-Password": ["\xff", "x" * 5000],
    "Sec-WebSocket-Key": ["x"],
    "Keep-Alive": ["timeout=-1, max=99999999999999999999"],
    "Authorization2": ["x"],
    "Priority": ["u=9, i"],
    "Range": ["\xff"],
    "X-Request-Id": ["x" * 5000, "\xff"],
    "X-File": ["\xff", "x" * 5000],
}
OUTCOMES = {200, 201, 206, 304, 400, 404, 412, 413, 415, 416, 417, 422, 431}


async def test_headers_of_any_kind_are_a_clear_answer(api: Api) -> None:
    await api.put("/a", b"mine")
    for name, values in HEADERS.items():
        for value in values:
            header = f"{name}: {value}".encode("latin-1")
            for line in ("GET /file/download?path=/a", "PUT /file?path=/b", "GET /file/list", "POST /auth/jwt/refresh"):
                with Wire(api.stack) as wire:
                    wire.send(request(line, header, token=api.token))
                    answer = wire.read_last()
                assert answer.status in OUTCOMES, (header[:80], line, answer)
                if answer.status >= 400:
                    assert answer.code
    assert (await api.get("/a")).body == b"mine"
    disk.settle(api.stack)


# --- methods and addresses that are not there ---

async def test_methods_and_addresses_that_are_not_there_are_told_so(api: Api) -> None:
    for line in ("PATCH /file?path=/a", "OPTIONS /file", "GET /file", "PUT /file/list", "POST /file/list",
                 "POST /file/download",
                 "PUT /file/info?path=/a", "DELETE /file/usage_memory", "POST /ping/all", "DELETE /auth/jwt/login",
                 "GET /auth/register",
                 "PROPFIND /file", "MKCOL /a", "LOCK /file", "TRACE /file", "REPORT /", "PURGE /file", "LINK /file",
                 "SEARCH /",
                 "GET /file/", "GET /file/info/", "GET /file/list/", "GET /auth", "GET /auth/", "GET /",
                 "GET /favicon.ico", "GET /robots.txt",
                 "GET /file/download/x", "GET /FILE/LIST", "GET /./nowhere", "GET /admin", "GET /api/v1",
                 f"GET /{uuid.uuid4()}", "GET /docs/nothing", "GET /docs/", "GET /openapi.yaml", "GET /metrics",
                 "PUT /", "DELETE /"):
        for token in ("", api.token):
            method = line.partition(" ")[0]
            body = b"" if method in ("PUT", "POST", "PATCH") else None
            answer = ask(api.stack, request(line, token=token, body=body))
            assert answer.status in (400, 401, 404, 405, 415), (line, answer)
            assert answer.code in ("bad_request", "unauthenticated", "not_found", "method_not_allowed",
                                   "unsupported_media_type")
            assert b"for this account" not in answer.body  # the address is wrong, not the path of a file


# --- JSON of every route that takes some ---

VALUES = [
    "null", "true", "0", "-1", "1e400", "9" * 400, '""', '"x"', '"\\u0000"', '"\\ud800"', "[]", "{}", '["/a"]',
    '{"path": "/a"}', '"/../a"', '"/a\\u202e"', '"' + "x" * 20_000 + '"', "[" * 2000 + "]" * 2000, "1.5",
    '"2020-13-45T99:99:99Z"', '"%00"',
]
FIELDS = [
    "path", "username", "password", "refresh_token", "from", "to", "id", "version", "expires_in", "overwrite",
    "max_downloads", "operations", "old_password", "new_password", "kind", "code", "name",
]


# Every route that may take JSON, whatever is added to the table.
JSON_ROUTES = [f"{route.method} {route.path}" for route in ROUTES
               if route.method in ("POST", "PATCH") and route.path not in ("/file", "/auth/jwt/logout")]


def _json(fields: dict[str, str]) -> bytes:
    """An object whose values are what is written here, JSON or not."""
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}").encode()


NUMBERS = ["2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "1e15",
           "-2147483649",
           "18446744073709551616", "0", "1.5", "1e400", "true"]


async def test_numbers_beyond_what_a_column_holds_are_refused(api: Api) -> None:
    """32 and 64 bits: in every field and parameter that is a number, about a file that is there."""
    await api.put("/a", b"mine")
    for number in NUMBERS:
        for line, body in (("POST /file/versions/restore", f'{{"path": "/a", "version": {number}}}'),
                           ("POST /file/link", f'{{"path": "/a", "max_downloads": {number}}}'),
                           ("POST /file/link", f'{{"path": "/a", "expires_in": {number}}}'),
                           ("POST /file/sign", f'{{"path": "/a", "expires_in": {number}}}'),
                           (f"GET /file/download?path=/a&version={number}", ""), (f"GET /file/list?limit={number}", ""),
                           (f"DELETE /file/versions?path=/a&version={number}", ""),
                           (f"GET /file/trash?limit={number}", ""), (f"GET /auth/audit?limit={number}", "")):
            answer = ask(api.stack, request(line, "Content-Type: application/json", token=api.token,
                                            body=body.encode() if body else None))
            assert answer.status in (201, 400, 404, 422), (line, body, answer)
            if answer.status != 201:
                assert answer.code in ("bad_request", "not_found", "invalid_field")
    assert (await api.get("/a")).body == b"mine"


@pytest.mark.parametrize("line", JSON_ROUTES)
async def test_json_with_values_of_any_kind_is_a_clear_answer(api: Api, line: str) -> None:
    address = line.replace("{token}", "x" * 32).replace("{id}", str(uuid.uuid4()))
    bodies = [b"", b"null", b"[]", b"{}", b"{", b"\xff", b'"x"', b"[1]", b"1"]
    for value in VALUES:
        bodies.append(_json({field: value for field in FIELDS}))
    for name in FIELDS:
        bodies += [_json({field: '"/a"' for field in FIELDS} | {name: value}) for value in VALUES[:13]]
    for body in bodies:
        answer = ask(api.stack, request(address, "Content-Type: application/json", token=api.token, body=body))
        assert answer.status < 500, (body[:100], answer)
        if answer.status >= 400:
            assert answer.code, (body[:100], answer)
    disk.settle(api.stack)
