"""The one table from the catalogue to HTTP, and how a problem looks (RFC 9457)."""

import json
from http import HTTPStatus

import orjson
from aiohttp import web

from service import errors

MEDIA_TYPE = "application/problem+json"
NO_SUCH_ADDRESS = "There is no such address; /docs has them all."

STATUS: dict[type[errors.ServiceError], int] = {
    errors.ServiceError: 500,
    errors.BadRequest: 400,
    errors.Unauthenticated: 401,
    errors.InvalidCredentials: 401,
    errors.InvalidRefreshToken: 401,
    errors.LinkPasswordRequired: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.UsernameTaken: 409,
    errors.NotAFolder: 409,
    errors.IsAFolder: 409,
    errors.NameTaken: 409,
    errors.TooManyLinks: 409,
    errors.Conflict: 409,
    errors.AddressExpired: 410,
    errors.PreconditionFailed: 412,
    errors.TooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.UnsupportedMediaType: 415,
    errors.RangeNotSatisfiable: 416,
    errors.InvalidField: 422,
    errors.TooManyRequests: 429,
    errors.ContentUnavailable: 500,
    errors.Unavailable: 503,
    errors.QuotaExceeded: 507,
    errors.StorageFull: 507,
}

# what aiohttp itself refuses; anything else of its own keeps its status with the code "error"
_OF_AIOHTTP: dict[int, type[errors.ServiceError]] = {
    400: errors.BadRequest, 404: errors.NotFound, 405: errors.MethodNotAllowed, 413: errors.TooLarge,
}


# RFC 9110, section 15.5; Python before 3.13 has the names of older RFCs, and nginx/problem_maps.conf has these
_TITLES = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}


def title_of(status: int) -> str:
    """The status in words."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def status_of(error: errors.ServiceError) -> int:
    """The status of an error: that of its class, or of the nearest one above it."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def render(error: errors.ServiceError, request_id: str, *, headers: dict[str, str] | None = None) -> web.Response:
    """The answer for an error."""
    status = status_of(error)
    problem: dict[str, object] = {
        "type": "about:blank", "title": title_of(status), "status": status, "detail": error.detail,
        "code": error.code, "request_id": request_id}
    if error.field is not None:
        problem["field"] = error.field
    if error.operation is not None:
        problem["operation"] = error.operation
    headers = {"Cache-Control": "no-store", **(headers or {})}
    if status == 401:
        # RFC 6750, section 3; a name of our own for links, since Basic would open a browser's dialogue
        headers["WWW-Authenticate"] = "Link-Password" if isinstance(error, errors.LinkPasswordRequired) else "Bearer"
    if isinstance(error, errors.RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"  # RFC 9110, section 15.5.17
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return web.Response(status=status, body=orjson.dumps(problem), content_type=MEDIA_TYPE, headers=headers)


def render_refusal(error: errors.ServiceError, request_id: str, *,
                   headers: dict[str, str] | None = None) -> web.Response:
    """The answer for an error to nginx's question what is to be done with a request.

    nginx's auth_request knows only yes (204) and no (403), so where to go on, and what to say there, is in headers.
    """
    refusal = render(error, request_id, headers=headers)
    assert isinstance(refusal.body, bytes)
    kept = {name: refusal.headers[name] for name in ("WWW-Authenticate", "Retry-After", "Allow")
            if name in refusal.headers}
    # a header is ASCII and one line: JSON can be both
    return web.Response(status=403, headers={
        **kept, "X-Next": f"/_refuse/{refusal.status}", "X-Reject-Body": json.dumps(orjson.loads(refusal.body))})


def from_aiohttp(error: web.HTTPException) -> tuple[errors.ServiceError, dict[str, str]]:
    """The catalogue's error for one that aiohttp raised by itself, and the headers to keep."""
    kind = _OF_AIOHTTP.get(error.status, errors.BadRequest if error.status < 500 else errors.ServiceError)
    kept = {name: value for name, value in error.headers.items() if name == "Allow"}
    return (kind(NO_SUCH_ADDRESS) if kind is errors.NotFound else kind()), kept
