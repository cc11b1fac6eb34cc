"""The shapes of JSON in and out, of query parameters, headers and forms: what `openapi.py` documents.

marshmallow checks what comes in; what goes out is rendered by the small functions below, since dumping a thousand rows
through marshmallow costs fifty times as much as building dicts for orjson.
"""

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, get_args

from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate
from multidict import MultiMapping

from service import errors, model

MAX_USERNAME_BYTES = 255
MIN_PASSWORD_BYTES = 8
MAX_PASSWORD_BYTES = 1024

_EXAMPLE_ID = "01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60"
_EXAMPLE_TIME = "2020-09-11T17:22:05.123456Z"
_EXAMPLE_DATE = "Fri, 11 Sep 2020 17:22:05 GMT"
_EXAMPLE_ETAG = '"01936b2e7c417d529f0a5b1c2d3e4f61"'
_EXAMPLE_SHA256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
_EXAMPLE_DIGEST = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"
_EXAMPLE_JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIwMTkzNmIyZSJ9.c2lnbmF0dXJl"

# Controls, surrogates, line separators: they break logs, PostgreSQL refuses NUL, UTF-8 the surrogates.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


class Shape(Schema):
    """A JSON object, or a set of parameters."""

    class Meta:
        # login forms carry more than we know (grant_type, scope, client_id): RFC 6749, section 3.1, has us ignore it
        unknown = EXCLUDE

    # what JSON Schema can say and marshmallow cannot; openapi.py lays it over the generated component
    json_schema: ClassVar[Mapping[str, Any]] = {}


def _meta(description: str, example: object, **more: object) -> dict[str, Any]:
    return {"description": description, "example": example, **more}


def _integer(description: str, example: int, *, minimum: int = 0, nullable: bool = False) -> fields.Integer:
    return fields.Integer(required=True, strict=True, allow_none=nullable, validate=validate.Range(min=minimum),
                          metadata=_meta(description, example, format="int64"))


def _time(text: str) -> fields.DateTime:
    return fields.DateTime(required=True, metadata=_meta(f"{text} (RFC 3339, UTC)", _EXAMPLE_TIME))


def _text(description: str, example: str, *, required: bool = True, **more: Any) -> fields.String:
    return fields.String(required=required, metadata=_meta(description, example), **more)


def _header(name: str, description: str, example: str) -> fields.String:
    return fields.String(data_key=name, metadata=_meta(description, example))


# --- what comes in ---------------------------------------------------------------------------------------------------

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
                         metadata=_meta(description, example, minLength=1, maxLength=MAX_USERNAME_BYTES))


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

    password = fields.String(required=True, validate=_check_new_password, metadata=_meta(
        "Password: 8 to 1024 bytes in UTF-8", "correct horse battery staple", format="password", maxLength=1024))


# no rule on its length: whatever is not the password is answered like any wrong one
_PASSWORD = fields.String(required=True, validate=check_text, metadata=_meta(
    "Password of the account", "correct horse battery staple", format="password"))


class Credentials(_Named):
    """Who logs in."""

    password = _PASSWORD


class LoginForm(Shape):
    """The same as a form, for the document; `Credentials` loads it, and so takes the other names too."""

    username = _username("Name of the account, or `login` or `email` instead", "alice", required=True)
    password = _PASSWORD
    grant_type = _text("As OAuth 2.0 has it; not looked at", "password", required=False,
                       validate=validate.OneOf(["password"]))


class RefreshRequest(Shape):
    """A refresh token to be exchanged."""

    refresh_token = _text("Refresh token, good for one use", "kJ2s0c8mJ0v4W9v3yq1Zr7xT5uB6nD2e", validate=check_text)


class PasswordChange(Shape):
    """A new password."""

    old_password = fields.String(required=True, validate=check_text, metadata=_meta(
        "Password of the account so far", "correct horse battery staple", format="password"))
    new_password = fields.String(required=True, validate=_check_new_password, metadata=_meta(
        "Password from now on: 8 to 1024 bytes in UTF-8", "incorrect mule battery staple", format="password",
        maxLength=1024))


class AccountDeletion(Shape):
    """The password once more, since there is no way back."""

    password = _PASSWORD


class SessionPath(Shape):
    """Which session."""

    id = _text("Id of the session", _EXAMPLE_ID)


class SessionsQuery(Shape):
    """Which sessions end."""

    all = fields.Boolean(metadata=_meta("End the current session too", False))


