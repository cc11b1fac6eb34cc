"""The OpenAPI document: the converter, the decorator, the page."""

import copy
import re
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from marshmallow import fields, validate
from openapi_spec_validator import OpenAPIV31SpecValidator

from service import errors
from service.api import routes
from service.api.errors import STATUS
from service.api.rest import docs, schema
from service.api.rest.openapi import ANY, FORM, JSON, Answer, build, operation, problems
from service.api.rest.swagger import to_openapi_31

Json = dict[str, Any]
Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application], Awaitable[Client]]


class SampleQuery(schema.Shape):
    """All kinds of query parameters."""

    word = fields.String(required=True, validate=validate.Length(min=1), metadata={"description": "A word"})
    number = fields.Integer(load_default=10, validate=validate.Range(min=1, max_inclusive=False, max=1000))
    choice = fields.String(validate=validate.OneOf(["asc", "desc"]))
    flag = fields.Boolean()
    several = fields.List(fields.String())


class SampleMatch(schema.Shape):
    """What is in the path."""

    id = fields.UUID(required=True)


@operation("Log in", tag="auth", body=schema.Credentials, form=schema.LoginForm, consumes=(JSON, FORM), public=True,
           returns={200: (schema.Tokens, "Tokens")}, errors={401: "Wrong: `invalid_credentials`", 429: ""})
async def sample_login(request: web.Request) -> web.StreamResponse:
    return web.Response()


@operation("Upload", tag="file", query=schema.UploadQuery, form=schema.UploadForm, errors=(409, 507),
           returns={200: (schema.File, "Replaced"), 201: (schema.File, "New")})
async def sample_upload(request: web.Request) -> web.StreamResponse:
    return web.Response()


@operation("Put", tag="file", query=schema.PutQuery, headers=schema.PutHeaders, raw="The content", errors=(412,),
           returns={201: (schema.File, "New")})
async def sample_put(request: web.Request) -> web.StreamResponse:
    return web.Response()


@operation("Download", tag="file", query=schema.PathQuery, headers=schema.DownloadHeaders, head=True, errors=(404, 416),
           returns={200: Answer(description="Bytes", media=(ANY,), headers={"ETag": "Tag"}), 304: "Not changed"})
async def sample_download(request: web.Request) -> web.StreamResponse:
    return web.Response()


@operation("Search", tag="file", query=SampleQuery, match=SampleMatch, returns={200: (schema.FileOrFolder, "Found")})
async def sample_search(request: web.Request) -> web.StreamResponse:
    return web.Response()


@operation("Remove", tag="file", query=schema.PathQuery, returns={204: "Gone"}, errors=(404,))
async def sample_remove(request: web.Request) -> web.StreamResponse:
    return web.Response()


@operation("Ping", tag="health", public=True, description="How fast.",
           returns={200: (schema.Health, "Up"), 503: (schema.Health, "Down")})
async def sample_ping(request: web.Request) -> web.StreamResponse:
    return web.Response()


@operation("Usage", tag="file", returns={200: (schema.Usage, "Usage")})
async def sample_usage(request: web.Request) -> web.StreamResponse:
    return web.Response()


async def undocumented(request: web.Request) -> web.StreamResponse:
    return web.Response()


def sample_app() -> web.Application:
    app = web.Application()
    app.router.add_post("/login", sample_login)
    app.router.add_post("/file", sample_upload)
    app.router.add_put("/file", sample_put)
    app.router.add_delete("/file", sample_remove)
    app.router.add_get("/download", sample_download)
    app.router.add_get("/download/", sample_download)
    app.router.add_get("/search/{id}", sample_search)
    app.router.add_get("/ping", sample_ping)
    app.router.add_get("/usage", sample_usage)
    app.router.add_get("/hidden", undocumented)
    app.router.add_get("/docs", docs.show_docs)
    app.router.add_get("/openapi.json", docs.show_openapi)
    app.router.add_get("/docs/{name}", docs.docs_asset)
    app.cleanup_ctx.append(docs.documentation)
    return app


