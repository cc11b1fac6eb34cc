"""/file: upload, download, look, delete, usage."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from service import names
from service.api import body, delivery
from service.api.auth import caller
from service.api.keys import BEHIND_NGINX, DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import ANY, MULTIPART, Answer, operation
from service.api.rest.params import conditions_of, key_of, parse_place, place_in, place_of, query_of, read_query
from service.domain.content import Stored
from service.domain.places import Place, Target
from service.errors import BadRequest, InvalidField, InvalidPath
from service.model import Caller, Delivery, Folder, Staged

FORM_FRAME_BYTES = 64 * 1024  # what the parts of a form may add to its file; only a first look depends on it

_CHANGED = {"ETag": "Entity tag of the new version"}


# --- upload ---

async def admit_upload(request: web.Request, who: Caller, method: str, address: str) -> None:
    """Refuse an upload before its first byte; called with the method and address that the client used."""
    body.check_head(request)
    announced = body.announced_bytes(request)
    query = read_query(address)
    _check_target(query)
    text = query.get("path")
    if text:
        request[TRACE].fields["path"] = text
    if method == "PUT":
        if not text:
            raise InvalidField("This parameter is needed.", field="path")
        body.announced_sha256(request)
        conditions_of(request)
    else:
        if body.announced_sha256(request) is not None:
            # it would be that of the form, not of the file in it; to ignore it would be to say that it matched
            raise BadRequest("The digest of a form is not checked; send the plain bytes with PUT.")
        announced = None if announced is None else max(0, announced - FORM_FRAME_BYTES)
    place: Place | None = parse_place(text) if text else None
    # the place of a form's file is known only with the form
    await request.app[DOMAIN].content.admit(who, announced, place if method == "PUT" else None, key=key_of(request))


async def _admit(request: web.Request) -> None:
    # behind nginx this was asked before nginx took a large body
    if not request.app[BEHIND_NGINX] or body.is_small(request):
        await admit_upload(request, caller(request), request.method, request.raw_path)
        if not request.app[BEHIND_NGINX]:
            await body.invite(request)


def parse_target(path: str | None, own_name: str | None) -> Target:
    """Where an upload goes; `own_name` is for when `path` turns out to be a folder's; raise InvalidPath."""
    path = path or "/"
    return Target(place=parse_place(path), in_folder=path.endswith("/"), own_name=own_name or None)


def _check_target(given: Mapping[str, str]) -> None:
    """Raise InvalidPath for any word on where an upload goes that is no path or name, also if another one counts."""
    for field, check in (("path", parse_place), ("file", parse_place), ("name", names.check_name)):
        if text := given.get(field):
            try:
                check(text)
            except InvalidPath as error:
                error.field = field
                raise


@asynccontextmanager
async def _used_up(request: web.Request, staged: Staged) -> AsyncIterator[None]:
    """Whatever happens, nothing stays in staging; after a placement there is nothing there any more."""
    content = request.app[DOMAIN].content
    try:
        yield
    finally:
        if staged.data is None:
            await content.run(content.release, staged.key)


async def _store(request: web.Request, target: Target, staged: Staged,
                 content_type: str | None) -> web.Response:
    stored = await request.app[DOMAIN].content.store(
        caller(request), target, staged, content_type=content_type, conditions=conditions_of(request))
    request[TRACE].fields |= {"path": stored.file.path, "size": stored.file.size_bytes}
    return _stored(stored)


_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:\s*;[\x20-\x7e]*)?")
# what clients say that do not know; curl says the second one of whatever it sends with --data-binary
_SAYS_NOTHING = (names.UNKNOWN_MEDIA_TYPE, "application/x-www-form-urlencoded")


def media_type(declared: str) -> str | None:
    """The media type that the client says; None if it does not know itself."""
    declared = declared.strip()
    if len(declared) <= 255 and _MEDIA_TYPE.fullmatch(declared):
        kind = declared.partition(";")[0].strip().lower()
        if kind not in _SAYS_NOTHING and "*" not in kind:
            return declared
    return None


def _stored(stored: Stored) -> web.Response:
    return answer(schema.file_json(stored.file), status=201 if stored.is_new else 200,
                  headers={"ETag": stored.file.etag})


@operation("Upload a form", tag="file", query=schema.UploadQuery, form=schema.UploadForm, headers=schema.FormHeaders,
           consumes=(MULTIPART,),
           description="One file in a form. The file at the path is replaced, missing folders are made. More than one "
                       "file in a form is refused as a whole (`several_files`). A digest is refused, "
                       "as it would be that of the form. Fields of the form win over parameters "
                       "of the address.",
           returns={201: Answer(schema=schema.File, description="A new file", headers=_CHANGED),
                    200: Answer(schema=schema.File, description="The file was replaced", headers=_CHANGED)},
           errors=(400, 404, 409, 412, 413, 415, 422, 503, 507))