class AuditQuery(Shape):
    """Which part of the trail."""

    limit = fields.Integer(validate=validate.Range(min=1, max=1000), metadata=_meta(
        "How many lines a page has at most; not given: 100", 100))
    cursor = fields.String(validate=check_text, metadata=_meta("`next_cursor` of the page before", "AAAAAAAAABc="))


_PATH_RULES = ("1 to 255 bytes a name and 4096 the whole in UTF-8, compared after NFC, case matters, no control "
               "characters, no `.` or `..`")


class PathQuery(Shape):
    """Which file or folder."""

    path = fields.String(required=True, validate=check_text, metadata=_meta(
        f"Absolute path, or id, of the file or folder; {_PATH_RULES}", "/homework/notes.txt", minLength=1))


_TARGET_PATH = fields.String(validate=check_text, metadata=_meta(
    "Where to: a full path (the file there is replaced), or a folder (a path with `/` at its end, or that of a "
    f"folder that exists). Missing folders are made. Not given: the root folder. {_PATH_RULES}",
    "/homework/"))
_TARGET_NAME = fields.String(validate=check_text, metadata=_meta(
    "Name of the file within the folder that `path` names; not given: the uploaded file's own name", "notes.txt"))


class UploadQuery(Shape):
    """Where an upload goes; each may be a text field of the form instead."""

    path = _TARGET_PATH
    file = fields.String(validate=check_text, metadata=_meta("Another name for `path`", "/homework/"))
    name = _TARGET_NAME


class ListQuery(Shape):
    """What to list, in which order, and how much of it."""

    folder = fields.String(validate=check_text, metadata=_meta(
        f"Path or id of a folder: its direct children, folders and files apart. {_PATH_RULES}", "/homework"))
    recursive = fields.Boolean(metadata=_meta(
        "Everything below the folder (or the root), not its direct children only", True))
    q = fields.String(validate=check_text, metadata=_meta(
        "Only what has this in its name; upper and lower case are the same, in any script", "notes"))
    sort = fields.String(load_default="path", metadata=_meta("What to sort by, before the id", "updated_at"),
                         validate=validate.OneOf(["name", "path", "size", "created_at", "updated_at"]))
    order = fields.String(load_default="asc", metadata=_meta("Which way", "desc"),
                          validate=validate.OneOf(["asc", "desc"]))
    limit = fields.Integer(validate=validate.Range(min=1, max=1000), metadata=_meta(
        "Entries of a page at most; not given: all, in one answer", 100))
    cursor = fields.String(validate=check_text, metadata=_meta(
        "`next_cursor` of the page before; only with the same other parameters", "Wm9vcyBhcmUgbm90IGZvciBjb3dz"))


class PutQuery(Shape):
    """Where a raw body goes."""

    path = fields.String(required=True, validate=check_text, metadata=_meta(
        f"Full path of the file, or a folder for `name`; what is there is replaced, missing folders are made. "
        f"{_PATH_RULES}", "/homework/notes.txt", minLength=1))
    name = fields.String(validate=check_text, metadata=_meta(
        "Name of the file within the folder that `path` names", "notes.txt"))


class UploadForm(Shape):
    """A file in a form (RFC 7578). The fields may come in any order."""

    file = fields.Raw(required=True, metadata=_meta(
        "The content: the one part that has a filename, whatever the part is called. A text field `file` besides it is "
        "another name for `path`", "hello", type="file"))
    path = _TARGET_PATH
    name = _TARGET_NAME


class DeleteQuery(PathQuery):
    """What to delete, and how."""

    permanent = fields.String(validate=validate.OneOf(["true", "false"]), metadata=_meta(
        "`true`: for good, not into the trash", "false"))


class DownloadQuery(PathQuery):
    """Which file, and which of its versions."""

    version = fields.Integer(validate=validate.Range(min=1, max=2**31 - 1), metadata=_meta(
        "Number of a version; not given: the current one", 1))


class VersionQuery(PathQuery):
    """Which former versions."""

    version = fields.Integer(validate=validate.Range(min=1, max=2**31 - 1), metadata=_meta(
        "Number of one former version; not given: all former versions", 1))


class VersionRestore(Shape):
    """Which version becomes the newest one."""

    path = _text("Path or id of the file", "/homework/notes.txt", validate=check_text)
    version = _integer("Number of the version", 1, minimum=1)


