"""Which keys deliver, one by one: the broker says nothing of those that it does not serve. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Final

from tickvault.brokers.upstox.phases import Phase
from tickvault.brokers.upstox.plan import LIMITS, SubscribeRequest
from tickvault.model import Mode, segment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tickvault.brokers.upstox.observe import Observation

__all__ = ["Accounts", "KeyReport", "Keys", "Why"]

PATIENCE_S: Final = 8.0  # for the first delivery; with a look a second a silent key is reported within 10 s
AGAIN_S: Final = 5.0  # for anything at all that a request brings, while others do
SAMPLE: Final = 20  # keys named in a report


class Why(StrEnum):
    """Why a subscribed key has not delivered on this connection."""

    EMPTY = "empty"  # its entry has nothing in it: the key is in the wrong format
    OVER_LIMIT = "over_limit"  # more keys than the broker serves on one connection
    NO_PLUS = "no_plus"  # full_d30, while keys in other modes deliver
    CLOSED = "closed"  # its market is closed
    QUIET = "quiet"  # its market pauses: pre-open, or between that and the open
    NEVER = "never"  # none of these: expired, misspelt, or not served


# These end by themselves.
EXCUSES: Final = frozenset({Why.CLOSED, Why.QUIET})
_EXCUSE: Final = {
    Phase.CLOSED: Why.CLOSED,
    Phase.PRE_OPEN: Why.QUIET,
    Phase.QUIET: Why.QUIET,
    Phase.CLOSING: Why.QUIET,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Some keys: how many, and the first of them by name."""

    count: int = 0
    sample: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """How the subscribed keys do, on the connection that is open or was last.

    Attributes:
        subscribed: how many there are; `delivering` how many have delivered, `pending` how many may yet.
        silent: reason → keys that have not.
        never_seen: keys that have not delivered since the program began.
        oldest: (key, seconds since its last data) of those that have been silent for longest, at most 20.
    """

    subscribed: int = 0
    delivering: int = 0
    pending: int = 0
    silent: Mapping[Why, Keys] = field(default_factory=dict)
    never_seen: Keys = field(default_factory=Keys)
    oldest: tuple[tuple[str, float], ...] = ()

    @property
    def problems(self) -> dict[Why, Keys]:
        """Those of `silent` that somebody has to do something about."""
        return {why: keys for why, keys in self.silent.items() if why not in EXCUSES}


@dataclass(slots=True)
class _Asked:
    """A request: for which mode, and when it was made, in monotonic seconds."""

    mode: Mode
    at_s: float | None = None


