"""/file/batch: many changes, all or nothing."""

from typing import Any

from aiohttp import web

from service.api.auth import caller
from service.api.body import read_json_or_form
from service.api.delivery import parse_tags
from service.api.keys import DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.moves import object_json, parse_change, parse_field
from service.api.rest.openapi import operation
from service.api.rest.params import parse_place
from service.domain.batch import Deletion, Operation, Transfer
from service.domain.moves import MAX_COPIED
from service.errors import InvalidField, ServiceError
from service.model import Conditions

MAX_BODY_BYTES = 2**20  # nginx takes no more


@operation("Change many files at once", tag="file", body=schema.BatchRequest, headers=schema.KeyHeaders,
           costly=True,
           description="Deletes, moves and copies, each as by its own address, in their order and in one transaction: "
                       "the first that fails takes back all others, and the problem names it as `operation`, counted "
                       "from 0. A batch has at most 1000 operations and 1 MiB, and its copies together make at "
                       f"most {MAX_COPIED} files and folders.",
           returns={200: (schema.BatchResult, "All were carried out")},
           errors={404: "", 409: "Conflict with the tree: `name_taken`, `not_a_folder`, `conflict`", 412: "", 413: "",
                   422: "A field of an operation cannot be used, and is named: `invalid_path`, `invalid_field`",
                   507: ""})
async def run_batch(request: web.Request) -> web.StreamResponse:
    """Carry out all or nothing."""
    data = schema.load(schema.BatchRequest, await read_json_or_form(request, max_bytes=MAX_BODY_BYTES))
    given = data["operations"]
    request[TRACE].fields["operations"] = len(given)
    results = await request.app[DOMAIN].batch.run(caller(request), [
        _operation(number, members) for number, members in enumerate(given)])
    return answer({"results": [{"op": members["op"], "object": None if found is None else object_json(found)}
                               for members, found in zip(given, results, strict=True)]})


def _operation(number: int, members: dict[str, Any]) -> Operation:
    """One operation; an error says which one, and names the field."""
    try:
        needed = ("path",) if members["op"] == "delete" else ("from", "to")
        for field in ("path", "from", "to"):
            if members.get(field):
                parse_field(members, field)  # also what is not needed has to be right
            elif field in needed:
                raise InvalidField("This field is needed.", field=field)
        conditions = Conditions(if_match=_tags(members))
        if members["op"] == "delete":
            return Deletion(place=parse_place(members["path"]), permanent=members["permanent"], conditions=conditions)
        return Transfer(kind=members["op"], change=parse_change(members, conditions))
    except ServiceError as error:
        error.operation = number
        error.field = f"operations.{number}.{error.field}"
        raise


def _tags(members: dict[str, Any]) -> tuple[str, ...]:
    text = members.get("if_match")
    if text is None:
        return ()
    if not (tags := parse_tags(text)):
        raise InvalidField("This has to be * or entity tags in quotes.", field="if_match")
    return tags
