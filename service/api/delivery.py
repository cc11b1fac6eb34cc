"""A decision to send bytes becomes a response: by nginx (X-Accel-Redirect), or by this process.

The only file that knows that header.  nginx answers ranges and If-Range by itself, with the ETag that it is given;
what it would answer otherwise than RFC 9110 has it is answered from here.
"""

import asyncio
import errno
import os
import re
import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from io import FileIO
from types import MappingProxyType
from urllib.parse import quote

from aiohttp import web

from service import metrics
from service.api.keys import BEHIND_NGINX, STORE
from service.domain.archives import Archives, Plan
from service.errors import ContentUnavailable, PreconditionFailed, RangeNotSatisfiable
from service.model import Delivery
from service.security.addresses import SignedFile
from service.security.media import content_type, kind_of
from service.storage.base import explain

__all__ = ["MAX_RANGES", "content_type", "disposition", "entity_tags", "first_byte", "parse_range", "respond", "signed"]

MAX_RANGES = 8
PIECE_BYTES = 2**18
_LOCATION = re.compile(r"[0-9a-f]{2}/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_RANGE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")
_PLAIN_RANGE = re.compile(r"(?i:bytes)=[0-9, -]+")
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')

Range = tuple[int, int]  # first byte, length


async def respond(request: web.Request, delivery: Delivery, *,
                  extra: Mapping[str, str] = MappingProxyType({}), through_link: bool = False) -> web.StreamResponse:
    """Send a file: 200, 206, 304, 412 or 416 (RFC 9110, sections 13 and 14); `extra` are headers of 200 and 206.

    Of these, nginx keeps no others than Set-Cookie.  What goes `through_link` nginx sends where it logs nothing, so it
    is opened here first.  Raises ContentUnavailable, Unavailable.
    """
    headers = {**_headers(delivery), **extra}
    if not _may_send(request, delivery):
        raise PreconditionFailed()
    if _is_unchanged(request, delivery):
        return web.Response(status=304, headers={name: headers[name] for name in _HEADERS_OF_304})
    if request.app[BEHIND_NGINX] and _nginx_agrees(request, delivery):
        location = request.app[STORE].locate(delivery.key)
        assert _LOCATION.fullmatch(location)  # no text of a user ever gets into this header
        if through_link:
            (await _open(request, delivery)).close()
        headers["X-Accel-Redirect"] = f"/{'_linked' if through_link else '_blobs'}/{location}"
        metrics.BYTES.labels("out", "nginx").inc(_length(request, delivery))
        return web.Response(headers=headers)
    return await _send(request, delivery, headers)


def decided(request: web.Request, delivery: Delivery, *, method: str) -> web.Response:
    """The same decision as an answer to nginx's question: where to go on, and what to say there.

    403 stands for "go to X-Next", since auth_request knows nothing but yes and no.
    """
    location = request.app[STORE].locate(delivery.key)
    assert _LOCATION.fullmatch(location)
    headers = _headers(delivery)
    metrics.BYTES.labels("out", "nginx").inc(0 if method == "HEAD" else delivery.size_bytes)
    return web.Response(status=403, headers={
        "X-Next": f"/_decided/{kind_of(delivery.content_type, delivery.size_bytes)}/{location}",
        **{name: headers[name] for name in ("ETag", "Last-Modified", "Repr-Digest", "Content-Disposition")}})


def _nginx_agrees(request: web.Request, delivery: Delivery) -> bool:
    """Whether nginx would answer as `_send` does.

    It compares If-Match with a tag of its own, refuses malformed ranges, which are to be ignored (RFC 9110, section
    14.2), has ranges for HEAD, and reads If-Range only as it is written here.
    """
    if "If-Match" in request.headers or "If-Unmodified-Since" in request.headers:
        return False
    text = request.headers.get("Range")
    if text is None:
        return True
    ranges = _wanted_ranges(request, delivery)
    if request.headers.get("If-Range", delivery.etag) not in (delivery.etag, _last_modified(delivery)):
        return ranges is None
    return bool(ranges) and _PLAIN_RANGE.fullmatch(text) is not None


def first_byte(request: web.Request, delivery: Delivery) -> int | None:
    """Where the bytes begin that `respond` will send: 0 unless it is one range; None if it will send none."""
    if request.method != "GET" or not _may_send(request, delivery) or _is_unchanged(request, delivery):
        return None
    ranges = _wanted_ranges(request, delivery)
    if ranges is None:
        return 0
    return ranges[0][0] if len(ranges) == 1 else 0 if ranges else None