class TrashQuery(Shape):
    """Which page of the trash."""

    limit = fields.Integer(validate=validate.Range(min=1, max=1000), metadata=_meta("Items of a page", 100))
    cursor = fields.String(validate=check_text, metadata=_meta("`next_cursor` of the page before", ""))


class TrashSelection(Shape):
    """What to delete from the trash."""

    id = fields.UUID(metadata=_meta("Id of one item; not given: everything", _EXAMPLE_ID))


class TrashRestore(Shape):
    """What comes back, and where to."""

    id = fields.UUID(required=True, metadata=_meta("Id of the item", _EXAMPLE_ID))
    to = fields.String(validate=check_text, metadata=_meta(
        "Full path, or a folder (a path with `/` at its end, or that of a folder that exists); not given: where it "
        "was, under a numbered name if its own is taken", "/homework/"))


class FolderRequest(Shape):
    """A folder to be made."""

    path = fields.String(required=True, validate=check_text, metadata=_meta(
        f"Absolute path of the folder; {_PATH_RULES}", "/homework/test-folder", minLength=1))


def _place(name: str, description: str, example: str, *, required: bool = False) -> fields.String:
    return fields.String(required=required, data_key=name, attribute=name, validate=check_text,
                         metadata=_meta(description, example, minLength=1))


_OVERWRITE = fields.Boolean(load_default=False, metadata=_meta(
    "Replace a file at `to`, which then goes the way of a deletion; a folder is never replaced", False))


class MoveRequest(Shape):
    """What is moved or copied, and where to."""

    source = _place("from", "Path or id of the file or folder", "/homework/notes.txt", required=True)
    to = _place("to", "New path, or a folder to go into", "/archive/2020/", required=True)
    overwrite = _OVERWRITE


class MoveHeaders(Shape):
    """Conditions of a move or a copy (RFC 9110, section 13.1)."""

    if_match = _header("If-Match", "Only if the file at `from` has one of these entity tags", _EXAMPLE_ETAG)
    if_none_match = _header("If-None-Match", "Only if the file at `from` has none of these entity tags", _EXAMPLE_ETAG)


class BatchOperation(Shape):
    """A deletion (`path`, `permanent`), or a move or copy (`from`, `to`, `overwrite`)."""

    op = _text("What to do", "move", validate=validate.OneOf(["delete", "move", "copy"]))
    path = _place("path", "Path or id of what is deleted", "/homework/old.txt")
    permanent = fields.Boolean(load_default=False, metadata=_meta("Delete for good, not into the trash", False))
    source = _place("from", "Path or id of what is moved or copied", "/homework/notes.txt")
    to = _place("to", "New path, or a folder to go into", "/archive/2020/")
    overwrite = _OVERWRITE
    if_match = fields.String(validate=check_text, metadata=_meta(
        "Only if the file has one of these entity tags, as in the header If-Match", _EXAMPLE_ETAG))


class BatchRequest(Shape):
    """Operations, carried out in this order."""

    operations = fields.List(
        fields.Nested(BatchOperation), required=True, validate=validate.Length(min=1, max=1000),
        metadata=_meta("What to do", [{"op": "move", "from": "/homework/notes.txt", "to": "/archive/2020/"},
                                      {"op": "delete", "path": "/homework"}]))


class PutHeaders(Shape):
    """Conditions (RFC 9110, section 13.1) and digests (RFC 9530, sections 2 and 3) of an upload."""

    if_match = _header("If-Match", "Store only if the file has one of these entity tags, or exists: `*`", _EXAMPLE_ETAG)
    if_none_match = _header("If-None-Match", "Store only if the file has none of these tags, or is new: `*`", "*")
    content_digest = _header("Content-Digest", "SHA-256 of the body; another one: nothing is stored", _EXAMPLE_DIGEST)
    repr_digest = _header("Repr-Digest", "The same, since bodies are stored as they are sent", _EXAMPLE_DIGEST)


class DeleteHeaders(Shape):
    """Conditions of a deletion (RFC 9110, section 13.1)."""

    if_match = _header("If-Match", "Delete only if the file has one of these entity tags", _EXAMPLE_ETAG)
    if_none_match = _header("If-None-Match", "Delete only if the file has none of these entity tags", _EXAMPLE_ETAG)


