"""From Swagger 2.0, which aiohttp-apispec writes, to OpenAPI 3.1, which tools of today read; pure.

Sources: https://spec.openapis.org/oas/v2.0.html and https://spec.openapis.org/oas/v3.1.1.html.  Not converted, since
aiohttp-apispec never writes it: shared `parameters` and `responses`, `collectionFormat: tsv`, external references.
"""

import copy
from typing import Any

JSON = "application/json"
PROBLEM = "application/problem+json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"

Json = dict[str, Any]

_FLOWS = {"implicit": "implicit", "password": "password", "application": "clientCredentials",
          "accessCode": "authorizationCode"}
_COLLECTIONS: dict[str, Json] = {
    "csv": {"explode": False}, "multi": {"explode": True}, "ssv": {"style": "spaceDelimited", "explode": False},
    "pipes": {"style": "pipeDelimited", "explode": False},
}
_PARAMETER_KEYS = frozenset({"name", "in", "description", "required", "allowEmptyValue"})
_OPERATION_KEYS = frozenset({"tags", "summary", "description", "externalDocs", "operationId", "deprecated", "security"})
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")


def to_openapi_31(swagger: Json) -> Json:
    """Convert a Swagger 2.0 document; the argument is left as it is.

    Beyond the two specifications: an answer with the schema `Problem` is application/problem+json; the keys of
    `examples` are all media types of an answer, of which JSON has the schema; a HEAD beside a GET is left out unless
    it has `x-head`.
    """
    kept = {key: value for key, value in swagger.items() if key in ("info", "tags", "externalDocs", "security")}
    document: Json = {
        "openapi": "3.1.1", **copy.deepcopy(kept), "servers": [{"url": swagger.get("basePath", "/")}],
        "paths": {path: _path_item(item, swagger) for path, item in swagger.get("paths", {}).items()},
        "components": {
            "schemas": {name: _schema(value) for name, value in swagger.get("definitions", {}).items()},
            "securitySchemes": {name: _security_scheme(value)
                                for name, value in swagger.get("securityDefinitions", {}).items()},
        },
    }
    _make_ids_unique(document["paths"])
    return document


def _path_item(item: Json, swagger: Json) -> Json:
    shared = item.get("parameters", [])
    result: Json = {}
    for method in (method for method in _METHODS if method in item):
        if method == "head" and "get" in item and not item["head"].get("x-head"):
            continue
        result[method] = _operation(item[method], shared, swagger)
        if method == "head":
            for response in result[method]["responses"].values():
                response.pop("content", None)
    return result


def _operation(given: Json, shared: list[Json], swagger: Json) -> Json:
    own = given.get("parameters", [])
    own_keys = {(parameter["name"], parameter["in"]) for parameter in own}
    parameters = [p for p in shared if (p["name"], p["in"]) not in own_keys] + own
    consumes: list[str] = given.get("consumes") or swagger.get("consumes") or [JSON]
    produces: list[str] = given.get("produces") or swagger.get("produces") or [JSON]
    result: Json = {key: copy.deepcopy(value) for key, value in given.items()
                    if key in _OPERATION_KEYS}
    if plain := [_parameter(p) for p in parameters if p["in"] not in ("body", "formData")]:
        result["parameters"] = plain
    if body := _request_body(parameters, consumes):
        result["requestBody"] = body
    responses = given.get("responses", {})
    result["responses"] = {str(status): _response(responses[status], produces) for status in sorted(responses, key=str)}
    return result


def _parameter(given: Json) -> Json:
    """https://spec.openapis.org/oas/v3.1.1.html#parameter-object: all about the value moves into `schema`."""
    result = {key: value for key, value in given.items() if key in _PARAMETER_KEYS}
    value = {key: value for key, value in given.items() if key not in _PARAMETER_KEYS and key != "collectionFormat"}
    if value.get("type") == "array":
        result |= _COLLECTIONS[given.get("collectionFormat", "csv")]
    return result | {"schema": _schema(value)}


def _request_body(parameters: list[Json], consumes: list[str]) -> Json | None:
    """2.0 has either a body or a form; here an operation may have both, told apart by the media types."""
    result: Json = {}
    content: Json = {}
    fields = [parameter for parameter in parameters if parameter["in"] == "formData"]
    for body in (parameter for parameter in parameters if parameter["in"] == "body"):
        result = {key: body[key] for key in ("description", "required") if key in body}
        content = {media: {"schema": _schema(body["schema"])}
                   for media in consumes if not fields or media not in (FORM, MULTIPART)}
    if fields:
        form = _form(fields)
        with_file = any(field.get("type") == "file" for field in fields)
        suited = [media for media in consumes if media in (FORM, MULTIPART)]
        media_types = [MULTIPART] if with_file else suited or [FORM]
        content |= {media: {"schema": copy.deepcopy(form)} for media in media_types}
        result.setdefault("required", "required" in form)
    return {**result, "content": content} if content else None


