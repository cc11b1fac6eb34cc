"""The zip format against a reader that somebody else wrote, beyond four GiB and 65,535 entries."""

import io
import zipfile

from service.domain import zip64


class _Sparse(io.RawIOBase):
    """A file of many zeros with a few pieces in it."""

    def __init__(self, pieces: dict[int, bytes], size: int) -> None:
        self._pieces, self._size, self._position = pieces, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, length: int = -1) -> bytes:
        end = self._size if length < 0 else min(self._size, self._position + length)
        found = bytearray(max(0, end - self._position))
        for at, piece in self._pieces.items():
            first, last = max(at, self._position), min(at + len(piece), end)
            if first < last:
                found[first - self._position:last - self._position] = piece[first - at:last - at]
        self._position = max(end, self._position)
        return bytes(found)


def _archive(sizes: list[int]) -> _Sparse:
    offset, entries, pieces = 0, [], {}
    for number, size in enumerate(sizes):
        entry = zip64.Entry(name=f"{number}.bin".encode(), size_bytes=size, crc32=number, modified=1_600_000_001,
                            offset=offset)
        header = zip64.local_header(entry)
        assert len(header) == zip64.local_length(entry)
        assert len(zip64.central_header(entry)) == zip64.central_length(entry)
        pieces[offset] = header
        offset += len(header) + size
        entries.append(entry)
    directory = b"".join(map(zip64.central_header, entries))
    end = zip64.end_of_directory(len(entries), len(directory), offset)
    pieces[offset] = directory + end
    return _Sparse(pieces, offset + len(directory) + len(end))


def test_entries_beyond_four_gib_are_read_back() -> None:
    sizes = [5, 2**32 - 1, 2**32, 2**33 + 7, 0, 3]
    with zipfile.ZipFile(_archive(sizes)) as opened:
        assert [info.file_size for info in opened.infolist()] == sizes
        assert [info.CRC for info in opened.infolist()] == list(range(6))
        assert opened.infolist()[-1].header_offset > 2**33
        assert opened.infolist()[0].date_time == (2020, 9, 13, 12, 26, 40)
        with opened.open("4.bin") as empty:  # its local header is found, far away as it is
            assert empty._orig_file_size == 0  # type: ignore[attr-defined]


def test_more_entries_than_sixteen_bits_count() -> None:
    with zipfile.ZipFile(_archive([0] * 70_000)) as opened:
        assert len(opened.infolist()) == 70_000


def test_times_outside_the_format_are_clamped() -> None:
    for modified in (-10**10, 0, 10**10):
        entry = zip64.Entry(name=b"a", size_bytes=0, crc32=0, modified=modified, offset=0)
        assert zip64.local_header(entry).startswith(b"PK\x03\x04")
