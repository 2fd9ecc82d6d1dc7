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
    from collections.abc import Callable, Iterable, Mapping, Sequence

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
class _Account:
    """One key; times are monotonic seconds."""

    mode: Mode
    request: int
    over: bool
    asked_s: float | None = None  # on this connection
    due_s: float | None = None  # since when data of it is due: since it was asked for, or its excuse ended
    unsure: bool = False  # its data may have gone by unobserved
    empty: bool = False


class Accounts:
    """Books of one feed's keys, kept in the event loop: what is done each second goes through those that wait alone.

    Args:
        patience_s: how long after its subscribe a key may be silent.
        again_s: how long after that a request may bring nothing while others do.
    """

    def __init__(self, patience_s: float = PATIENCE_S, again_s: float = AGAIN_S) -> None:
        self._patience_s = patience_s
        self._again_s = again_s
        self._accounts: dict[str, _Account] = {}
        self._waiting: dict[str, _Account] = {}  # those that have not delivered on this connection
        self._answered: set[int] = set()
        self._repeated: set[int] = set()
        self._requests = 0
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
        before, self._accounts, self._waiting = self._waiting, {}, {}
        self._answered, self._repeated, self._requests = set(), set(), 0
        self.extend(requests)
        for key in before.keys() & self._accounts.keys():
            self._accounts[key].due_s = before[key].due_s

    def extend(self, requests: Sequence[SubscribeRequest]) -> int:
        """Expect more requests on the same connection; return the number of the first of them."""
        first = self._requests
        self._requests += len(requests)
        counts = Counter(one.mode for one in self._accounts.values())
        combined = len({*counts, *(request.mode for request in requests)}) > 1
        for number, request in enumerate(requests, first):
            room = LIMITS[request.mode][combined] - counts[request.mode]
            counts[request.mode] += len(request.keys)
            new = {key: _Account(request.mode, number, at >= room) for at, key in enumerate(request.keys)}
            self._accounts |= new
            self._waiting |= new
        return first

    def drop(self, keys: Iterable[str]) -> None:
        """Close the books of keys that are no longer subscribed to."""
        for key in keys:
            self._accounts.pop(key, None)
            self._waiting.pop(key, None)

    def overdue(self, now_s: float) -> tuple[SubscribeRequest, ...]:
        """Return requests that brought nothing in their time, not even an empty entry, while others did; each once."""
        if not self._answered:
            return ()  # then it is the connection that is not served
        told = self._answered | self._repeated | {one.request for one in self._waiting.values() if one.empty}
        keys: dict[tuple[int, Mode], list[str]] = {}
        for key, one in self._waiting.items():
            if one.request not in told and one.asked_s is not None and now_s - one.asked_s >= self._again_s:
                keys.setdefault((one.request, one.mode), []).append(key)
        self._repeated.update(number for number, _ in keys)
        return tuple(SubscribeRequest(mode=mode, keys=tuple(of)) for (_, mode), of in keys.items())

    @property
    def keys(self) -> tuple[str, ...]:
        """What is subscribed to, or will be."""
        return tuple(self._accounts)

    def subscribed(self, request: int, now_s: float) -> None:
        """Note that a request is sent."""
        for account in self._accounts.values():
            if account.request == request:
                account.asked_s = now_s
                account.due_s = now_s if account.due_s is None else account.due_s

    def overlook(self) -> None:
        """Note that frames went by unobserved: of a key that has not delivered nothing is known on this connection."""
        for account in self._waiting.values():
            account.unsure |= account.asked_s is not None

    def note(self, observation: Observation) -> bool:
        """Take in what a frame says; return whether it has data of a subscribed key."""
        accounts, waiting, seen_s, at_s = self._accounts, self._waiting, self._seen_s, observation.received_s
        delivered = False
        for key in observation.keys:
            if key not in accounts:
                continue
            delivered = True
            seen_s.pop(key, None)
            seen_s[key] = at_s
            if key in waiting:
                self._answered.add(waiting.pop(key).request)
        for key in observation.empty:
            if key in waiting:
                waiting[key].empty = True
        return delivered

    def report(self, now_s: float, phases: Mapping[str, Phase]) -> KeyReport:
        """Return how the keys do.

        Args:
            now_s: monotonic clock.
            phases: segment → what it is doing.
        """
        silent: dict[Why, list[str]] = {}
        pending = 0
        judge = self._judge(phases)
        for key, account in self._waiting.items():
            if not account.empty and (account.asked_s is None or now_s - account.asked_s < self._patience_s):
                pending += 1
                continue
            silent.setdefault(judge(key, account), []).append(key)
        oldest = ((key, seen_s) for key, seen_s in self._seen_s.items() if key in self._accounts)
        return KeyReport(
            subscribed=len(self._accounts),
            delivering=len(self._accounts) - len(self._waiting),
            pending=pending,
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
        judge = self._judge(phases)
        self._held_s = now_s if held else self._held_s
        since_s = now_s - self._patience_s
        waited = self._held_s <= since_s
        for key, account in self._waiting.items():
            if account.unsure or key in self._missing:
                continue
            if account.asked_s is None or account.due_s is None:
                continue
            why = judge(key, account)
            if why in EXCUSES:
                account.due_s = now_s
            elif account.empty or (waited and account.asked_s <= since_s and account.due_s <= since_s):
                found.setdefault((why, account.due_s), []).append(key)
                self._missing.add(key)
        return found

    def found(self) -> tuple[list[str], list[str]]:
        """Return the keys that were missing and deliver now, and those that are no longer subscribed to; each once."""
        if not self._missing:
            return [], []
        accounts, waiting = self._accounts, self._waiting
        gone = [key for key in self._missing if key not in accounts]
        back = [key for key in self._missing if key in accounts and (key not in waiting or waiting[key].unsure)]
        self._missing.difference_update(gone, back)
        return sorted(back), sorted(gone)

    def _judge(self, phases: Mapping[str, Phase]) -> Callable[[str, _Account], Why]:
        """Return what says why a key waits; there may be thousands."""
        excuses = {segment: _EXCUSE[phase] for segment, phase in phases.items() if phase in _EXCUSE}
        no_plus, never = self._lacks_plus(), Why.NEVER

        def why(key: str, account: _Account) -> Why:
            if account.empty:
                return Why.EMPTY
            if account.over:
                return Why.OVER_LIMIT
            if no_plus and account.mode is Mode.FULL_D30:
                return Why.NO_PLUS
            return excuses.get(segment_of(key), never)

        return why

    def _lacks_plus(self) -> bool:
        """Whether no key in full_d30 delivers while others do: what an account without the Plus plan looks like."""
        if not any(one.mode is Mode.FULL_D30 for one in self._waiting.values()):
            return False
        served = {one.mode for key, one in self._accounts.items() if key not in self._waiting}
        return bool(served) and Mode.FULL_D30 not in served


def _keys(keys: list[str]) -> Keys:
    return Keys(count=len(keys), sample=tuple(keys[:SAMPLE]))
