"""JSON answers."""

from collections.abc import Mapping

import orjson
from aiohttp import web


def answer(data: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON body that no cache keeps: what it says is one account's."""
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json", charset="utf-8",
                        headers={"Cache-Control": "no-store", **(headers or {})})
