"""/file/link: public links, for their makers; and what uses of them have in common."""

import re
from urllib.parse import quote
from uuid import UUID

from aiohttp import web
from marshmallow import fields, validate

from service import model
from service.api import body
from service.api.auth import address, caller, origin
from service.api.keys import DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.cursors import open_moment, seal_moment
from service.api.rest.openapi import operation
from service.api.rest.params import parse_place, query_of
from service.domain.links import MAX_LINKS, Key, Opened
from service.errors import InvalidField, MethodNotAllowed, NotFound, UnsupportedMediaType
from service.model import FileId, LinkId

MAX_EXPIRES_SECONDS = 10 * 366 * 86400
FORM_FRAME_BYTES = 64 * 1024  # what the parts of a form may add to its file; only a first look depends on it
LIST = "links"
PASSWORD_COOKIE, RESUME_COOKIE = "link_password", "link_resume"

_EXAMPLE_URL = "http://127.0.0.1:9000/s/kJ2s0c8mJ0v4W9v3yq1Zr7xT5uB6nD2e"
_UPLOAD_ADDRESS = re.compile(r"/s/([^/?]*)(/open)?")


# --- shapes ---

class NewLink(schema.Shape):
    """A link to be made."""

    path = fields.String(required=True, validate=[schema.check_text, validate.Length(min=1)], metadata={
        "description": "Absolute path, or id, of the file or folder", "example": "/homework",
        "pattern": schema.PATH_PATTERN})
    kind = fields.String(load_default="download", validate=validate.OneOf(["download", "upload"]), metadata={
        "description": "`download`, or `upload` for a folder that others may drop files into and see nothing of",
        "example": "download"})
    password = fields.String(load_default=None, allow_none=True, validate=schema.check_text, metadata={
        "description": "Asked of everybody who uses the link: at least 8 characters, at most 1024 bytes in UTF-8",
        "example": "correct horse battery staple", "format": "password", "minLength": 8})
    max_downloads = schema.Whole(
        load_default=None, allow_none=True, strict=True, validate=validate.Range(min=1, max=2**31 - 1), metadata={
            "description": "How many downloads the link is good for, or uploads if it is for these; null: no limit. "
                           "Each GET that sends bytes of a file counts, before the first byte",
            "example": 10})
    expires_in = schema.Whole(
        load_default=None, allow_none=True, strict=True, validate=validate.Range(min=1, max=MAX_EXPIRES_SECONDS),
        metadata={"description": "How long the link is good for, in seconds; null: until it is revoked",
                  "example": 604800})


class Link(schema.Shape):
    """A public link."""

    id = fields.UUID(required=True, metadata={
        "description": "Id of the link, to revoke it by", "example": "01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60"})
    path = fields.String(required=True, allow_none=True, metadata={
        "description": "Where its file or folder is now; null: in the trash, where the link does nothing",
        "example": "/homework"})
    kind = fields.String(required=True, validate=validate.OneOf(["download", "upload"]), metadata={
        "description": "What it is for", "example": "download"})
    expires_at = fields.DateTime(required=True, allow_none=True, metadata={
        "description": "When it ends (RFC 3339, UTC); null: when it is revoked",
        "example": "2020-09-18T17:22:05.123456Z"})
    has_password = fields.Boolean(required=True, metadata={
        "description": "Whether it asks for a password", "example": False})
    max_downloads = fields.Integer(required=True, allow_none=True, metadata={
        "description": "How many downloads (or uploads) it is good for; null: no limit", "example": 10})
    downloads = fields.Integer(required=True, metadata={
        "description": "How many there have been", "example": 0, "minimum": 0})
    created_at = fields.DateTime(required=True, metadata={
        "description": "When it was made (RFC 3339, UTC)", "example": "2020-09-11T17:22:05.123456Z"})


class MadeLink(Link):
    """A public link just made; its address is not to be had again."""

    url = fields.String(required=True, metadata={
        "description": "The address to hand out; the service itself does not keep it", "example": _EXAMPLE_URL})


class LinkList(schema.Shape):
    """Links of the caller, or a page of them."""

    links = fields.List(fields.Nested(Link), required=True, metadata={
        "description": "The links, the oldest first; used-up ones too, and expired ones until 30 days after their end, "
                       "or until there is no room for a new one"})
    next_cursor = fields.String(allow_none=True, metadata={
        "description": "Cursor of the next page, null at the end; only if `limit` was given",
        "example": "Wm9vcyBhcmUgbm90IGZvciBjb3dz"})


class LinksQuery(schema.Shape):
    """Which links."""

    path = fields.String(validate=schema.check_text, metadata={
        "description": "Only links to the file or folder with this path or id", "example": "/homework",
        "pattern": schema.PATH_PATTERN})
    limit = fields.Integer(validate=validate.Range(min=1, max=1000), metadata={
        "description": "Links of a page at most; not given: all, in one answer", "example": 100})
    cursor = fields.String(validate=schema.check_text, metadata={
        "description": "`next_cursor` of the page before", "example": "Wm9vcyBhcmUgbm90IGZvciBjb3dz"})


class LinkMatch(schema.Shape):
    """Which link."""

    id = fields.UUID(required=True, metadata={
        "description": "Id of the link", "example": "01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60"})


