"""/file/folder: make folders."""

from aiohttp import web

from service.api.auth import caller
from service.api.body import read_json_or_form
from service.api.keys import DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import operation
from service.api.rest.params import parse_place


@operation("Make a folder", tag="file", body=schema.FolderRequest, headers=schema.KeyHeaders,
           description="With all that is missing above it. A folder that is there already stays as it is.",
           returns={201: (schema.Folder, "A new folder"), 200: (schema.Folder, "It was there already")},
           errors={404: "", 409: "A part of the path is a file: `not_a_folder`",
                   422: "The path cannot be used: `invalid_path`, `invalid_field`"})
async def make_folder(request: web.Request) -> web.StreamResponse:
    """Make a folder."""
    path = schema.load(schema.FolderRequest, await read_json_or_form(request))["path"]
    request[TRACE].fields["path"] = path
    folder, is_new = await request.app[DOMAIN].folders.make(caller(request), parse_place(path))
    return answer(schema.folder_json(folder), status=201 if is_new else 200)
