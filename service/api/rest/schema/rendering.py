"""Checking what comes in against its shape, and building what goes out."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, ValidationError
from multidict import MultiMapping

from service import errors, model


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
        # marshmallow has no types here
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
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


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
