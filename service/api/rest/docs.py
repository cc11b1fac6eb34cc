"""The documentation page and the OpenAPI document: made once at the start, sent from memory, no other host needed.

The page is Swagger UI (https://swagger.io/docs/open-source-tools/swagger-ui/usage/configuration/) without any inline
script, so that the policy can forbid them.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from aiohttp import web
from marshmallow import fields
# comes without types
from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

from service import errors
from service.api.rest import schema
from service.api.rest.openapi import HTML, JSON, Answer, build, operation

# all that is ever read from the package; a request only picks among what is in memory
_FROM_PACKAGE = (("swagger-ui.css", "text/css"), ("swagger-ui-bundle.js", "text/javascript"),
                 ("favicon-32x32.png", "image/png"))

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>File storage: API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript; the document it shows is <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""

# validatorUrl: the badge of an online validator would tell another host of this service
_START = """\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""

# Swagger UI has its icons as data: in the style sheet and shows answers that are pictures as blob:
_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


class _PartName(schema.Shape):
    """Which part of the page."""

    name = fields.String(required=True, metadata={"description": "Name of the script, style sheet or image",
                                                  "example": "swagger-ui.css"})


@dataclass(frozen=True, slots=True)
class _Document:
    """A body that never changes while the process lives."""

    body: bytes
    content_type: str
    etag: str


def _document(body: bytes, content_type: str) -> _Document:
    return _Document(body, content_type, hashlib.sha256(body).hexdigest()[:32])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Documentation:
    page: _Document
    openapi: _Document
    parts: dict[str, _Document]


_DOCUMENTATION = web.AppKey("documentation", _Documentation)


async def documentation(app: web.Application) -> AsyncIterator[None]:
    """For `app.cleanup_ctx`: make the document of all routes and read the page's parts."""
    folder = Path(swagger_ui_path)
    parts = {name: _document((folder / name).read_bytes(), content_type) for name, content_type in _FROM_PACKAGE}
    app[_DOCUMENTATION] = _Documentation(
        page=_document(_PAGE.encode(), HTML), openapi=_document(orjson.dumps(build(app)), JSON),
        parts={**parts, "start.js": _document(_START.encode(), "text/javascript")})
    yield


@operation(
    "Documentation", tag="docs", public=True, description="This page. It works without internet.",
    returns={200: Answer(description="The page", media=(HTML,), headers={"ETag": "Entity tag of the page"}),
             304: "The page has not changed"})
async def show_docs(request: web.Request) -> web.StreamResponse:
    """The page for people."""
    return _send(request, request.app[_DOCUMENTATION].page)


@operation(
    "OpenAPI document", tag="docs", public=True, description="What this page shows, for programs: OpenAPI 3.1.",
    returns={200: Answer(description="The document", media=(JSON,),
                         headers={"ETag": "Entity tag of the document"}),
             304: "The document has not changed"})
async def show_openapi(request: web.Request) -> web.StreamResponse:
    """The document for programs."""
    return _send(request, request.app[_DOCUMENTATION].openapi)


@operation(
    "Part of the documentation page", tag="docs", public=True, match=_PartName,
    returns={200: Answer(description="The script, style sheet or image",
                         media=("text/javascript", "text/css", "image/png"),
                         headers={"ETag": "Entity tag of the part"}),
             304: "The part has not changed"},
    errors={404: "There is no such part: `not_found`"})
async def docs_asset(request: web.Request) -> web.StreamResponse:
    """A part of the page."""
    part = request.app[_DOCUMENTATION].parts.get(request.match_info["name"])
    if part is None:
        raise errors.NotFound("The documentation has no such part.")
    return _send(request, part)


def _send(request: web.Request, document: _Document) -> web.Response:
    # no-cache: keep it, but ask; after an upgrade the parts of the page have to fit together
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer",
               "X-Content-Type-Options": "nosniff"}
    if any(tag.value in (document.etag, "*") for tag in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(body=document.body, content_type=document.content_type, headers=headers)
        if document.content_type.startswith("text/"):
            response.charset = "utf-8"
    response.etag = document.etag
    return response
