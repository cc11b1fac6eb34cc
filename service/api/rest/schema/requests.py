"""What comes in: JSON bodies, forms, query parameters and headers, checked by marshmallow."""

import unicodedata
from typing import Any

from marshmallow import ValidationError, fields, post_load, validate

from service.api.rest.schema.base import (
    EXAMPLE_DATE, EXAMPLE_DIGEST, EXAMPLE_ETAG, EXAMPLE_ID, KEY_PATTERN, NAME_PATTERN, PATH_PATTERN, Flag, Shape, Whole,
    condition, header, meta, text,
)

MAX_USERNAME_BYTES = 255
MIN_PASSWORD_BYTES = 8
MAX_PASSWORD_BYTES = 1024

# Controls, surrogates, line separators: they break logs, PostgreSQL refuses NUL, UTF-8 the surrogates.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def _check_username(value: str) -> None:
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in value):
        raise ValidationError("A username may not contain control characters.")
    # the length that counts is that of the stored form; NFC of a long text takes long, and shortens to a third at most
    stored = unicodedata.normalize("NFC", value) if len(value) <= 3 * MAX_USERNAME_BYTES else ""
    if not 1 <= len(stored.encode()) <= MAX_USERNAME_BYTES:
        raise ValidationError(f"A username has 1 to {MAX_USERNAME_BYTES} bytes in UTF-8.")


