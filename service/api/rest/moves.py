"""/file/move and /file/copy."""

from typing import Any

from aiohttp import web

from service.api.auth import caller
from service.api.body import read_json_or_form
from service.api.keys import DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import operation
from service.api.rest.params import conditions_of, parse_place
from service.domain.moves import MAX_COPIED, Change
from service.domain.places import Place, Target
from service.errors import InvalidPath
from service.model import Conditions, File, Folder

_WHERE = ("`to` is a full path, or a folder to go into under its own name: a path with `/` at its end, or that of a "
          "folder that exists. Missing folders are made. All or nothing.")
_ERRORS = {404: "", 412: "", 422: "A path cannot be used, and is named: `invalid_path`, `invalid_field`",
           409: "Conflict with the tree: `name_taken`, `not_a_folder`, `conflict` (a folder into itself; or something "
                "changed meanwhile)"}


def parse_change(data: dict[str, Any], conditions: Conditions) -> Change:
    """What goes where; raise InvalidPath with the field named."""
    to = data["to"]
    target = Target(place=parse_field(data, "to"), in_folder=to.endswith("/"))
    return Change(source=parse_field(data, "from"), target=target, overwrite=data["overwrite"], conditions=conditions)


def parse_field(data: dict[str, Any], field: str) -> Place:
    """The place that a field names; raise InvalidPath with the field named."""
    try:
        return parse_place(data[field])
    except InvalidPath as error:
        error.field = field
        raise


def object_json(found: File | Folder) -> dict[str, object]:
    """A file or a folder as JSON."""
    return schema.folder_json(found) if isinstance(found, Folder) else schema.file_json(found)


async def _change_of(request: web.Request) -> Change:
    data = schema.load(schema.MoveRequest, await read_json_or_form(request))
    request[TRACE].fields |= {"from": data["from"], "to": data["to"]}
    return parse_change(data, conditions_of(request))


def _answer(found: File | Folder) -> web.Response:
    return answer(object_json(found), headers={"ETag": found.etag} if isinstance(found, File) else None)


@operation("Move or rename", tag="file", body=schema.MoveRequest, headers=schema.MoveHeaders,
           description=f"A file, or a folder with all that is in it; takes the same time for both. {_WHERE}",
           returns={200: (schema.FileOrFolder, "What was moved, at its new place")}, errors=_ERRORS)
async def move_file(request: web.Request) -> web.StreamResponse:
    """Move."""
    return _answer(await request.app[DOMAIN].moves.move(caller(request), await _change_of(request)))


@operation("Copy", tag="file", body=schema.MoveRequest, headers=schema.MoveHeaders, costly=True,
           description=f"A file in its current version, or a folder with all that is in it; moves no bytes. At most "
                       f"{MAX_COPIED} files and folders. {_WHERE}",
           returns={201: (schema.FileOrFolder, "The copy")}, errors=_ERRORS | {507: ""})
async def copy_file(request: web.Request) -> web.StreamResponse:
    """Copy."""
    response = _answer(await request.app[DOMAIN].moves.copy(caller(request), await _change_of(request)))
    response.set_status(201)
    return response
