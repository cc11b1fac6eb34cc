"""What schemathesis cannot guess from the document: how a text of a format of our own looks."""

import schemathesis
from hypothesis import strategies as st

# RFC 9110, section 8.8.3, in the form of the document's own pattern
_TAG = st.from_regex(r'(W/)?"[!#-~]{0,40}"', fullmatch=True)

schemathesis.openapi.format("entity-tags", st.just("*") | st.lists(_TAG, min_size=1, max_size=3).map(", ".join))
