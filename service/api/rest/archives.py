"""/file/archive: a folder as one zip."""

import contextlib

from aiohttp import web

from service.api import delivery
from service.api.auth import caller
from service.api.keys import DOMAIN
from service.api.rest import schema
from service.api.rest.openapi import ANY, Answer, operation
from service.api.rest.params import place_of


@operation("Download a folder as zip", tag="file", head=True, query=schema.PathQuery, headers=schema.ArchiveHeaders,
           costly=True,
           description="Everything in the folder, uncompressed. The length is known before the first byte, and a "
                       "download can be resumed as long as nothing in the folder changes.",
           returns={200: Answer(description="The archive", media=(ANY,), headers={
                        "ETag": "Entity tag of the archive; the same as long as nothing in the folder changes"}),
                    206: Answer(description="The part that was asked for", media=(ANY,)),
                    304: "The folder has not changed"},
           errors={404: "", 409: "A file has no archive: `not_a_folder`", 416: ""})
async def download_archive(request: web.Request) -> web.StreamResponse:
    """Send a folder."""
    archives = request.app[DOMAIN].archives
    with archives.under_way(caller(request)):
        plan = await archives.plan(caller(request), place_of(request))
        with contextlib.closing(plan):
            return await delivery.respond_archive(request, archives, plan)