class ArchiveHeaders(Shape):
    """Ranges and conditions of an archive."""

    range = _header("Range", "One part of the archive, in bytes (RFC 9110, section 14.2)", "bytes=1024-")
    if_none_match = _header("If-None-Match", "304 if the archive has one of these entity tags", _EXAMPLE_ETAG)
    if_range = _header("If-Range", "The range counts only if this entity tag is still that of the archive",
                       _EXAMPLE_ETAG)


class DownloadHeaders(Shape):
    """Ranges and conditions of a download (RFC 9110, sections 13 and 14)."""

    range = _header("Range", "Parts of the file, in bytes; several give multipart/byteranges", "bytes=0-1023")
    if_none_match = _header("If-None-Match", "304 if the file has one of these entity tags", _EXAMPLE_ETAG)
    if_match = _header("If-Match", "412 if the file has none of these entity tags", _EXAMPLE_ETAG)
    if_modified_since = _header("If-Modified-Since", "304 if the file has not changed since", _EXAMPLE_DATE)
    if_unmodified_since = _header("If-Unmodified-Since", "412 if the file has changed since", _EXAMPLE_DATE)
    if_range = _header("If-Range", "Range counts only if the file still has this entity tag or date", _EXAMPLE_ETAG)


# --- what goes out ----------------------------------------------------------------------------------------------------

class User(Shape):
    """An account."""

    id = fields.UUID(required=True, metadata=_meta("Id of the account", _EXAMPLE_ID))
    username = _text("Name of the account (NFC)", "alice")
    created_at = _time("When it was made")


class Session(Shape):
    """A login that still counts."""

    id = fields.UUID(required=True, metadata=_meta("Id of the session", _EXAMPLE_ID))
    created_at = _time("When the login was")
    refreshed_at = _time("When its tokens were last exchanged")
    expires_at = _time("When it ends if they are not exchanged before")
    user_agent = fields.String(required=True, allow_none=True, metadata=_meta(
        "What the program of the login called itself, shortened; null: nothing", "curl/8.5.0"))
    network = fields.String(required=True, allow_none=True, metadata=_meta(
        "Network of the login: IPv4 /24, IPv6 /64; null: not known", "192.0.2.0/24"))
    is_current = fields.Boolean(required=True, metadata=_meta("Whether this request is part of it", True))


class SessionList(Shape):
    """The open sessions of the account, the one used last first; a thousand at most."""

    sessions = fields.List(fields.Nested(Session), required=True, metadata={"description": "The sessions"})


class AuditEntry(Shape):
    """Something that was done to the account."""

    at = _time("When it was")
    action = _text("What was done: a stable word", "upload", validate=validate.OneOf(get_args(model.Action)))
    outcome = _text("Whether it was done, or refused (a wrong password)", "ok",
                    validate=validate.OneOf(get_args(model.Outcome)))
    path = fields.String(required=True, allow_none=True, metadata=_meta(
        "What it was done to, by the path at that time; null: not to a file or folder", "/homework/notes.txt"))
    file_id = fields.UUID(required=True, allow_none=True, metadata=_meta("The same by its id", _EXAMPLE_ID))
    session_id = fields.UUID(required=True, allow_none=True, metadata=_meta(
        "In which session; null: in none, as an upload through a public link", _EXAMPLE_ID))
    network = fields.String(required=True, allow_none=True, metadata=_meta(
        "From which network: IPv4 /24, IPv6 /64; null: not known", "192.0.2.0/24"))
    request_id = fields.String(required=True, allow_none=True, metadata=_meta(
        "Id of the request, as in its X-Request-Id", "01936b2e7c417d529f0a5b1c2d3e4f62"))
    details = fields.Dict(required=True, metadata={
        "description": "More, depending on the action", "example": {"version": 2, "size": 1024}})


class AuditPage(Shape):
    """A part of the trail, newest first."""

    entries = fields.List(fields.Nested(AuditEntry), required=True, metadata={"description": "The lines"})
    next_cursor = fields.String(required=True, allow_none=True, metadata=_meta(
        "For the next page; null: this is the last", "AAAAAAAAABc="))


class Tokens(Shape):
    """What a login or a refresh gives out (RFC 6749, section 5.1)."""

    access_token = _text("Goes into `Authorization: Bearer ...`", _EXAMPLE_JWT)
    token_type = _text("Kind of the access token", "bearer", validate=validate.OneOf(["bearer"]))
    expires_in = _integer("How long the access token is good for, in seconds", 900, minimum=1)
    refresh_token = _text("Exchanged for new tokens at /auth/jwt/refresh, once", "kJ2s0c8mJ0v4W9v3yq1Zr7xT5uB6nD2e")