def signed(request: web.Request, delivery: Delivery, *, expires_at: int) -> SignedFile:
    """What a signed address has to say, so that nginx can send this version without asking."""
    location = request.app[STORE].locate(delivery.key)
    assert _LOCATION.fullmatch(location)
    return SignedFile(blob=location, kind=kind_of(delivery.content_type, delivery.size_bytes), name=delivery.name,
                      expires_at=expires_at)


# --- headers ---

_HEADERS_OF_304 = ("ETag", "Last-Modified", "Cache-Control")  # RFC 9110, section 15.4.5


def _headers(delivery: Delivery) -> dict[str, str]:
    return {
        "Content-Type": content_type(delivery.content_type),
        "Content-Disposition": disposition(delivery.name),
        "ETag": delivery.etag,
        "Last-Modified": _last_modified(delivery),
        "Repr-Digest": f"sha-256=:{b64encode(delivery.sha256).decode('ascii')}:",
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


def disposition(name: str) -> str:
    """attachment with the file's name, in ASCII and, where that is not all, in UTF-8 (RFC 6266, RFC 8187)."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'


def _last_modified(delivery: Delivery) -> str:
    return format_datetime(_whole_seconds(delivery.modified_at), usegmt=True)


def _whole_seconds(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


# --- preconditions: RFC 9110, section 13.2.2 ---

def entity_tags(request: web.Request, name: str) -> tuple[str, ...]:
    """The entity tags of If-Match or If-None-Match as sent; `*` as itself."""
    return parse_tags(",".join(request.headers.getall(name, [])))


def parse_tags(text: str) -> tuple[str, ...]:
    """The entity tags in a text."""
    return ("*",) if text.strip() == "*" else tuple(_TAG.findall(text))


def _date(request: web.Request, name: str) -> datetime | None:
    """An HTTP date; one that is not valid counts as not there."""
    try:
        moment = parsedate_to_datetime(request.headers[name])
    except (KeyError, ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _may_send(request: web.Request, delivery: Delivery) -> bool:
    if "If-Match" in request.headers:
        tags = entity_tags(request, "If-Match")
        return "*" in tags or delivery.etag in tags
    since = _date(request, "If-Unmodified-Since")
    return since is None or _whole_seconds(delivery.modified_at) <= since


def _is_unchanged(request: web.Request, delivery: Delivery) -> bool:
    if "If-None-Match" in request.headers:
        tags = entity_tags(request, "If-None-Match")
        return "*" in tags or delivery.etag in (tag.removeprefix("W/") for tag in tags)  # weak comparison
    since = _date(request, "If-Modified-Since")
    return since is not None and _whole_seconds(delivery.modified_at) <= since


# --- ranges: RFC 9110, section 14; as nginx does it, so that a client sees no difference ---

def parse_range(text: str, size_bytes: int) -> list[Range] | None:
    """The ranges to send; [] if none can be, None if the header is to be ignored."""
    unit, _, specs = text.partition("=")
    if unit.lstrip().lower() != "bytes" or not specs:
        return None
    ranges: list[Range] = []
    members = specs.split(",")
    for member in members:
        match = _RANGE.fullmatch(member.strip())
        if match is None or (match[1] == "" and match[2] == ""):
            return None
        if match[1] == "":
            length = min(int(match[2]), size_bytes)
            first = size_bytes - length
        else:
            first = int(match[1])
            last = int(match[2]) if match[2] else size_bytes - 1
            if match[2] and last < first:
                return None
            length = min(last, size_bytes - 1) - first + 1
        if length > 0 and first < size_bytes:
            ranges.append((first, length))
    # many or overlapping ranges make a small request a large answer
    if len(members) > MAX_RANGES or sum(length for _, length in ranges) > size_bytes:
        return None
    return ranges


def _wanted_ranges(request: web.Request, delivery: Delivery) -> list[Range] | None:
    text = request.headers.get("Range")
    if text is None or request.method != "GET":
        return None
    if_range = request.headers.get("If-Range")
    if if_range is not None and if_range.strip() != delivery.etag:
        if _date(request, "If-Range") != _whole_seconds(delivery.modified_at):
            return None
    return parse_range(text, delivery.size_bytes)


# --- archives ---

async def respond_archive(request: web.Request, archives: Archives, plan: Plan) -> web.StreamResponse:
    """Send an archive, or one part of it; the plan is closed by the caller."""
    tags = entity_tags(request, "If-None-Match")
    if "*" in tags or plan.etag in (tag.removeprefix("W/") for tag in tags):
        return web.Response(status=304, headers={"ETag": plan.etag, "Cache-Control": "private, no-cache"})
    status, (first, length) = 200, (0, plan.size_bytes)
    headers = {
        "Content-Type": "application/zip", "Content-Disposition": disposition(plan.name), "ETag": plan.etag,
        "Cache-Control": "private, no-cache", "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'", "Cross-Origin-Resource-Policy": "same-origin",
        "X-Accel-Buffering": "no",  # a slow client slows us down; nginx would put a whole archive aside
    }
    if request.method == "GET" and request.headers.get("If-Range", plan.etag).strip() == plan.etag:
        ranges = parse_range(request.headers.get("Range", ""), plan.size_bytes)
        if ranges == []:
            raise RangeNotSatisfiable(size_bytes=plan.size_bytes)
        if ranges is not None and len(ranges) == 1:
            status, (first, length) = 206, ranges[0]
            headers["Content-Range"] = _content_range((first, length), plan.size_bytes)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = length
    await response.prepare(request)
    if request.method == "GET":
        pieces = archives.pieces(plan, first, length)
        try:
            while piece := await archives.next_piece(pieces):
                await response.write(piece)
        finally:
            del pieces  # if the client is gone: the error must not keep open what was being read
    await response.write_eof()
    return response


def _length(request: web.Request, delivery: Delivery) -> int:
    """How many bytes of the file nginx is going to send, if the client stays."""
    if request.method == "HEAD":
        return 0
    ranges = _wanted_ranges(request, delivery)
    return delivery.size_bytes if ranges is None else sum(length for _, length in ranges)


# --- sending from this process ---

async def _send(request: web.Request, delivery: Delivery, headers: dict[str, str]) -> web.StreamResponse:
    ranges = _wanted_ranges(request, delivery)
    if ranges == []:
        raise RangeNotSatisfiable(size_bytes=delivery.size_bytes)
    status, parts = _lay_out(delivery, ranges, headers)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = sum(len(part) if isinstance(part, bytes) else part[1] for part in parts)
    file = await _open(request, delivery)
    try:
        await response.prepare(request)
        if request.method != "HEAD":
            for part in parts:
                await _write_part(response, file, part)
        await response.write_eof()
    finally:
        file.close()
    return response


async def _open(request: web.Request, delivery: Delivery) -> FileIO:
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(None, FileIO, request.app[STORE].path(delivery.key))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise explain(error) from error
        raise ContentUnavailable() from error


def _lay_out(delivery: Delivery, ranges: Sequence[Range] | None,
             headers: dict[str, str]) -> tuple[int, list[bytes | Range]]:
    """The status, and the body as framing and ranges of the file; completes the headers."""
    if ranges is None:
        headers["Accept-Ranges"] = "bytes"  # as nginx: on a 206 it would say nothing new
        return 200, [(0, delivery.size_bytes)]
    if len(ranges) == 1:
        headers["Content-Range"] = _content_range(ranges[0], delivery.size_bytes)
        return 206, [ranges[0]]
    boundary = secrets.token_hex(16)
    parts: list[bytes | Range] = []
    for piece in ranges:
        parts += [f"\r\n--{boundary}\r\nContent-Type: {headers['Content-Type']}\r\nContent-Range: "
                  f"{_content_range(piece, delivery.size_bytes)}\r\n\r\n".encode("ascii"), piece]
    headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    return 206, [*parts, f"\r\n--{boundary}--\r\n".encode("ascii")]


def _content_range(piece: Range, size_bytes: int) -> str:
    return f"bytes {piece[0]}-{piece[0] + piece[1] - 1}/{size_bytes}"


async def _write_part(response: web.StreamResponse, file: FileIO, part: bytes | Range) -> None:
    if isinstance(part, bytes):
        await response.write(part)
        return
    offset, left = part
    loop = asyncio.get_running_loop()
    while left:
        piece = await loop.run_in_executor(None, os.pread, file.fileno(), min(left, PIECE_BYTES), offset)
        if not piece:
            raise ConnectionResetError("the blob is shorter than its row says")
        await response.write(piece)
        offset += len(piece)
        left -= len(piece)
