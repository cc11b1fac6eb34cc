"""The zip format, stored entries only; pure.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 (structure), 4.4 (fields), 4.5.3 (zip64), and Info-ZIP's extended
timestamp (0x5455).  Sizes and checksums are known beforehand, so the length of an archive is known before its first
byte, and every byte has its fixed place.
"""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime

_LIMIT_32 = 0xFFFFFFFF
_LIMIT_16 = 0xFFFF
_UTF8 = 0x0800
_PLAIN, _ZIP64 = 20, 45
_MADE_BY_UNIX = 3 << 8
_FILE_MODE, _FOLDER_MODE = 0o100644 << 16, 0o040755 << 16 | 0x10

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_END = struct.Struct("<4sHHHHIIH")
_TIMESTAMP = struct.Struct("<HHBi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, or a folder (whose name ends in a slash), at an offset of the archive."""

    name: bytes
    size_bytes: int
    crc32: int
    modified: int  # seconds since 1970
    offset: int


def local_length(entry: Entry) -> int:
    """How long `local_header` is; laying an archive out takes only the lengths."""
    return _LOCAL.size + _TIMESTAMP.size + len(entry.name) + (20 if entry.size_bytes >= _LIMIT_32 else 0)


def central_length(entry: Entry) -> int:
    """How long `central_header` is."""
    wide = (16 if entry.size_bytes >= _LIMIT_32 else 0) + (8 if entry.offset >= _LIMIT_32 else 0)
    return _CENTRAL.size + _TIMESTAMP.size + len(entry.name) + (wide + 4 if wide else 0)


def local_header(entry: Entry) -> bytes:
    """What comes before the bytes of an entry."""
    large = entry.size_bytes >= _LIMIT_32
    size = _LIMIT_32 if large else entry.size_bytes
    extra = struct.pack("<HHQQ", 1, 16, entry.size_bytes, entry.size_bytes) if large else b""
    extra += _timestamp(entry)
    date, time = _dos_time(entry.modified)
    return _LOCAL.pack(b"PK\x03\x04", _ZIP64 if large else _PLAIN, _UTF8, 0, time, date, entry.crc32, size, size,
                       len(entry.name), len(extra)) + entry.name + extra


def central_header(entry: Entry) -> bytes:
    """What the directory at the end says of an entry."""
    large = entry.size_bytes >= _LIMIT_32
    far = entry.offset >= _LIMIT_32
    wide = struct.pack("<QQ", entry.size_bytes, entry.size_bytes) if large else b""
    wide += struct.pack("<Q", entry.offset) if far else b""
    extra = (struct.pack("<HH", 1, len(wide)) + wide if wide else b"") + _timestamp(entry)
    size = _LIMIT_32 if large else entry.size_bytes
    version = _ZIP64 if wide else _PLAIN
    date, time = _dos_time(entry.modified)
    mode = _FOLDER_MODE if entry.name.endswith(b"/") else _FILE_MODE
    return _CENTRAL.pack(b"PK\x01\x02", _MADE_BY_UNIX | version, version, _UTF8, 0, time, date, entry.crc32, size, size,
                         len(entry.name), len(extra), 0, 0, 0, mode, _LIMIT_32 if far else entry.offset
                         ) + entry.name + extra


def end_of_directory(count: int, size_bytes: int, offset: int) -> bytes:
    """The end of an archive whose directory has that many entries and bytes, from that offset on."""
    end = b""
    if count >= _LIMIT_16 or size_bytes >= _LIMIT_32 or offset >= _LIMIT_32:
        end = _END_64.pack(b"PK\x06\x06", 44, _MADE_BY_UNIX | _ZIP64, _ZIP64, 0, 0, count, count, size_bytes, offset)
        end += _LOCATOR_64.pack(b"PK\x06\x07", 0, offset + size_bytes, 1)
    few = min(count, _LIMIT_16)
    return end + _END.pack(b"PK\x05\x06", 0, 0, few, few, min(size_bytes, _LIMIT_32), min(offset, _LIMIT_32), 0)


def _timestamp(entry: Entry) -> bytes:
    # the field has 32 bits with a sign
    return _TIMESTAMP.pack(0x5455, 5, 1, max(-2**31, min(2**31 - 1, entry.modified)))


def _dos_time(seconds: int) -> tuple[int, int]:
    """Date and time in two seconds' steps; the format knows the years 1980 to 2107."""
    moment = datetime.fromtimestamp(seconds, UTC)
    if not 1980 <= moment.year <= 2107:
        return 0x21, 0
    return ((moment.year - 1980) << 9 | moment.month << 5 | moment.day,
            moment.hour << 11 | moment.minute << 5 | moment.second // 2)
