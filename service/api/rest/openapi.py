"""The OpenAPI document: handlers say with `operation` what they take and give, `build` makes the document of an app.

aiohttp-apispec writes valid Swagger 2.0 but, asked for 3.x, a document with 2.0 parameters in it.  So it writes 2.0,
and `swagger.to_openapi_31` converts that.
"""

import copy
import inspect
import re
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

from aiohttp import web
from aiohttp_apispec import (
    docs, form_schema, headers_schema, json_schema, match_info_schema, querystring_schema, setup_aiohttp_apispec,
)
from marshmallow import Schema

import service
from service.api.errors import title_of
from service.api.rest import schema
from service.api.rest.swagger import FORM, JSON, MULTIPART, PROBLEM, Json, to_openapi_31
from service.errors import ServiceError

__all__ = ["ANY", "BINARY", "FORM", "HTML", "JSON", "MULTIPART", "Answer", "build", "operation", "problems"]

BINARY = "application/octet-stream"
HTML = "text/html"
ANY = "*/*"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H", bound=Handler)
T = TypeVar("T")

TAGS = {
    "auth": "Accounts and sessions.",
    "file": "Files and folders of the caller.",
    "link": "Public links, for people without an account, and signed addresses.",
    "health": "Whether the service works, and how fast.",
    "docs": "This documentation.",
}

_DESCRIPTION = """\
Keeps files of any kind in a tree of folders, for each account its own.

Register, log in, and send the access token as `Authorization: Bearer <token>`. Every error is a problem (RFC 9457) with
a stable `code`. Times are RFC 3339 in UTC, sizes are bytes, ids are UUIDs. `path` takes a path or an id.

The web server in front of the service has a say in any request: 408 (too slow), 414 (address too long), 431 (head too
large) and 504 (no answer in time) are problems as well. Each answer has its id in `X-Request-Id`.
"""

_SECURITY_DEFINITIONS: Json = {
    "bearer": {"type": "apiKey", "in": "header", "name": "Authorization", "x-bearer-format": "JWT",
               "description": "Access token of a login."},
    "login": {"type": "oauth2", "flow": "password", "tokenUrl": "/auth/jwt/login", "scopes": {},
              "description": "Logs in with username and password; leave the client's id and secret empty."},
}

