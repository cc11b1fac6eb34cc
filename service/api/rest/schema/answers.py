"""What goes out; these shapes are for the document only, the answers are rendered without them."""

from typing import get_args

from marshmallow import fields, validate

from service import model
from service.api.rest.schema.base import (
    EXAMPLE_ETAG, EXAMPLE_ID, EXAMPLE_JWT, EXAMPLE_SHA256, EXAMPLE_TIME, Shape, integer, meta, text,
    instant,
)


class User(Shape):
    """An account."""

    id = fields.UUID(required=True, metadata=meta("Id of the account", EXAMPLE_ID))
    username = text("Name of the account (NFC)", "alice")
    created_at = instant("When it was made")


class Session(Shape):
    """A login that still counts."""

    id = fields.UUID(required=True, metadata=meta("Id of the session", EXAMPLE_ID))
    created_at = instant("When the login was")
    refreshed_at = instant("When its tokens were last exchanged")
    expires_at = instant("When it ends if they are not exchanged before")
    user_agent = fields.String(required=True, allow_none=True, metadata=meta(
        "What the program of the login called itself, shortened; null: nothing", "curl/8.5.0"))
    network = fields.String(required=True, allow_none=True, metadata=meta(
        "Network of the login: IPv4 /24, IPv6 /64; null: not known", "192.0.2.0/24"))
    is_current = fields.Boolean(required=True, metadata=meta("Whether this request is part of it", True))


class SessionList(Shape):
    """The open sessions of the account, the one used last first; a thousand at most."""

    sessions = fields.List(fields.Nested(Session), required=True, metadata={"description": "The sessions"})


class AuditEntry(Shape):
    """Something that was done to the account."""

    at = instant("When it was")
    action = text("What was done: a stable word", "upload", validate=validate.OneOf(get_args(model.Action)))
    outcome = text("Whether it was done, or refused (a wrong password)", "ok",
                   validate=validate.OneOf(get_args(model.Outcome)))
    path = fields.String(required=True, allow_none=True, metadata=meta(
        "What it was done to, by the path at that time; null: not to a file or folder", "/homework/notes.txt"))
    file_id = fields.UUID(required=True, allow_none=True, metadata=meta("The same by its id", EXAMPLE_ID))
    session_id = fields.UUID(required=True, allow_none=True, metadata=meta(
        "In which session; null: in none, as an upload through a public link", EXAMPLE_ID))
    network = fields.String(required=True, allow_none=True, metadata=meta(
        "From which network: IPv4 /24, IPv6 /64; null: not known", "192.0.2.0/24"))
    request_id = fields.String(required=True, allow_none=True, metadata=meta(
        "Id of the request, as in its X-Request-Id", "01936b2e7c417d529f0a5b1c2d3e4f62"))
    details = fields.Dict(required=True, metadata={
        "description": "More, depending on the action", "example": {"version": 2, "size": 1024}})


class AuditPage(Shape):
    """A part of the trail, newest first."""

    entries = fields.List(fields.Nested(AuditEntry), required=True, metadata={"description": "The lines"})
    next_cursor = fields.String(required=True, allow_none=True, metadata=meta(
        "For the next page; null: this is the last", "AAAAAAAAABc="))


class Tokens(Shape):
    """What a login or a refresh gives out (RFC 6749, section 5.1)."""

    access_token = text("Goes into `Authorization: Bearer ...`", EXAMPLE_JWT)
    token_type = text("Kind of the access token", "bearer", validate=validate.OneOf(["bearer"]))
    expires_in = integer("How long the access token is good for, in seconds", 900, minimum=1)
    refresh_token = text("Exchanged for new tokens at /auth/jwt/refresh, once", "kJ2s0c8mJ0v4W9v3yq1Zr7xT5uB6nD2e")


class File(Shape):
    """A file: a place in the tree and its current version."""

    type = text("Kind of the object", "file", validate=validate.OneOf(["file"]))
    id = fields.UUID(required=True, metadata=meta("Id of the file; stays the same when it is replaced", EXAMPLE_ID))
    name = text("Name of the file (NFC)", "notes.txt")
    path = text("Absolute path of the file", "/homework/test-folder/notes.txt")
    size = integer("Length of the content, in bytes", 5)
    sha256 = text("SHA-256 of the content, in hex", EXAMPLE_SHA256, validate=validate.Regexp("^[0-9a-f]{64}$"))
    content_type = text("Media type of the content", "text/plain")
    version = integer("Number of the current version; 1 for a new file, one more for each replacement", 1, minimum=1)
    etag = text("Entity tag of the current version, as in the header ETag, quotes included", EXAMPLE_ETAG)
    created_ad = instant("When the file was made; the same as `created_at`")
    created_at = instant("When the file was made")
    updated_at = instant("When its current version was stored")


class Folder(Shape):
    """A folder."""

    type = text("Kind of the object", "folder", validate=validate.OneOf(["folder"]))
    id = fields.UUID(required=True, metadata=meta("Id of the folder", EXAMPLE_ID))
    name = text("Name of the folder (NFC); empty for the root", "test-folder")
    path = text("Absolute path of the folder", "/homework/test-folder")
    created_at = instant("When the folder was made")
    updated_at = instant("When the folder was last renamed or moved")


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

    files = integer("Number of files below the folder", 3)
    folders = integer("Number of folders below the folder", 1)
    size = integer("Bytes of the current versions of all files below the folder", 1024)


