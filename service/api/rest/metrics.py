"""/metrics: what all workers have counted, for whoever may reach a worker's socket."""

import asyncio

from aiohttp import web

from service import metrics
from service.api.errors import NO_SUCH_ADDRESS
from service.api.keys import BEHIND_NGINX
from service.api.rest.openapi import Answer, operation
from service.errors import NotFound


@operation("Metrics", tag="health", public=True,
           description="For Prometheus, of all workers. Not to be had at the public address: it is answered on the "
                       "workers' own sockets, and on `METRICS_PORT` if that is set.",
           returns={200: Answer(description="The numbers, as text", media=("text/plain",))},
           errors={404: "This is the public address: `not_found`"})
async def show_metrics(request: web.Request) -> web.StreamResponse:
    """The numbers of all workers."""
    if not request.app[BEHIND_NGINX]:  # then the worker's address is the public one
        raise NotFound(NO_SUCH_ADDRESS)
    text = await asyncio.get_running_loop().run_in_executor(None, metrics.render)
    return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE, "Cache-Control": "no-store"})