_PROBLEMS = {
    400: "The request is malformed: `bad_request`, `incomplete_body`, `digest_mismatch`",
    401: "No valid access token: `unauthenticated`",
    403: "Not allowed: `forbidden`",
    404: "Not there, or another account's: `not_found`",
    409: "Conflict with the tree: `not_a_folder`, `is_a_folder`, `conflict`",
    412: "A condition of the request does not hold: `precondition_failed`",
    413: "The body is larger than the limit: `too_large`",
    415: "The body is encoded or of a kind not taken here: `unsupported_encoding`, `unsupported_media_type`",
    416: "No part of the range is in the file: `range_not_satisfiable`",
    422: "A field has a value that cannot be used, and is named: `invalid_field`",
    429: "Too many requests: `too_many_requests`",
    500: "A fault of the service: `internal_error`",
    503: "A part of the service cannot be reached or fails: `unavailable`, `outcome_unknown`; of uploads `disk_failed` "
         "and, while the disk is not trusted, `read_only`",
    507: "No room for this, nothing was stored: `quota_exceeded`, `storage_full`",
}
_KEY_PROBLEMS = {
    409: "A request with this Idempotency-Key is under way: `request_in_progress`",
    422: "The Idempotency-Key is that of another request: `idempotency_key_reused`",
    503: "What became of the change is not known: `outcome_unknown`",
}
# the names of the operations that take an Idempotency-Key; the middleware looks for one there and nowhere else
KEYED: set[str] = set()
# and of those that the middleware counts for each account
COSTLY: set[str] = set()
_PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": "What kind of credentials is needed (RFC 6750, section 3)"},
    416: {"Content-Range": "Length of the file: `bytes */<length>`"},
    429: {"Retry-After": "Seconds to wait"},
    503: {"Retry-After": "Seconds to wait"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that is not a problem; `media` only for a body that is not JSON."""

    description: str
    schema: type[Schema] | None = None
    media: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def _header_objects(headers: Mapping[str, str]) -> Json:
    return {name: {"type": "string", "description": text} for name, text in headers.items()}


def problems(*statuses: int, descriptions: Mapping[int, str] | None = None) -> dict[str, Json]:
    """Problem answers for `@docs(responses=...)`; `descriptions` replaces the usual text of a status."""
    result: dict[str, Json] = {}
    for status in sorted(set(statuses)):
        text = (descriptions or {}).get(status) or _PROBLEMS.get(status) or HTTPStatus(status).phrase
        result[str(status)] = {"schema": schema.Problem, "description": text}
        if status in _PROBLEM_HEADERS:
            result[str(status)]["headers"] = _header_objects(_PROBLEM_HEADERS[status])
    return result


def operation(
    summary: str, *, tag: str, returns: Mapping[int, Answer | tuple[type[Schema], str] | str],
    errors: Iterable[int] | Mapping[int, str] = (), description: str = "", public: bool = False, head: bool = False,
    match: type[Schema] | None = None, query: type[Schema] | None = None, headers: type[Schema] | None = None,
    form: type[Schema] | None = None, body: type[Schema] | None = None, raw: str | None = None,
    consumes: tuple[str, ...] = (), costly: bool = False,
) -> Callable[[H], H]:
    """Document a handler; its name is the operation's id.

    `returns`: status -> (schema, text), or a text for an answer without a body, or an Answer.  `errors`: statuses, or
    status -> text that names the codes in backticks ("" for the usual one); implied are 500 and 503, 401 unless
    `public`, 400 and 422 with input, 413 and 415 with a body.  `head`: a GET whose HEAD is worth a line of its own.
    `raw`: what the body is, if it is plain bytes.  `consumes`: media types, if not the usual one.  With `KeyHeaders`
    the operation takes a key, see `KEYED`.  `costly`: it costs much more than it takes to ask for it, see `COSTLY`.
    """
    given = dict(errors) if isinstance(errors, Mapping) else dict.fromkeys(errors, "")
    texts = _particular_texts(query, form, returns) | {status: text for status, text in given.items() if text}
    is_keyed = headers is not None and issubclass(headers, schema.KeyHeaders)
    implied = {500: True, 503: True, 401: not public, 400: query or headers or form or body or raw, 409: is_keyed,
               429: costly, 422: query or form or body or is_keyed, 413: form or body or raw, 415: form or body or raw}
    failures = problems(*given, *(status for status, is_possible in implied.items() if is_possible), descriptions=texts)
    if is_keyed:
        _add_key_problems(failures)
    extra: Json = {"x-head": True} if head else {}
    if description:
        extra["description"] = description
    if raw:
        extra["parameters"] = [{"in": "body", "name": "body", "required": True, "description": raw,
                                "schema": {"type": "string", "format": "binary"}}]
    # the page sends the first one; "anything" cannot be sent
    usual = {JSON: body, MULTIPART: form, BINARY: raw, ANY: raw}
    if accepted := list(consumes) or [media for media, wanted in usual.items() if wanted]:
        extra["consumes"] = accepted

    def decorate(handler: H) -> H:
        KEYED.update([handler.__name__] * is_keyed)
        COSTLY.update([handler.__name__] * costly)
        for register, wanted in ((match_info_schema, match), (querystring_schema, query), (headers_schema, headers),
                                 (form_schema, form)):
            if wanted:
                register(wanted)(handler)
        if body:
            json_schema(body, required=True)(handler)
        docs(summary=summary, tags=[tag], operationId=handler.__name__, responses=failures,
             security=[] if public else [{name: []} for name in _SECURITY_DEFINITIONS], **extra)(handler)
        for status, answer in returns.items():
            _document_answer(handler, status, answer)
        return handler

    return decorate


def _add_key_problems(failures: dict[str, Json]) -> None:
    """What an operation that takes a key has to say besides."""
    for status, text in _KEY_PROBLEMS.items():
        failures[str(status)]["description"] += f". {text}"
    failures["409"]["headers"] = _header_objects({"Retry-After": "Seconds to wait, for `request_in_progress`"})


def _particular_texts(
    query: type[Schema] | None, form: type[Schema] | None, returns: Mapping[int, object],
) -> dict[int, str]:
    """More exact than `_PROBLEMS`: what follows from the kind of input and answer."""
    texts = {}
    if query and "path" in query().fields:
        texts[422] = "The path or another field cannot be used, and is named: `invalid_path`, `invalid_field`"
    if form and any(given.metadata.get("type") == "file" for given in form().fields.values()):
        texts[422] = ("The path, another field or the number of files cannot be used: `invalid_path`, `invalid_field`, "
                      "`missing_file`, `several_files`")
    if any(isinstance(answer, Answer) and ANY in answer.media for answer in returns.values()):
        texts[500] = "A fault of the service: `internal_error`, `content_unavailable`"
    return texts


def _document_answer(handler: Handler, status: int, answer: Answer | tuple[type[Schema], str] | str) -> None:
    if isinstance(answer, str):
        answer = Answer(description=answer)
    elif isinstance(answer, tuple):
        answer = Answer(schema=answer[0], description=answer[1])
    response: Json = {"description": answer.description, "headers": _header_objects(answer.headers)}
    if answer.schema:
        response["schema"] = answer.schema
    if answer.media:
        response["examples"] = dict.fromkeys(answer.media)  # where Swagger 2.0 names media types
    docs(responses={str(status): response})(handler)


# --- the document of an app -------------------------------------------------------------------------------------------

def build(app: web.Application) -> Json:
    """The OpenAPI 3.1 document of all documented routes of the app, which is left as it is."""
    # aiohttp-apispec consumes what the decorators left on a handler, adds a route and writes string keys into the app
    # that it is given, so it gets another app with copies
    scratch = web.Application()
    for route in app.router.routes():
        described = getattr(route.handler, "__apispec__", None)
        if described is not None and route.resource is not None:
            scratch.router.add_route(route.method, route.resource.canonical, _stand_in(described))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        apispec = setup_aiohttp_apispec(
            scratch, title="File storage", version=service.__version__, info={"description": _DESCRIPTION},
            tags=[{"name": name, "description": text} for name, text in TAGS.items()],
            securityDefinitions=_SECURITY_DEFINITIONS, in_place=True)
    document = to_openapi_31(apispec.swagger_dict())
    _lay_over(document["components"]["schemas"])
    _add_problem_examples(document)
    return document


def _stand_in(described: Json) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound

    # functions take any attribute, which their type does not say
    handler.__apispec__ = copy.deepcopy(described)  # type: ignore[attr-defined]
    return handler


def _lay_over(components: Json) -> None:
    """Add to the components what marshmallow cannot say: docstrings and `Shape.json_schema`."""
    for shape in _family(schema.Shape):
        if (component := components.get(shape.__name__)) is not None:
            component["description"] = inspect.getdoc(shape) or ""
            component |= shape.json_schema
            for key in [key for key, value in component.items() if value is None]:
                del component[key]


def _add_problem_examples(document: Json) -> None:
    """Give each problem answer an example for each code that its description names."""
    details = {kind.code: (inspect.getdoc(kind) or "").partition("\n")[0] for kind in _family(ServiceError)}
    examples = document["components"].setdefault("examples", {})
    for given in (given for item in document["paths"].values() for given in item.values()):
        for status, response in given["responses"].items():
            if (content := response.get("content", {}).get(PROBLEM)) is None:
                continue
            for code in re.findall(r"`([a-z]+(?:_[a-z]+)*)`", response["description"]):
                detail = details.get(code, HTTPStatus(int(status)).description)
                examples.setdefault(code, {"value": _problem_example(int(status), code, detail)})
                content.setdefault("examples", {})[code] = {"$ref": f"#/components/examples/{code}"}


def _problem_example(status: int, code: str, detail: str) -> Json:
    example = {"type": "about:blank", "title": title_of(status), "status": status, "detail": detail,
               "code": code, "request_id": schema.Problem().fields["request_id"].metadata["example"]}
    return example | ({"field": "path"} if status == HTTPStatus.UNPROCESSABLE_ENTITY else {})


def _family(base: type[T]) -> Iterator[type[T]]:
    yield base
    for subclass in base.__subclasses__():
        yield from _family(subclass)
