"""From outages to gaps: an outage as far as a market traded. Pure.

Outside known sessions there is nothing to lose, and no gap. Where hours are unknown, every hour counts.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tickvault.ledger.outages import Outage, Outages
from tickvault.ledger.sessions import FOREVER_NS, Sessions, Spans
from tickvault.ledger.states import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tickvault.model import Event, Gap

__all__ = ["Ledger"]


@dataclass(slots=True)
class _Followed:
    """An open outage, the gap that is open for it, and up to when its gaps have been told."""

    outage: Outage
    gap: Gap | None = None
    told_ns: int = -FOREVER_NS


class Ledger:
    """The second half of the fold: outages as far as a market traded. Give it every event of KINDS, in order.

    Attributes:
        sessions: what the `calendar` events so far tell.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.sessions = Sessions()
        self._outages = Outages()
        self._followed: dict[tuple[str, str], _Followed] = {}
        self._trading: dict[frozenset[str], Spans] = {}
        self._due_ns = -FOREVER_NS  # before then no session begins or ends
        for event in events:
            self.apply(event)

    @property
    def open(self) -> tuple[Gap, ...]:
        """The gaps that are open now."""
        return tuple(one.gap for one in self._followed.values() if one.gap is not None)

    @property
    def segments(self) -> frozenset[str]:
        """The market segments of what is, or was last, subscribed to."""
        return self._outages.segments

    def apply(self, event: Event) -> list[Gap]:
        """Take one event and return the gaps that it opened, changed or closed; each once, as it then is."""
        if event.kind not in KINDS or event.body.get("carried"):
            return []
        changed: list[Gap] = []
        if event.kind in {"calendar", "conn"}:
            changed += self.passed(event.at_ns)  # by the hours, and for the reason, that were known until now
        if event.kind == "calendar":
            self.sessions = self.sessions.then(Sessions.of(event.body))
            self._trading.clear()
            changed += self._correct(event.at_ns)
        for outage in self._outages.apply(event):
            changed += self._take(outage)
        self._due_ns = -FOREVER_NS
        return _latest([*changed, *self.passed(event.at_ns)])

    def passed(self, now_ns: int) -> list[Gap]:
        """Return the gaps that began or ended because a session did, up to now; told or not, they come out the same."""
        if now_ns < self._due_ns:
            return []
        changed: list[Gap] = []
        for followed in self._followed.values():
            changed += self._told(followed, max(now_ns, followed.outage.gap.opened_ns))
        self._due_ns = self._next_ns(now_ns)
        return changed

    def _next_ns(self, now_ns: int) -> int:
        """Return when the next session begins or ends that an outage may be told by."""
        concerned = {followed.outage.segments for followed in self._followed.values()}
        edges = (at_ns for one in concerned for span in self._windows(one, now_ns, FOREVER_NS) for at_ns in span)
        return min((at_ns for at_ns in edges if at_ns > now_ns), default=FOREVER_NS)

    def _take(self, outage: Outage) -> list[Gap]:
        key, closed_ns = (outage.gap.scope, outage.gap.subject), outage.gap.closed_ns
        followed = self._followed.get(key)
        if followed is None or followed.outage.gap.opened_ns != outage.gap.opened_ns:
            followed = _Followed(outage)
            if closed_ns is not None:  # over before it was told
                return self._told(followed, closed_ns)
            self._followed[key] = followed
            return []
        followed.outage = outage
        if closed_ns is not None:
            del self._followed[key]
            return self._told(followed, closed_ns)
        if followed.gap is None:
            return []
        followed.gap = replace(followed.gap, reason=outage.gap.reason, detail=outage.gap.detail)
        return [followed.gap]

    def _told(self, followed: _Followed, now_ns: int) -> list[Gap]:
        """Return the gaps of an outage that begin or end up to now."""
        changed: list[Gap] = []
        outage = followed.outage.gap
        if followed.gap is not None:  # an end that is told late may lie before
            now_ns = max(now_ns, followed.gap.opened_ns)
        for begin, end in self._windows(followed.outage.segments, max(followed.told_ns, outage.opened_ns), now_ns):
            if followed.gap is None:
                opened_ns = max(begin, outage.opened_ns, followed.told_ns)
                followed.gap = replace(outage, opened_ns=opened_ns, closed_ns=None)
                changed.append(followed.gap)
            closing = outage.closed_ns is not None and outage.closed_ns < end
            if end <= now_ns or closing:
                closed_ns = now_ns if closing else end
                gap, followed.gap = followed.gap, None
                followed.told_ns = closed_ns
                if closed_ns > gap.opened_ns or gap not in changed:
                    changed.append(replace(gap, closed_ns=closed_ns))
                else:
                    changed.remove(gap)  # of no length, and nobody has heard of it
        if (
            outage.closed_ns is not None and followed.gap is not None
        ):  # the market does not trade then, as we know by now
            gap, followed.gap = followed.gap, None
            changed.append(replace(gap, closed_ns=max(outage.closed_ns, gap.opened_ns)))
        return changed

    def _correct(self, now_ns: int) -> list[Gap]:
        """Close gaps that were opened while hours were unknown, and turn out to lie outside of them."""
        changed: list[Gap] = []
        for followed in self._followed.values():
            if followed.gap is None or self._windows(
                followed.outage.segments, followed.gap.opened_ns, followed.gap.opened_ns
            ):
                continue
            later = self._windows(followed.outage.segments, followed.gap.opened_ns, now_ns)
            closed_ns = max(followed.gap.opened_ns, later[0][0] if later else now_ns)
            changed.append(replace(followed.gap, closed_ns=closed_ns, planned=True))
            followed.gap, followed.told_ns = None, closed_ns
        return changed

    def _windows(self, segments: frozenset[str], from_ns: int, to_ns: int) -> Sequence[tuple[int, int]]:
        """Return the trading windows that reach into [from_ns, to_ns]."""
        if segments not in self._trading:
            self._trading[segments] = self.sessions.trading(segments)
        spans = self._trading[segments]
        first = bisect_right(spans, from_ns, key=lambda span: span[1])
        last = bisect_right(spans, to_ns, key=lambda span: span[0])
        return spans[first:last]


def _latest(gaps: Iterable[Gap]) -> list[Gap]:
    """Return each gap once, as it was told last."""
    return list({gap.key: gap for gap in gaps}.values())
