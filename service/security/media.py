"""Which media types a browser is told: never one that can carry a script."""

MAX_SMALL_BYTES = 2**16
"""A file up to this size nginx may keep open, even when it is removed: the room on the disk comes back later."""
SMALL = "small-"

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


def kind_of(stored: str, size_bytes: int) -> str:
    """The same as a word for an address, such as `text-plain`, of a small file `small-text-plain`: one of KINDS."""
    kind = content_type(stored).partition(";")[0].replace("/", "-")
    return f"{SMALL}{kind}" if size_bytes <= MAX_SMALL_BYTES else kind


# what an address says -> the header
KINDS = {kind_of(kind, size_bytes): content_type(kind)
         for kind in sorted({*_KEPT, PLAIN}) for size_bytes in (MAX_SMALL_BYTES, MAX_SMALL_BYTES + 1)}
