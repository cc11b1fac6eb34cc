"""/s/<token>: a public link, as a page for people and as plain bytes or JSON for programs."""

import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from aiohttp import web
from marshmallow import fields

from service import errors, names
from service.api import body, delivery
from service.api.auth import address, origin
from service.api.keys import BEHIND_NGINX, CLAIM, DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.files import media_type
from service.api.rest.links import (
    PASSWORD_COOKIE, RESUME_COOKIE, address_of, admit_link_upload, key_of,
)
from service.api.rest.openapi import ANY, FORM, HTML, JSON, MULTIPART, Answer, operation
from service.api.rest.params import query_of
from service.api.web import pages
from service.domain.links import PASSWORD_PROOF_SECONDS, RESUME_PROOF_SECONDS, Children, Key, Opened
from service.model import File, Folder, LinkChild

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ROOT_NAME = "Files"  # the root folder has none


# --- shapes ---

class TokenMatch(schema.Shape):
    """Which link."""

    token = fields.String(required=True, metadata={
        "description": "The secret part of the link's address", "example": "kJ2s0c8mJ0v4W9v3yq1Zr7xT5uB6nD2e"})


class VisitQuery(schema.Shape):
    """What of a linked folder, and as what."""

    path = fields.String(metadata={
        "description": "Path within the linked folder", "example": "test-folder/notes.txt",
        "pattern": schema.PATH_PATTERN})
    download = fields.String(metadata={
        "description": "`1`: the bytes, even for a browser", "example": "1"})
    after = fields.String(metadata={
        "description": "Where the next part of a folder's list begins: `next` of the part before",
        "example": "f/a.txt", "pattern": schema.NAME_PATTERN.replace("^", "^[df]/", 1)})


class VisitHeaders(schema.DownloadHeaders):
    """Ranges, conditions, and the password of the link."""

    x_link_password = fields.String(data_key="X-Link-Password", metadata={
        "description": "Password of the link, if it has one; for many requests rather exchange it at /open",
        "example": "correct horse battery staple"})


class PasswordHeaders(schema.Shape):
    """The password of the link."""

    x_link_password = fields.String(data_key="X-Link-Password", metadata={
        "description": "Password of the link, if it has one", "example": "correct horse battery staple"})


class LinkPassword(schema.Shape):
    """The password of a link."""

    password = fields.String(required=True, validate=schema.check_text, metadata={
        "description": "Password of the link", "example": "correct horse battery staple", "format": "password"})


class DroppedFile(schema.Shape):
    """A file in a form (RFC 7578)."""

    file = fields.Raw(required=True, metadata={
        "description": "The content: the one part that has a filename", "example": "hello", "type": "file"})