@pytest.fixture(scope="module")
def document() -> Json:
    return build(sample_app())


# --- the document of the sample app ---

def test_the_document_is_valid(document: Json) -> None:
    assert document["openapi"] == "3.1.1"
    OpenAPIV31SpecValidator(document).validate()


def test_building_leaves_the_app_as_it_is_and_may_be_repeated() -> None:
    app = sample_app()
    routes = [(route.method, route.handler) for route in app.router.routes()]
    described = copy.copy(sample_search.__apispec__)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(app) == build(app)
    assert [(route.method, route.handler) for route in app.router.routes()] == routes
    assert sample_search.__apispec__ == described  # type: ignore[attr-defined]
    assert list(app.keys()) == []


def test_head_is_there_only_where_it_was_asked_for(document: Json) -> None:
    heads = {path for path, item in document["paths"].items() if "head" in item}
    assert heads == {"/download", "/download/"}
    assert "/hidden" not in document["paths"]
    assert all("content" not in answer for answer in document["paths"]["/download"]["head"]["responses"].values())


def test_operation_ids_are_unique(document: Json) -> None:
    ids = [given["operationId"] for item in document["paths"].values() for given in item.values()]
    assert len(ids) == len(set(ids))
    assert {"sample_download", "sample_download_head", "sample_download_2"} <= set(ids)


def test_security_is_said_for_each_operation(document: Json) -> None:
    assert document["paths"]["/ping"]["get"]["security"] == []
    assert document["paths"]["/file"]["put"]["security"] == [{"bearer": []}, {"login": []}]
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    assert schemes["login"]["flows"] == {"password": {"tokenUrl": "/auth/jwt/login", "scopes": {}}}
    assert "401" not in document["paths"]["/ping"]["get"]["responses"]
    assert "401" in document["paths"]["/usage"]["get"]["responses"]


def test_json_and_form_are_told_apart(document: Json) -> None:
    body = document["paths"]["/login"]["post"]["requestBody"]
    assert body["required"] is True
    assert body["content"][JSON]["schema"] == {"$ref": "#/components/schemas/Credentials"}
    assert set(body["content"][FORM]["schema"]["properties"]) == {"username", "password", "grant_type"}


