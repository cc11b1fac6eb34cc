"""The shapes of JSON: what is taken, what is refused and how, what is given."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from marshmallow import Schema, fields
from multidict import MultiDict

from service import errors, model
from service.api.rest import schema

MOMENT = datetime(2020, 9, 11, 20, 22, 5, 123456, tzinfo=timezone(timedelta(hours=3)))
WRITTEN = "2020-09-11T17:22:05.123456Z"
ID = uuid.UUID("01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60")

FILE = model.File(
    id=model.FileId(ID), name="заметки.txt", path="/a/заметки.txt", size_bytes=5, sha256=bytes(range(32)),
    content_type="text/plain", version=2, version_id=model.VersionId(ID), blob_key=model.BlobKey(ID),
    created_at=MOMENT, updated_at=MOMENT)
FOLDER = model.Folder(id=model.FileId(ID), name="a", path="/a", created_at=MOMENT, updated_at=MOMENT)
USER = model.User(id=model.UserId(ID), username="alice", created_at=MOMENT)
TOKENS = model.Tokens(access_token="a", expires_in_seconds=900, refresh_token="r")
USAGE = model.Usage(files_bytes=10, trash_bytes=2, versions_bytes=3, count=1, quota_bytes=100)
UNLIMITED = model.Usage(files_bytes=10, trash_bytes=2, versions_bytes=3, count=1, quota_bytes=None)
HEALTH = model.Health(milliseconds={"db": 1.23456, "storage": 0.1, "cache": None})


def refusal(shape: type[Schema], data: object) -> errors.InvalidField:
    with pytest.raises(errors.InvalidField) as caught:
        schema.load(shape, data)
    return caught.value


@pytest.mark.parametrize("alias", ["username", "login", "email"])
def test_each_name_of_the_username_is_taken(alias: str) -> None:
    data = {alias: " Алиса ", "password": "12345678", "grant_type": "password"}
    assert schema.load(schema.Registration, data) == {"username": " Алиса ", "password": "12345678"}


@pytest.mark.parametrize(("data", "field"), [
    ({"password": "12345678"}, "username"),
    ({"username": "a"}, "password"),
    ({"username": "a", "login": "a", "password": "12345678"}, "username"),
    ({"username": "", "password": "12345678"}, "username"),
    ({"username": None, "password": "12345678"}, "username"),
    ({"username": 5, "password": "12345678"}, "username"),
    ({"username": ["a"], "password": "12345678"}, "username"),
    ({"email": "a\x00", "password": "12345678"}, "email"),
    ({"login": "a\nb", "password": "12345678"}, "login"),
    ({"username": "a\x85", "password": "12345678"}, "username"),
    ({"username": "a\u2028", "password": "12345678"}, "username"),
    ({"username": "\ud800", "password": "12345678"}, "username"),
    ({"username": "a" * 256, "password": "12345678"}, "username"),
    ({"username": "я" * 128, "password": "12345678"}, "username"),
    ({"username": "a", "password": "1234567"}, "password"),
    ({"username": "a", "password": "1" * 1025}, "password"),
    ({"username": "a", "password": "я" * 513}, "password"),
    ({"username": "a", "password": "\udc80" * 8}, "password"),
    ({"username": "a", "password": 12345678}, "password"),
    ({"username": "a", "password": True}, "password"),
])
def test_a_wrong_registration_names_the_field(data: dict[str, Any], field: str) -> None:
    error = refusal(schema.Registration, data)
    assert error.field == field
    assert error.detail


@pytest.mark.parametrize("data", [
    {"username": "a", "password": "я" * 4},
    {"username": "я" * 127 + "a", "password": "1" * 1024},
    {"username": "e\u0301" * 127, "password": "\x00" * 8},  # 381 bytes as sent, 254 in NFC
    {"username": "👩\u200d💻", "password": "correct horse"},
])
def test_a_right_registration_is_taken_as_it_is(data: dict[str, str]) -> None:
    assert schema.load(schema.Registration, data) == data


def test_a_login_takes_any_password_but_not_any_text() -> None:
    assert schema.load(schema.Credentials, {"login": "a", "password": "1"}) == {"username": "a", "password": "1"}
    assert schema.load(schema.Credentials, {"login": "a", "password": "1" * 5000})["password"] == "1" * 5000
    assert refusal(schema.Credentials, {"login": "a", "password": "\ud800"}).field == "password"


@pytest.mark.parametrize("data", [None, 5, "text", [1], b"bytes"])
def test_what_is_not_an_object_is_refused(data: object) -> None:
    assert refusal(schema.RefreshRequest, data).field is None


def test_several_wrong_fields_are_all_named_in_the_detail() -> None:
    error = refusal(schema.Registration, {"username": "", "password": "short"})
    assert error.field == "username"
    assert "username: " in error.detail and "password: " in error.detail


def test_a_field_given_twice_is_refused() -> None:
    assert refusal(schema.PathQuery, MultiDict([("path", "/a"), ("path", "/b")])).field == "path"
    assert refusal(schema.PutHeaders, MultiDict([("If-Match", '"a"'), ("If-Match", '"b"')])).field == "If-Match"
    assert schema.load(schema.PathQuery, MultiDict([("path", "/a"), ("x", "1"), ("x", "2")])) == {"path": "/a"}


def test_nested_messages_name_the_whole_way() -> None:
    assert refusal(schema.FileList, {"files": [{"id": "no id"}]}).field in {
        f"files.0.{name}" for name in schema.File().fields}
    assert refusal(schema.FileList, {"files": 5}).field == "files"


def test_times_are_utc_with_microseconds() -> None:
    assert schema.rfc3339(MOMENT) == WRITTEN
    assert schema.rfc3339(datetime(2020, 1, 2, tzinfo=UTC)) == "2020-01-02T00:00:00.000000Z"


def test_a_file_has_all_names_of_the_contract() -> None:
    assert schema.file_json(FILE) == {
        "type": "file", "id": str(ID), "name": "заметки.txt", "path": "/a/заметки.txt", "size": 5,
        "sha256": bytes(range(32)).hex(), "content_type": "text/plain", "version": 2, "etag": f'"{ID.hex}"',
        "created_ad": WRITTEN, "created_at": WRITTEN, "updated_at": WRITTEN}


@pytest.mark.parametrize(("shape", "rendered"), [
    (schema.File, schema.file_json(FILE)),
    (schema.Folder, schema.folder_json(FOLDER)),
    (schema.User, schema.user_json(USER)),
    (schema.Tokens, schema.tokens_json(TOKENS)),
    (schema.Usage, schema.usage_json(USAGE)),
    (schema.Usage, schema.usage_json(UNLIMITED)),
    (schema.Health, schema.health_json(HEALTH)),
    (schema.FileList, {"files": [schema.file_json(FILE)]}),
])
def test_what_is_rendered_has_the_documented_shape(shape: type[Schema], rendered: dict[str, Any]) -> None:
    assert shape().validate(rendered) == {}
    assert set(rendered) == set(shape().fields)


def test_usage_says_what_is_left() -> None:
    assert schema.usage_json(USAGE) == {
        "files": 10, "count": 1, "quota": 100, "available": 85, "trash": 2, "versions": 3}
    assert schema.usage_json(UNLIMITED)["available"] is None


def test_health_keeps_null_and_three_digits() -> None:
    assert schema.health_json(HEALTH) == {"db": 1.235, "storage": 0.1, "cache": None}


def test_every_field_has_a_description_and_an_example() -> None:
    unions = (schema.FileOrFolder, schema.FileOrFolderInfo)  # their members are named for the document only
    for name, shape in vars(schema).items():
        if isinstance(shape, type) and issubclass(shape, schema.Shape) and shape not in unions:
            for field_name, field in shape().fields.items():
                assert field.metadata.get("description"), (name, field_name)
                assert "example" in field.metadata or isinstance(field, fields.List), (name, field_name)