class File(Shape):
    """A file: a place in the tree and its current version."""

    type = _text("Kind of the object", "file", validate=validate.OneOf(["file"]))
    id = fields.UUID(required=True, metadata=_meta("Id of the file; stays the same when it is replaced", _EXAMPLE_ID))
    name = _text("Name of the file (NFC)", "notes.txt")
    path = _text("Absolute path of the file", "/homework/test-folder/notes.txt")
    size = _integer("Length of the content, in bytes", 5)
    sha256 = _text("SHA-256 of the content, in hex", _EXAMPLE_SHA256, validate=validate.Regexp("^[0-9a-f]{64}$"))
    content_type = _text("Media type of the content", "text/plain")
    version = _integer("Number of the current version; 1 for a new file, one more for each replacement", 1, minimum=1)
    etag = _text("Entity tag of the current version, as in the header ETag, quotes included", _EXAMPLE_ETAG)
    created_ad = _time("When the file was made; the same as `created_at`")
    created_at = _time("When the file was made")
    updated_at = _time("When its current version was stored")


class Folder(Shape):
    """A folder."""

    type = _text("Kind of the object", "folder", validate=validate.OneOf(["folder"]))
    id = fields.UUID(required=True, metadata=_meta("Id of the folder", _EXAMPLE_ID))
    name = _text("Name of the folder (NFC); empty for the root", "test-folder")
    path = _text("Absolute path of the folder", "/homework/test-folder")
    created_at = _time("When the folder was made")
    updated_at = _time("When the folder was last renamed or moved")


class FileOrFolder(Shape):
    """A file or a folder; `type` says which."""

    json_schema = {
        "oneOf": [{"$ref": "#/components/schemas/File"}, {"$ref": "#/components/schemas/Folder"}],
        "discriminator": {"propertyName": "type", "mapping": {"file": "#/components/schemas/File",
                                                              "folder": "#/components/schemas/Folder"}},
        "type": None, "properties": None,
    }

    file, folder = fields.Nested(File), fields.Nested(Folder)  # so that both get into the document


class FolderInfo(Folder):
    """A folder and what is below it, at any depth."""

    files = _integer("Number of files below the folder", 3)
    folders = _integer("Number of folders below the folder", 1)
    size = _integer("Bytes of the current versions of all files below the folder", 1024)


class FileOrFolderInfo(FileOrFolder):
    """A file, or a folder with what is below it; `type` says which."""

    json_schema = {
        "oneOf": [{"$ref": "#/components/schemas/File"}, {"$ref": "#/components/schemas/FolderInfo"}],
        "discriminator": {"propertyName": "type", "mapping": {"file": "#/components/schemas/File",
                                                              "folder": "#/components/schemas/FolderInfo"}},
        "type": None, "properties": None,
    }

    folder = fields.Nested(FolderInfo, metadata=_meta("A folder", None))


class BatchOutcome(Shape):
    """What an operation came to."""

    op = _text("What was done", "move", validate=validate.OneOf(["delete", "move", "copy"]))
    object = fields.Nested(FileOrFolder, required=True, allow_none=True, metadata=_meta(
        "The file or folder at its new place; null for a deletion", None))


class BatchResult(Shape):
    """What each operation came to, in their order."""

    results = fields.List(fields.Nested(BatchOutcome), required=True, metadata=_meta(
        "One for each operation", [{"op": "delete", "object": None}]))


class FileList(Shape):
    """Files of the caller."""

    files = fields.List(fields.Nested(File), required=True, metadata={"description": "The files; may be empty"})


class TrashedItem(Shape):
    """A file or folder in the trash."""

    type = _text("Kind of the object", "file", validate=validate.OneOf(["file", "folder"]))
    id = fields.UUID(required=True, metadata=_meta("Id of the file or folder", _EXAMPLE_ID))
    name = _text("Its name", "notes.txt")
    path = _text("Where it was", "/homework/notes.txt")
    size = _integer("Bytes of all versions of it and of everything below it", 5)
    files = _integer("Number of files: 1 for a file", 1)
    deleted_at = _time("When it was deleted")


