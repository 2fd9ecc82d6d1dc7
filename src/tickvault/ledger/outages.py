"""From events to outages: what begins with one event and ends with another. Pure.

One subject has one outage at a time. Whether a market traded meanwhile is not asked here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from tickvault.ledger.states import ORDER, State
from tickvault.model import Gap, segment_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tickvault.model import Event

__all__ = ["Outage", "Outages"]

_FEED: Final = "feed"
_NOTHING: Final[frozenset[str]] = frozenset()
# Endings that are no loss: we closed it, and meant to.
_MEANT: Final = frozenset({"stopped", "replaced"})
_WATCH_BEGINS: Final = {
    "silent": State.SILENT,
    "brown_out": State.BROWN_OUT,
    "refused": State.SUBSCRIPTION_REFUSED,
}
_WATCH_ENDS: Final = {"fresh": State.SILENT, "usual": State.BROWN_OUT, "served": State.SUBSCRIPTION_REFUSED}


@dataclass(frozen=True, slots=True)
class Outage:
    """An outage and the segments that it concerns; none: all."""

    gap: Gap
    segments: frozenset[str]


@dataclass(slots=True)
class _Connection:
    """An open connection: its place among those open at once, and what it is subscribed to."""

    subject: str
    keys: set[str] = field(default_factory=set)


class Outages:
    """The first half of the fold: from events to outages."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, str], Outage] = {}
        self.segments = _NOTHING  # of all that is subscribed to, in this run or else the one before
        self.first_ns: int | None = None
        self.now_ns = 0
        self.stopped_ns: int | None = None  # when the last run stopped, if it did
        self.crashed_ns = 0  # when a run ended that did not say so, as far as something has been written since
        self._connections: dict[int, _Connection] = {}
        self._unserved: dict[str, frozenset[str]] = {}  # subject of a lost connection → its keys
        self._watched: dict[str, dict[State, tuple[int, str]]] = {}  # segment → what holds there, since when, and why
        self._subscribed = False  # in this run

    def apply(self, event: Event) -> list[Outage]:
        """Take one event and return the outages that it opened, changed or closed."""
        if event.kind == "lost":
            return self._lost(event)  # where it is written says nothing of when it is
        if event.body.get("purpose"):  # opened for something else: nobody recorded, before or after
            self.crashed_ns = self.crashed_ns or _int(event.body.get("last_ns"))
            return []
        self.first_ns = event.at_ns if self.first_ns is None else self.first_ns
        changed: list[Outage] = []
        if event.kind == "start":
            changed += self._start(event)
        elif self.stopped_ns is None:
            changed += self._take(event)
        self.now_ns = event.at_ns
        return changed

    def _take(self, event: Event) -> list[Outage]:
        match event.kind, event.body.get("state"):
            case "stop", _:
                self.stopped_ns = event.at_ns
                self._watched.clear()
                return self._close_all(event.at_ns)
            case "clock_step", _:
                return self._stepped_back(event)
            case "stalled", _:
                return self._stalled(event)
            case "conn", "open":
                return self._connected(event)
            case "conn", "closed":
                return self._disconnected(event)
            case "conn", "failed":
                return self._failed(event)
            case "sub", _:
                return self._sub(event)
            case "watch", _:
                return self._watch(event)
            case "disk_full", "full":
                since_ns = self._since_ns(event)
                return self._begin("recorder", "disk", since_ns, State.DISK_FULL, _text(event.body.get("detail")))
            case "disk_full", "room":
                return self._end("recorder", "disk", event.at_ns)
            case _:
                return []

    # -- the recorder

    def _start(self, event: Event) -> list[Outage]:
        """Close what a crash left open, and write down the time between two runs."""
        last_ns = self.stopped_ns or _int(event.body.get("last_ns"))
        changed = self._close_all(last_ns)
        clean = bool(event.body.get("clean"))
        if last_ns:
            detail = "stopped" if clean else "ended without stopping"
            down = _gap("recorder", "", last_ns, State.RECORDER_DOWN, detail)
            down = replace(down, closed_ns=max(event.at_ns, last_ns), planned=clean)
            changed.append(Outage(down, self.segments))
        self.stopped_ns, self.crashed_ns, self._subscribed = None, 0, False
        self._connections.clear()
        self._unserved.clear()
        self._watched.clear()
        return changed + self._begin("connection", _FEED, event.at_ns, State.DISCONNECTED, "connecting")

    def _stalled(self, event: Event) -> list[Outage]:
        """Write down the time in which nothing was committed and no heartbeat came, over already."""
        still_ns = _int(event.body.get("for_ns"))
        since_ns = min(event.at_ns, max(self.now_ns, event.at_ns - still_ns))
        stalled = _gap(
            "recorder", "", since_ns, State.RECORDER_STALLED, f"nothing committed for {still_ns / 1e9:.1f} s"
        )
        return [Outage(replace(stalled, closed_ns=event.at_ns), self.segments)]

    def _stepped_back(self, event: Event) -> list[Outage]:
        """The wall clock was set back, and an hour comes twice: what is open is open in both."""
        from_ns, to_ns = _int(event.body.get("from_ns")), _int(event.body.get("to_ns"))
        changed: list[Outage] = []
        for outage in list(self.open.values()):
            changed += self._end(outage.gap.scope, outage.gap.subject, from_ns)
            again = replace(outage, gap=replace(outage.gap, opened_ns=min(to_ns, from_ns)))
            self.open[again.gap.scope, again.gap.subject] = again
            changed.append(again)
        return changed

    def _lost(self, event: Event) -> list[Outage]:
        from_ns, to_ns = _int(event.body.get("from_ns")), _int(event.body.get("to_ns"))
        from_ns = from_ns or self.now_ns or event.at_ns
        to_ns = max(to_ns or event.at_ns, from_ns)
        frames = f"frames {event.body.get('from')}-{event.body.get('to')}"
        gap = replace(_gap("recorder", frames, from_ns, State.LOST, _text(event.body.get("reason"))), closed_ns=to_ns)
        return [Outage(gap, self.segments)]

    # -- connections

    def _connected(self, event: Event) -> list[Outage]:
        number = _int(event.body.get("conn"))
        known = self._connections.get(number)
        subject = known.subject if known else self._place(event)
        self._connections[number] = _Connection(subject)
        self._unserved.pop(subject, None)
        return self._end("connection", subject, event.at_ns)

    def _place(self, event: Event) -> str:
        """Return the subject of a new connection: one that was lost and is looked for, else a free one."""
        if isinstance(named := event.body.get("subject"), str) and named:
            return named
        taken = {one.subject for one in self._connections.values()}
        waiting = [subject for scope, subject in self.open if scope == "connection"]
        free = (_subject(number) for number in range(1, len(taken) + 2))
        return min(waiting, default="") or next(subject for subject in free if subject not in taken)

    def _disconnected(self, event: Event) -> list[Outage]:
        number, reason = _int(event.body.get("conn")), _text(event.body.get("reason"))
        gone = self._connections.pop(number, None) or _Connection(self._place(event))
        if reason in _MEANT or (self._connections and gone.keys <= self._served()):
            return []
        self._unserved[gone.subject] = frozenset(gone.keys)
        state = State.OVERRUN if reason == "overrun" else State.DISCONNECTED
        return self._begin("connection", gone.subject, event.at_ns, state, _words(event), _segments(gone.keys))

    def _failed(self, event: Event) -> list[Outage]:
        """An attempt failed. That the token is refused explains more than how the connection ended."""
        told = _words(event)
        rejected = event.body.get("reason") == "token_rejected"
        changed: list[Outage] = []
        for (scope, subject), outage in list(self.open.items()):
            gap = outage.gap
            if scope != "connection":
                continue
            if rejected and gap.reason != State.TOKEN_REJECTED:
                changed += self._begin(scope, subject, event.at_ns, State.TOKEN_REJECTED, told, outage.segments)
            elif not rejected and gap.reason == State.TOKEN_REJECTED:
                changed += self._begin(scope, subject, event.at_ns, State.DISCONNECTED, told, outage.segments)
            elif gap.reason != State.OVERRUN:
                self.open[scope, subject] = better = Outage(replace(gap, detail=told), outage.segments)
                changed.append(better)
        return changed

    def _sub(self, event: Event) -> list[Outage]:
        number, keys = _int(event.body.get("conn")), event.body.get("keys")
        wanted = {str(key) for key in keys} if isinstance(keys, list) else set()
        if number not in self._connections:  # its opening is no longer in the journal
            self._connections[number] = _Connection(self._place(event))
        self._connections[number].keys |= wanted
        self.segments = (self.segments if self._subscribed else _NOTHING) | _segments(wanted)
        self._subscribed = True
        served = self._served()
        changed: list[Outage] = []
        for subject, missing in list(self._unserved.items()):
            if missing and missing <= served:  # another connection has taken over
                del self._unserved[subject]
                changed += self._end("connection", subject, event.at_ns)
        return changed

    def _served(self) -> set[str]:
        return set().union(*(one.keys for one in self._connections.values()))

    # -- segments

    def _watch(self, event: Event) -> list[Outage]:
        word, named = _text(event.body.get("state")), event.body.get("segments")
        segments = [str(name) for name in named] if isinstance(named, list) and named else [""]
        changed: list[Outage] = []
        for segment in segments:
            holding = self._watched.setdefault(segment, {})
            if (begun := _WATCH_BEGINS.get(word)) is not None:
                holding.setdefault(begun, (self._since_ns(event), _text(event.body.get("detail"))))
            elif (ended := _WATCH_ENDS.get(word)) is not None:
                for each in self._watched.values() if segment == "" else [holding]:
                    each.pop(ended, None)
        for segment in list(self._watched):
            changed += self._show(segment, event.at_ns)
        return changed

    def _show(self, segment: str, at_ns: int) -> list[Outage]:
        """Bring a segment's one outage up to date with what holds there."""
        holding = self._watched[segment]
        shown = self.open.get(("segment", segment))
        if not holding:
            del self._watched[segment]
            return self._end("segment", segment, at_ns)
        state = min(holding, key=ORDER.__getitem__)
        if shown is not None and shown.gap.reason == state:
            return []
        since_ns, detail = holding[state]
        if shown is not None and ORDER[State(shown.gap.reason)] < ORDER[state]:
            since_ns = at_ns  # it was there before, behind another
        segments = frozenset({segment}) if segment else _NOTHING
        return self._begin("segment", segment, since_ns, state, detail, segments)

    # -- one outage a subject

    def _since_ns(self, event: Event) -> int:
        since_ns = _int(event.body.get("since_ns"))
        return min(since_ns, event.at_ns) if since_ns > 0 else event.at_ns

    def _begin(
        self, scope: str, subject: str, at_ns: int, state: State, detail: str, segments: frozenset[str] = _NOTHING
    ) -> list[Outage]:
        before = self.open.get((scope, subject))
        if before is not None and before.gap.reason == state:
            return []
        changed: list[Outage] = []
        if before is not None:
            at_ns = max(at_ns, before.gap.opened_ns)
            if at_ns > before.gap.opened_ns:  # otherwise it is the same gap, better understood
                changed += self._end(scope, subject, at_ns)
        opened = Outage(_gap(scope, subject, at_ns, state, detail), segments or self.segments)
        self.open[scope, subject] = opened
        return [*changed, opened]

    def _end(self, scope: str, subject: str, at_ns: int) -> list[Outage]:
        outage = self.open.pop((scope, subject), None)
        if outage is None:
            return []
        return [replace(outage, gap=replace(outage.gap, closed_ns=max(at_ns, outage.gap.opened_ns)))]

    def _close_all(self, at_ns: int) -> list[Outage]:
        return [closed for scope, subject in list(self.open) for closed in self._end(scope, subject, at_ns)]


def _gap(scope: str, subject: str, opened_ns: int, state: State, detail: str) -> Gap:
    return Gap(
        scope=scope,
        subject=subject,
        opened_ns=opened_ns,
        closed_ns=None,
        reason=state.value,
        planned=False,
        detail=detail,
    )


def _subject(number: int) -> str:
    return _FEED if number == 1 else f"{_FEED} {number}"


def _segments(keys: Iterable[str]) -> frozenset[str]:
    return frozenset(segment_of(key) for key in keys)


def _words(event: Event) -> str:
    """Return what an event says of its cause."""
    reason, code, detail = (event.body.get(name) for name in ("reason", "code", "detail"))
    return str(reason or "") + (f" (code {code})" if code else "") + (f": {detail}" if detail else "")


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
