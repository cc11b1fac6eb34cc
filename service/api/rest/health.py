"""/ping/all, /livez, /readyz."""

from aiohttp import web

from service.api.keys import DOMAIN
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import Answer, operation


@operation("Access times of all services", tag="health", public=True,
           returns={200: (schema.Health, "Everything that the service cannot work without answered"),
                    503: Answer(schema=schema.Health, description="Something that it cannot work without is down")})
async def ping_all(request: web.Request) -> web.StreamResponse:
    """Measure everything now."""
    health = await request.app[DOMAIN].health.measure()
    return answer(schema.health_json(health), status=200 if health.is_serving else 503)


@operation("Is the process alive", tag="health", public=True,
           returns={200: (schema.Liveness, "It is")})
async def live(request: web.Request) -> web.StreamResponse:
    """The process answers."""
    return answer({"status": "ok"})


@operation("Can the service work", tag="health", public=True,
           returns={200: (schema.Readiness, "It can; `read_only`: all but uploads, since the disk fails"),
                    503: Answer(schema=schema.Health, description="Something that it cannot work without is down")})
async def ready(request: web.Request) -> web.StreamResponse:
    """Whether requests are welcome."""
    health = await request.app[DOMAIN].health.measure()
    if not health.is_serving:
        return answer(schema.health_json(health), status=503)
    return answer({"status": "read_only" if request.app[DOMAIN].content.writability.is_read_only else "ok"})