class Dropped(schema.Shape):
    """What has arrived; not what it is called there, which would tell what else is there."""

    name = fields.String(required=True, metadata={"description": "Name as it was sent", "example": "notes.txt"})
    size = fields.Integer(required=True, metadata={"description": "Length, in bytes", "example": 5, "minimum": 0})
    sha256 = fields.String(required=True, metadata={
        "description": "SHA-256 of the content, in hex",
        "example": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"})


class SharedChild(schema.Shape):
    """A file or folder in a linked folder."""

    type = fields.String(required=True, metadata={"description": "`file` or `folder`", "example": "file"})
    name = fields.String(required=True, metadata={"description": "Name", "example": "notes.txt"})
    path = fields.String(required=True, metadata={
        "description": "Path within the linked folder, for the parameter `path`",
        "example": "test-folder/notes.txt"})
    size = fields.Integer(metadata={"description": "Length of a file, in bytes", "example": 5})
    content_type = fields.String(metadata={"description": "Media type of a file", "example": "text/plain"})
    updated_at = fields.DateTime(required=True, metadata={
        "description": "When it was changed (RFC 3339, UTC)", "example": "2020-09-11T17:22:05.123456Z"})


class SharedFolder(schema.Shape):
    """A part of the list of a linked folder, or of one in it: the folders first, then the files, each by name."""

    name = fields.String(required=True, metadata={"description": "Name of the folder", "example": "test-folder"})
    path = fields.String(required=True, metadata={
        "description": "Path within the linked folder; empty for itself", "example": "test-folder"})
    children = fields.List(fields.Nested(SharedChild), required=True, metadata={"description": "What is in it"})
    next = fields.String(required=True, allow_none=True, metadata={
        "description": "For the parameter `after` of the next part; null: there is none", "example": "f/a.txt"})


# --- who is asking ---

def _is_browser(request: web.Request) -> bool:
    """Programs do not ask for HTML."""
    return any(HTML in value.lower() for value in request.headers.getall("Accept", []))


def _wants_page(request: web.Request, query: dict[str, str]) -> bool:
    """A person who has not pressed the button yet."""
    return _is_browser(request) and query.get("download") != "1"


def _for_people(handler: Handler) -> Handler:
    """What goes wrong is told to a browser as a page."""
    @functools.wraps(handler)
    async def with_pages(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except errors.ServiceError as error:
            if not _is_browser(request):
                raise
            request[TRACE].fields["code"] = error.code
            if _asks_for_password(error, request):
                return _password_page(request, error)
            return pages.problem_page(error)

    return with_pages


def _asks_for_password(error: errors.ServiceError, request: web.Request) -> bool:
    is_second_try = isinstance(error, errors.TooManyRequests) or error.field == "password"
    return isinstance(error, errors.LinkPasswordRequired) or (request.path.endswith("/open") and is_second_try)


def _password_page(request: web.Request, error: errors.ServiceError) -> web.Response:
    headers = {"WWW-Authenticate": "Link-Password"} if isinstance(error, errors.LinkPasswordRequired) else {}
    message = ""
    if isinstance(error, errors.TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_seconds)
        message = f"Too many attempts. Try again in {error.retry_after_seconds} s."
    elif isinstance(error, errors.InvalidLinkPassword) or error.field == "password":
        message = "That is not the password of this link."
    status = 401 if isinstance(error, errors.LinkPasswordRequired) else 429 if message.startswith("Too") else 422
    return pages.page("password", status=status, headers=headers, message=message,
                      action=address_of(request.match_info["token"]) + "/open")


def _cookie(request: web.Request, name: str, value: str, *, max_age_seconds: int) -> str:
    """A cookie for this link alone, out of reach for scripts and for requests that other sites make."""
    secure = "; Secure" if origin(request).startswith("https:") else ""
    return (f"{name}={value}; Max-Age={max_age_seconds}; Path={address_of(request.match_info['token'])}; HttpOnly; "
            f"SameSite=Strict{secure}")


# --- look and download ---

@operation("Use a link", tag="link", public=True, head=True, match=TokenMatch, query=VisitQuery, headers=VisitHeaders,
           description="A program gets the file, or the list of a folder (with `download=1` the folder as zip); a "
                       "browser a page about it. A limit counts "
                       "each GET that sends bytes of a file, before the first one; a range counts as well, unless it "
                       "begins after the first byte and brings the cookie that came with a download that was counted. "
                       "HEAD, lists, pages, 304, 412 and 416 do not count. The password is asked at every door.",
           returns={200: Answer(description="The content, the list of a folder, or the page",
                                schema=SharedFolder, media=(ANY, JSON, HTML)),
                    206: Answer(description="The parts that were asked for", media=(ANY,)),
                    304: "The file has not changed"},
           errors={401: "The link has a password: `link_password_required`, `invalid_link_password`",
                   404: "Unknown, expired, revoked, used up, or the file is gone: `not_found`",
                   405: "A link for uploads: `method_not_allowed`", 409: "",
                   412: "", 416: "", 429: ""})
@_for_people
async def visit_link(request: web.Request) -> web.StreamResponse:
    """Show or send what the link leads to."""
    query = query_of(request)
    within = names.split_path(query.get("path", ""))
    opened = await request.app[DOMAIN].links.open(request.match_info["token"], key_of(request), within)
    request[TRACE].fields["link"] = str(opened.link.id)
    if _wants_page(request, query):
        return await _show(request, opened, query)
    if opened.link.kind == "upload":
        raise errors.MethodNotAllowed("This link takes uploads: send a form with a file, by POST.")
    if isinstance(opened.found, Folder):
        await request.app[DOMAIN].throttles.spend_visit(address(request))
        if query.get("download") == "1":
            return await _send_folder(request, opened, opened.found)
        return _listing(opened, await _children(request, opened, query))
    return await _send_file(request, opened)


async def _send_file(request: web.Request, opened: Opened) -> web.StreamResponse:
    links = request.app[DOMAIN].links
    decided = await links.deliver(opened)
    begin = delivery.first_byte(request, decided)
    proof = ""
    if begin is not None and not (opened.is_resumed and begin > 0):
        proof = await links.count(opened)
    extra = {"X-Robots-Tag": "noindex, nofollow"}
    if proof:
        extra["Set-Cookie"] = _cookie(request, RESUME_COOKIE, proof, max_age_seconds=RESUME_PROOF_SECONDS)
    return await delivery.respond(request, decided, extra=extra, through_link=True)


async def _send_folder(request: web.Request, opened: Opened, folder: Folder) -> web.StreamResponse:
    """The folder as an archive; each GET that sends a part of it counts once."""
    archives = request.app[DOMAIN].archives
    with archives.under_way(opened.owner):
        plan = await archives.plan_folder(opened.owner, folder)
        with contextlib.closing(plan):
            tags = [tag.removeprefix("W/") for tag in delivery.entity_tags(request, "If-None-Match")]
            if request.method == "GET" and "*" not in tags and plan.etag not in tags:
                await request.app[DOMAIN].links.count(opened)
            return await delivery.respond_archive(request, archives, plan)


async def _children(request: web.Request, opened: Opened, query: dict[str, str]) -> Children:
    kind, _, name = query.get("after", "d/").partition("/")
    if kind not in ("d", "f"):
        raise errors.InvalidField("This is not the `next` of a list.", field="after")
    after = (kind == "f", names.check_name(name) if name else "")
    return await request.app[DOMAIN].links.list_children(opened, after)


def _next(children: Children) -> str | None:
    if children.next_after is None:
        return None
    return f"{'f' if children.next_after[0] else 'd'}/{children.next_after[1]}"


def _listing(opened: Opened, children: Children) -> web.Response:
    return answer({"name": opened.found.name, "path": "/".join(opened.within), "next": _next(children),
                   "children": [_child_json(opened, child) for child in children.children]},
                  headers={"Vary": "Accept", "X-Robots-Tag": "noindex, nofollow"})


def _child_json(opened: Opened, child: LinkChild) -> dict[str, object]:
    own = {} if child.is_folder else {"size": child.size_bytes, "content_type": child.content_type}
    return {"type": "folder" if child.is_folder else "file", "name": child.name,
            "path": "/".join([*opened.within, child.name]), **own, "updated_at": schema.rfc3339(child.updated_at)}


async def _show(request: web.Request, opened: Opened, query: dict[str, str]) -> web.Response:
    """The page for people."""
    token, link, found = request.match_info["token"], opened.link, opened.found
    left = None if link.max_downloads is None else link.max_downloads - link.downloads
    common: dict[str, Any] = {"name": found.name or _ROOT_NAME, "expires_at": link.expires_at, "left": left}
    if link.kind == "upload":
        return pages.page("upload", **{**common, "name": ""}, action=address_of(token), is_sent="sent" in query)
    way = _way(token, opened) if link.is_folder else []
    if isinstance(found, File):
        here = address_of(token, *opened.within)
        icon, kind = pages.kind_of(found.content_type)
        return pages.page("file", **common, way=way[:-1], file=found, icon_name=icon, kind=kind,
                          download=f"{here}{'&' if '?' in here else '?'}download=1")
    children = await _children(request, opened, query)
    rows = [_row(token, opened, child) for child in children.children]
    following = _next(children)
    here = address_of(token, *opened.within)
    here += "&" if "?" in here else "?"
    return pages.page("folder", **common, way=way, rows=rows, is_first="after" not in query,
                      archive=f"{here}download=1", more=following and f"{here}after={quote(following, safe='')}")


def _way(token: str, opened: Opened) -> list[tuple[str, str]]:
    """Names and addresses from the linked folder down to what is shown."""
    within = opened.within
    top = _ROOT_NAME if opened.found.path == "/" else (opened.found.path.split("/")[-len(within) - 1] or _ROOT_NAME)
    return [(top, address_of(token)),
            *((name, address_of(token, *within[:depth + 1])) for depth, name in enumerate(within))]


def _row(token: str, opened: Opened, child: LinkChild) -> dict[str, object]:
    here = address_of(token, *opened.within, child.name)
    icon, kind = ("folder", "Folder") if child.is_folder else pages.kind_of(child.content_type)
    return {"name": child.name, "is_folder": child.is_folder, "href": here, "download": f"{here}&download=1",
            "size_bytes": child.size_bytes, "updated_at": child.updated_at, "icon": icon, "kind": kind}


# --- password ---

@operation("Open a link with its password", tag="link", public=True, match=TokenMatch, body=LinkPassword,
           form=LinkPassword, consumes=(JSON, FORM),
           description="Gives a cookie that stands for the password for an hour, at this link alone.",
           returns={204: Answer(description="The cookie", headers={"Set-Cookie": "Good for an hour"}),
                    303: "The same, for a browser: on to the link"},
           errors={401: "Wrong password: `invalid_link_password`", 404: "Unknown, expired, revoked or used up: "
                   "`not_found`", 429: ""})
@_for_people
async def open_link(request: web.Request) -> web.StreamResponse:
    """Exchange the password of a link for a cookie."""
    if request.get(CLAIM) is not None:
        raise errors.UnsupportedMediaType("Send application/x-www-form-urlencoded or application/json.")
    data = schema.load(LinkPassword, await body.read_json_or_form(request))
    token = request.match_info["token"]
    proof = await request.app[DOMAIN].links.unlock(token, Key(password=data["password"], address=address(request)))
    response: web.Response
    if _is_browser(request):
        response = pages.redirect(address_of(token))
    else:
        response = web.Response(status=204)
    if proof:
        response.headers["Set-Cookie"] = _cookie(request, PASSWORD_COOKIE, proof,
                                                 max_age_seconds=PASSWORD_PROOF_SECONDS)
    return response


# --- upload ---

@operation("Upload through a link", tag="link", public=True, match=TokenMatch, form=DroppedFile,
           headers=PasswordHeaders, consumes=(MULTIPART,),
           description="For links of the kind `upload`. Nothing is ever replaced: a file whose name is taken gets "
                       "another one. Counts towards `max_downloads` of the link, and takes room of its maker.",
           returns={201: (Dropped, "It has arrived"), 303: "The same, for a browser: back to the page"},
           errors={401: "The link has a password: `link_password_required`, `invalid_link_password`",
                   404: "Unknown, expired, revoked or used up: `not_found`",
                   405: "Not a link for uploads: `method_not_allowed`", 429: "", 507: ""})
@_for_people
async def upload_through_link(request: web.Request) -> web.StreamResponse:
    """Take a file from somebody without an account."""
    # nginx has asked before it took the body; what is decided is decided here
    opened = await admit_link_upload(request, request.raw_path)
    if not request.app[BEHIND_NGINX]:
        await body.invite(request)
    form = await body.stage_form(request)
    content = request.app[DOMAIN].content
    try:
        name = names.check_name(form.filename.rpartition("/")[2])
        await request.app[DOMAIN].links.store(opened, name, form.staged,
                                              content_type=media_type(form.content_type))
    finally:
        await content.run(content.release, form.staged.key)
    request[TRACE].fields["size"] = form.staged.size_bytes
    if _is_browser(request):
        return pages.redirect(f"{address_of(request.match_info['token'])}?sent=1")
    return answer({"name": name, "size": form.staged.size_bytes, "sha256": form.staged.sha256.hex()}, status=201)


# --- what the pages are made of ---

class AssetMatch(schema.Shape):
    """Which part of the pages."""

    name = fields.String(required=True, metadata={"description": "Name of the file", "example": "page.css"})


@operation("Part of the pages", tag="link", public=True, match=AssetMatch,
           returns={200: Answer(description="The style sheet, script or image",
                                media=("text/css", "text/javascript", "image/svg+xml"))},
           errors={404: "There is no such part: `not_found`"})
async def page_asset(request: web.Request) -> web.StreamResponse:
    """A part of the pages."""
    asset = pages.ASSETS.get(request.match_info["name"])
    if asset is None:
        raise errors.NotFound("The pages have no such part.")
    # the address has the digest of the content in it, so it never means anything else
    return web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers={
        "Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"})
