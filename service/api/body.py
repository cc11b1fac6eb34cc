"""Request bodies: the only reader of them.

Behind nginx a large body is a spooled file that this request has claimed; otherwise it comes through the connection,
and a small one stays in memory.  A form is cut by the same parser in all cases.  Everything that touches the disk runs
on the store's threads.
"""

import base64
import binascii
import functools
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson
from aiohttp import web
from multidict import MultiDict
from multipart import (
    MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header,
)

from service.api.keys import BEHIND_NGINX, CLAIM, DOMAIN
from service.domain import requests
from service.domain.content import Content
from service.errors import (
    BadRequest, DigestMismatch, IncompleteBody, InvalidField, MissingFile, SeveralFiles, TooLarge,
    UnsupportedEncoding, UnsupportedMediaType,
)
from service.model import BlobKey, Staged, uuid_at
from service.storage.base import SMALL_BYTES, Claim, Writer

MAX_JSON_BYTES = 64 * 1024
MAX_FIELD_BYTES = 16 * 1024
MAX_PARTS = 32
PIECE_BYTES = 2**17
FORM = "multipart/form-data"

_LENGTH = re.compile(r"[0-9]{1,18}")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_EXTENDED_FILENAME = re.compile(r"(?i);\s*filename\*\s*=\s*utf-8'[^']*'([^;\s\"]*)")
_SECONDS = re.compile(r"[0-9]{10}\.[0-9]{3}")
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"\s*sha-256\s*=\s*:([A-Za-z0-9+/=]*):\s*")


# --- what the head says ---

def check_head(request: web.Request) -> None:
    """Raise UnsupportedEncoding: a body is stored as it is, so it must come as it is."""
    encodings = ",".join(request.headers.getall("Content-Encoding", ())).split(",")  # each of several headers counts
    if any(encoding.strip().lower() not in ("", "identity") for encoding in encodings):
        raise UnsupportedEncoding()
    # nginx knows no other; aiohttp would take "gzip, chunked" and leave the gzip to us
    if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise UnsupportedEncoding()


def announced_bytes(request: web.Request) -> int | None:
    """The length of the body as the client announced it; None if it did not (chunked)."""
    behind_nginx = request.app[BEHIND_NGINX]
    text = request.headers.get("X-Body-Length" if behind_nginx else "Content-Length", "")
    if text == "":
        chunked = request.headers.get("X-Body-Transfer-Encoding" if behind_nginx else "Transfer-Encoding")
        return None if chunked else 0
    if not _LENGTH.fullmatch(text):
        raise BadRequest("Content-Length has to be a number.")
    return int(text)


def announced_sha256(request: web.Request) -> bytes | None:
    """The digest that the client announced (RFC 9530, sections 2 and 3); other algorithms are ignored as it asks."""
    found = None
    for header in ("Content-Digest", "Repr-Digest"):
        for member in ",".join(request.headers.getall(header, [])).split(","):
            if member.partition("=")[0].strip().lower() != "sha-256":
                continue
            match = _DIGEST.fullmatch(member)
            digest = _from_base64(match[1]) if match else None
            if digest is None or len(digest) != 32 or found not in (None, digest):
                raise BadRequest(f"{header} has to be sha-256=:<base64 of 32 bytes>:.")
            found = digest
    return found


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


# --- small bodies ---

async def read_json_or_form(request: web.Request, *, max_bytes: int = MAX_JSON_BYTES) -> Mapping[str, object]:
    """The fields of a small body: a JSON object, or a form (application/x-www-form-urlencoded), for `schema.load`."""
    check_head(request)
    raw = await _read_small(request, max_bytes)
    requests.describe(raw)
    if request.content_type == "application/x-www-form-urlencoded":
        return _parse_form(raw)
    if request.content_type not in ("application/json", "application/octet-stream"):
        raise UnsupportedMediaType("Send application/json or application/x-www-form-urlencoded.")
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(data, dict):
        raise InvalidField("The body has to be a JSON object.")
    return data


async def _read_small(request: web.Request, max_bytes: int) -> bytes:
    if (request.content_length or 0) > max_bytes:
        raise TooLarge()
    await invite(request)
    return await _read_whole(request, max_bytes)


