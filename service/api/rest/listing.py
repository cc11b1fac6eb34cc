"""/file/list: files and folders, whole or in pages."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from service import names
from service.api.aside import Aside
from service.api.auth import caller
from service.api.keys import BEHIND_NGINX, DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import operation
from service.api.rest.params import parse_place, query_of
from service.domain.listing import Selection
from service.errors import InvalidField, ServiceError
from service.model import Kind, Page
from service.storage.base import ASIDE_BYTES

_HEADERS = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"}


@operation("List files and folders", tag="file", query=schema.ListQuery, costly=True,
           description="Without parameters: all files of the caller, in the order of their paths. With `folder` or "
                       "`recursive` folders are listed too, apart from the files. All parameters can be combined.\n\n"
                       "With `limit` the answer is one page: at most so many folders and files together, the folders "
                       "before all files, and `next_cursor`, which is null at the end. A cursor is good for the list "
                       "that it came from: the same parameters but for `limit`. An entry that exists throughout and "
                       "keeps what it is sorted by comes exactly once, whatever else changes between two pages. "
                       "Folders have no size: by `size` they come in the order of their names.\n\n"
                       "Without `limit` the answer is streamed, however long it is.",
           returns={200: (schema.Listing, "Files and folders")},
           errors={404: "", 409: "The folder is a file: `not_a_folder`",
                   422: "A parameter cannot be used, and is named: `invalid_field`, `invalid_path`"})
async def list_files(request: web.Request) -> web.StreamResponse:
    """What the caller has."""
    data = schema.load(schema.ListQuery, query_of(request))
    selection = _selection(data)
    if "folder" in data:
        request[TRACE].fields["folder"] = data["folder"]
    if "limit" not in data:
        if "cursor" in data:
            raise InvalidField("A cursor needs a limit.", field="cursor")
        return await _stream(request, selection)
    page = await request.app[DOMAIN].listing.page(caller(request), selection, limit=data["limit"],
                                                  cursor=data.get("cursor"))
    return answer(_page_json(page, selection))


def _selection(data: dict[str, object]) -> Selection:
    """What the parameters mean; raise InvalidField."""
    folder, part = data.get("folder"), data.get("q")
    is_recursive = bool(data["recursive"]) if "recursive" in data else folder is None
    try:
        place = parse_place(str(folder)) if folder else ()
    except ServiceError as error:
        error.field = "folder"
        raise
    return Selection(place=place, is_recursive=is_recursive, with_folders=folder is not None or "recursive" in data,
                     part=names.check_part(str(part)) if part else None,
                     # the schema has let only the words of `Sort` through, which mypy cannot see
                     sort=data["sort"], is_descending=data["order"] == "desc")  # type: ignore[arg-type]


def _page_json(page: Page, selection: Selection) -> dict[str, object]:
    result: dict[str, object] = {"files": [schema.file_json(file) for file in page.files]}
    if selection.with_folders:
        result["folders"] = [schema.folder_json(folder) for folder in page.folders]
    return result | {"next_cursor": page.cursor}


class _Joiner:
    """Joins the lines of each kind to a JSON object."""

    def __init__(self, kinds: tuple[Kind, ...], send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send
        self._to_come = list(kinds)
        self._opening = b"{"
        self._pending = b""  # what comes before the next line

    async def write(self, kind: Kind, lines: bytes) -> None:
        """JSON has no raw line feeds, so each one ends an entry; the last comma waits for what comes after it."""
        await self._open_until(kind)
        await self._send(self._pending + lines[:-1].replace(b"\n", b","))
        self._pending = b","

    async def _open_until(self, kind: Kind) -> None:
        """Begin the list of this kind, after those before it, which may be empty."""
        while kind in self._to_come:
            await self._send(self._opening + f'"{self._to_come.pop(0)}s":['.encode())
            self._opening, self._pending = b"],", b""

    async def finish(self) -> None:
        """End the object."""
        if self._to_come:
            await self._open_until(self._to_come[-1])
        await self._send(b"]}")


async def _stream(request: web.Request, selection: Selection) -> web.StreamResponse:
    """The whole list.  nginx takes it as fast as it comes; a client may not, so for one the list is put aside first.

    Nor does nginx on a disk that is nearly full: it would put aside there what the client does not take.
    """
    listing = request.app[DOMAIN].listing
    if not request.app[BEHIND_NGINX]:
        aside = Aside(request)
        try:
            joiner = _Joiner(selection.kinds, aside.write)
            await listing.write(caller(request), selection, joiner.write)
            await joiner.finish()
            return await aside.send(_HEADERS)
        finally:
            aside.close()
    may_put_aside = request.app[DOMAIN].content.may_put_aside(ASIDE_BYTES)
    response = web.StreamResponse(headers=_HEADERS if may_put_aside else _HEADERS | {"X-Accel-Buffering": "no"})

    async def send(data: bytes) -> None:
        if not response.prepared:  # nothing is sent before PostgreSQL has answered
            await response.prepare(request)
        if request.method != "HEAD":
            await response.write(data)

    joiner = _Joiner(selection.kinds, send)
    await listing.write(caller(request), selection, joiner.write)
    await joiner.finish()
    await response.write_eof()
    return response
