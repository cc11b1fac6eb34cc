"""Around every handler, outermost first: `observe` (body, id, log, errors), then `identify`."""

import time

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from service import errors, metrics
from service.api import body
from service.api.auth import address, authenticate
from service.api.errors import from_aiohttp, render
from service.api.keys import BEHIND_NGINX, CALLER, CLAIM, DOMAIN, TRACE, Action, Trace
from service.api.protocol import SERVER
from service.api.rest.openapi import COSTLY, KEYED
from service.api.rest.params import begin
from service.api.routes import PUBLIC_HANDLERS
from service.domain import audit, requests
from service.model import new_uuid

log = structlog.get_logger()

# many, and nobody's action
QUIET = frozenset({"live", "ready", "show_metrics", "ask_preflight", "decide_download", "docs_asset"})

# on whatever says nothing else: no answer is a page that may load or run anything, but those that say so
SAFETY = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'",
          "Cross-Origin-Resource-Policy": "same-origin"}


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One log line for each request, one shape for each error; a spooled body is taken first and always let go."""
    begin = time.perf_counter()
    failure: Exception | None = None
    try:
        claim = body.claim_spooled(request)  # before the first await
    except (errors.ServiceError, OSError) as error:
        claim, failure = None, error
    request_id = request.headers.get("X-Request-Id", "") if request.app[BEHIND_NGINX] else ""
    trace = request[TRACE] = Trace(request_id=request_id or new_uuid().hex)
    audit.begin(request_id=trace.request_id, address=address(request))
    if claim is not None:
        request[CLAIM] = claim
    under_way = _body_in_flight(request)
    try:
        if failure is not None:
            raise failure
        response = await handler(request)
    except Exception as error:  # whatever a handler missed: the client gets a problem, the log the rest
        if request.transport is None or request.transport.is_closing():
            trace.fields["client_gone"] = True
        elif request.writer.output_size > 0:
            # an answer has begun: another one would be taken for the rest of it, so the client is to see it break off
            request.transport.abort()
        response = _render(error, trace)
    finally:
        if claim is not None:
            request.app[DOMAIN].content.release(claim.key)
        if under_way is not None:
            under_way.dec()
    seconds = time.perf_counter() - begin
    _log(request, response, trace, seconds)
    _count(request, response, seconds)
    return response


def _body_in_flight(request: web.Request) -> metrics.Gauge | None:
    """The gauge that counts this request until it is answered; None without a body."""
    kind = "spooled" if CLAIM in request else "received" if request.body_exists else None
    if kind is None:
        return None
    gauge = metrics.BODIES.labels(kind)
    gauge.inc()
    return gauge


def _count(request: web.Request, response: web.StreamResponse, seconds: float) -> None:
    resource = request.match_info.route.resource
    claim = request.get(CLAIM)
    sent = response.body_length if response.prepared else response.content_length or 0
    route, method, status = "unmatched" if resource is None else resource.canonical, request.method, response.status
    if (trace := request.get(TRACE)) is not None and trace.instead is not None and trace.instead.route is not None:
        route, method, status = trace.instead.route, trace.instead.method, trace.instead.status
    metrics.count_request(
        route=route, method=method, status=status, seconds=seconds,
        bytes_in=request.content.total_bytes if claim is None else claim.size_bytes,
        bytes_out=0 if request.method == "HEAD" else sent)


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """For `app.on_response_prepare`: what every answer carries, also one that a handler begins to send by itself."""
    if (trace := request.get(TRACE)) is not None:
        response.headers.setdefault("X-Request-Id", trace.request_id)
    for name, value in SAFETY.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = SERVER


def _render(error: Exception, trace: Trace) -> web.Response:
    headers: dict[str, str] = {}
    if isinstance(error, web.HTTPException):
        error, headers = from_aiohttp(error)
    elif isinstance(error, ConnectionError) and "client_gone" in trace.fields:
        error = errors.BadRequest("The client left before the end of the answer.")  # for the log alone
    elif not isinstance(error, errors.ServiceError):
        log.error("request.failed", request_id=trace.request_id, exc_info=error)
        error = errors.ServiceError("The service made a mistake; it has been logged under this request's id.")
    assert isinstance(error, errors.ServiceError)
    trace.fields["code"] = error.code
    if error.field:
        trace.fields["field"] = error.field
    return render(error, trace.request_id, headers=headers)


def _log(request: web.Request, response: web.StreamResponse, trace: Trace, seconds: float) -> None:
    action = trace.instead or Action(name=getattr(request.match_info.handler, "__name__", "unknown"),
                                     method=request.method, status=response.status)
    caller = request.get(CALLER)
    write = log.warning if action.status >= 500 else log.debug if action.name in QUIET else log.info
    write(action.name, method=action.method, status=action.status, duration_ms=round(seconds * 1000, 2),
          user=str(caller.user_id) if caller else None, request_id=trace.request_id, **trace.fields)


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Who is it?  Every handler needs an account, but those that the table of routes has as public."""
    requests.begin(None)  # the request before this one on the connection may have had a key
    if request.match_info.http_exception is None and request.match_info.handler not in PUBLIC_HANDLERS:
        request[CALLER] = await authenticate(request)
        audit.identified(request[CALLER])
        name = getattr(request.match_info.handler, "__name__", "")
        if name in COSTLY:
            await request.app[DOMAIN].throttles.spend(request[CALLER])
        if name in KEYED:
            begin(request)
    response = await handler(request)
    if requests.is_replay():
        request[TRACE].fields["replay"] = True
    return response