async def _read_whole(request: web.Request, max_bytes: int) -> bytes:
    pieces = bytearray()
    try:
        async for piece in request.content.iter_any():
            pieces += piece
            if len(pieces) > max_bytes:
                raise TooLarge()
    except (web.RequestPayloadError, ConnectionError) as error:
        raise IncompleteBody() from error
    return bytes(pieces)


def _parse_form(raw: bytes) -> MultiDict[str]:
    try:
        return MultiDict(parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict",
                                   max_num_fields=MAX_PARTS))
    except ValueError:  # UnicodeDecodeError is one
        raise BadRequest("The body is not a valid form.") from None


# --- bodies of files ---

async def invite(request: web.Request) -> None:
    """Answer Expect: 100-continue (RFC 9110, section 10.1.1), once it is known that the body is wanted."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def claim_spooled(request: web.Request) -> Claim | None:
    """Take the body that nginx spooled for this request.

    Has to be called before the first await of the request: later the name might mean another body.
    """
    spooled = request.headers.get("X-File", "")
    if not request.app[BEHIND_NGINX] or not spooled:
        return None
    return request.app[DOMAIN].content.claim(spooled, announced_bytes(request))


async def stage_raw(request: web.Request) -> Staged:
    """The whole body as a staged blob; raise DigestMismatch, IncompleteBody, TooLarge, StorageFull."""
    content = request.app[DOMAIN].content
    expected = announced_sha256(request)
    if (claim := request.get(CLAIM)) is not None:
        staged = await content.adopt(claim)
    elif is_small(request):
        writer = content.small_writer(_resent_key(request))
        writer.write(await _read_announced(request))
        staged = writer.finish()
    else:
        staged = await _receive(request, content)
    if expected is not None and staged.sha256 != expected:
        content.release(staged.key)
        raise DigestMismatch()
    return staged


def is_small(request: web.Request) -> bool:
    """Whether the body, which was not spooled, may stay in memory."""
    if CLAIM in request or "Transfer-Encoding" in request.headers:
        return False
    return announced_bytes(request) == (request.content_length or 0) <= SMALL_BYTES


async def _read_announced(request: web.Request) -> bytes:
    data = await _read_whole(request, SMALL_BYTES)
    if len(data) != announced_bytes(request):
        raise IncompleteBody()
    return data


def _resent_key(request: web.Request) -> BlobKey | None:
    """The same for a request that nginx sends a second time, when the connection to a worker breaks.

    Of a spooled body only one of the two requests gets hold; of this one only one can be placed.
    """
    begin, request_id = request.headers.get("X-Request-Begin", ""), request.headers.get("X-Request-Id", "")
    if not request.app[BEHIND_NGINX] or not (_SECONDS.fullmatch(begin) and _REQUEST_ID.fullmatch(request_id)):
        return None
    return BlobKey(uuid_at(int(begin.replace(".", "")), int(request_id, 16)))


async def _receive(request: web.Request, content: Content) -> Staged:
    writer = await content.run(content.writer)
    try:
        async for piece in pieces_of(request):
            await content.run(writer.write, piece)
            content.check_size(writer.size_bytes)
        return await content.run_through(writer.size_bytes, writer.finish)
    finally:
        await content.run(writer.abort)


async def pieces_of(request: web.Request) -> AsyncIterator[bytes]:
    """The body in large pieces, so that a thread has something to do for each; raise IncompleteBody."""
    pending: list[bytes] = []
    size = 0
    try:
        async for piece in request.content.iter_any():
            pending.append(piece)
            size += len(piece)
            if size >= PIECE_BYTES:
                yield b"".join(pending)
                pending.clear()
                size = 0
    except (web.RequestPayloadError, ConnectionError) as error:
        raise IncompleteBody() from error
    if pending:
        yield b"".join(pending)


@dataclass(slots=True, kw_only=True)
class Form:
    """What a form said: its text fields, for `schema.load`, and its one file."""

    fields: MultiDict[str]
    filename: str
    content_type: str
    staged: Staged


class _FormCutter:
    """Takes a form (RFC 7578) piece by piece and writes the file in it to a blob; blocks."""

    def __init__(self, content: Content, boundary: str, begin_file: Callable[[], Writer]) -> None:
        self._content = content
        self._begin_file = begin_file
        if not boundary.isascii():  # RFC 2046, section 5.1.1; the parser could not even encode some of the others
            raise BadRequest("The form's boundary has to be ASCII.")
        try:
            self._parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS, header_charset="utf-8",
                                               strict=True)
        except MultipartError as error:
            raise BadRequest(f"The form's boundary cannot be used: {error}.") from None
        self._segment: MultipartSegment | None = None
        self._is_file = False
        self._text = bytearray()
        self._writer: Writer | None = None
        self._fields: MultiDict[str] = MultiDict()
        self._filename = ""
        self._content_type = ""

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next piece; raises BadRequest, InvalidField, SeveralFiles, TooLarge, StorageFull."""
        try:
            for event in self._parser.parse(piece):
                if isinstance(event, MultipartSegment):
                    self._begin(event)
                elif event is None:
                    self._end()
                else:
                    self._take(event)
        except ParserLimitReached as error:
            raise TooLarge(f"The form is too large: {error.args[0]}.") from None
        except MultipartError as error:
            raise BadRequest(f"The form is malformed: {error.args[0]}.") from None

    def _begin(self, segment: MultipartSegment) -> None:
        self._segment = segment
        self._text.clear()
        filename = _filename(segment)
        self._is_file = filename != ""
        if not self._is_file:
            return
        if self._writer is not None:
            raise SeveralFiles(field=segment.name)
        self._filename = filename
        self._content_type = segment.header("Content-Type") or ""
        self._writer = self._begin_file()

    def _take(self, data: bytes | bytearray) -> None:
        assert self._segment is not None
        if self._writer is not None and self._is_file:
            self._writer.write(data)
            self._content.check_size(self._writer.size_bytes)
            return
        self._text += data
        if len(self._text) > MAX_FIELD_BYTES:
            raise TooLarge(f"A text field may have at most {MAX_FIELD_BYTES} bytes.", field=self._segment.name)

    def _end(self) -> None:
        segment = self._segment
        assert segment is not None
        if self._is_file:
            return
        name = segment.name or ""
        try:
            self._fields.add(name, self._text.decode("utf-8", "strict"))
        except UnicodeDecodeError:
            raise InvalidField("This field is not valid UTF-8.", field=name) from None

    def finish(self) -> Form:
        """The whole form, its file forced to the disk; raise IncompleteBody, MissingFile."""
        try:
            self._parser.close()
        except MultipartError:
            raise IncompleteBody("The form has no end.") from None
        if self._writer is None:
            raise MissingFile(field="file")
        return Form(fields=self._fields, filename=self._filename, content_type=self._content_type,
                    staged=self._writer.finish())

    def abort(self) -> None:
        """Throw away a file that was not finished."""
        if self._writer is not None:
            self._writer.abort()


