"""From events to outages: what begins with one event and ends with another. Pure.

One subject has one outage at a time. Whether a market traded meanwhile is not asked here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tickvault.ledger.lines import Line
from tickvault.ledger.states import ORDER, State
from tickvault.ledger.told import (
    FEED,
    integer,
    keys_of,
    name_of,
    segments_of,
    socket_of,
    subject_of,
    text,
    words_of,
)
from tickvault.model import Gap, segment_of

if TYPE_CHECKING:
    from tickvault.model import Event

__all__ = ["INSTRUMENT", "PRUNED", "SINK", "Outage", "Outages"]

SINK: Final = "sink"  # scope of a gap in one store only: what it misses was recorded
INSTRUMENT: Final = "instrument"
PRUNED: Final = "pruned"

_NOTHING: Final[frozenset[str]] = frozenset()
# Endings that are no loss: we closed it, and meant to.
_MEANT: Final = frozenset({"stopped", "replaced"})
_WATCH_BEGINS: Final = {
    "silent": State.SILENT,
    "brown_out": State.BROWN_OUT,
    "refused": State.SUBSCRIPTION_REFUSED,
    "waiting": State.NOT_SUBSCRIBED,
}
_WATCH_ENDS: Final = {
    "fresh": State.SILENT,
    "usual": State.BROWN_OUT,
    "served": State.SUBSCRIPTION_REFUSED,
    "resolved": State.NOT_SUBSCRIBED,
}


@dataclass(frozen=True, slots=True)
class Outage:
    """An outage and the segments that it concerns; none: all."""

    gap: Gap
    segments: frozenset[str]

    @property
    def words(self) -> str:
        """What is the matter; on another socket than the first, on which."""
        _, further, number = self.gap.subject.rpartition(f"{FEED} ")
        named = further and self.gap.scope in ("connection", "segment")
        return f"{FEED} {number}: {self.gap.detail}" if named else self.gap.detail


class Outages:
    """The first half of the fold: from events to outages."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, str], Outage] = {}
        self.segments = _NOTHING  # of all that is subscribed to, in this run or else the one before
        self.first_ns: int | None = None
        self.now_ns = 0
        self.stopped_ns: int | None = None  # when the last run stopped, if it did
        self.crashed_ns = 0  # when a run ended that did not say so, as far as something has been written since
        self._lines: dict[str, Line] = {}  # by subject
        self._begun_ns: int | None = None  # the start of this run, until a connection serves
        # (Segment, socket) → what holds there, since when, and why.
        self._watched: dict[tuple[str, int], dict[State, tuple[int, str]]] = {}

    def apply(self, event: Event) -> list[Outage]:
        """Take one event and return the outages that it opened, changed or closed."""
        if event.kind == "lost":
            return self._lost(event)  # where it is written says nothing of when it is
        if event.kind == "skipped":
            return [self._skipped(event)]
        if event.body.get("purpose"):  # opened for something else: nobody recorded, before or after
            self.crashed_ns = self.crashed_ns or integer(event.body.get("last_ns"))
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
            case "conn", _:
                return self._connection(event)
            case (("sub" | "unsub"), _):
                return self._subscribed(event)
            case "watch", _:
                return self._watch(event)
            case "disk_full", "full":
                since_ns = self._since_ns(event)
                return self._begin("recorder", "disk", since_ns, State.DISK_FULL, text(event.body.get("detail")))
            case "disk_full", "room":
                return self._end("recorder", "disk", event.at_ns)
            case _:
                return []

    # -- the recorder

    def _start(self, event: Event) -> list[Outage]:
        """Close what a crash left open, and write down the time between two runs."""
        last_ns = self.stopped_ns or integer(event.body.get("last_ns"))
        changed = self._close_all(last_ns)
        clean = bool(event.body.get("clean"))
        if last_ns:
            detail = "stopped" if clean else "ended without stopping"
            down = _gap("recorder", "", last_ns, State.RECORDER_DOWN, detail)
            down = replace(down, closed_ns=max(event.at_ns, last_ns), planned=clean)
            changed.append(Outage(down, self.segments))
        self.stopped_ns, self.crashed_ns = None, 0
        self._begun_ns = event.at_ns
        self._lines = {FEED: Line()}
        self._watched.clear()
        return changed + self._settle(event.at_ns)

    def _stalled(self, event: Event) -> list[Outage]:
        """Write down the time in which nothing was committed and no heartbeat came, over already."""
        still_ns, skipped_ns = integer(event.body.get("for_ns")), integer(event.body.get("set_forward_ns"))
        since_ns = min(event.at_ns, max(self.now_ns, event.at_ns - still_ns))
        detail = f"nothing committed for {still_ns / 1e9:.1f} s"
        if skipped_ns > 0:
            detail = f"the clock was set forward by {skipped_ns / 1e9:.1f} s"
        stalled = _gap("recorder", "", since_ns, State.RECORDER_STALLED, detail)
        return [Outage(replace(stalled, closed_ns=event.at_ns), self.segments)]

    def _stepped_back(self, event: Event) -> list[Outage]:
        """The wall clock was set back, and an hour comes twice: what is open is open in both."""
        from_ns, to_ns = integer(event.body.get("from_ns")), integer(event.body.get("to_ns"))
        changed: list[Outage] = []
        for outage in list(self.open.values()):
            changed += self._end(outage.gap.scope, outage.gap.subject, from_ns)
            again = replace(outage, gap=replace(outage.gap, opened_ns=min(to_ns, from_ns)))
            self.open[again.gap.scope, again.gap.subject] = again
            changed.append(again)
        return changed

    def _lost(self, event: Event) -> list[Outage]:
        from_ns, to_ns = integer(event.body.get("from_ns")), integer(event.body.get("to_ns"))
        from_ns = from_ns or self.now_ns or event.at_ns
        to_ns = max(to_ns or event.at_ns, from_ns + 1)  # a gap of no length is none, and this is one
        frames = f"frames {event.body.get('from')}-{event.body.get('to')}"
        gap = replace(_gap("recorder", frames, from_ns, State.LOST, text(event.body.get("reason"))), closed_ns=to_ns)
        return [Outage(gap, self.segments)]

    def _skipped(self, event: Event) -> Outage:
        """Frames were recorded, and pruned before one of the sinks had them: it was not in use then."""
        from_ns = integer(event.body.get("from_ns")) or event.at_ns
        frames = f"frames {event.body.get('from')}-{event.body.get('to')} were pruned before it had them"
        gap = Gap(
            scope=SINK,
            subject=text(event.body.get("sink")),
            opened_ns=from_ns,
            closed_ns=max(from_ns, integer(event.body.get("to_ns"))),
            reason=PRUNED,
            planned=False,
            detail=frames,
        )
        return Outage(gap, self.segments)

    # -- connections

    def _connection(self, event: Event) -> list[Outage]:
        match event.body.get("state"):
            case "wanted":
                self._name_segments(event)
                return self._settle(event.at_ns)
            case "open":
                return self._connected(event)
            case "live":
                return self._serves(event)
            case "closed":
                return self._disconnected(event)
            case "failed":
                return self._failed(event)
            case _:
                return []

    def _line(self, event: Event) -> Line:
        """Return the line of the socket that an event is about.

        Every socket that is heard of before a connection serves has been missed since the start.
        """
        subject = subject_of(event)
        if subject not in self._lines:
            self._lines[subject] = Line(since_ns=event.at_ns if self._begun_ns is None else self._begun_ns)
        return self._lines[subject]

    def _name_segments(self, event: Event) -> None:
        """Note the segments that a socket is for, as far as an event names them."""
        if isinstance(named := event.body.get("segments"), list):
            self._line(event).segments = frozenset(map(str, named))

    def _connected(self, event: Event) -> list[Outage]:
        line = self._line(event)
        line.conn, line.served = integer(event.body.get("conn")), set()
        line.serves, line.tells = False, "keys" in event.body
        return self._settle(event.at_ns)

    def _disconnected(self, event: Event) -> list[Outage]:
        line, reason = self._line(event), text(event.body.get("reason"))
        if line.conn not in (None, integer(event.body.get("conn"))):
            return []  # one that another has replaced already
        if reason in _MEANT:
            del self._lines[subject_of(event)]
            return self._end("connection", subject_of(event), event.at_ns)
        line.conn, line.serves, line.served = None, False, set()
        line.state = State.OVERRUN if reason == "overrun" else State.DISCONNECTED
        line.detail = words_of(event)
        return self._settle(event.at_ns)

    def _failed(self, event: Event) -> list[Outage]:
        """An attempt failed. That the token is refused explains more than how the connection ended."""
        line = self._line(event)
        if line.conn is not None:
            return []
        self._name_segments(event)
        rejected = event.body.get("reason") == "token_rejected"
        if not rejected and line.state is State.OVERRUN:
            return []
        line.state = State.TOKEN_REJECTED if rejected else State.DISCONNECTED
        line.detail = words_of(event)
        return self._settle(event.at_ns)

    def _subscribed(self, event: Event) -> list[Outage]:
        line, number, keys = self._line(event), integer(event.body.get("conn")), set(keys_of(event))
        if line.conn != number:  # its opening is no longer in the journal
            line.conn, line.served, line.tells = number, set(), False
        if event.kind == "sub":
            line.wanted |= keys
            line.served |= keys
        else:
            line.wanted -= keys
            line.served -= keys
        line.known = True
        line.serves |= not line.tells
        self._note_segments()
        return self._settle(event.at_ns)

    def _serves(self, event: Event) -> list[Outage]:
        """Note that a connection serves; what it has asked for by now is what it is for."""
        line = self._lines.get(subject_of(event))
        if line is not None and line.conn == integer(event.body.get("conn")) and not line.serves:
            line.serves, line.wanted = True, set(line.served)
            self._note_segments()
        return self._settle(event.at_ns)

    def _note_segments(self) -> None:
        self.segments = frozenset[str]().union(*(segments_of(one.wanted) for one in self._lines.values()))

    def _settle(self, at_ns: int) -> list[Outage]:
        """Begin and end the outages of connections: one for each line whose keys nobody serves."""
        served = set[str]().union(*(line.served for line in self._lines.values() if line.serves))
        refused = {name_of(socket) for (_, socket), held in self._watched.items() if State.SUBSCRIPTION_REFUSED in held}
        changed: list[Outage] = []
        for subject, line in self._lines.items():
            # That it is refused is another gap, and says more.
            stands = line.conn is not None and (line.serves or subject in refused)
            if stands or (line.known and line.wanted <= served):
                self._begun_ns = None
                changed += self._end("connection", subject, at_ns)
                continue
            segments = segments_of(line.wanted) or line.segments
            since_ns, line.since_ns = at_ns if line.since_ns is None else line.since_ns, None
            changed += self._begin("connection", subject, since_ns, line.state, line.detail, segments)
            outage = self.open["connection", subject]
            if outage.gap.detail != line.detail:
                self.open["connection", subject] = better = replace(outage, gap=replace(outage.gap, detail=line.detail))
                changed.append(better)
        return changed

    # -- segments

    def _watch(self, event: Event) -> list[Outage]:
        word, named, socket = text(event.body.get("state")), event.body.get("segments"), socket_of(event)
        if word in {"missing", "delivering"}:
            return self._begin_keys(event) if word == "missing" else self._end_keys(event)
        segments = [str(name) for name in named] if isinstance(named, list) and named else [""]
        for segment in segments:
            holding = self._watched.setdefault((segment, socket), {})
            if (begun := _WATCH_BEGINS.get(word)) is not None:
                since_ns = self._since_ns(event)
                if begun is State.NOT_SUBSCRIBED and self._begun_ns is not None:
                    since_ns = min(since_ns, self._begun_ns)  # missed since the start, as connections are
                holding.setdefault(begun, (since_ns, text(event.body.get("detail"))))
            elif (ended := _WATCH_ENDS.get(word)) is not None:
                for (name, other), each in self._watched.items():
                    if other == socket and segment in ("", name):
                        each.pop(ended, None)
        changed = [one for each in list(self._watched) for one in self._show(*each, event.at_ns)]
        return changed + self._settle(event.at_ns)

    def _show(self, segment: str, socket: int, at_ns: int) -> list[Outage]:
        """Bring the one outage of a segment on a socket up to date with what holds there."""
        holding, subject = self._watched[segment, socket], _of_socket(segment, socket)
        shown = self.open.get(("segment", subject))
        if not holding:
            del self._watched[segment, socket]
            return self._end("segment", subject, at_ns)
        state = min(holding, key=ORDER.__getitem__)
        if shown is not None and shown.gap.reason == state:
            return []
        since_ns, detail = holding[state]
        if shown is not None and ORDER[State(shown.gap.reason)] < ORDER[state]:
            since_ns = at_ns  # it was there before, behind another
        segments = frozenset({segment}) if segment else _NOTHING
        return self._begin("segment", subject, since_ns, state, detail, segments)

    # -- instruments

    def _begin_keys(self, event: Event) -> list[Outage]:
        since_ns, detail, state = self._since_ns(event), text(event.body.get("detail")), State.SUBSCRIPTION_REFUSED
        return [
            outage
            for key in keys_of(event)
            for outage in self._begin(INSTRUMENT, key, since_ns, state, detail, frozenset({segment_of(key)}))
        ]

    def _end_keys(self, event: Event) -> list[Outage]:
        return [outage for key in keys_of(event) for outage in self._end(INSTRUMENT, key, event.at_ns)]

    # -- one outage a subject

    def _since_ns(self, event: Event) -> int:
        since_ns = integer(event.body.get("since_ns"))
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


def _of_socket(segment: str, socket: int) -> str:
    """Return how a segment's gap on a socket is called; the first socket is not named."""
    return segment if socket == 1 else f"{segment} {name_of(socket)}"