def test_a_form_with_a_file_is_multipart(document: Json) -> None:
    content = document["paths"]["/file"]["post"]["requestBody"]["content"]
    assert list(content) == ["multipart/form-data"]
    form = content["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert (form["properties"]["file"]["type"], form["properties"]["file"]["format"]) == ("string", "binary")
    assert form["properties"]["path"]["type"] == "string"


def test_a_raw_body_is_binary(document: Json) -> None:
    body = document["paths"]["/file"]["put"]["requestBody"]
    binary = {"schema": {"type": "string", "format": "binary"}}
    assert body == {"required": True, "description": "The content", "content": {
        "application/octet-stream": binary, "*/*": binary}}
    assert list(body["content"])[0] == "application/octet-stream"  # what the page sends


def test_parameters_have_schemas(document: Json) -> None:
    parameters = {p["name"]: p for p in document["paths"]["/search/{id}"]["get"]["parameters"]}
    assert parameters["id"]["in"] == "path" and parameters["id"]["schema"]["format"] == "uuid"
    assert parameters["word"] == {"name": "word", "in": "query", "required": True, "description": "A word",
                                  "schema": {"type": "string", "minLength": 1}}
    assert parameters["number"]["schema"]["default"] == 10
    assert parameters["choice"]["schema"]["enum"] == ["asc", "desc"]
    assert parameters["several"]["schema"] == {"type": "array", "items": {"type": "string"}}
    assert parameters["several"]["explode"] is True
    headers = [p["name"] for p in document["paths"]["/file"]["put"]["parameters"] if p["in"] == "header"]
    assert headers == ["Idempotency-Key", "If-Match", "If-None-Match", "Content-Digest", "Repr-Digest"]


def test_answers_have_the_right_media_types(document: Json) -> None:
    download = document["paths"]["/download"]["get"]["responses"]
    assert download["200"]["content"] == {"*/*": {}}
    assert download["200"]["headers"]["ETag"] == {"description": "Tag", "schema": {"type": "string"}}
    assert "content" not in download["304"]
    assert list(download["416"]["content"]) == ["application/problem+json"]
    assert "Content-Range" in download["416"]["headers"]
    assert list(document["paths"]["/ping"]["get"]["responses"]["503"]["content"]) == ["application/json"]
    assert list(document["paths"]["/docs"]["get"]["responses"]["200"]["content"]) == ["text/html"]


def test_implied_answers_follow_from_the_input(document: Json) -> None:
    assert set(document["paths"]["/usage"]["get"]["responses"]) == {"200", "401", "500", "503"}
    assert set(document["paths"]["/file"]["put"]["responses"]) == {
        "201", "400", "401", "409", "412", "413", "415", "422", "500", "503"}
    assert set(document["paths"]["/file"]["delete"]["responses"]) == {"204", "400", "401", "404", "422", "500", "503"}


def test_each_code_has_an_example_in_the_words_of_the_catalogue(document: Json) -> None:
    content = document["paths"]["/login"]["post"]["responses"]["401"]["content"]["application/problem+json"]
    assert content["examples"] == {"invalid_credentials": {"$ref": "#/components/examples/invalid_credentials"}}
    example = document["components"]["examples"]["invalid_credentials"]["value"]
    assert (example["status"], example["code"]) == (401, "invalid_credentials")
    assert example["detail"] == errors.InvalidCredentials().detail
    for given in document["components"]["examples"].values():
        assert schema.Problem().validate(given["value"]) == {}


def test_components_say_what_marshmallow_cannot(document: Json) -> None:
    components = document["components"]["schemas"]
    assert [list(one) for one in components["FileOrFolder"]["oneOf"]] == [["$ref"], ["$ref"]]
    assert "properties" not in components["FileOrFolder"]
    assert len(components["Credentials"]["oneOf"]) == 3
    assert components["Usage"]["properties"]["quota"]["type"] == ["integer", "null"]
    assert components["File"]["description"]
    assert set(components["File"]["required"]) == set(schema.File().fields)


def test_problems_takes_the_usual_text_or_another() -> None:
    assert list(problems(404, 400, 404)) == ["400", "404"]
    assert problems(404, descriptions={404: "Gone"})["404"]["description"] == "Gone"
    assert problems(418)["418"]["description"] == "I'm a Teapot"


# --- the converter on its own ---

SWAGGER: Json = {
    "swagger": "2.0", "info": {"title": "t", "version": "1"}, "basePath": "/v1", "consumes": [FORM],
    "produces": ["text/csv"],
    "securityDefinitions": {
        "basic": {"type": "basic"}, "key": {"type": "apiKey", "in": "query", "name": "k", "description": "d"},
        "code": {"type": "oauth2", "flow": "accessCode", "authorizationUrl": "/a", "tokenUrl": "/t",
                 "scopes": {"r": "R"}}},
    "definitions": {
        "Thing": {"type": "object", "discriminator": "kind", "properties": {
            "example": {"type": "string", "x-nullable": True, "enum": ["a"], "example": "a"},
            "type": {"$ref": "#/definitions/Other", "x-nullable": True},
            "properties": {"type": "object", "additionalProperties": {"type": "integer", "nullable": True}},
            "list": {"type": "array", "items": {"allOf": [{"$ref": "#/definitions/Other"}]}},
            "above": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
            "from": {"type": "number", "maximum": 0, "exclusiveMaximum": False}}},
        "Other": {"type": "object", "additionalProperties": False}},
    "paths": {"/things/{id}": {
        "parameters": [{"in": "path", "name": "id", "required": True, "type": "string"},
                       {"in": "query", "name": "q", "type": "string", "description": "shared"}],
        "post": {
            "x-anything": 1, "deprecated": True,
            "parameters": [{"in": "query", "name": "q", "type": "array", "items": {"type": "string"},
                            "collectionFormat": "pipes"},
                           {"in": "formData", "name": "a", "type": "string"}],
            "responses": {"200": {"description": "", "schema": {"$ref": "#/definitions/Thing"}},
                          "default": {"description": "any"}}},
        "get": {"produces": ["image/png"], "responses": {"200": {"description": "", "schema": {"type": "file"}}}},
    }},
}


def test_the_converter_takes_any_swagger_and_leaves_it_as_it_is() -> None:
    before = copy.deepcopy(SWAGGER)
    document = to_openapi_31(SWAGGER)
    assert before == SWAGGER
    OpenAPIV31SpecValidator(document).validate()
    assert document["servers"] == [{"url": "/v1"}]


def test_the_converter_on_operations() -> None:
    item = to_openapi_31(SWAGGER)["paths"]["/things/{id}"]
    assert list(item) == ["get", "post"]
    assert [(p["name"], p["in"]) for p in item["post"]["parameters"]] == [("id", "path"), ("q", "query")]
    assert item["post"]["parameters"][1]["style"] == "pipeDelimited"
    assert item["post"]["requestBody"] == {"required": False, "content": {
        FORM: {"schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}}
    assert item["post"]["responses"]["200"]["content"] == {
        "text/csv": {"schema": {"$ref": "#/components/schemas/Thing"}}}
    assert item["get"]["responses"]["200"]["content"] == {"image/png": {}}
    assert item["post"]["deprecated"] is True and "x-anything" not in item["post"]


def test_the_converter_on_schemas() -> None:
    thing = to_openapi_31(SWAGGER)["components"]["schemas"]["Thing"]
    assert thing["discriminator"] == {"propertyName": "kind"}
    assert thing["properties"] == {
        "example": {"type": ["string", "null"], "enum": ["a", None], "examples": ["a"]},
        "type": {"anyOf": [{"$ref": "#/components/schemas/Other"}, {"type": "null"}]},
        "properties": {"type": "object", "additionalProperties": {"type": ["integer", "null"]}},
        "list": {"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/Other"}]}},
        "above": {"type": "number", "exclusiveMinimum": 0},
        "from": {"type": "number", "maximum": 0},
    }


def test_the_converter_on_security() -> None:
    assert to_openapi_31(SWAGGER)["components"]["securitySchemes"] == {
        "basic": {"type": "http", "scheme": "basic"},
        "key": {"type": "apiKey", "in": "query", "name": "k", "description": "d"},
        "code": {"type": "oauth2", "flows": {
            "authorizationCode": {"authorizationUrl": "/a", "tokenUrl": "/t", "scopes": {"r": "R"}}}},
    }


# --- the page ---

async def test_the_page_needs_no_other_host_and_no_inline_script(aiohttp_client: MakeClient) -> None:
    client = await aiohttp_client(sample_app())
    answer = await client.get("/docs")
    page = await answer.text()
    assert (answer.status, answer.content_type, answer.charset) == (200, "text/html", "utf-8")
    assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|<style|//", page.replace("<!DOCTYPE html>", ""))
    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        part = await client.get(address)
        assert part.status == 200, address
        assert part.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(("path", "content_type", "beginning"), [
    ("/docs", "text/html", b"<!DOCTYPE html>"),
    ("/openapi.json", "application/json", b'{"openapi":"3.1.1"'),
    ("/docs/swagger-ui.css", "text/css", b".swagger-ui"),
    ("/docs/swagger-ui-bundle.js", "text/javascript", b"/*! For license"),
    ("/docs/start.js", "text/javascript", b"SwaggerUIBundle("),
    ("/docs/favicon-32x32.png", "image/png", b"\x89PNG"),
])
async def test_what_has_not_changed_is_not_sent_again(
        aiohttp_client: MakeClient, path: str, content_type: str, beginning: bytes) -> None:
    client = await aiohttp_client(sample_app())
    answer = await client.get(path)
    assert (answer.status, answer.content_type) == (200, content_type)
    assert (await answer.read()).startswith(beginning)
    tag = answer.headers["ETag"]
    for condition in (tag, "*", f'"other", {tag}', f"W/{tag}"):
        again = await client.get(path, headers={"If-None-Match": condition})
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)
    other = await client.get(path, headers={"If-None-Match": '"other"'})
    assert other.status == 200
    head = await client.head(path)
    assert (head.status, head.headers["ETag"]) == (200, tag)


