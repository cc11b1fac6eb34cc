"""How pages are made and sent: templates that escape everything, and a policy under which no text can do harm."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service.api.errors import status_of
from service.errors import ServiceError

FOLDER = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# Scripts and styles only as files of ours; the page can neither be framed nor send a form anywhere else.
_POLICY = ("default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
           "base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",  # the address is the permission
    "X-Robots-Tag": "noindex, nofollow",
    "Cache-Control": "private, no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}

_KINDS = (
    (("image/",), "image", "Image"), (("video/",), "video", "Video"), (("audio/",), "audio", "Audio"),
    (("application/pdf",), "text", "PDF document"),
    (("application/zip", "application/gzip", "application/x-tar", "application/x-7z", "application/x-xz",
      "application/vnd.rar", "application/x-bzip2"), "archive", "Archive"),
    (("text/csv", "application/vnd.ms-excel", "application/vnd.openxmlformats-officedocument.spreadsheet",
      "application/vnd.oasis.opendocument.spreadsheet"), "text", "Spreadsheet"),
    (("text/", "application/json", "application/xml", "application/msword",
      "application/vnd.openxmlformats-officedocument", "application/vnd.oasis.opendocument"), "text", "Document"),
)


def size_text(size_bytes: int) -> str:
    """A size for people, in steps of a thousand: 1.2 MB."""
    if size_bytes < 1000:
        return f"{size_bytes} byte{'' if size_bytes == 1 else 's'}"
    size, unit = float(size_bytes), ""
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        size /= 1000
        if size < 999.5:
            break
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"


def time_text(moment: datetime) -> str:
    """A time for people: 18 September 2020, 17:22 UTC."""
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def kind_of(content_type: str) -> tuple[str, str]:
    """The icon for a media type, and what to call it."""
    for begins, icon, text in _KINDS:
        if content_type.lower().startswith(begins):
            return icon, text
    return "file", "File"


@dataclass(frozen=True, slots=True)
class Asset:
    """A style sheet, script or image of the pages; its name in addresses changes with its content."""

    body: bytes
    content_type: str
    digest: str


def _read_assets() -> dict[str, Asset]:
    found = {}
    for path in sorted((FOLDER / "static").iterdir()):
        content = path.read_bytes()
        found[path.name] = Asset(content, _TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:16])
    return found


# read once: a request only picks among what is in memory
ASSETS = _read_assets()


def asset_address(name: str) -> str:
    """Where a browser gets an asset."""
    return f"/assets/{name}?v={ASSETS[name].digest}"


_TEMPLATES = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined,
                         trim_blocks=True, lstrip_blocks=True, auto_reload=False)
_TEMPLATES.globals["asset"] = asset_address
_TEMPLATES.filters |= {"size": size_text, "time": time_text}
for _name in _TEMPLATES.list_templates():  # a broken template is found at the start
    _TEMPLATES.get_template(_name)


def page(template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: object) -> web.Response:
    """A page."""
    text = _TEMPLATES.get_template(f"{template}.html").render(**values)
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8",
                        headers={**_HEADERS, **(headers or {})})


def problem_page(error: ServiceError) -> web.Response:
    """What a person is told instead of a problem."""
    status = status_of(error)
    headers = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    title = "This link does not work" if status == 404 else HTTPStatus(status).phrase
    return page("problem", status=status, headers=headers, title=title, detail=error.detail)


def redirect(address: str) -> web.Response:
    """See there, with GET (RFC 9110, section 15.4.4)."""
    return web.Response(status=303, headers={**_HEADERS, "Location": address})