class Accounts:
    """Books of one feed's keys, kept in the event loop: no more is done a key than must be, of thousands at once.

    Args:
        patience_s: how long after its subscribe a key may be silent.
        again_s: how long after that a request may bring nothing while others do.
    """

    def __init__(self, patience_s: float = PATIENCE_S, again_s: float = AGAIN_S) -> None:
        self._patience_s = patience_s
        self._again_s = again_s
        self._asked: list[_Asked] = []  # on this connection
        self._request: dict[str, int] = {}  # key → number of the one that it is in
        self._over: set[str] = set()
        self._answered: set[int] = set()
        self._repeated: set[int] = set()
        # Those that have not delivered on this connection; and which of these had an empty entry, may have had data that
        # went by unobserved, or have been due since another time than that at which they were asked for: since a connection
        # before, or since their excuse ended.
        self._waiting: dict[str, None] = {}
        self._empty: set[str] = set()
        self._unsure: set[str] = set()
        self._due_s: dict[str, float] = {}
        self._seen_s: dict[str, float] = {}  # key → its last data ever; those silent for longest first
        self._missing: set[str] = set()  # told as such
        self._held_s = float("-inf")

    @property
    def answered(self) -> int:
        """Requests of this connection that some key of has delivered."""
        return len(self._answered)

    def open(self, requests: Sequence[SubscribeRequest]) -> None:
        """Begin with a new connection, on which these requests will be made."""
        # What the connection before did not serve has been due since then.
        due_s = {key: since_s for key in self._waiting if (since_s := self._since_s(key)) is not None}
        self._asked, self._request, self._waiting, self._due_s = [], {}, {}, {}
        for some in (self._over, self._empty, self._unsure, self._answered, self._repeated):
            some.clear()
        self.extend(requests)
        self._due_s = due_s

    def extend(self, requests: Sequence[SubscribeRequest]) -> int:
        """Expect more requests on the same connection; return the number of the first of them."""
        first = len(self._asked)
        counts = Counter(self._asked[number].mode for number in self._request.values())
        combined = len({*counts, *(request.mode for request in requests)}) > 1
        for number, request in enumerate(requests, first):
            room = max(0, LIMITS[request.mode][combined] - counts[request.mode])
            counts[request.mode] += len(request.keys)
            self._forget(request.keys)
            self._asked.append(_Asked(request.mode))
            self._request.update(dict.fromkeys(request.keys, number))
            self._waiting.update(dict.fromkeys(request.keys))
            self._over.update(request.keys[room:])
        return first

    def drop(self, keys: Sequence[str]) -> None:
        """Close the books of keys that are no longer subscribed to."""
        self._forget(keys)
        for key in keys:
            self._request.pop(key, None)
            self._waiting.pop(key, None)

    def _forget(self, keys: Sequence[str]) -> None:
        for some in filter(None, (self._over, self._empty, self._unsure)):
            some.difference_update(keys)
        for key in keys if self._due_s else ():
            self._due_s.pop(key, None)

    def _since_s(self, key: str) -> float | None:
        """Return since when data of a key that waits is due; None when it was not asked for."""
        return self._due_s.get(key, self._asked[self._request[key]].at_s)

    def overdue(self, now_s: float) -> tuple[SubscribeRequest, ...]:
        """Return requests that brought nothing in their time, not even an empty entry, while others did; each once."""
        if not self._answered:
            return ()  # then it is the connection that is not served
        told = self._answered | self._repeated | {self._request[key] for key in self._empty}
        late = {
            number for number, asked in enumerate(self._asked)
            if number not in told and asked.at_s is not None and now_s - asked.at_s >= self._again_s
        }  # fmt: skip
        keys: dict[int, list[str]] = {}
        for key in self._waiting if late else ():
            if (number := self._request[key]) in late:
                keys.setdefault(number, []).append(key)
        self._repeated.update(keys)
        return tuple(SubscribeRequest(mode=self._asked[number].mode, keys=tuple(of)) for number, of in keys.items())

    @property
    def keys(self) -> tuple[str, ...]:
        """What is subscribed to, or will be."""
        return tuple(self._request)

    def subscribed(self, request: int, now_s: float) -> None:
        """Note that a request is sent."""
        self._asked[request].at_s = now_s

    def overlook(self) -> None:
        """Note that frames went by unobserved: of a key that has not delivered nothing is known on this connection."""
        self._unsure.update(key for key in self._waiting if self._asked[self._request[key]].at_s is not None)

    def note(self, observation: Observation) -> bool:
        """Take in what a frame says; return whether it has data of a subscribed key."""
        keys, seen_s, waiting = observation.keys, self._seen_s, self._waiting
        if self._request.keys().isdisjoint(keys):
            keys = ()
        for key in keys:
            if seen_s.pop(key, None) is not None or key in self._request:
                seen_s[key] = observation.received_s
        new = [key for key in keys if key in waiting] if waiting else []
        for key in new:
            del waiting[key]
        self._answered.update(map(self._request.__getitem__, new))
        self._empty.update(key for key in observation.empty if key in waiting)
        return bool(keys)

    def report(self, now_s: float, phases: Mapping[str, Phase]) -> KeyReport:
        """Return how the keys do.

        Args:
            now_s: monotonic clock.
            phases: segment → what it is doing.
        """
        silent: dict[Why, list[str]] = {}
        ripe = self._ripe(now_s)
        if self._empty or any(ripe):
            judge = self._judge(_excuses(phases))
            for key in self._waiting:
                if ripe[self._request[key]] or key in self._empty:
                    silent.setdefault(judge(key), []).append(key)
        oldest = ((key, seen_s) for key, seen_s in self._seen_s.items() if key in self._request)
        return KeyReport(
            subscribed=len(self._request),
            delivering=len(self._request) - len(self._waiting),
            pending=len(self._waiting) - sum(map(len, silent.values())),
            silent={why: _keys(keys) for why, keys in silent.items()},
            never_seen=_keys([key for key in self._waiting if key not in self._seen_s]),
            oldest=tuple((key, round(now_s - seen_s, 1)) for key, seen_s in islice(oldest, SAMPLE)),
        )

    def missing(
        self, now_s: float, phases: Mapping[str, Phase], *, held: bool = False
    ) -> dict[tuple[Why, float], list[str]]:
        """Return the keys that do not deliver although they should, each once: by reason, and since when (monotonic).

        Args:
            now_s: monotonic clock.
            phases: segment → what it is doing.
            held: whether the absence of data says nothing of a key now; patience begins anew when that is over.
        """
        found: dict[tuple[Why, float], list[str]] = {}
        self._held_s = now_s if held else self._held_s
        ripe, excuses, since_s = self._ripe(now_s), _excuses(phases), now_s - self._patience_s
        if not (excuses or self._empty or any(ripe)):
            return found
        judge, waited = self._judge(excuses), self._held_s <= since_s
        for key in self._waiting:
            if key in self._unsure or key in self._missing:
                continue
            number = self._request[key]
            asked_s = self._asked[number].at_s
            if asked_s is None:
                continue
            why, due_s = judge(key), self._due_s.get(key, asked_s)
            if why in EXCUSES:
                self._due_s[key] = now_s
            elif key in self._empty or (waited and ripe[number] and due_s <= since_s):
                found.setdefault((why, due_s), []).append(key)
                self._missing.add(key)
        return found

    def found(self) -> tuple[list[str], list[str]]:
        """Return the keys that were missing and deliver now, and those that are no longer subscribed to; each once."""
        if not self._missing:
            return [], []
        request, waiting, unsure = self._request, self._waiting, self._unsure
        gone = [key for key in self._missing if key not in request]
        back = [key for key in self._missing if key in request and (key not in waiting or key in unsure)]
        self._missing.difference_update(gone, back)
        return sorted(back), sorted(gone)

    def _ripe(self, now_s: float) -> list[bool]:
        """Return of each request whether its keys have had their time."""
        return [one.at_s is not None and one.at_s <= now_s - self._patience_s for one in self._asked]

    def _judge(self, excuses: Mapping[str, Why]) -> Callable[[str], Why]:
        """Return what says why a key waits; there may be thousands."""
        no_plus, never = self._lacks_plus(), Why.NEVER

        def why(key: str) -> Why:
            if key in self._empty:
                return Why.EMPTY
            if key in self._over:
                return Why.OVER_LIMIT
            if no_plus and self._mode(key) is Mode.FULL_D30:
                return Why.NO_PLUS
            return excuses.get(segment_of(key), never)

        return why

    def _lacks_plus(self) -> bool:
        """Whether no key in full_d30 delivers while others do: what an account without the Plus plan looks like."""
        if not any(one.mode is Mode.FULL_D30 for one in self._asked):
            return False
        served = {self._mode(key) for key in self._request if key not in self._waiting}
        return bool(served) and Mode.FULL_D30 not in served

    def _mode(self, key: str) -> Mode:
        return self._asked[self._request[key]].mode


def _excuses(phases: Mapping[str, Phase]) -> dict[str, Why]:
    """Return why nothing is due of a segment, of those of which that is so."""
    return {segment: _EXCUSE[phase] for segment, phase in phases.items() if phase in _EXCUSE}


def _keys(keys: list[str]) -> Keys:
    return Keys(count=len(keys), sample=tuple(keys[:SAMPLE]))