class TrashPage(Shape):
    """A page of the trash, newest first."""

    items = fields.List(fields.Nested(TrashedItem), required=True, metadata={"description": "The items"})
    next_cursor = fields.String(required=True, allow_none=True, metadata=_meta(
        "Goes into `cursor` for the next page; null: this is the last one", None))


class FileVersion(Shape):
    """What a file held or holds."""

    version = _integer("Number of the version", 1, minimum=1)
    size = _integer("Length of the content, in bytes", 5)
    sha256 = _text("SHA-256 of the content, in hex", _EXAMPLE_SHA256)
    content_type = _text("Media type of the content", "text/plain")
    etag = _text("Entity tag of the version, quotes included", _EXAMPLE_ETAG)
    created_at = _time("When it was stored")
    is_current = fields.Boolean(required=True, metadata=_meta("Whether it is the current one", True))


class VersionList(Shape):
    """All versions of a file, newest first."""

    versions = fields.List(fields.Nested(FileVersion), required=True, metadata={"description": "The versions"})


class Listing(FileList):
    """Files and folders, or a page of them."""

    folders = fields.List(fields.Nested(Folder), metadata=_meta(
        "The folders; only if `folder` or `recursive` was given",
        [{"type": "folder", "id": _EXAMPLE_ID, "name": "test-folder", "path": "/homework/test-folder",
          "created_at": _EXAMPLE_TIME, "updated_at": _EXAMPLE_TIME}]))
    next_cursor = fields.String(allow_none=True, metadata=_meta(
        "Cursor of the next page, null at the end; only if `limit` was given", "Wm9vcyBhcmUgbm90IGZvciBjb3dz"))


class Usage(Shape):
    """What the account holds; all but `count` in bytes."""

    files = _integer("Bytes of the current versions of all files", 1024)
    count = _integer("Number of files", 3)
    quota = _integer("Bytes the account may hold; null: no limit", 1073741824, nullable=True)
    available = _integer("Bytes that can still be stored; null: no limit", 1073740800, nullable=True)
    trash = _integer("Bytes of what is in the trash; they count towards the quota", 0)
    versions = _integer("Bytes of former versions; they count towards the quota", 0)


def _access_time(what: str, *, required: bool) -> fields.Float:
    return fields.Float(required=required, allow_none=True, metadata=_meta(
        f"Access time of {what}, in milliseconds; null: it is down", 1.27, minimum=0))


class Health(Shape):
    """Access times of what the service depends on, in milliseconds, measured at the call; null: it is down."""

    json_schema = {"additionalProperties": {"type": ["number", "null"], "minimum": 0}}

    db = _access_time("the database", required=True)
    storage = _access_time("the storage of the bytes", required=True)
    cache = _access_time("the cache; not there if none is configured", required=False)


class Liveness(Shape):
    """The process answers."""

    status = _text("Always `ok`", "ok", validate=validate.OneOf(["ok"]))


class Problem(Shape):
    """An error (RFC 9457)."""

    type = _text("What kind of problem, as a URI reference; `about:blank`: what the status says", "about:blank")
    title = _text("The status in words", "Not Found")
    status = _integer("The status of the answer", 404, minimum=400)
    detail = _text("What went wrong, for people", "There is nothing here for this account.")
    code = _text("What went wrong, for programs: a stable word", "not_found")
    request_id = _text("Id of the request, as in the log of the service", "01936b2e7c417d529f0a5b1c2d3e4f62")
    field = _text("Which field or parameter cannot be used (422)", "path", required=False)
    operation = fields.Integer(strict=True, validate=validate.Range(min=0), metadata=_meta(
        "Which operation of a batch it was, counted from 0", 0))


# --- loading and rendering --------------------------------------------------------------------------------------------

def load(schema: type[Schema], data: object) -> dict[str, Any]:
    """Check `data` against the schema; raise InvalidField that names the field."""
    if not isinstance(data, Mapping):
        raise errors.InvalidField("This has to be a JSON object.")
    if isinstance(data, MultiMapping):
        # two values for one name: a proxy before us may have looked at the other one
        for name in (field.data_key or name for name, field in schema().load_fields.items()):
            if len(data.getall(name, [])) > 1:
                raise errors.InvalidField("This field may be given only once.", field=name)
    try:
        return dict(schema().load(data))
    except ValidationError as error:
        problems = _flatten(error.normalized_messages())  # type: ignore[no-untyped-call]
    field, detail = problems[0]
    if len(problems) > 1:
        detail = " ".join(f"{name}: {message}" for name, message in problems)
    raise errors.InvalidField(detail, field=field)