# --- for the maker ---

@operation("Make a link", tag="link", body=NewLink, headers=schema.KeyHeaders, costly=True,
           description="Who knows the address needs no account. It follows the file or folder when that is moved, and "
                       "does nothing while it is in the trash. The end of the session does not end its links.",
           returns={201: (MadeLink, "The link, with its address")},
           errors={404: "", 409: f"Only a folder takes uploads: `not_a_folder`; the account has {MAX_LINKS:,} links: "
                                 "`too_many_links`",
                   422: "The path or another field cannot be used: `invalid_path`, `invalid_field`"})
async def make_link(request: web.Request) -> web.StreamResponse:
    """Make a public link."""
    data = schema.load(NewLink, await body.read_json_or_form(request))
    begin = origin(request)
    link, token = await request.app[DOMAIN].links.create(
        caller(request), parse_place(data["path"]), kind=data["kind"], password=data["password"],
        max_downloads=data["max_downloads"], expires_in_seconds=data["expires_in"])
    request[TRACE].fields |= {"link": str(link.id), "path": link.path}
    return answer({**link_json(link), "url": f"{begin}/s/{token}"}, status=201)


@operation("List the links", tag="link", query=LinksQuery, costly=True,
           description="With `limit` the answer is one page, and `next_cursor`, which is null at the end.",
           returns={200: (LinkList, "The caller's links")}, errors=(404,))
async def list_links(request: web.Request) -> web.StreamResponse:
    """The caller's links, or those to one file or folder."""
    query = schema.load(LinksQuery, query_of(request))
    place = parse_place(query["path"]) if query.get("path") else None
    links, limit = request.app[DOMAIN].links, query.get("limit")
    if limit is None:
        if query.get("cursor"):
            raise InvalidField("A cursor needs a limit.", field="cursor")
        return answer({"links": [link_json(link) for link in await links.list(caller(request), place)]})
    after = None
    if query.get("cursor"):
        created_at, link_id = open_moment(request, LIST, query["cursor"])
        after = created_at, LinkId(link_id)
    # one more than asked for tells whether there is another page
    found = await links.page(caller(request), place, after=after, limit=limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    return answer({"links": [link_json(link) for link in found[:limit]],
                   "next_cursor": seal_moment(request, LIST, last.created_at, FileId(last.id)) if last else None})


@operation("Revoke a link", tag="link", match=LinkMatch, headers=schema.KeyHeaders,
           returns={204: "The address leads nowhere from now on"}, errors=(404,))
async def revoke_link(request: web.Request) -> web.StreamResponse:
    """End a link."""
    try:
        link_id = LinkId(UUID(request.match_info["id"]))
    except ValueError:
        raise NotFound() from None
    request[TRACE].fields["link"] = str(link_id)
    await request.app[DOMAIN].links.revoke(caller(request), link_id)
    return web.Response(status=204)


def link_json(link: model.Link) -> dict[str, object]:
    """A `Link` as JSON."""
    return {"id": str(link.id), "path": link.path, "kind": link.kind,
            "expires_at": schema.rfc3339(link.expires_at) if link.expires_at else None,
            "has_password": link.password_hash is not None, "max_downloads": link.max_downloads,
            "downloads": link.downloads, "created_at": schema.rfc3339(link.created_at)}


# --- for visitors, whatever they come with ---

def address_of(token: str, *path: str) -> str:
    """The address of a link, or of something in its folder, without a host."""
    query = "?path=" + quote("/".join(path), safe="/") if path else ""
    return f"/s/{quote(token, safe='')}{query}"


def key_of(request: web.Request) -> Key:
    """What the visitor shows to be let in."""
    cookies = request.cookies
    # the rest of a download is asked for with a range; nothing else may go past a limit
    is_rest = request.method in ("GET", "HEAD") and "Range" in request.headers
    return Key(password=request.headers.get("X-Link-Password"), proof=cookies.get(PASSWORD_COOKIE, ""),
               resume=cookies.get(RESUME_COOKIE, "") if is_rest else "", address=address(request))


async def admit_link_upload(request: web.Request, raw_address: str) -> Opened:
    """Refuse an upload through a link before its first byte; called with the address that the visitor used.

    Raises what `Links.open` does, MethodNotAllowed for a link that takes no uploads, and what `Links.admit` does.
    """
    body.check_head(request)
    match = _UPLOAD_ADDRESS.fullmatch(raw_address.partition("?")[0])
    if match is None:
        raise NotFound()
    if match[2]:  # a password: a small form, which is not put into a file
        raise UnsupportedMediaType("Send application/x-www-form-urlencoded or application/json.")
    links = request.app[DOMAIN].links
    opened = await links.open(match[1], key_of(request))
    request[TRACE].fields["link"] = str(opened.link.id)
    if opened.link.kind != "upload":
        raise MethodNotAllowed("This link does not take uploads.")
    if request.content_type != body.FORM:
        raise UnsupportedMediaType(f"Send {body.FORM}.")
    announced = body.announced_bytes(request)
    await links.admit(opened, None if announced is None else max(0, announced - FORM_FRAME_BYTES))
    return opened
