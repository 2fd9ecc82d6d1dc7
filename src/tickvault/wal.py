"""A walk over a SQLite write-ahead log, done before SQLite opens it.

SQLite stops reading a log at the first frame that fails its checksum and says nothing: a flipped bit in the middle
silently ends the database there. A torn last transaction looks the same and is harmless. What tells them apart is what
follows: two or more commits of the same generation behind a bad frame can only be damage.

Source: sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["damage"]

_HEADER: Final = struct.Struct(">8I")
_FRAME: Final = struct.Struct(">6I")
_MAGIC: Final = 0x377F0682  # the lowest bit says whether checksums read big-endian words
_MASK: Final = 0xFFFFFFFF
_COMMITS_BEHIND: Final = 2  # docs/durability.md


def damage(path: Path) -> str | None:
    """Return what is wrong with a log, None if nothing is or there is none.

    Args:
        path: the `-wal` file of a database that no process has open.
    """
    try:
        log = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(log) < _HEADER.size:
        return None
    magic, _version, page_size, _checkpoint, salt1, salt2, sum1, sum2 = _HEADER.unpack_from(log)
    sums = (0, 0)
    header_good = magic & ~1 == _MAGIC
    if header_good:
        sums = _checksum(log[:24], sums, big_endian=bool(magic & 1))
        header_good = sums == (sum1, sum2)
    if not header_good:
        return "the log's header fails its checksum" if len(log) > _HEADER.size else None
    step = _FRAME.size + page_size
    for offset in range(_HEADER.size, len(log) - step + 1, step):
        _page, _size, frame1, frame2, sum1, sum2 = _FRAME.unpack_from(log, offset)
        sums = _checksum(log[offset : offset + 8], sums, big_endian=bool(magic & 1))
        sums = _checksum(log[offset + _FRAME.size : offset + step], sums, big_endian=bool(magic & 1))
        if (frame1, frame2) != (salt1, salt2) or sums != (sum1, sum2):
            behind = _commits(log, offset + step, step, (salt1, salt2))
            if behind >= _COMMITS_BEHIND:
                return f"log frame at byte {offset} fails its checksum and {behind} commits follow it"
            return None
    return None


def _commits(log: bytes, start: int, step: int, salts: tuple[int, int]) -> int:
    """Count the commit frames of one generation from `start` on."""
    frames = (_FRAME.unpack_from(log, offset) for offset in range(start, len(log) - step + 1, step))
    return sum(1 for _page, size, salt1, salt2, _sum1, _sum2 in frames if size and (salt1, salt2) == salts)


def _checksum(data: bytes, sums: tuple[int, int], *, big_endian: bool) -> tuple[int, int]:
    words = array("I", data)
    if big_endian != (sys.byteorder == "big"):
        words.byteswap()
    first, second = sums
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second