def _flatten(messages: Mapping[Any, Any], prefix: str = "") -> list[tuple[str | None, str]]:
    """marshmallow's nested messages as (field, message) pairs; None for what is about the whole object."""
    result: list[tuple[str | None, str]] = []
    for key, value in messages.items():
        name = prefix if key == "_schema" else f"{prefix}.{key}".lstrip(".")
        result += _flatten(value, name) if isinstance(value, Mapping) else [(name or None, " ".join(map(str, value)))]
    return result


def rfc3339(moment: datetime) -> str:
    """The time in UTC with microseconds (RFC 3339, section 5.6)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def file_json(file: model.File) -> dict[str, object]:
    """A `File` as JSON."""
    created_at = rfc3339(file.created_at)
    # created_ad: spelt so in the assignment, kept for ever
    return {"type": "file", "id": str(file.id), "name": file.name, "path": file.path, "size": file.size_bytes,
            "sha256": file.sha256.hex(), "content_type": file.content_type, "version": file.version, "etag": file.etag,
            "created_ad": created_at, "created_at": created_at, "updated_at": rfc3339(file.updated_at)}


def folder_json(folder: model.Folder) -> dict[str, object]:
    """A `Folder` as JSON."""
    result: dict[str, object] = {
        "type": "folder", "id": str(folder.id), "name": folder.name, "path": folder.path,
        "created_at": rfc3339(folder.created_at), "updated_at": rfc3339(folder.updated_at)}
    if folder.contents is not None:
        result |= {"files": folder.contents.file_count, "folders": folder.contents.folder_count,
                   "size": folder.contents.size_bytes}
    return result


def trashed_json(item: model.TrashItem) -> dict[str, object]:
    """A `TrashedItem` as JSON."""
    return {"type": "folder" if item.is_folder else "file", "id": str(item.id), "name": item.name, "path": item.path,
            "size": item.size_bytes, "files": item.file_count, "deleted_at": rfc3339(item.deleted_at)}


def version_json(version: model.Version) -> dict[str, object]:
    """A `FileVersion` as JSON."""
    return {"version": version.number, "size": version.size_bytes, "sha256": version.sha256.hex(),
            "content_type": version.content_type, "etag": version.etag, "created_at": rfc3339(version.created_at),
            "is_current": version.is_current}


def user_json(user: model.User) -> dict[str, object]:
    """A `User` as JSON."""
    return {"id": str(user.id), "username": user.username, "created_at": rfc3339(user.created_at)}


def session_json(session: model.Session, *, current: model.SessionId) -> dict[str, object]:
    """A `Session` as JSON."""
    return {"id": str(session.id), "created_at": rfc3339(session.created_at),
            "refreshed_at": rfc3339(session.refreshed_at), "expires_at": rfc3339(session.expires_at),
            "user_agent": session.user_agent, "network": session.network, "is_current": session.id == current}


def audit_json(entry: model.AuditEntry) -> dict[str, object]:
    """An `AuditEntry` as JSON."""
    return {"at": rfc3339(entry.at), "action": entry.action, "outcome": entry.outcome, "path": entry.path,
            "file_id": None if entry.file_id is None else str(entry.file_id),
            "session_id": None if entry.session_id is None else str(entry.session_id), "network": entry.network,
            "request_id": entry.request_id, "details": entry.details}


def usage_json(usage: model.Usage) -> dict[str, object]:
    """A `Usage` as JSON."""
    return {"files": usage.files_bytes, "count": usage.count, "quota": usage.quota_bytes,
            "available": usage.available_bytes, "trash": usage.trash_bytes, "versions": usage.versions_bytes}


def tokens_json(tokens: model.Tokens) -> dict[str, object]:
    """`Tokens` as JSON."""
    return {"access_token": tokens.access_token, "token_type": "bearer", "expires_in": tokens.expires_in_seconds,
            "refresh_token": tokens.refresh_token}


def health_json(health: model.Health) -> dict[str, float | None]:
    """A `Health` as JSON: milliseconds with three digits, which is what the clock is good for."""
    return {name: None if time is None else round(time, 3) for name, time in health.milliseconds.items()}