def _filename(segment: MultipartSegment) -> str:
    """The filename of a part; "" for a text field, and for what browsers send when no file was chosen.

    Some clients send the extended form, `filename*=utf-8''...` (RFC 8187), which RFC 7578 forbids; beside another one
    it is the better one (RFC 6266, section 4.3).
    """
    match = _EXTENDED_FILENAME.search(_QUOTED.sub('""', segment.header("Content-Disposition") or ""))
    if match is None:
        return segment.filename or ""
    try:
        return unquote_to_bytes(match[1]).decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise BadRequest("The filename is not valid UTF-8.") from None


async def stage_form(request: web.Request) -> Form:
    """The form of an upload, its file as a staged blob."""
    content = request.app[DOMAIN].content
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != FORM:
        raise UnsupportedMediaType(f"Send {FORM}, or the plain bytes with PUT.")
    if is_small(request):
        cutter = _FormCutter(content, options.get("boundary", ""),
                             functools.partial(content.small_writer, _resent_key(request)))
        cutter.feed(await _read_announced(request))
        return cutter.finish()
    cutter = _FormCutter(content, options.get("boundary", ""), content.writer)
    try:
        if (claim := request.get(CLAIM)) is not None:
            return await content.run_through(claim.size_bytes, _cut_claim, content, claim, cutter)
        async for piece in pieces_of(request):
            await content.run(cutter.feed, piece)
        return await content.run(cutter.finish)
    finally:
        await content.run(cutter.abort)


def _cut_claim(content: Content, claim: Claim, cutter: _FormCutter) -> Form:
    for piece in content.consume(claim):
        cutter.feed(piece)
    return cutter.finish()
