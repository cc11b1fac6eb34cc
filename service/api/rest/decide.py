"""/_decide: nginx asks what a download is; it remembers the answer until the account changes."""

import time

from aiohttp import web

from service.api import delivery
from service.api.auth import authenticate, bearer
from service.api.errors import NO_SUCH_ADDRESS, render_refusal, status_of
from service.api.keys import BEHIND_NGINX, CALLER, DOMAIN, TRACE, Action
from service.api.rest.files import decide_file
from service.cache.generations import TTL_SECONDS
from service.domain import audit
from service.domain.accounts import SESSION_CACHE_SECONDS
from service.errors import NotFound, ServiceError

# the session may have been asked after so long before, and was believed
GOOD_SECONDS = int(TTL_SECONDS - SESSION_CACHE_SECONDS)


async def decide_download(request: web.Request) -> web.StreamResponse:
    """403 with X-Next, which is a file or a refusal, and with what the client is to be told there."""
    if not request.app[BEHIND_NGINX]:
        raise NotFound(NO_SUCH_ADDRESS)
    trace = request[TRACE]
    method = request.headers.get("X-Original-Method", "")
    status = 200
    try:
        who = request[CALLER] = await authenticate(request)
        audit.identified(who)
        decided = await decide_file(request, who, request.headers.get("X-Original-Uri", ""))
        response = delivery.decided(request, decided, method=method)
        response.headers["X-Accel-Expires"] = str(_seconds_good(request))
    except ServiceError as error:
        status = status_of(error)
        trace.fields["code"] = error.code
        if error.field:
            trace.fields["field"] = error.field
        response = render_refusal(error, trace.request_id)
        response.headers["X-Accel-Expires"] = "0"
    trace.instead = Action(name="download_file", method=method, status=status, route="/file/download")
    return response


def _seconds_good(request: web.Request) -> int:
    """How long the decision may be remembered: never longer than its token lives.

    nginx counts whole seconds and the last one in full.
    """
    expires_at = request.app[DOMAIN].accounts.token_expires_at(bearer(request))
    return max(0, min(GOOD_SECONDS, int(expires_at - time.time())) - 1)
