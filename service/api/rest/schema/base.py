"""What the shapes are made of: their common class, fields with a description and an example."""

from collections.abc import Mapping
from typing import Any, ClassVar

from marshmallow import EXCLUDE, Schema, fields, validate

EXAMPLE_ID = "01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60"
EXAMPLE_TIME = "2020-09-11T17:22:05.123456Z"
EXAMPLE_DATE = "Fri, 11 Sep 2020 17:22:05 GMT"
EXAMPLE_ETAG = '"01936b2e7c417d529f0a5b1c2d3e4f61"'
EXAMPLE_SHA256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
EXAMPLE_DIGEST = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"
EXAMPLE_JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIwMTkzNmIyZSJ9.c2lnbmF0dXJl"

# What names.py refuses, as far as a pattern can say it; for the document alone.
_REFUSED = r"\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069"
PATH_PATTERN = rf"^(?!.*//)(?!(.*/)?\.{{1,2}}(/|$))[^{_REFUSED}]*$"
NAME_PATTERN = rf"^(?!\.{{1,2}}$)[^/{_REFUSED}]*$"
# a string of RFC 8941, section 3.3.3, without spaces; or the same without quotes, as most clients send it
KEY_PATTERN = r'^("([!#-\[\]-~]|\\["\\]){1,255}"|[!#-+\--:<-\[\]-~]{1,255})$'
# api/delivery.py finds entity tags wherever they stand, but there has to be one
_TAGS_PATTERN = r'^(\*|[ -~]*"[!#-~]*"[ -~]*)$'


class Shape(Schema):
    """A JSON object, or a set of parameters."""

    class Meta:
        # login forms carry more than we know (grant_type, scope, client_id): RFC 6749, section 3.1, has us ignore it
        unknown = EXCLUDE

    # what JSON Schema can say and marshmallow cannot; openapi.py lays it over the generated component
    json_schema: ClassVar[Mapping[str, Any]] = {}


def meta(description: str, example: object, **more: object) -> dict[str, Any]:
    """What the document says of a field."""
    return {"description": description, "example": example, **more}


class Whole(fields.Integer):
    """A whole number; 1.0 is one too, to JSON Schema as to JavaScript."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return super()._deserialize(value, attr, data, **kwargs)


def integer(description: str, example: int, *, minimum: int = 0, nullable: bool = False) -> fields.Integer:
    """A whole number that is always there."""
    return Whole(required=True, strict=True, allow_none=nullable, validate=validate.Range(min=minimum),
                 metadata=meta(description, example, format="int64"))


def instant(what: str) -> fields.DateTime:
    """A moment that is always there."""
    return fields.DateTime(required=True, metadata=meta(f"{what} (RFC 3339, UTC)", EXAMPLE_TIME))


def text(description: str, example: str, *, required: bool = True, **more: Any) -> fields.String:
    """A text."""
    return fields.String(required=required, metadata=meta(description, example), **more)


def header(name: str, description: str, example: str) -> fields.String:
    """A header of a request."""
    return fields.String(data_key=name, metadata=meta(description, example))


def condition(name: str, description: str, example: str, **more: Any) -> fields.String:
    """A header with entity tags, one of which at least has to be there."""
    return fields.String(data_key=name, metadata=meta(description, example, format="entity-tags",
                                                      pattern=_TAGS_PATTERN), **more)


class Flag(fields.Boolean):
    """true or false in JSON; nothing else counts as one, as "0" and "yes" do in a form."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value
