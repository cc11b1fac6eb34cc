"""/auth/audit: what was done to the caller's account."""

from aiohttp import web

from service.api.auth import caller
from service.api.keys import DOMAIN
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.cursors import open_number, seal_number
from service.api.rest.openapi import operation
from service.api.rest.params import query_of

PAGE = 100
LIST = "audit"


@operation("What was done to the account", tag="auth", query=schema.AuditQuery,
           description="Each change and each login, also refused ones, newest first. Reading and downloading leave no "
                       "line. Lines are kept for a time that the operator sets, 90 days if they set none; of many "
                       "refused logins in a short time only the first are kept.",
           returns={200: (schema.AuditPage, "A part of the trail")}, errors=(503,))
async def list_audit(request: web.Request) -> web.StreamResponse:
    """A page of the caller's trail."""
    query = schema.load(schema.AuditQuery, query_of(request))
    limit = query.get("limit", PAGE)
    before = open_number(request, LIST, query["cursor"]) if query.get("cursor") else None
    # one more than asked for tells whether there is another page
    found = await request.app[DOMAIN].audit.list(caller(request), before=before, limit=limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    return answer({"entries": [schema.audit_json(entry) for entry in found[:limit]],
                   "next_cursor": seal_number(request, LIST, last.id) if last else None})