class FileOrFolderInfo(FileOrFolder):
    """A file, or a folder with what is below it; `type` says which."""

    json_schema = {
        "oneOf": [{"$ref": "#/components/schemas/File"}, {"$ref": "#/components/schemas/FolderInfo"}],
        "discriminator": {"propertyName": "type", "mapping": {"file": "#/components/schemas/File",
                                                              "folder": "#/components/schemas/FolderInfo"}},
        "type": None, "properties": None,
    }

    folder = fields.Nested(FolderInfo, metadata=meta("A folder", None))


class BatchOutcome(Shape):
    """What an operation came to."""

    op = text("What was done", "move", validate=validate.OneOf(["delete", "move", "copy"]))
    object = fields.Nested(FileOrFolder, required=True, allow_none=True, metadata=meta(
        "The file or folder at its new place; null for a deletion", None))


class BatchResult(Shape):
    """What each operation came to, in their order."""

    results = fields.List(fields.Nested(BatchOutcome), required=True, metadata=meta(
        "One for each operation", [{"op": "delete", "object": None}]))


class FileList(Shape):
    """Files of the caller."""

    files = fields.List(fields.Nested(File), required=True, metadata={"description": "The files; may be empty"})


class TrashedItem(Shape):
    """A file or folder in the trash."""

    type = text("Kind of the object", "file", validate=validate.OneOf(["file", "folder"]))
    id = fields.UUID(required=True, metadata=meta("Id of the file or folder", EXAMPLE_ID))
    name = text("Its name", "notes.txt")
    path = text("Where it was", "/homework/notes.txt")
    size = integer("Bytes of all versions of it and of everything below it", 5)
    files = integer("Number of files: 1 for a file", 1)
    deleted_at = instant("When it was deleted")


class TrashPage(Shape):
    """A page of the trash, newest first."""

    items = fields.List(fields.Nested(TrashedItem), required=True, metadata={"description": "The items"})
    next_cursor = fields.String(required=True, allow_none=True, metadata=meta(
        "Goes into `cursor` for the next page; null: this is the last one", None))


class FileVersion(Shape):
    """What a file held or holds."""

    version = integer("Number of the version", 1, minimum=1)
    size = integer("Length of the content, in bytes", 5)
    sha256 = text("SHA-256 of the content, in hex", EXAMPLE_SHA256)
    content_type = text("Media type of the content", "text/plain")
    etag = text("Entity tag of the version, quotes included", EXAMPLE_ETAG)
    created_at = instant("When it was stored")
    is_current = fields.Boolean(required=True, metadata=meta("Whether it is the current one", True))


class VersionList(Shape):
    """All versions of a file, newest first."""

    versions = fields.List(fields.Nested(FileVersion), required=True, metadata={"description": "The versions"})


class Listing(FileList):
    """Files and folders, or a page of them."""

    folders = fields.List(fields.Nested(Folder), metadata=meta(
        "The folders; only if `folder` or `recursive` was given",
        [{"type": "folder", "id": EXAMPLE_ID, "name": "test-folder", "path": "/homework/test-folder",
          "created_at": EXAMPLE_TIME, "updated_at": EXAMPLE_TIME}]))
    next_cursor = fields.String(allow_none=True, metadata=meta(
        "Cursor of the next page, null at the end; only if `limit` was given", "Wm9vcyBhcmUgbm90IGZvciBjb3dz"))


class Usage(Shape):
    """What the account holds; all but `count` in bytes."""

    files = integer("Bytes of the current versions of all files", 1024)
    count = integer("Number of files", 3)
    quota = integer("Bytes the account may hold; null: no limit", 1073741824, nullable=True)
    available = integer("Bytes that can still be stored; null: no limit", 1073740800, nullable=True)
    trash = integer("Bytes of what is in the trash; they count towards the quota", 0)
    versions = integer("Bytes of former versions; they count towards the quota", 0)


def _access_time(what: str, *, required: bool) -> fields.Float:
    return fields.Float(required=required, allow_none=True, metadata=meta(
        f"Access time of {what}, in milliseconds; null: it is down", 1.27, minimum=0))


class Health(Shape):
    """Access times of what the service depends on, in milliseconds, measured at the call; null: it is down."""

    json_schema = {"additionalProperties": {"type": ["number", "null"], "minimum": 0}}

    db = _access_time("the database", required=True)
    storage = _access_time("the storage of the bytes", required=True)
    cache = _access_time("the cache; not there if none is configured", required=False)


class Liveness(Shape):
    """The process answers."""

    status = text("Always `ok`", "ok", validate=validate.OneOf(["ok"]))


class Readiness(Shape):
    """What the service can do now."""

    status = text("`ok`, or `read_only` while the disk fails and uploads are refused", "ok",
                  validate=validate.OneOf(["ok", "read_only"]))


class Problem(Shape):
    """An error (RFC 9457)."""

    type = text("What kind of problem, as a URI reference; `about:blank`: what the status says", "about:blank")
    title = text("The status in words", "Not Found")
    status = integer("The status of the answer", 404, minimum=400)
    detail = text("What went wrong, for people", "There is nothing here for this account.")
    code = text("What went wrong, for programs: a stable word", "not_found")
    request_id = text("Id of the request, as in the log of the service", "01936b2e7c417d529f0a5b1c2d3e4f62")
    field = text("Which field or parameter cannot be used (422)", "path", required=False)
    operation = fields.Integer(strict=True, validate=validate.Range(min=0), metadata=meta(
        "Which operation of a batch it was, counted from 0", 0))
