"""What a feed's frames show, connection after connection: told to the session, the journal, the log and the status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from tickvault.brokers.upstox.accounts import SAMPLE, Accounts, KeyReport, Why
from tickvault.brokers.upstox.events import Degraded, Delivered, Plain, Silent
from tickvault.brokers.upstox.findings import Condition, Fact
from tickvault.brokers.upstox.observe import Observer, Show
from tickvault.brokers.upstox.plan import MAX_KEYS
from tickvault.brokers.upstox.transitions import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tickvault.brokers.upstox.events import Event
    from tickvault.brokers.upstox.observe import Observation, RawFrame
    from tickvault.brokers.upstox.phases import Phase
    from tickvault.brokers.upstox.plan import SubscribeRequest
    from tickvault.brokers.upstox.watch import Watch

__all__ = ["Supervision"]

# With accounts.PATIENCE_S: a key that never delivers is told within 10 s of its subscribe.
REPORT_S: Final = 1.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Supervision:
    """What a feed's frames show, connection after connection: the books of its keys, and the watch.

    Attributes:
        keys: how the keys do.
        watched: what is the matter.
        phases: subscribed segment → what it is doing; empty while no connection tells.
        statuses: scope (segment, cas, pre_open) → segment → its last status, verbatim.

    Guarantees:
        The attributes are replaced every second and never changed: any thread may read them.
    """

    def __init__(self, watch: Watch, accounts: Accounts | None = None) -> None:
        self.keys = KeyReport()
        self.watched = watch.report()
        self.phases: dict[str, Phase] = {}
        self.statuses: dict[str, dict[str, str]] = {}
        self._watch = watch
        self._accounts = accounts or Accounts()
        self._observer = Observer()
        self._facts: list[Fact] = []
        self._reported_s = float("-inf")
        self._told: dict[Why, int] = {}
        self._conn = 0

    def connected(self, conn: int, requests: Sequence[SubscribeRequest], now_s: float, now_ns: int) -> None:
        """Begin with a new connection."""
        self._conn = conn
        self._accounts.open(requests)
        keys = [key for request in requests for key in request.keys]
        self._facts += self._watch.connected(conn, keys, now_s, now_ns)

    def disconnected(self) -> None:
        """Forget what segments are doing: nobody tells any more when that changes."""
        self.phases = {}

    def extend(self, requests: Sequence[SubscribeRequest], now_s: float, now_ns: int) -> int:
        """Expect more requests on the same connection; return the number of the first of them."""
        first = self._accounts.extend(requests)
        self._facts += self._watch.amend(self._accounts.keys, now_s, now_ns)
        return first

    def drop(self, keys: Sequence[str], now_s: float, now_ns: int) -> None:
        """Expect nothing of these keys any more."""
        self._accounts.drop(keys)
        self._facts += self._watch.amend(self._accounts.keys, now_s, now_ns)

    @property
    def delivers(self) -> bool:
        """Whether any subscribed key has, on this connection."""
        return self._accounts.answered > 0

    def overdue(self, now_s: float) -> tuple[SubscribeRequest, ...]:
        """Return requests that are to be made once more."""
        return self._accounts.overdue(now_s)

    def subscribed(self, request: int, now_s: float) -> None:
        """Note that a request is sent."""
        self._accounts.subscribed(request, now_s)

    def observe(self, frames: Sequence[RawFrame]) -> list[Observation]:
        """Decode; may run in a thread."""
        return self._observer.observe(frames)

    def digest(self, seen: Sequence[Observation], now_s: float, now_ns: int, *, reading: bool) -> list[Event]:
        """Take in what was seen, and what was not; return what the session has to know of it."""
        events: list[Event] = []
        delivered = False
        for one in seen:
            delivered |= self._accounts.note(one)
            self._watch.note(one)
            if one.novelties:
                log.warning("feed.novelty", conn=one.conn, what=list(one.novelties))
        if any(one.kind is Show.MARKET_INFO for one in seen):
            events.append(Plain.GREETED)
        if delivered:
            events.append(Delivered(self._accounts.answered))
        verdict = self._watch.look(now_s, now_ns, reading=reading)
        self._facts += verdict.facts
        if verdict.silent is not None:
            events.append(Silent(verdict.silent))
        if verdict.degraded is not None:
            events.append(Degraded(*verdict.degraded))
        if now_s - self._reported_s >= REPORT_S or verdict.facts:
            self._report(now_s, now_ns)
            self._tell_missing(now_s, now_ns, reading=reading)
        self._tell_found(now_ns)
        return events

    def overlook(self) -> None:
        """Note that frames went by unobserved."""
        self._accounts.overlook()

    def moved(self, before: State, after: State, now_ns: int) -> None:
        """Note that the session went from one state to another."""
        if (before, after) == (State.SNAPSHOTS, State.MUTE):
            self._facts += self._watch.refuse(now_ns, "subscribed, and no key delivers")
        elif after is State.LIVE:
            self._facts += self._watch.serve(now_ns)

    def expects(self, now_ns: int) -> bool:
        """Whether a subscribed segment trades."""
        return self._watch.expects(now_ns)

    def take_facts(self) -> list[dict[str, object]]:
        """Return what is to be journalled, once."""
        facts, self._facts = self._facts, []
        for fact in facts:
            told = {"conn": fact.conn, "state": fact.state.value, "detail": fact.detail}
            if fact.keys:  # what is wrong with them is told as `feed.keys_silent`
                log.info("feed.keys", **told, count=len(fact.keys), keys=list(fact.keys[:SAMPLE]))
            else:
                (log.warning if fact.state.alarms else log.info)("feed.watch", **told, segments=fact.segments)
        return [fact.body for fact in facts]

    def _report(self, now_s: float, now_ns: int) -> None:
        self._reported_s = now_s
        self.phases = self._watch.phases(now_ns)
        self.statuses = {scope: dict(statuses) for scope, statuses in self._watch.statuses.items()}
        self.keys = self._accounts.report(now_s, self.phases)
        self.watched = self._watch.report()
        for why, keys in self.keys.problems.items():
            if keys.count > self._told.get(why, 0):
                self._told[why] = keys.count
                log.warning("feed.keys_silent", why=why.value, count=keys.count, keys=list(keys.sample))

    def _tell_missing(self, now_s: float, now_ns: int, *, reading: bool) -> None:
        # While nothing at all is served, that says it of every key.
        held = not reading or self.watched.state is Condition.REFUSED
        for (why, since_s), keys in self._accounts.missing(now_s, self.phases, held=held).items():
            since_ns = now_ns - int((now_s - since_s) * 1e9)
            self._facts += self._of_keys(Condition.MISSING, since_ns, keys, f"no data of it: {why.value}")

    def _tell_found(self, now_ns: int) -> None:
        back, gone = self._accounts.found()
        self._facts += self._of_keys(Condition.DELIVERING, now_ns, back, "")
        self._facts += self._of_keys(Condition.DELIVERING, now_ns, gone, "no longer subscribed to")

    def _of_keys(self, state: Condition, since_ns: int, keys: Sequence[str], detail: str) -> Iterator[Fact]:
        """Return the facts of some keys, as many in each as in a request."""
        for start in range(0, len(keys), MAX_KEYS):
            named = tuple(keys[start : start + MAX_KEYS])
            yield Fact(conn=self._conn, state=state, since_ns=since_ns, segments=(), detail=detail, keys=named)
