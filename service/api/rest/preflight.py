"""/_preflight: nginx asks whether an upload may begin, before it takes the first byte of the body."""

from aiohttp import web

from service.api.auth import authenticate
from service.api.body import announced_bytes
from service.api.errors import NO_SUCH_ADDRESS, from_aiohttp, render_refusal, status_of
from service.api.keys import BEHIND_NGINX, CALLER, TRACE, Action, Trace
from service.api.rest.files import admit_upload
from service.api.rest.links import admit_link_upload
from service.errors import BadRequest, NotFound, ServiceError

_ACTIONS = {"PUT": "upload_bytes", "POST": "upload_form", "DELETE": "delete_file"}  # the handlers' names


async def ask_preflight(request: web.Request) -> web.StreamResponse:
    """403 with X-Next: where nginx takes the body; or a refusal, and what the client is to be told.

    X-Uploader and X-Links-Owner: whose uploads at the same time it counts among.
    """
    if not request.app[BEHIND_NGINX]:
        raise NotFound(NO_SUCH_ADDRESS)
    method = request.headers.get("X-Original-Method", "")
    address = request.headers.get("X-Original-Uri", "")
    try:
        if address.startswith("/s/"):
            # visitors of a link are not to use up what is its owner's, nor what is of other links
            link = (await admit_link_upload(request, address)).link
            uploader = {"X-Uploader": str(link.id), "X-Links-Owner": str(link.user_id)}
            following = "@link_admitted"  # where nginx does not log: the address is the permission
        else:
            who = request[CALLER] = await authenticate(request)
            uploader, following = {"X-Uploader": str(who.user_id)}, "@upload_admitted"
            _check_method(request, method)
            if method in ("PUT", "POST"):
                await admit_upload(request, who, method, address)
            elif announced_bytes(request) != 0:
                raise BadRequest("This method takes no body here.")  # or nginx would spool it, whatever the quota is
    except (ServiceError, web.HTTPMethodNotAllowed) as problem:
        error, headers = (problem, {}) if isinstance(problem, ServiceError) else from_aiohttp(problem)
        _note(request[TRACE], error, method, address)
        return render_refusal(error, request[TRACE].request_id, headers=headers)
    # counted as the yes that it is
    request[TRACE].instead = Action(name="ask_preflight", method=request.method, status=204, route="/_preflight")
    return web.Response(status=403, headers={"X-Next": following, **uploader})


def _check_method(request: web.Request, method: str) -> None:
    """Raise HTTPMethodNotAllowed for a method that /file does not have, before its body is looked at."""
    allowed = {route.method for route in request.app.router.routes()
               if route.resource is not None and route.resource.canonical == "/file"}
    if method not in allowed:
        raise web.HTTPMethodNotAllowed(method, allowed)


def _note(trace: Trace, error: ServiceError, method: str, address: str) -> None:
    """Nobody else will see the request that is refused here, so its log line and its count are this one's."""
    name, route = ("upload_through_link", "/s/{token}") if address.startswith("/s/") else (
        _ACTIONS.get(method, "unknown"), "/file")
    trace.instead = Action(name=name, method=method, status=status_of(error), route=route)
    trace.fields["code"] = error.code
    if error.field:
        trace.fields["field"] = error.field
