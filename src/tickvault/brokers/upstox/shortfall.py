"""What a new master list has lost of the one before: some mornings the broker's misses thousands of contracts.

Those would not be subscribed to for a day, and a chain would take the next expiry for the nearest. So rows that a list
has lost, of segments that have lost much, are kept beside it, as a list of the same form, until it has them again or
they expire.
"""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

__all__ = ["by_segment", "in_words", "lost_rows"]

# Of a segment's rows that have not expired. A few leave each day: delisted, renamed after a corporate action.
MUCH: Final = 0.05
LEAST: Final = 5


def lost_rows(before: Callable[[], Iterable[object]], keys: Collection[str], now_ms: float) -> bytes | None:
    """Return the rows that a list has lost, as gzip of a JSON array; None when no segment has lost much.

    Args:
        before: gives the rows of the earlier list, and what was kept beside it; called twice at most.
        keys: instrument keys of the new list.
        now_ms: UTC wall clock; what has expired is not missed.
    """
    of: Counter[str] = Counter()
    gone: dict[str, set[str]] = {}
    for segment, key, _ in _living(before(), now_ms):
        of[segment] += 1
        if key not in keys:
            gone.setdefault(segment, set()).add(key)
    much = {key for segment, lost in gone.items() if len(lost) >= max(LEAST, MUCH * of[segment]) for key in lost}
    return _packed(row for _, key, row in _living(before(), now_ms) if key in much) if much else None


def by_segment(rows: Iterable[object]) -> dict[str, int]:
    """Return segment → how many of the rows are of it."""
    return dict(sorted(Counter(segment for segment, _, _ in _living(rows, 0.0)).items()))


def in_words(lost: Mapping[str, int]) -> str:
    """Return segment → rows lost as a sentence."""
    parts = [f"{count:,} of {segment}" for segment, count in lost.items()]
    return f"the master list has lost rows that have not expired: {', '.join(parts)}; the list before has them"


def _living(rows: Iterable[object], now_ms: float) -> Iterator[tuple[str, str, object]]:
    """Yield segment, key and row of those that have not expired."""
    for row in rows:
        if isinstance(row, dict) and isinstance(key := row.get("instrument_key"), str):
            expiry_ms = row.get("expiry")
            if not isinstance(expiry_ms, int | float) or expiry_ms == 0 or expiry_ms >= now_ms:
                yield str(row.get("segment")), key, row


def _packed(rows: Iterable[object]) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=3) as file:
        for number, row in enumerate(rows):
            file.write(b"," if number else b"[")
            file.write(json.dumps(row).encode())
        file.write(b"]")
    return packed.getvalue()
