"""The shapes of JSON in and out, of query parameters, headers and forms: what `openapi.py` documents.

marshmallow checks what comes in; what goes out is rendered by the small functions below, since dumping a thousand rows
through marshmallow costs fifty times as much as building dicts for orjson.
"""

from service.api.rest.schema.answers import (
    AuditEntry, AuditPage, BatchOutcome, BatchResult, File, FileList, FileOrFolder, FileOrFolderInfo, FileVersion,
    Folder, FolderInfo, Health, Listing, Liveness, Problem, Readiness, Session, SessionList, Tokens, TrashPage,
    TrashedItem, Usage, User, VersionList,
)
from service.api.rest.schema.base import KEY_PATTERN, NAME_PATTERN, PATH_PATTERN, Shape, Whole
from service.api.rest.schema.rendering import (
    audit_json, file_json, folder_json, health_json, load, rfc3339, session_json, tokens_json, trashed_json,
    usage_json, user_json, version_json,
)
from service.api.rest.schema.requests import (
    MAX_PASSWORD_BYTES, MAX_USERNAME_BYTES, MIN_PASSWORD_BYTES, AccountDeletion, ArchiveHeaders, AuditQuery,
    BatchOperation, BatchRequest, Credentials, DeleteHeaders, DeleteQuery, DownloadHeaders, DownloadQuery,
    FolderRequest, FormHeaders, KeyHeaders, ListQuery, LoginForm, MoveHeaders, MoveRequest, PasswordChange, PathQuery,
    PutHeaders, PutQuery, RefreshRequest, Registration, SessionPath, SessionsQuery, TrashQuery, TrashRestore,
    TrashSelection, UploadForm, UploadQuery, VersionQuery, VersionRestore, check_text,
)

__all__ = [
    "KEY_PATTERN", "MAX_PASSWORD_BYTES", "MAX_USERNAME_BYTES", "MIN_PASSWORD_BYTES", "NAME_PATTERN", "PATH_PATTERN",
    "AccountDeletion", "KeyHeaders",
    "ArchiveHeaders", "AuditEntry", "AuditPage", "AuditQuery", "BatchOperation", "BatchOutcome", "BatchRequest",
    "BatchResult", "Credentials", "DeleteHeaders", "DeleteQuery", "DownloadHeaders", "DownloadQuery", "File",
    "FileList", "FileOrFolder", "FileOrFolderInfo", "FileVersion", "Folder", "FolderInfo", "FolderRequest", "Health",
    "ListQuery", "Listing", "Liveness", "LoginForm", "MoveHeaders", "MoveRequest", "PasswordChange", "PathQuery",
    "Problem", "FormHeaders", "PutHeaders", "PutQuery", "Readiness", "RefreshRequest", "Registration", "Session",
    "SessionList", "SessionPath", "SessionsQuery", "Shape", "Tokens", "TrashPage", "TrashQuery", "TrashRestore",
    "TrashSelection", "TrashedItem", "UploadForm", "UploadQuery", "Usage", "User", "VersionList", "VersionQuery",
    "VersionRestore", "Whole", "audit_json", "check_text", "file_json", "folder_json", "health_json", "load", "rfc3339",
    "session_json", "tokens_json", "trashed_json", "usage_json", "user_json", "version_json",
]