def check_text(value: str) -> None:
    """Raise ValidationError for lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValidationError("This is not valid Unicode.") from None


def _check_new_password(value: str) -> None:
    check_text(value)
    if not MIN_PASSWORD_BYTES <= len(value.encode()) <= MAX_PASSWORD_BYTES:
        raise ValidationError(f"A password has {MIN_PASSWORD_BYTES} to {MAX_PASSWORD_BYTES} bytes in UTF-8.")


def _username(description: str, example: str, *, required: bool = False) -> fields.String:
    # the lengths in characters are for the document only, hence metadata: what counts is bytes
    return fields.String(required=required, validate=_check_username,
                         metadata=meta(description, example, minLength=1, maxLength=MAX_USERNAME_BYTES,
                                       pattern=r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"))


class _Named(Shape):
    """A username under one of its three names; loads as `username`."""

    json_schema = {"oneOf": [{"required": [name]} for name in ("username", "login", "email")],
                   "examples": [{"username": "alice", "password": "correct horse battery staple"}]}

    username = _username("Name of the account: 1 to 255 bytes in UTF-8 (NFC), no control characters, case matters",
                         "alice")
    login = _username("Another name for `username`; give exactly one of `username`, `login`, `email`", "alice")
    email = _username("Another name for `username`; no mail is ever sent there", "alice@example.org")

    @post_load
    def one_name(self, data: dict[str, Any], **_: object) -> dict[str, Any]:
        """Fold the three names into `username`."""
        names = [data.pop(alias) for alias in ("username", "login", "email") if alias in data]
        if not names:
            raise ValidationError("Missing data for required field.", "username")
        if len(names) > 1:
            raise ValidationError("Give exactly one of username, login and email.", "username")
        return {"username": names[0], **data}


class Registration(_Named):
    """A new account."""

    password = fields.String(required=True, validate=_check_new_password, metadata=meta(
        "Password: 8 to 1024 bytes in UTF-8", "correct horse battery staple", format="password", minLength=8,
        maxLength=1024))


# no rule on its length: whatever is not the password is answered like any wrong one
_PASSWORD = fields.String(required=True, validate=check_text, metadata=meta(
    "Password of the account", "correct horse battery staple", format="password"))


class Credentials(_Named):
    """Who logs in."""

    password = _PASSWORD


class LoginForm(Shape):
    """The same as a form, for the document; `Credentials` loads it, and so takes the other names too."""

    username = _username("Name of the account, or `login` or `email` instead", "alice", required=True)
    password = _PASSWORD
    grant_type = text("As OAuth 2.0 has it; not looked at", "password", required=False)


class RefreshRequest(Shape):
    """A refresh token to be exchanged."""

    refresh_token = text("Refresh token, good for one use", "kJ2s0c8mJ0v4W9v3yq1Zr7xT5uB6nD2e", validate=check_text)


class PasswordChange(Shape):
    """A new password."""

    old_password = fields.String(required=True, validate=check_text, metadata=meta(
        "Password of the account so far", "correct horse battery staple", format="password"))
    new_password = fields.String(required=True, validate=_check_new_password, metadata=meta(
        "Password from now on: 8 to 1024 bytes in UTF-8", "incorrect mule battery staple", format="password",
        minLength=8, maxLength=1024))


class AccountDeletion(Shape):
    """The password once more, since there is no way back."""

    password = _PASSWORD


class SessionPath(Shape):
    """Which session."""

    id = text("Id of the session", EXAMPLE_ID)


class SessionsQuery(Shape):
    """Which sessions end."""

    all = fields.Boolean(metadata=meta("End the current session too", False))


class AuditQuery(Shape):
    """Which part of the trail."""

    limit = fields.Integer(validate=validate.Range(min=1, max=1000), metadata=meta(
        "How many lines a page has at most; not given: 100", 100))
    cursor = fields.String(validate=check_text, metadata=meta("`next_cursor` of the page before", "AAAAAAAAABc="))


_PATH_RULES = ("1 to 255 bytes a name and 4096 the whole in UTF-8, compared after NFC, case matters, no control "
               "characters, no `.` or `..`")


class PathQuery(Shape):
    """Which file or folder."""

    path = fields.String(required=True, validate=check_text, metadata=meta(
        f"Absolute path, or id, of the file or folder; {_PATH_RULES}", "/homework/notes.txt", minLength=1,
        pattern=PATH_PATTERN))


_TARGET_PATH = fields.String(validate=check_text, metadata=meta(
    "Where to: a full path (the file there is replaced), or a folder (a path with `/` at its end, or that of a "
    f"folder that exists). Missing folders are made. Not given: the root folder. {_PATH_RULES}",
    "/homework/", pattern=PATH_PATTERN))
_TARGET_NAME = fields.String(validate=check_text, metadata=meta(
    "Name of the file within the folder that `path` names; not given: the uploaded file's own name", "notes.txt",
    pattern=NAME_PATTERN))


class UploadQuery(Shape):
    """Where an upload goes; each may be a text field of the form instead."""

    path = _TARGET_PATH
    file = fields.String(validate=check_text, metadata=meta(
        "Another name for `path`", "/homework/", pattern=PATH_PATTERN))
    name = _TARGET_NAME


class ListQuery(Shape):
    """What to list, in which order, and how much of it."""

    folder = fields.String(validate=check_text, metadata=meta(
        f"Path or id of a folder: its direct children, folders and files apart. {_PATH_RULES}", "/homework",
        pattern=PATH_PATTERN))
    recursive = fields.Boolean(metadata=meta(
        "Everything below the folder (or the root), not its direct children only", True))
    q = fields.String(validate=check_text, metadata=meta(
        "Only what has this in its name; upper and lower case are the same, in any script", "notes"))
    sort = fields.String(load_default="path", metadata=meta("What to sort by, before the id", "updated_at"),
                         validate=validate.OneOf(["name", "path", "size", "created_at", "updated_at"]))
    order = fields.String(load_default="asc", metadata=meta("Which way", "desc"),
                          validate=validate.OneOf(["asc", "desc"]))
    limit = fields.Integer(validate=validate.Range(min=1, max=1000), metadata=meta(
        "Entries of a page at most; not given: all, in one answer", 100))
    cursor = fields.String(validate=check_text, metadata=meta(
        "`next_cursor` of the page before; only with the same other parameters", "Wm9vcyBhcmUgbm90IGZvciBjb3dz"))


class PutQuery(Shape):
    """Where a raw body goes."""

    path = fields.String(required=True, validate=check_text, metadata=meta(
        f"Full path of the file, or a folder for `name`; what is there is replaced, missing folders are made. "
        f"{_PATH_RULES}", "/homework/notes.txt", minLength=1, pattern=PATH_PATTERN))
    name = fields.String(validate=check_text, metadata=meta(
        "Name of the file within the folder that `path` names", "notes.txt", pattern=NAME_PATTERN))


class UploadForm(Shape):
    """A file in a form (RFC 7578). The fields may come in any order."""

    file = fields.Raw(required=True, metadata=meta(
        "The content: the one part that has a filename, whatever the part is called. A text field `file` besides it is "
        "another name for `path`", "hello", type="file"))
    path = _TARGET_PATH
    name = _TARGET_NAME


class DeleteQuery(PathQuery):
    """What to delete, and how."""

    permanent = fields.String(validate=validate.OneOf(["true", "false"]), metadata=meta(
        "`true`: for good, not into the trash", "false"))


class DownloadQuery(PathQuery):
    """Which file, and which of its versions."""

    version = fields.Integer(validate=validate.Range(min=1, max=2**31 - 1), metadata=meta(
        "Number of a version; not given: the current one", 1))


class VersionQuery(PathQuery):
    """Which former versions."""

    version = fields.Integer(validate=validate.Range(min=1, max=2**31 - 1), metadata=meta(
        "Number of one former version; not given: all former versions", 1))


class VersionRestore(Shape):
    """Which version becomes the newest one."""

    path = fields.String(required=True, validate=check_text, metadata=meta(
        "Path or id of the file", "/homework/notes.txt", pattern=PATH_PATTERN))
    version = Whole(required=True, strict=True, validate=validate.Range(min=1, max=2**31 - 1), metadata=meta(
        "Number of the version", 1))


class TrashQuery(Shape):
    """Which page of the trash."""

    limit = fields.Integer(validate=validate.Range(min=1, max=1000), metadata=meta("Items of a page", 100))
    cursor = fields.String(validate=check_text, metadata=meta("`next_cursor` of the page before", ""))


class TrashSelection(Shape):
    """What to delete from the trash."""

    id = fields.UUID(metadata=meta("Id of one item; not given: everything", EXAMPLE_ID))


class TrashRestore(Shape):
    """What comes back, and where to."""

    id = fields.UUID(required=True, metadata=meta("Id of the item", EXAMPLE_ID))
    to = fields.String(validate=check_text, metadata=meta(
        "Full path, or a folder (a path with `/` at its end, or that of a folder that exists); not given: where it "
        "was, under a numbered name if its own is taken", "/homework/", pattern=PATH_PATTERN))


class FolderRequest(Shape):
    """A folder to be made."""

    path = fields.String(required=True, validate=[check_text, validate.Length(min=1)], metadata=meta(
        f"Absolute path of the folder; {_PATH_RULES}", "/homework/test-folder", pattern=PATH_PATTERN))


def _place(name: str, description: str, example: str, *, required: bool = False) -> fields.String:
    return fields.String(required=required, data_key=name, attribute=name,
                         validate=[check_text, validate.Length(min=1)],
                         metadata=meta(description, example, pattern=PATH_PATTERN))


_OVERWRITE = Flag(load_default=False, metadata=meta(
    "Replace a file at `to`, which then goes the way of a deletion; a folder is never replaced", False))


class MoveRequest(Shape):
    """What is moved or copied, and where to."""

    source = _place("from", "Path or id of the file or folder", "/homework/notes.txt", required=True)
    to = _place("to", "New path, or a folder to go into", "/archive/2020/", required=True)
    overwrite = _OVERWRITE


class KeyHeaders(Shape):
    """A key, under which a change is carried out once."""

    idempotency_key = fields.String(data_key="Idempotency-Key", metadata=meta(
        "A key of the client's making, for a request that may have to be sent again: the first that succeeds changes "
        "something, each later one with the same key gets its answer and changes nothing. For a day at least; an error "
        "leaves the key free. 1 to 255 visible ASCII characters", '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
        pattern=KEY_PATTERN, format="idempotency-key"))


class MoveHeaders(KeyHeaders):
    """Conditions of a move or a copy (RFC 9110, section 13.1)."""

    if_match = condition("If-Match", "Only if the file at `from` has one of these entity tags", EXAMPLE_ETAG)
    if_none_match = condition("If-None-Match", "Only if the file at `from` has none of these entity tags", EXAMPLE_ETAG)


class BatchOperation(Shape):
    """A deletion (`path`, `permanent`), or a move or copy (`from`, `to`, `overwrite`)."""

    json_schema = {"oneOf": [{"properties": {"op": {"const": "delete"}}, "required": ["path"]},
                             {"properties": {"op": {"enum": ["move", "copy"]}}, "required": ["from", "to"]}]}

    op = text("What to do", "move", validate=validate.OneOf(["delete", "move", "copy"]))
    path = _place("path", "Path or id of what is deleted", "/homework/old.txt")
    permanent = Flag(load_default=False, metadata=meta("Delete for good, not into the trash", False))
    source = _place("from", "Path or id of what is moved or copied", "/homework/notes.txt")
    to = _place("to", "New path, or a folder to go into", "/archive/2020/")
    overwrite = _OVERWRITE
    if_match = condition("if_match", "Only if the file has one of these entity tags, as in the header If-Match",
                         EXAMPLE_ETAG, validate=check_text)


class BatchRequest(Shape):
    """Operations, carried out in this order."""

    operations = fields.List(
        fields.Nested(BatchOperation), required=True, validate=validate.Length(min=1, max=1000),
        metadata=meta("What to do", [{"op": "move", "from": "/homework/notes.txt", "to": "/archive/2020/"},
                                     {"op": "delete", "path": "/homework"}]))


class FormHeaders(KeyHeaders):
    """Conditions of an upload (RFC 9110, section 13.1)."""

    if_match = condition("If-Match", "Store only if the file has one of these entity tags, or exists: `*`",
                         EXAMPLE_ETAG)
    if_none_match = condition("If-None-Match", "Store only if the file has none of these tags, or is new: `*`", "*")


class PutHeaders(FormHeaders):
    """Conditions (RFC 9110, section 13.1) and digests (RFC 9530, sections 2 and 3) of an upload."""

    content_digest = header("Content-Digest", "SHA-256 of the body; another one: nothing is stored", EXAMPLE_DIGEST)
    repr_digest = header("Repr-Digest", "The same, since bodies are stored as they are sent", EXAMPLE_DIGEST)


class DeleteHeaders(KeyHeaders):
    """Conditions of a deletion (RFC 9110, section 13.1)."""

    if_match = condition("If-Match", "Delete only if the file has one of these entity tags", EXAMPLE_ETAG)
    if_none_match = condition("If-None-Match", "Delete only if the file has none of these entity tags", EXAMPLE_ETAG)


class ArchiveHeaders(Shape):
    """Ranges and conditions of an archive."""

    range = header("Range", "One part of the archive, in bytes (RFC 9110, section 14.2)", "bytes=1024-")
    if_none_match = header("If-None-Match", "304 if the archive has one of these entity tags", EXAMPLE_ETAG)
    if_range = header("If-Range", "The range counts only if this entity tag is still that of the archive",
                      EXAMPLE_ETAG)


class DownloadHeaders(Shape):
    """Ranges and conditions of a download (RFC 9110, sections 13 and 14)."""

    range = header("Range", "Parts of the file, in bytes; several give multipart/byteranges", "bytes=0-1023")
    if_none_match = header("If-None-Match", "304 if the file has one of these entity tags", EXAMPLE_ETAG)
    if_match = header("If-Match", "412 if the file has none of these entity tags", EXAMPLE_ETAG)
    if_modified_since = header("If-Modified-Since", "304 if the file has not changed since", EXAMPLE_DATE)
    if_unmodified_since = header("If-Unmodified-Since", "412 if the file has changed since", EXAMPLE_DATE)
    if_range = header("If-Range", "Range counts only if the file still has this entity tag or date", EXAMPLE_ETAG)
