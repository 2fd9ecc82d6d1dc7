"""Rows of a damaged segment, read from its pages without SQLite: whatever carries a checksum that holds is whole.

A row of `frames` or `events` is found wherever its page is, in the database or in its log, whether or not anything
points to that page. Nothing is ever changed in a segment once it is written, so any copy of a row is the row.

Source: sqlite.org/fileformat2.html#b_tree_pages, #record_format, #the_write_ahead_log
"""

from __future__ import annotations

import mmap
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["PAGE_SIZE", "rows"]

PAGE_SIZE: Final = 8192

_TABLE_LEAF: Final = 0x0D
_LOG_HEAD: Final = 32
_LOG_FRAME: Final = struct.Struct(">6I")
_INT_SIZES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_LOCAL_MAX: Final = PAGE_SIZE - 35
_LOCAL_MIN: Final = (PAGE_SIZE - 12) * 32 // 255 - 23
_MAX_ROW: Final = 64 * 1024 * 1024  # far above any; a damaged length must not take the memory

Value = int | bytes | None


def rows(path: Path) -> Iterator[tuple[int, list[Value]]]:
    """Yield (rowid, values) of everything in a segment that has the form of a row; text as bytes, the last copy last.

    Args:
        path: the segment; its log beside it is read too. No process writes to them.
    """
    with ExitStack() as stack:
        database = _mapped(stack, path)
        log = _mapped(stack, path.with_name(path.name + "-wal"))
        logged = [*_logged(log)]
        latest = dict(logged)

        def page(number: int) -> bytes:
            if (at := latest.get(number)) is not None:
                return bytes(log[at : at + PAGE_SIZE])
            return bytes(database[(number - 1) * PAGE_SIZE : number * PAGE_SIZE])

        for number in range(1, len(database) // PAGE_SIZE + 1):
            image = bytes(database[(number - 1) * PAGE_SIZE : number * PAGE_SIZE])
            yield from _leaf(image, 100 if number == 1 else 0, page)
        for number, at in logged:
            yield from _leaf(bytes(log[at : at + PAGE_SIZE]), 100 if number == 1 else 0, page)


def _mapped(stack: ExitStack, path: Path) -> mmap.mmap | bytes:
    try:
        file = stack.enter_context(path.open("rb"))
        return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (FileNotFoundError, ValueError):  # the second: it is empty
        return b""


def _logged(log: mmap.mmap | bytes) -> Iterator[tuple[int, int]]:
    """Yield (page, where its image begins) of a log's newest generation, up to its last commit; checksums are not asked."""
    step = _LOG_FRAME.size + PAGE_SIZE
    heads = [_LOG_FRAME.unpack_from(log, at) for at in range(_LOG_HEAD, len(log) - step + 1, step)]
    if not heads:
        return
    salts = [head[2:4] for head in heads]
    wanted = struct.unpack(">2I", log[16:24])
    if wanted not in salts:  # the log's own header is damaged
        wanted = max(set(salts), key=salts.count)
    commits = [number for number, head in enumerate(heads) if head[1] and head[2:4] == wanted]
    for number, head in enumerate(heads[: commits[-1] + 1] if commits else heads):
        if head[2:4] == wanted:
            yield head[0], _LOG_HEAD + number * step + _LOG_FRAME.size


def _leaf(image: bytes, begin: int, page: Callable[[int], bytes]) -> Iterator[tuple[int, list[Value]]]:
    if len(image) < PAGE_SIZE or image[begin] != _TABLE_LEAF:
        return
    count = int.from_bytes(image[begin + 3 : begin + 5], "big")
    for at in range(begin + 8, min(begin + 8 + 2 * count, PAGE_SIZE - 1), 2):
        try:
            row = _cell(image, int.from_bytes(image[at : at + 2], "big"), page)
        except (IndexError, ValueError, KeyError):
            continue  # not a row, or not any more
        yield row


def _cell(image: bytes, at: int, page: Callable[[int], bytes]) -> tuple[int, list[Value]]:
    size, at = _varint(image, at)
    rowid, at = _varint(image, at)
    if size > _MAX_ROW:
        raise ValueError(size)
    if size <= _LOCAL_MAX:
        return rowid, _values(image[at : at + size])
    local = _LOCAL_MIN + (size - _LOCAL_MIN) % (PAGE_SIZE - 4)
    if local > _LOCAL_MAX:
        local = _LOCAL_MIN
    parts, left = [image[at : at + local]], size - local
    following = int.from_bytes(image[at + local : at + local + 4], "big")
    while left > 0:
        more = page(following)
        if len(more) < PAGE_SIZE:
            raise ValueError(following)
        parts.append(more[4 : 4 + left])
        left -= PAGE_SIZE - 4
        following = int.from_bytes(more[:4], "big")
    return rowid, _values(b"".join(parts))


def _values(record: bytes) -> list[Value]:
    end, at = _varint(record, 0)
    kinds = []
    while at < end:
        kind, at = _varint(record, at)
        kinds.append(kind)
    values: list[Value] = []
    for kind in kinds:
        if kind >= 12:
            length = (kind - 12) // 2
            values.append(record[at : at + length])
        elif kind in _INT_SIZES:
            length = _INT_SIZES[kind]
            values.append(int.from_bytes(record[at : at + length], "big", signed=True))
        else:
            length = 0
            values.append({0: None, 8: 0, 9: 1}[kind])
        at += length
    if at != len(record):
        raise ValueError(at)
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        byte = data[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    return value << 8 | data[at + 8], at + 9
