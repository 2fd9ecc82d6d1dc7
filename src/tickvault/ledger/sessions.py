"""When market segments trade, and how later knowledge is joined to earlier. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["FOREVER_NS", "Sessions", "Spans"]

FOREVER_NS: Final = 2**63 - 1

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """When market segments trade, as far as it is known.

    Attributes:
        from_ns: the first instant that is known of; to_ns: the first that is not any more. UTC wall clock.
        windows: segment → its (begin, end) in that range, in order; a segment that is missing: unknown.
    """

    from_ns: int = 0
    to_ns: int = 0
    windows: Mapping[str, Spans] = field(default_factory=dict)

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Sessions:
        """Read the body of a `calendar` event; one of another form tells nothing."""
        from_ns, to_ns, told = body.get("from_ns"), body.get("to_ns"), body.get("sessions")
        if not (isinstance(from_ns, int) and isinstance(to_ns, int) and isinstance(told, dict) and from_ns < to_ns):
            return cls()
        return cls(from_ns=from_ns, to_ns=to_ns, windows={str(name): _spans(rows) for name, rows in told.items()})

    def body(self) -> dict[str, object]:
        """Return the body of the `calendar` event that tells this."""
        sessions = {name: [list(span) for span in spans] for name, spans in self.windows.items()}
        return {"from_ns": self.from_ns, "to_ns": self.to_ns, "sessions": sessions}

    def then(self, later: Sessions) -> Sessions:
        """Return what is known when something later has been told: that counts in its range, this one before it.

        Where one of them does not know a segment, and between the two, every hour counts.
        """
        if later.from_ns >= later.to_ns:
            return self
        if self.from_ns >= self.to_ns or later.from_ns < self.from_ns:
            return later
        between = [(self.to_ns, later.from_ns)] if self.to_ns < later.from_ns else []
        windows = {}
        for name in {**self.windows, **later.windows}:
            before = self.windows.get(name, ((self.from_ns, self.to_ns),))
            cut = [(begin, min(end, later.from_ns)) for begin, end in before if begin < later.from_ns]
            after = later.windows.get(name, ((later.from_ns, later.to_ns),))
            windows[name] = _joined([*cut, *between, *after])
        return Sessions(from_ns=self.from_ns, to_ns=later.to_ns, windows=windows)

    def trading(self, segments: Iterable[str] = ()) -> Spans:
        """Return when at least one of the segments (none: any segment) trades; whenever that is unknown too."""
        wanted = frozenset(segments) or frozenset(self.windows)
        if self.from_ns >= self.to_ns or not wanted <= self.windows.keys():
            return ((-FOREVER_NS, FOREVER_NS),)
        spans = sorted(span for name in wanted for span in self.windows[name])
        return _joined([(-FOREVER_NS, self.from_ns), *spans, (self.to_ns, FOREVER_NS)])


def _spans(rows: object) -> Spans:
    """Read a list of [begin, end]; what is none is left out."""
    found = [row for row in rows if isinstance(row, list | tuple)] if isinstance(rows, list | tuple) else []
    spans = [(row[0], row[1]) for row in found if len(row) == 2 and all(isinstance(at_ns, int) for at_ns in row)]
    return _joined(sorted(span for span in spans if span[0] < span[1]))


def _joined(spans: Sequence[tuple[int, int]]) -> Spans:
    """Join spans, in order of their beginnings, that touch."""
    found: list[tuple[int, int]] = []
    for begin, end in spans:
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return tuple(found)
