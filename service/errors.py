"""The whole catalogue of what can go wrong for a client; codes are stable, HTTP is unknown here.

`api/errors.py` maps each class to a status.  The docstring of a class is its default message.
"""

from typing import ClassVar


class ServiceError(Exception):
    """The request could not be carried out."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str | None = None, *, field: str | None = None,
                 retry_after_seconds: int | None = None) -> None:
        self.detail = detail or (self.__doc__ or "").split("\n", 1)[0]
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.operation: int | None = None  # which one of a batch
        super().__init__(self.detail)


class BadRequest(ServiceError):
    """The request is malformed."""

    code = "bad_request"


class IncompleteBody(BadRequest):
    """The body ended before the length that was announced."""

    code = "incomplete_body"


class DigestMismatch(BadRequest):
    """The body does not have the digest that was announced; nothing was stored."""

    code = "digest_mismatch"


class InvalidField(ServiceError):
    """A field has a value that cannot be used."""

    code = "invalid_field"


class InvalidPath(InvalidField):
    """The path cannot be used."""

    code = "invalid_path"


class IdempotencyKeyReused(InvalidField):
    """This Idempotency-Key was given to another request; give each its own."""

    code = "idempotency_key_reused"


class MissingFile(InvalidField):
    """The form has no part with a filename."""

    code = "missing_file"


class SeveralFiles(InvalidField):
    """The form has more than one file; send one request for each."""

    code = "several_files"


class Unauthenticated(ServiceError):
    """A valid access token is needed."""

    code = "unauthenticated"


class InvalidCredentials(ServiceError):
    """The username or the password is wrong."""

    code = "invalid_credentials"


class LinkPasswordRequired(ServiceError):
    """This link needs its password."""

    code = "link_password_required"


class InvalidLinkPassword(LinkPasswordRequired):
    """This is not the password of the link."""

    code = "invalid_link_password"


class InvalidRefreshToken(ServiceError):
    """The refresh token is unknown, expired or has been used before."""

    code = "invalid_refresh_token"


class Forbidden(ServiceError):
    """This is not allowed."""

    code = "forbidden"


class WrongPassword(Forbidden):
    """This is not the password of the account."""

    code = "wrong_password"


class NotFound(ServiceError):
    """There is nothing here for this account."""

    code = "not_found"


class AddressExpired(ServiceError):
    """The time of this address is over."""

    code = "address_expired"


class MethodNotAllowed(ServiceError):
    """This address does not take this method."""

    code = "method_not_allowed"


class UsernameTaken(ServiceError):
    """This username is taken."""

    code = "username_taken"


class NotAFolder(ServiceError):
    """A part of the path is a file, not a folder."""

    code = "not_a_folder"


class IsAFolder(ServiceError):
    """The path is that of a folder."""

    code = "is_a_folder"


class NameTaken(ServiceError):
    """There is something of this name already."""

    code = "name_taken"


class TooManyLinks(ServiceError):
    """The account has as many links as it may have; revoke one first."""

    code = "too_many_links"


class Conflict(ServiceError):
    """The tree changed while the request was carried out; try again."""

    code = "conflict"


class RequestInProgress(Conflict):
    """A request with this Idempotency-Key is being carried out; try again."""

    code = "request_in_progress"


class PreconditionFailed(ServiceError):
    """A condition of the request (If-Match, If-None-Match) does not hold."""

    code = "precondition_failed"


class TooLarge(ServiceError):
    """The body is larger than the limit."""

    code = "too_large"


class UnsupportedEncoding(ServiceError):
    """A body with Content-Encoding is not taken; send it as it is."""

    code = "unsupported_encoding"


class UnsupportedMediaType(ServiceError):
    """The body is not of a kind that this address takes."""

    code = "unsupported_media_type"


class RangeNotSatisfiable(ServiceError):
    """The file has no such range."""

    code = "range_not_satisfiable"

    def __init__(self, *, size_bytes: int) -> None:
        super().__init__()
        self.size_bytes = size_bytes


class TooManyRequests(ServiceError):
    """Too many requests; wait as long as Retry-After says."""

    code = "too_many_requests"


class Unavailable(ServiceError):
    """A part of the service cannot be reached; try again."""

    code = "unavailable"
    nothing_committed = False
    """Whether it is certain that nothing was committed, since no COMMIT was sent."""
    is_busy = False
    """Whether something of the account was waited for in vain, rather than the server: all else of it would be too."""


class OutcomeUnknown(Unavailable):
    """The connection to the database broke while the change was stored: it has happened entirely or not at all."""

    code = "outcome_unknown"


class DiskFailed(Unavailable):
    """The disk did not do its part; nothing was stored, try again."""

    code = "disk_failed"


class ReadOnly(Unavailable):
    """The disk is failing: for now files can be read and not stored."""

    code = "read_only"


class QuotaExceeded(ServiceError):
    """The account has no room for this; nothing was stored."""

    code = "quota_exceeded"


class StorageFull(ServiceError):
    """The disk has no room for this; nothing was stored."""

    code = "storage_full"


class ContentUnavailable(ServiceError):
    """The file is known but its bytes cannot be read; the operator has to look."""

    code = "content_unavailable"
