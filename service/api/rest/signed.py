"""/file/sign: addresses that nginx checks by itself; and /d/, for when there is no nginx."""

import re
import time
from datetime import UTC, datetime
from uuid import UUID

from aiohttp import web
from marshmallow import fields, validate

from service.api import body, delivery
from service.api.auth import caller, origin
from service.api.keys import DOMAIN, SIGNER, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import ANY, Answer, operation
from service.api.rest.params import parse_place, query_of
from service.errors import AddressExpired, Forbidden
from service.model import BlobKey
from service.names import decode_percent
from service.security.addresses import SignedFile
from service.security.media import KINDS

MAX_EXPIRES_SECONDS = 7 * 86400
_BLOB = re.compile(r"[0-9a-f]{2}/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_SECONDS = re.compile(r"[0-9]{10}")


class SignRequest(schema.Shape):
    """A file to be given out for a while."""

    path = fields.String(required=True, validate=[schema.check_text, validate.Length(min=1)], metadata={
        "description": "Absolute path, or id, of the file", "example": "/homework/notes.txt",
        "pattern": schema.PATH_PATTERN})
    expires_in = schema.Whole(
        required=True, strict=True, validate=validate.Range(min=1, max=MAX_EXPIRES_SECONDS), metadata={
            "description": "How long the address is good for, in seconds; at most 7 days", "example": 3600})


class SignedAddress(schema.Shape):
    """An address that carries its own permission."""

    url = fields.String(required=True, metadata={
        "description": "The address; anybody who has it can download this version of the file",
        "example": "http://127.0.0.1:9000/d/notes.txt?b=60/01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60&e=1599845725"
                   "&n=notes.txt&t=text-plain&s=hMRBNlqTKuRhlNDXbxBBAA"})
    expires_at = fields.DateTime(required=True, metadata={
        "description": "When it ends (RFC 3339, UTC)", "example": "2020-09-11T18:22:05.000000Z"})


class SignedMatch(schema.Shape):
    """Name of the file."""

    name = fields.String(required=True, metadata={"description": "Name of the file", "example": "notes.txt"})


class SignedQuery(schema.Shape):
    """What `POST /file/sign` has put into the address; a change of any of it makes the signature wrong."""

    b = fields.String(required=True, metadata={
        "description": "Where the bytes are", "example": "60/01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60"})
    e = fields.Integer(required=True, metadata={"description": "Until when, in seconds of the epoch",
                                                "example": 1599845725})
    n = fields.String(required=True, metadata={"description": "Name to save the file by", "example": "notes.txt"})
    t = fields.String(required=True, metadata={"description": "Media type, its slash a dash", "example": "text-plain"})
    s = fields.String(required=True, metadata={"description": "Signature", "example": "hMRBNlqTKuRhlNDXbxBBAA"})


@operation("Sign an address", tag="link", body=SignRequest, costly=True,
           description="An address of exactly this version of the file, which the web server checks by itself: the "
                       "fastest way to hand out bytes. It cannot be revoked; it ends with its time, or about an hour "
                       "after this version was deleted for good.",
           returns={201: (SignedAddress, "The address")},
           errors={404: "", 409: "The path is that of a folder: `is_a_folder`",
                   422: "The path or another field cannot be used: `invalid_path`, `invalid_field`"})
async def sign_address(request: web.Request) -> web.StreamResponse:
    """Give out a file for a while."""
    data = schema.load(SignRequest, await body.read_json_or_form(request))
    begin = origin(request)
    request[TRACE].fields["path"] = data["path"]
    decided = await request.app[DOMAIN].content.deliver(caller(request), parse_place(data["path"]))
    expires_at = int(time.time()) + data["expires_in"]
    address = request.app[SIGNER].sign(delivery.signed(request, decided, expires_at=expires_at))
    return answer({"url": begin + address, "expires_at": schema.rfc3339(datetime.fromtimestamp(expires_at, UTC))},
                  status=201)


@operation("Download by a signed address", tag="link", public=True, head=True, match=SignedMatch, query=SignedQuery,
           headers=schema.DownloadHeaders,
           returns={200: Answer(description="The content", media=(ANY,), headers={
                        "ETag": "Entity tag of these bytes", "Content-Disposition": "`attachment`, with the name"}),
                    206: Answer(description="The parts that were asked for", media=(ANY,)),
                    304: "The client has these bytes"},
           errors={403: "The signature is not that of this address: `forbidden`", 404: "",
                   410: "The time of the address is over: `address_expired`", 412: "", 416: ""})
async def download_signed(request: web.Request) -> web.StreamResponse:
    """Send what the address stands for; behind nginx this is never asked."""
    key, file = _check(request)
    decided = await request.app[DOMAIN].content.deliver_blob(key, name=file.name, content_type=KINDS[file.kind])
    return await delivery.respond(request, decided)


def _check(request: web.Request) -> tuple[BlobKey, SignedFile]:
    """What the address stands for; raise Forbidden or AddressExpired.  The same as nginx does in /d/."""
    query = query_of(request)
    blob, seconds, kind = (_BLOB.fullmatch(query.get("b", "")), _SECONDS.fullmatch(query.get("e", "")), query.get("t"))
    if blob is None or seconds is None or kind not in KINDS:
        raise Forbidden("This address is not one that was given out.")
    file = SignedFile(blob=blob[0], kind=kind, name=query.get("n", ""), expires_at=int(seconds[0]))
    path = decode_percent(request.raw_path.partition("?")[0])
    if not request.app[SIGNER].is_right(query.get("s", ""), file, path=path):
        raise Forbidden("This address is not one that was given out.")
    if file.expires_at < time.time():
        raise AddressExpired()
    return BlobKey(UUID(blob[1])), file
