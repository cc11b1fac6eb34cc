"""/file/versions: look, bring back, forget.  Downloads of a version are in `files.py`."""

from aiohttp import web

from service.api.auth import caller
from service.api.body import read_json_or_form
from service.api.keys import DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import Answer, operation
from service.api.rest.params import conditions_of, parse_place, place_of, query_of


@operation("List the versions of a file", tag="file", query=schema.PathQuery,
           returns={200: (schema.VersionList, "Newest first")},
           errors={404: "", 409: "A folder has none: `is_a_folder`"})
async def list_versions(request: web.Request) -> web.StreamResponse:
    """What a file held and holds."""
    found = await request.app[DOMAIN].versions.list(caller(request), place_of(request))
    return answer({"versions": [schema.version_json(version) for version in found]})


@operation("Restore a version", tag="file", body=schema.VersionRestore, headers=schema.DeleteHeaders,
           description="What the file was then becomes its newest version. No bytes move.",
           returns={200: Answer(schema=schema.File, description="The file",
                                headers={"ETag": "Entity tag of the new version"})},
           errors={404: "", 409: "A folder has none: `is_a_folder`", 412: "", 507: ""})
async def restore_version(request: web.Request) -> web.StreamResponse:
    """Bring back what a file was."""
    data = schema.load(schema.VersionRestore, await read_json_or_form(request))
    request[TRACE].fields["path"] = data["path"]
    file = await request.app[DOMAIN].versions.restore(caller(request), parse_place(data["path"]), data["version"],
                                                      conditions_of(request))
    return answer(schema.file_json(file), headers={"ETag": file.etag})


@operation("Forget former versions", tag="file", query=schema.VersionQuery, headers=schema.KeyHeaders,
           returns={204: "They are gone"},
           errors={404: "", 409: "The current version, or a folder: `conflict`, `is_a_folder`"})
async def forget_versions(request: web.Request) -> web.StreamResponse:
    """Forget one or all former versions."""
    number = schema.load(schema.VersionQuery, query_of(request)).get("version")
    await request.app[DOMAIN].versions.forget(caller(request), place_of(request), number)
    return web.Response(status=204)