def _form(fields: list[Json]) -> Json:
    form: Json = {"type": "object", "properties": {field["name"]: _form_field(field) for field in fields}}
    if required := [field["name"] for field in fields if field.get("required")]:
        form["required"] = required
    return form


def _form_field(given: Json) -> Json:
    return _schema({key: value for key, value in given.items()
                    if key not in ("name", "in", "required", "collectionFormat", "allowEmptyValue")})


def _response(given: Json, produces: list[str]) -> Json:
    result: Json = {"description": given.get("description", "")}
    if headers := given.get("headers"):
        result["headers"] = {
            name: {"description": header.get("description", ""),
                   "schema": _schema({key: value for key, value in header.items() if key != "description"})}
            for name, header in headers.items()}
    if "examples" in given:
        shape = {"schema": _schema(given["schema"])} if "schema" in given else {}
        result["content"] = {media: shape if media == JSON else {} for media in given["examples"]}
    elif given.get("schema", {}).get("type") == "file":
        result["content"] = {media: {} for media in produces}
    elif "schema" in given:
        is_problem = given["schema"].get("$ref") == "#/definitions/Problem"
        result["content"] = {media: {"schema": _schema(given["schema"])}
                             for media in ([PROBLEM] if is_problem else produces)}
    return result


def _schema(given: Json) -> Json:
    """A schema of 2.0 in the dialect of 3.1, which is JSON Schema 2020-12."""
    result: Json = {}
    for key, value in given.items():
        if key == "properties":
            result[key] = {name: _schema(inner) for name, inner in value.items()}
        elif key in ("items", "not", "additionalProperties") and isinstance(value, dict):
            result[key] = _schema(value)
        elif key in ("allOf", "anyOf", "oneOf"):
            result[key] = [_schema(inner) for inner in value]
        elif key == "$ref":
            result[key] = value.replace("#/definitions/", "#/components/schemas/")
        elif key == "example":
            result["examples"] = [value]
        elif key == "discriminator" and isinstance(value, str):
            result[key] = {"propertyName": value}
        elif key not in ("x-nullable", "nullable"):
            result[key] = copy.deepcopy(value)
    _exclusive_limits(result)
    if result.get("type") == "file":
        result |= {"type": "string", "format": "binary"}
    return _nullable(result) if given.get("x-nullable") or given.get("nullable") else result


def _exclusive_limits(result: Json) -> None:
    for exclusive, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if result.get(exclusive) is True:
            result[exclusive] = result.pop(limit)
        elif result.get(exclusive) is False:
            del result[exclusive]


def _nullable(result: Json) -> Json:
    if "type" not in result:
        return {"anyOf": [result, {"type": "null"}]}
    types = result["type"] if isinstance(result["type"], list) else [result["type"]]
    result["type"] = [*types, *({"null"} - set(types))]
    if "enum" in result and None not in result["enum"]:
        result["enum"] = [*result["enum"], None]
    return result


def _security_scheme(given: Json) -> Json:
    result: Json = {key: given[key] for key in ("description",) if key in given}
    if given["type"] == "basic":
        return result | {"type": "http", "scheme": "basic"}
    if given["type"] == "oauth2":
        flow = {key: given[key] for key in ("authorizationUrl", "tokenUrl", "scopes") if key in given}
        return result | {"type": "oauth2", "flows": {_FLOWS[given["flow"]]: flow}}
    if "x-bearer-format" in given:
        # 2.0 knows bearer tokens only as an API key in the header Authorization
        return result | {"type": "http", "scheme": "bearer", "bearerFormat": given["x-bearer-format"]}
    return result | {"type": "apiKey", "name": given["name"], "in": given["in"]}


def _make_ids_unique(paths: Json) -> None:
    """One handler may serve several methods and paths; an operationId may be there only once."""
    seen: set[str] = set()
    for item in paths.values():
        for method, given in item.items():
            if (wanted := given.get("operationId")) is None:
                continue
            if method == "head":
                wanted += "_head"
            unique, number = wanted, 2
            while unique in seen:
                unique, number = f"{wanted}_{number}", number + 1
            seen.add(unique)
            given["operationId"] = unique
