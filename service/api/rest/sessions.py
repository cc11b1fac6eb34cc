"""/auth/session: look, end one, end all."""

from uuid import UUID

from aiohttp import web

from service.api.auth import caller
from service.api.keys import DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import operation
from service.api.rest.params import query_of
from service.errors import NotFound
from service.model import SessionId


@operation("List the sessions", tag="auth", returns={200: (schema.SessionList, "Where the account is logged in")},
           errors=(503,))
async def list_sessions(request: web.Request) -> web.StreamResponse:
    """The caller's open sessions."""
    who = caller(request)
    found = await request.app[DOMAIN].sessions.list(who)
    return answer({"sessions": [schema.session_json(session, current=who.session_id) for session in found]})


@operation("End a session", tag="auth", match=schema.SessionPath,
           description="Its tokens are refused within five seconds. The current one may be ended too.",
           returns={204: "It has ended"}, errors={404: "The account has no such open session: `not_found`", 503: ""})
async def end_session(request: web.Request) -> web.StreamResponse:
    """End one of the caller's sessions."""
    try:
        session_id = SessionId(UUID(request.match_info["id"]))
    except ValueError:
        raise NotFound() from None
    request[TRACE].fields["session"] = str(session_id)
    await request.app[DOMAIN].sessions.end(caller(request), session_id)
    return web.Response(status=204)


@operation("End all sessions", tag="auth", query=schema.SessionsQuery,
           description="All others, or with `all=true` the current one too. Their tokens are refused within five "
                       "seconds.",
           returns={204: "They have ended"}, errors=(503,))
async def end_sessions(request: web.Request) -> web.StreamResponse:
    """End the caller's sessions."""
    query = schema.load(schema.SessionsQuery, query_of(request))
    await request.app[DOMAIN].sessions.end_all(caller(request), also_current=query.get("all", False))
    return web.Response(status=204)
