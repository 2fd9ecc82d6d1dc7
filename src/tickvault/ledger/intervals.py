"""Any stretch of time divided into states, without overlap and without hole. Pure.

Where several states hold at once, the first of `State` is told: it explains the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tickvault.ledger.outages import INSTRUMENT, SINK, Outages
from tickvault.ledger.sessions import FOREVER_NS, Sessions
from tickvault.ledger.states import KINDS, ORDER, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tickvault.ledger.outages import Outage
    from tickvault.model import Event, Gap

__all__ = ["Interval", "intervals"]

# Gaps that say nothing of a segment as a whole.
_ELSEWHERE: Final = frozenset({SINK, INSTRUMENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A stretch of time in one state; the end is exclusive."""

    from_ns: int
    to_ns: int
    state: State
    detail: str = ""


def intervals(
    events: Iterable[Event],
    from_ns: int,
    to_ns: int,
    calendar: Sessions | None = None,
    *,
    segment: str | None = None,
    last_ns: int | None = None,
) -> tuple[Interval, ...]:
    """Divide a stretch of time into states.

    Args:
        events: of KINDS, from the journal's beginning on.
        from_ns: where it begins, UTC wall clock.
        to_ns: where it ends; exclusive.
        calendar: when markets trade; None: what the `calendar` events tell.
        segment: the market segment asked about; None: all that were subscribed to.
        last_ns: the journal's last commit, when the recorder that made it no longer runs; None: the state at the last
            event goes on.

    Returns:
        Intervals in order, each beginning where the one before ends, from from_ns to to_ns.
    """
    ended: list[Outage] = []
    outages, sessions = Outages(), Sessions()
    for event in events:
        if event.kind not in KINDS or event.body.get("carried"):
            continue
        if event.kind == "calendar":
            sessions = sessions.then(Sessions.of(event.body))
        told = outages.apply(event)
        ended += [one for one in told if one.gap.closed_ns is not None and one.gap.scope not in _ELSEWHERE]
    spans = [
        (outage.gap.opened_ns, _end_ns(outage.gap), State(outage.gap.reason), outage.words)
        for outage in [*ended, *outages.open.values()]
        if outage.gap.scope not in _ELSEWHERE and (segment is None or not outage.segments or segment in outage.segments)
    ]
    begun_ns = FOREVER_NS if outages.first_ns is None else outages.first_ns
    spans.append((-FOREVER_NS, begun_ns, State.RECORDER_DOWN, "not begun"))
    if outages.stopped_ns is not None:
        spans.append((outages.stopped_ns, FOREVER_NS, State.RECORDER_DOWN, "stopped"))
    elif ended_ns := outages.crashed_ns or last_ns:
        spans.append((max(ended_ns, begun_ns), FOREVER_NS, State.RECORDER_DOWN, "ended without stopping"))
    trading = (calendar or sessions).trading(outages.segments if segment is None else {segment})
    edges = [-FOREVER_NS, *(at_ns for span in trading for at_ns in span), FOREVER_NS]
    spans += [(edges[i], edges[i + 1], State.CLOSED, "") for i in range(0, len(edges), 2)]
    return _divided(spans, from_ns, to_ns)


def _divided(spans: Iterable[tuple[int, int, State, str]], from_ns: int, to_ns: int) -> tuple[Interval, ...]:
    """Give every instant the first state, by precedence, of the spans that cover it; recorded where none does."""
    steps: dict[int, list[tuple[int, State, str]]] = {}
    for begin, end, state, detail in spans:
        begin, end = max(begin, from_ns), min(end, to_ns)
        if begin < end:
            steps.setdefault(begin, []).append((1, state, detail))
            steps.setdefault(end, []).append((-1, state, detail))
    active: dict[tuple[int, str], int] = {}
    found: list[Interval] = []
    edges = sorted({from_ns, *steps})
    for at_ns, next_ns in zip(edges, [*edges[1:], to_ns], strict=True):
        for change, state, detail in steps.get(at_ns, ()):
            key = ORDER[state], detail
            active[key] = active.get(key, 0) + change
            if not active[key]:
                del active[key]
        if at_ns >= next_ns:
            continue
        order, detail = min(active, default=(ORDER[State.RECORDED], ""))
        one = Interval(from_ns=at_ns, to_ns=next_ns, state=tuple(State)[order], detail=detail)
        if found and (found[-1].state, found[-1].detail) == (one.state, one.detail):
            one = replace(found.pop(), to_ns=next_ns)
        found.append(one)
    return tuple(found)


def _end_ns(gap: Gap) -> int:
    return FOREVER_NS if gap.closed_ns is None else gap.closed_ns
