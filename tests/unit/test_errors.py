"""The catalogue of errors and the one table that turns it into HTTP: complete, distinct, without details of ours."""

import inspect
import re
from collections.abc import Iterator
from http import HTTPStatus

import orjson
import pytest
from aiohttp import web

from service import errors
from service.api.errors import MEDIA_TYPE, STATUS, from_aiohttp, render, status_of, title_of
from service.errors import BadRequest, IncompleteBody, RangeNotSatisfiable, ServiceError


def below(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    """The class and all that derive from it."""
    yield kind
    for child in kind.__subclasses__():
        yield from below(child)


CATALOGUE = sorted((kind for kind in below(ServiceError) if kind.__module__ == errors.__name__),
                   key=lambda kind: kind.__name__)
every_class = pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.__name__)


def make(kind: type[ServiceError]) -> ServiceError:
    """One error of the class, with nothing said but what has to be."""
    return RangeNotSatisfiable(size_bytes=7) if issubclass(kind, RangeNotSatisfiable) else kind()


def test_catalogue_is_all_of_the_module() -> None:
    found = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    assert found == set(CATALOGUE)


def test_codes_are_distinct() -> None:
    codes = [kind.code for kind in CATALOGUE]
    assert len(set(codes)) == len(codes)


@every_class
def test_code_is_its_own_and_follows_from_the_name_of_the_class(kind: type[ServiceError]) -> None:
    assert "code" in vars(kind)
    name = "InternalError" if kind is ServiceError else kind.__name__
    assert kind.code == re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@every_class
def test_docstring_is_the_default_message_one_sentence_to_a_client(kind: type[ServiceError]) -> None:
    assert kind.__doc__ is not None and "__doc__" in vars(kind)
    error = make(kind)
    assert error.detail == str(error) == kind.__doc__.splitlines()[0]
    assert re.fullmatch(r"[A-Z][^\n]+\.", error.detail)


@every_class
def test_own_message_and_field_win(kind: type[ServiceError]) -> None:
    if issubclass(kind, RangeNotSatisfiable):
        return
    error = kind("Something else.", field="path", retry_after_seconds=3)
    assert (error.detail, str(error), error.field, error.retry_after_seconds) == (
        "Something else.", "Something else.", "path", 3)
    assert (make(kind).field, make(kind).retry_after_seconds) == (None, None)


# --- the table ---

@every_class
def test_status_is_that_of_the_nearest_class_above(kind: type[ServiceError]) -> None:
    nearest = next(above for above in inspect.getmro(kind) if above in STATUS)
    assert status_of(make(kind)) == STATUS[nearest]
    # only what nobody meant to happen may fall through to the base class
    assert (nearest is ServiceError) == (kind is ServiceError)


def test_table_has_only_classes_of_the_catalogue_and_error_statuses() -> None:
    assert set(STATUS) <= set(CATALOGUE)
    assert all(400 <= HTTPStatus(status) < 600 for status in STATUS.values())


def test_class_that_is_not_in_the_table_gets_the_status_of_its_base() -> None:
    class Unlisted(IncompleteBody):
        """Not in the table."""

        code = "unlisted"

    assert status_of(Unlisted()) == STATUS[BadRequest] == 400


@every_class
def test_problem_has_the_shape_of_rfc_9457(kind: type[ServiceError]) -> None:
    response = render(make(kind), "id-1")
    assert response.content_type == MEDIA_TYPE
    assert isinstance(response.body, bytes)
    assert orjson.loads(response.body) == {
        "type": "about:blank", "title": title_of(response.status), "status": response.status,
        "detail": make(kind).detail, "code": kind.code, "request_id": "id-1"}
    assert ("WWW-Authenticate" in response.headers) == (response.status == 401)


def test_field_wait_and_size_are_told_where_they_belong() -> None:
    response = render(errors.Unavailable(field="path", retry_after_seconds=0), "x")
    assert isinstance(response.body, bytes)
    assert orjson.loads(response.body)["field"] == "path"
    assert response.headers["Retry-After"] == "0"
    assert render(RangeNotSatisfiable(size_bytes=0), "x").headers["Content-Range"] == "bytes */0"


@pytest.mark.parametrize(("refusal", "kind"), [
    (web.HTTPBadRequest(), errors.BadRequest), (web.HTTPNotFound(), errors.NotFound),
    (web.HTTPRequestEntityTooLarge(1, 2), errors.TooLarge), (web.HTTPExpectationFailed(), errors.BadRequest),
    (web.HTTPInternalServerError(), errors.ServiceError)])
def test_refusal_of_aiohttp_becomes_one_of_the_catalogue(refusal: web.HTTPException, kind: type[ServiceError]) -> None:
    error, headers = from_aiohttp(refusal)
    assert type(error) is kind
    assert headers == {}


def test_allowed_methods_are_kept() -> None:
    error, headers = from_aiohttp(web.HTTPMethodNotAllowed("PATCH", ["GET", "PUT"]))
    assert type(error) is errors.MethodNotAllowed
    assert headers == {"Allow": "GET,PUT"}