async def upload_form(request: web.Request) -> web.StreamResponse:
    """Store the file of a form."""
    await _admit(request)
    form = await body.stage_form(request)
    async with _used_up(request, form.staged):
        fields = schema.load(schema.UploadQuery, form.fields)
        _check_target(fields)
        path, name = _where(query_of(request), fields)
        request[TRACE].fields["path"] = path
        target = parse_target(path, name or _base_name(form.filename))
        return await _store(request, target, form.staged, media_type(form.content_type))


def _where(query: Mapping[str, str], fields: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Path and name; a text field `file` is the path, as the assignment words it."""
    if "path" in fields and "file" in fields and fields["path"] != fields["file"]:
        raise InvalidField("Give the path as `path` or as `file`, not two of them.", field="path")
    return (fields.get("path") or fields.get("file") or query.get("path") or query.get("file"),
            fields.get("name") or query.get("name") or None)


def _base_name(filename: str) -> str:
    """Clients may send a path of their own machine; only its last name counts."""
    return filename.rpartition("/")[2]


@operation("Upload bytes", tag="file", query=schema.PutQuery, headers=schema.PutHeaders,
           raw="The content of the file, as it is",
           description="As `curl -T` sends it. The file at the path is replaced, missing folders are made.",
           returns={201: Answer(schema=schema.File, description="A new file", headers=_CHANGED),
                    200: Answer(schema=schema.File, description="The file was replaced", headers=_CHANGED)},
           errors=(400, 404, 409, 412, 413, 415, 422, 503, 507))
async def upload_bytes(request: web.Request) -> web.StreamResponse:
    """Store the body."""
    place_of(request)  # before the body is taken
    await _admit(request)
    query = query_of(request)
    target = parse_target(query["path"], query.get("name"))
    staged = await body.stage_raw(request)
    async with _used_up(request, staged):
        return await _store(request, target, staged, media_type(request.headers.get("Content-Type", "")))


# --- look ---

@operation("Look at a file or folder", tag="file", query=schema.PathQuery,
           returns={200: (schema.FileOrFolderInfo, "The file or folder, this one with what is below it")},
           errors=(400, 404, 422, 503))
async def show_file(request: web.Request) -> web.StreamResponse:
    """What there is at the place."""
    found = await request.app[DOMAIN].files.look(caller(request), place_of(request))
    if isinstance(found, Folder):
        return answer(schema.folder_json(found))
    return answer(schema.file_json(found), headers={"ETag": found.etag})


@operation("What the account holds", tag="file", returns={200: (schema.Usage, "Bytes, and the number of files")},
           errors=(503,))
async def show_usage(request: web.Request) -> web.StreamResponse:
    """What the caller's files take."""
    return answer(schema.usage_json(await request.app[DOMAIN].files.usage(caller(request))))


# --- download, delete ---

@operation("Download", tag="file", head=True, query=schema.DownloadQuery, headers=schema.DownloadHeaders,
           returns={200: Answer(description="The content", media=(ANY,), headers={
                        "ETag": "Entity tag of the version", "Repr-Digest": "SHA-256 of the file (RFC 9530)",
                        "Content-Disposition": "`attachment`, with the name of the file"}),
                    206: Answer(description="The parts that were asked for", media=(ANY,)),
                    304: "The file has not changed"},
           errors=(400, 404, 409, 412, 416, 422, 503))
async def download_file(request: web.Request) -> web.StreamResponse:
    """Send a file."""
    return await delivery.respond(request, await decide_file(request, caller(request), request.raw_path))


async def decide_file(request: web.Request, who: Caller, address: str) -> Delivery:
    """Which bytes the address of a download stands for."""
    query = read_query(address)
    version = schema.load(schema.DownloadQuery, query).get("version")
    return await request.app[DOMAIN].content.deliver(who, place_in(request, query), version)


@operation("Delete", tag="file", query=schema.DeleteQuery, headers=schema.DeleteHeaders,
           description="A file, or a folder with all that is in it: into the trash, or with `permanent=true` for good.",
           returns={204: "It is gone"}, errors=(400, 404, 409, 412, 422, 503))
async def delete_file(request: web.Request) -> web.StreamResponse:
    """Into the trash, or for good."""
    permanent = schema.load(schema.DeleteQuery, query_of(request)).get("permanent") == "true"
    await request.app[DOMAIN].files.delete(caller(request), place_of(request), conditions_of(request),
                                           permanent=permanent)
    return web.Response(status=204)
