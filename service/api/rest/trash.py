"""/file/trash: look, bring back, empty."""

from aiohttp import web

from service.api.auth import caller
from service.api.body import read_json_or_form
from service.api.keys import DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.cursors import open_moment, seal_moment
from service.api.rest.openapi import operation
from service.api.rest.params import parse_place, query_of
from service.model import FileId, Folder

PAGE = 100
LIST = "trash"


@operation("List the trash", tag="file", query=schema.TrashQuery, returns={200: (schema.TrashPage, "Newest first")})
async def list_trash(request: web.Request) -> web.StreamResponse:
    """A page of what was deleted."""
    query = schema.load(schema.TrashQuery, query_of(request))
    limit = query.get("limit", PAGE)
    after = open_moment(request, LIST, query["cursor"]) if query.get("cursor") else None
    # one more than asked for tells whether there is another page
    items = await request.app[DOMAIN].trash.list(caller(request), after=after, limit=limit + 1)
    last = items[limit - 1] if len(items) > limit else None
    return answer({"items": [schema.trashed_json(item) for item in items[:limit]],
                   "next_cursor": seal_moment(request, LIST, last.deleted_at, last.id) if last else None})


@operation("Restore from the trash", tag="file", body=schema.TrashRestore, headers=schema.KeyHeaders,
           returns={200: (schema.FileOrFolder, "What came back, where it is now")},
           errors={404: "", 409: "Conflict with the tree, if a place is given: `name_taken`, `not_a_folder`"})
async def restore_trashed(request: web.Request) -> web.StreamResponse:
    """Bring something back."""
    data = schema.load(schema.TrashRestore, await read_json_or_form(request))
    to = data.get("to") or None
    found = await request.app[DOMAIN].trash.restore(
        caller(request), FileId(data["id"]), parse_place(to) if to else None, in_folder=bool(to and to.endswith("/")))
    request[TRACE].fields["path"] = found.path
    return answer(schema.folder_json(found) if isinstance(found, Folder) else schema.file_json(found))


@operation("Empty the trash", tag="file", query=schema.TrashSelection, headers=schema.KeyHeaders,
           description="Deletes one item, or everything in the trash, for good.",
           returns={204: "It is gone"}, errors=(404,))
async def empty_trash(request: web.Request) -> web.StreamResponse:
    """Delete for good."""
    item_id = schema.load(schema.TrashSelection, query_of(request)).get("id")
    if item_id is None:
        await request.app[DOMAIN].trash.empty(caller(request))
    else:
        request[TRACE].fields["id"] = str(item_id)
        await request.app[DOMAIN].trash.purge(caller(request), FileId(item_id))
    return web.Response(status=204)
