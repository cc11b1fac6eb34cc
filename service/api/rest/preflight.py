"""/_preflight: nginx asks whether an upload may begin, before it takes the first byte of the body.

nginx's auth_request knows only yes (204) and no (403), so the real answer travels in headers.
"""

import json

import orjson
from aiohttp import web

from service.api.auth import authenticate
from service.api.body import announced_bytes
from service.api.errors import render
from service.api.keys import BEHIND_NGINX, TRACE
from service.api.rest.files import admit_upload
from service.api.rest.links import admit_link_upload
from service.errors import BadRequest, NotFound, ServiceError


async def ask_preflight(request: web.Request) -> web.StreamResponse:
    """204, or 403 with X-Reject, X-Reject-Body and what else the client is to be told."""
    if not request.app[BEHIND_NGINX]:
        raise NotFound()
    method = request.headers.get("X-Original-Method", "")
    address = request.headers.get("X-Original-Uri", "")
    try:
        if address.startswith("/s/"):
            await admit_link_upload(request, address)
        else:
            who = await authenticate(request)
            if method in ("PUT", "POST"):
                await admit_upload(request, who, method, address)
            elif announced_bytes(request) != 0:
                raise BadRequest("This method takes no body here.")  # or nginx would spool it, whatever the quota is
    except ServiceError as error:
        return _refuse(error, request[TRACE].request_id)
    return web.Response(status=204)


def _refuse(error: ServiceError, request_id: str) -> web.Response:
    refusal = render(error, request_id)
    assert isinstance(refusal.body, bytes)
    headers = {name: refusal.headers[name] for name in ("WWW-Authenticate", "Retry-After") if name in refusal.headers}
    # a header is ASCII and one line: JSON can be both
    return web.Response(status=403, headers={
        **headers, "X-Reject": str(refusal.status), "X-Reject-Body": json.dumps(orjson.loads(refusal.body))})
