"""Whether data is fresh, judged by what the market does and by what this subscription is used to. Pure.

Laws:
    Silence counts only in a segment that trades, by its status and the calendar; a closed or quiet market is never
    restarted, and neither is time in which we did not read.
    What counts is live data of subscribed keys: a pong, a status, a snapshot say nothing about freshness.
    The patience follows from the learned rate: silence is alarming when it can hardly be chance. After a new connection
    that was of no use it doubles, until data comes.
    A brown-out is worth one new connection; then it is an alarm and nothing more.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import TYPE_CHECKING, Final

from tickvault.brokers.upstox import freshness
from tickvault.brokers.upstox.baseline import MINUTES, Baseline
from tickvault.brokers.upstox.findings import Condition, Fact, Verdict, WatchReport
from tickvault.brokers.upstox.freshness import SegmentWatch, WatchSettings
from tickvault.brokers.upstox.observe import Show
from tickvault.brokers.upstox.phases import Calendar, Phase, phase
from tickvault.model import IST, segment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tickvault.brokers.upstox.observe import Observation

__all__ = ["Watch"]

_NS_PER_S: Final = 1_000_000_000
# A status that says open so long after the calendar's end is one whose successor was missed.
OVERDUE_NS: Final = 60_000_000_000
MAX_FACTOR: Final = 64.0
MAX_UNSERVED: Final = 4.0  # the same, where not even a snapshot came: a minute
PARTIAL: Final = 4.0  # so much more patience with one segment while others deliver
# Closing auction: between these and the next status nothing trades although the segment is open.
_PAUSES: Final = frozenset({"CTS_CLOSE", "CAS_STOP"})
_NOT_DUE: Final = "no data is due any more"


class Watch:
    """Watches over the data of one feed, connection after connection.

    Args:
        calendar: asked at each look; an empty one leaves the judgement to the broker's statuses.
        settings: what counts as silence and as a brown-out.
        baseline: what is usual, from earlier days.
        socket: which of several feeds this is, from 1; each has its own part of the baseline.

    Attributes:
        baseline: brought up to date minute by minute; the caller keeps it.
        statuses: scope (segment, cas, pre_open) → segment → its last status, verbatim.
    """

    def __init__(
        self,
        calendar: Callable[[], Calendar] = Calendar,
        settings: WatchSettings | None = None,
        baseline: Baseline | None = None,
        socket: int = 1,
    ) -> None:
        self.baseline = baseline or Baseline()
        self._socket = socket
        self.statuses: dict[str, dict[str, str]] = {"segment": {}, "cas": {}, "pre_open": {}}
        self._calendar = calendar
        self._settings = settings or WatchSettings()
        self._said_ns: dict[str, int] = {}
        self._pauses: dict[str, tuple[str, int]] = {}
        self._keys: dict[str, str] = {}  # key → its segment
        self._unserved: set[str] = set()  # of these, on this connection
        self._segments: dict[str, SegmentWatch] = {}
        self._conn = 0
        self._connected_ns = 0
        self._looked_s = 0.0
        self._since_ns = 0
        self._refused: tuple[str, ...] | None = None  # the segments that it was told of

    def connected(self, conn: int, keys: Iterable[str], now_s: float, now_ns: int) -> tuple[Fact, ...]:
        """Begin with a connection that is to be subscribed to these keys; return what that ends."""
        self._conn, self._connected_ns, self._looked_s = conn, now_ns, now_s
        ended = self.amend(keys, now_s, now_ns)
        self._unserved = set(self._keys)
        for one in self._segments.values():
            one.served = 0
            one.restart(now_s, now_ns)
            if one.silent:
                one.factor = min(one.factor * 2.0, MAX_FACTOR)
        return ended

    def amend(self, keys: Iterable[str], now_s: float, now_ns: int) -> tuple[Fact, ...]:
        """Go on with these keys on the same connection; return what that ends."""
        served, before, wanted = self._keys.keys() - self._unserved, self._segments, list(keys)
        if wanted != list(self._keys):  # mostly it is the same on a new connection
            self._keys = {key: segment_of(key) for key in wanted}
        self._segments, self._unserved = {}, self._keys.keys() - served
        unserved = Counter(map(self._keys.get, self._unserved))
        for name, count in Counter(self._keys.values()).items():
            one = before.pop(name, None)
            if one is None:
                one = SegmentWatch(name, count, self._settings, self._label(name))
                one.restart(now_s, now_ns)
            one.keys, one.served = count, count - unserved[name]
            self._segments[name] = one
        silent = tuple(one.name for one in before.values() if one.silent)
        brown = tuple(one.name for one in before.values() if one.brown)
        ends = ((Condition.FRESH, silent), (Condition.USUAL, brown))
        return tuple(self._fact(state, now_ns, names, _NOT_DUE) for state, names in ends if names)

    def note(self, observation: Observation) -> None:
        """Take in what a frame says."""
        if observation.kind is Show.MARKET_INFO:
            self._take_statuses(observation)
        if self._unserved and (new := self._unserved.intersection(observation.keys)):
            self._unserved -= new
            for segment, count in Counter(map(self._keys.__getitem__, new)).items():
                self._segments[segment].served += count
        if observation.kind is not Show.LIVE:
            return
        for name, updates in Counter(map(self._keys.get, observation.keys)).items():
            if name is not None:
                one = self._segments[name]
                one.came_frames, one.came_updates = one.came_frames + 1, one.came_updates + updates
                one.data_ns = observation.received_ns

    def look(self, now_s: float, now_ns: int, *, reading: bool = True) -> Verdict:
        """Judge.

        Args:
            now_s: monotonic clock.
            now_ns: UTC wall clock.
            reading: False when reading stood still since the last look, or frames went by unobserved.
        """
        elapsed_s, self._looked_s = now_s - self._looked_s, now_s
        minute = _minute(now_ns)
        facts: list[Fact] = []
        over: dict[str, list[str]] = {}  # silences, by what ended them
        degraded: tuple[str, str] | None = None
        for one in self._segments.values():
            self._arm(one, now_s, now_ns)
            self._end_minute(one, minute)
            if elapsed_s > self._settings.lapse_s or not reading:
                one.came_frames = one.came_updates = 0
                one.restart(now_s, now_ns)
                continue
            came = one.learn(now_s, elapsed_s)
            if one.silent and (came or not one.doing):
                one.silent = False
                over.setdefault("" if one.doing else _NOT_DUE, []).append(one.name)
            usual = one.usual(self.baseline, minute)
            change = one.judge_rate(usual, now_s)
            if change is not None and change is not one.brown:
                facts.append(self._turn_brown(one, usual, now_s, now_ns, begins=change))
            if one.brown and not one.tried:
                # What was tried for one segment was tried for all.
                if not any(other.brown and other.tried for other in self._segments.values()):
                    degraded = ("brown_out", f"{one.name} brings far less than usual")
                one.tried = True
        facts += [self._fact(Condition.FRESH, now_ns, tuple(names), detail) for detail, names in over.items()]
        silent, lone = self._judge_silence(now_s, facts)
        if facts:
            self._since_ns = now_ns
        return Verdict(facts=tuple(facts), silent=silent, degraded=degraded or lone)

    def refuse(self, now_ns: int, detail: str) -> tuple[Fact, ...]:
        """Note that the subscription is not served, and has not been since the connection opened."""
        if self._refused is not None:
            return ()
        self._refused, self._since_ns = tuple(sorted(self._segments)), min(self._connected_ns, now_ns)
        return (self._fact(Condition.REFUSED, self._since_ns, self._refused, detail),)

    def serve(self, now_ns: int) -> tuple[Fact, ...]:
        """Note that it is."""
        if self._refused is None:
            return ()
        refused, self._refused, self._since_ns = self._refused, None, now_ns
        return (self._fact(Condition.SERVED, now_ns, refused, ""),)

    def phases(self, now_ns: int) -> dict[str, Phase]:
        """Return what each subscribed segment is doing."""
        return {name: self._phase(name, now_ns) for name in self._segments}

    def expects(self, now_ns: int) -> bool:
        """Whether data is due: a subscribed segment trades, or is silent in an auction that is used to data."""
        return Phase.OPEN in self.phases(now_ns).values() or any(one.silent for one in self._segments.values())

    def report(self) -> WatchReport:
        """Return what is the matter."""
        silent = tuple(one.name for one in self._segments.values() if one.silent)
        brown = tuple(one.name for one in self._segments.values() if one.brown)
        due = tuple(one.name for one in self._segments.values() if one.doing)
        calm = Condition.FRESH if due else Condition.USUAL
        if self._refused is not None:
            state, where = Condition.REFUSED, self._refused
        elif silent or brown:
            state, where = (Condition.SILENT, silent) if silent else (Condition.BROWN_OUT, brown)
        else:
            state, where = calm, due
        patience_s = {name: round(min(self._patience_s(self._segments[name]), 1e9), 1) for name in due}
        return WatchReport(state=state, since_ns=self._since_ns, segments=where, due=due, patience_s=patience_s)

    def _judge_silence(self, now_s: float, facts: list[Fact]) -> tuple[str | None, tuple[str, str] | None]:
        """Return why the whole connection is mute, or why one segment's silence is worth a new one."""
        due = [one for one in self._segments.values() if one.doing]
        over = [one for one in due if now_s - one.quiet_since_s >= self._patience_s(one)]
        if fresh := [one for one in over if not one.silent]:
            for one in fresh:
                one.silent = True
            names = tuple(sorted(one.name for one in fresh))
            detail = f"no data of subscribed keys for {max(now_s - one.quiet_since_s for one in fresh):.0f} s"
            since_ns = min(one.quiet_since_ns for one in fresh)
            facts.append(self._fact(Condition.SILENT, since_ns, names, detail))
        if over and len(over) == len(due):
            return f"no data in {', '.join(sorted(one.name for one in due))}, which trades", None
        for one in over:
            if not one.tried and now_s - one.quiet_since_s >= PARTIAL * self._patience_s(one):
                one.tried = True
                return None, ("mute", f"no data in {one.name}, which trades, and others deliver")
        return None, None

    def _patience_s(self, one: SegmentWatch) -> float:
        """Return how long a segment may be silent; a connection that has served no key at all, only so long.

        That the subscription is refused says as much, and is told already.
        """
        served = self._refused is not None or any(each.served for each in self._segments.values())
        if one.doing in (freshness.OPEN, freshness.PRE_OPEN) and not served:
            return self._settings.silent_s * min(one.factor, MAX_UNSERVED)
        return one.patience_s()

    def _turn_brown(self, one: SegmentWatch, usual: float, now_s: float, now_ns: int, *, begins: bool) -> Fact:
        one.brown, one.brown_since_s = begins, now_s
        one.tried = False
        detail = f"{one.fast.per_s:.1f} updates a second, usual are {usual:.1f}"
        low_s = now_s - (one.low_since_s or now_s)
        one.low_since_s = one.usual_since_s = None
        state = Condition.BROWN_OUT if begins else Condition.USUAL
        return self._fact(state, now_ns - int(low_s * 1e9), (one.name,), detail)

    def _fact(self, state: Condition, since_ns: int, segments: tuple[str, ...], detail: str) -> Fact:
        return Fact(conn=self._conn, state=state, since_ns=since_ns, segments=segments, detail=detail)

    def _arm(self, one: SegmentWatch, now_s: float, now_ns: int) -> None:
        """Count silence only from the moment on from which data is due."""
        doing = ""
        match self._phase(one.name, now_ns):
            case Phase.OPEN:
                auction, since_ms = self._pauses.get(one.name, ("", 0))
                # In whole numbers: the time is the broker's word, and may be anything.
                today = since_ms and _day(since_ms // 1000) == _day(now_ns // _NS_PER_S)
                doing = freshness.OPEN if not today else "" if auction in _PAUSES else freshness.AUCTION
            case Phase.PRE_OPEN:
                doing = freshness.PRE_OPEN
            case _:
                pass
        if doing != one.doing:
            one.doing, one.doubts_baseline = doing, False
            one.restart(now_s, now_ns)

    def _end_minute(self, one: SegmentWatch, minute: int) -> None:
        if minute == one.minute:
            return
        whole = one.minute >= 0 and one.minute_s >= 50.0
        if whole and one.doing and not (one.silent or one.brown or one.low_since_s):
            self.baseline.learn(one.label, one.keys, one.minute, one.minute_updates / one.minute_s)
        one.minute, one.minute_updates, one.minute_s = minute, 0, 0.0

    def _label(self, name: str) -> str:
        return name if self._socket == 1 else f"{name} {self._socket}"

    def _take_statuses(self, said: Observation) -> None:
        self.statuses["segment"].update(said.segments)
        self.statuses["cas"].update({name: one.status for name, one in said.cas.items()})
        self.statuses["pre_open"].update({name: one.status for name, one in said.pre_open.items()})
        self._said_ns.update(dict.fromkeys(said.segments, said.received_ns))
        self._pauses.update({name: (one.status, one.since_ms) for name, one in said.cas.items()})

    def _phase(self, name: str, now_ns: int) -> Phase:
        """Return what a segment does; a status that the calendar has long overtaken was not followed by its next."""
        calendar, said_ns = self._calendar(), self._said_ns.get(name)
        hours = calendar.hours(name, _date(now_ns))
        if hours is not None and said_ns is not None and said_ns < hours.close_ns <= now_ns - OVERDUE_NS:
            return Phase.CLOSED
        said = self.statuses["segment"]
        status = said.get(name)
        # Whether indices are told of the end of the closing session nobody has measured; their equities are.
        if status == "NORMAL_CLOSE" and said.get(name.replace("_INDEX", "_EQ")) == "CLOSING_END":
            status = "CLOSING_END"
        return phase(name, status, calendar, now_ns, said_ns=said_ns)


def _date(at_ns: int) -> dt.date:
    return dt.datetime.fromtimestamp(at_ns // _NS_PER_S, IST).date()


def _day(at_s: int) -> int:
    """Return the number of a day in India, 5:30 h ahead of UTC."""
    return (at_s + 19_800) // 86_400


def _minute(at_ns: int) -> int:
    return (at_ns // 60_000_000_000 + 330) % MINUTES  # IST is 330 minutes ahead of UTC
