"""Which media types a browser is told: never one that can carry a script."""

PLAIN = "application/octet-stream"
# safe to have a browser show or play them should it want to; everything else is plain bytes to it
_KEPT = frozenset({
    "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "video/mp4", "video/webm", "audio/mpeg",
    "audio/ogg", "audio/mp4", "audio/wav", "application/pdf", "text/plain", "text/csv", "application/zip",
    "application/gzip", "application/json",
})


def content_type(stored: str) -> str:
    """The header Content-Type for a file of the stored type."""
    kind = stored.partition(";")[0].strip().lower()
    if kind not in _KEPT:
        return PLAIN
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def kind_of(stored: str) -> str:
    """The same as a word for an address, such as `text-plain`: one of KINDS."""
    return content_type(stored).partition(";")[0].replace("/", "-")


# what an address says -> the header
KINDS = {kind_of(kind): content_type(kind) for kind in sorted({*_KEPT, PLAIN})}
