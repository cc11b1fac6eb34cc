"""What schemathesis cannot guess from the document: how a text of a format of our own looks."""

import re
from typing import Any
from uuid import uuid4

import schemathesis
from hypothesis import strategies as st

from service.api.rest.schema import KEY_PATTERN

# RFC 9110, section 8.8.3, in the form of the document's own pattern
_TAG = st.from_regex(r'(W/)?"[!#-~]{0,40}"', fullmatch=True)

schemathesis.openapi.format("entity-tags", st.just("*") | st.lists(_TAG, min_size=1, max_size=3).map(", ".join))


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, Any]) -> None:
    """Give each request a key of its own, as the document asks: one given again is that of another request, a 422.

    One that is no key stays what it is; requests that are sent again are in tests/api/test_idempotency.py.
    """
    given = case.headers.get("Idempotency-Key")
    if isinstance(given, str) and re.fullmatch(KEY_PATTERN, given):
        case.headers["Idempotency-Key"] = f'"{uuid4()}"'