@pytest.mark.parametrize("name", ["index.html", "..%2F__init__.py", "%2Fetc%2Fpasswd", "swagger-ui.js.map", "%00"])
async def test_other_parts_are_not_there(aiohttp_client: MakeClient, name: str) -> None:
    @web.middleware
    async def show_missing(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except errors.NotFound:
            return web.Response(status=404)
        return response

    app = sample_app()
    app.middlewares.append(show_missing)
    client = await aiohttp_client(app)
    assert (await client.get(f"/docs/{name}")).status == 404


async def test_what_is_sent_is_the_document(aiohttp_client: MakeClient) -> None:
    app = sample_app()
    client = await aiohttp_client(app)
    assert await (await client.get("/openapi.json")).json() == build(app)


# --- the real routes ---

def real_app() -> web.Application:
    app = web.Application()
    routes.add_routes(app)
    return app


@pytest.fixture(scope="module")
def real_document() -> Json:
    return build(real_app())


def real_operations() -> list[tuple[str, str, bool]]:
    """(method, path, is_public) of each route that clients may use; nginx's own begin with an underscore."""
    return [(route.method.lower(), re.sub(r"\{(\w+):[^}]+\}", r"{\1}", route.path), route.is_public)
            for route in routes.ROUTES if not route.path.startswith("/_")]


def test_the_real_document_is_valid(real_document: Json) -> None:
    OpenAPIV31SpecValidator(real_document).validate()


def test_the_real_document_has_every_route_and_no_other(real_document: Json) -> None:
    documented = {(method, path) for path, item in real_document["paths"].items() for method in item}
    downloads = ("/file/download", "/file/download/", "/file/archive", "/s/{token}", "/d/{name}")
    heads = {("head", path) for path in downloads}
    assert documented == {(method, path) for method, path, _ in real_operations()} | heads


@pytest.mark.parametrize(("method", "path", "is_public"), real_operations())
def test_each_real_operation_says_all_of_itself(real_document: Json, method: str, path: str, is_public: bool) -> None:
    given = real_document["paths"][path][method]
    assert given["summary"] and given["operationId"]
    assert [tag in {known["name"] for known in real_document["tags"]} for tag in given["tags"]] == [True]
    assert given["security"] == ([] if is_public else [{"bearer": []}, {"login": []}])
    statuses = set(given["responses"])
    assert any(status.startswith("2") for status in statuses)
    assert {"500", "503"} <= statuses
    assert is_public or "401" in statuses
    for status, answer in given["responses"].items():
        assert answer["description"]
        if status >= "400" and (status, path) not in {("503", "/ping/all"), ("503", "/readyz")}:
            assert list(answer["content"]) == ["application/problem+json"]
            assert answer["content"]["application/problem+json"]["examples"], "the description names no code"
    for parameter in given.get("parameters", []):
        assert parameter["description"] and parameter["schema"]["examples"], parameter["name"]
    # a part of the path that cannot be is just an address that is not there
    if "requestBody" in given or any(parameter["in"] != "path" for parameter in given.get("parameters", [])):
        assert {"400", "422"} <= statuses


def test_the_real_document_has_each_code_of_the_catalogue_with_its_status(real_document: Json) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)]
    catalogue = {kind.code: next(STATUS[base] for base in kind.__mro__ if base in STATUS) for kind in kinds}
    documented = {code: given["value"]["status"] for code, given in real_document["components"]["examples"].items()}
    assert documented == catalogue
