"""What to ask of the broker, and how often: pure decisions that the feed carries out."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tickvault.model import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from tickvault.model import Subscription

__all__ = [
    "Method",
    "RateLimit",
    "SubscribeRequest",
    "chunks",
    "excess",
    "new_guid",
    "request_bytes",
]

# The broker answers each request with one snapshot frame: 500 keys in `full` make about 170 kB, 2,000 would make 0.7 MB.
MAX_KEYS: Final = 500

# Keys a connection is served, (only this mode in use, several modes in use); what is beyond is ignored without a word.
LIMITS: Final = {
    Mode.LTPC: (5000, 2000),
    Mode.OPTION_GREEKS: (3000, 2000),
    Mode.FULL: (2000, 1500),
    Mode.FULL_D30: (50, 1500),
}


class Method(StrEnum):
    """What a request does with its keys."""

    SUB = "sub"
    CHANGE_MODE = "change_mode"
    UNSUB = "unsub"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeRequest:
    """The keys of one subscribe message, all in one mode.

    Attributes:
        keys: 1 to 500 instrument keys.
    """

    mode: Mode
    keys: tuple[str, ...]


def chunks(subscriptions: Iterable[Subscription]) -> tuple[SubscribeRequest, ...]:
    """Return the messages that subscribe to everything: modes in order of first use, keys in order, 500 at most each."""
    by_mode: dict[Mode, list[str]] = {}
    for subscription in subscriptions:
        by_mode.setdefault(subscription.mode, []).append(subscription.instrument_key)
    return tuple(
        SubscribeRequest(mode=mode, keys=tuple(keys[start : start + MAX_KEYS]))
        for mode, keys in by_mode.items()
        for start in range(0, len(keys), MAX_KEYS)
    )


def excess(subscriptions: Iterable[Subscription]) -> dict[Mode, int]:
    """Return how many keys of each mode are beyond what the broker serves on one connection; empty when all fit."""
    counts: dict[Mode, int] = {}
    for subscription in subscriptions:
        counts[subscription.mode] = counts.get(subscription.mode, 0) + 1
    combined = len(counts) > 1
    over = {mode: count - LIMITS[mode][combined] for mode, count in counts.items()}
    return {mode: count for mode, count in over.items() if count > 0}


def request_bytes(guid: str, method: Method, mode: Mode | None, keys: Sequence[str]) -> bytes:
    """Return a request as the payload of a binary frame; the broker ignores the same bytes in a text frame.

    Args:
        guid: any unique string; the broker never quotes it.
        method: what to do with the keys.
        mode: None with `unsub`, which has none.
        keys: 1 to 500 instrument keys.
    """
    data: dict[str, object] = {} if mode is None else {"mode": mode.value}
    data["instrumentKeys"] = list(keys)
    message = {"guid": guid, "method": method.value, "data": data}
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def new_guid(random: Random) -> str:
    """Return 20 lower-case hexadecimal digits, the length that the broker's examples have."""
    return f"{random.getrandbits(80):020x}"


class RateLimit:
    """At most `calls` calls in any `window_s` seconds; the caller tells the time, monotonic, in seconds.

    So there are 6 in any 60 s as the broker counts them: a call may reach it later than it is noted, by up to the 10 s
    after which it is given up. The broker allows far more (50 a second), but 2,000 in half an hour over all programs of a user; a connection that
    opens and dies at once must not use that up.
    """

    def __init__(self, calls: int = 6, window_s: float = 70.0) -> None:
        self.calls = calls
        self.window_s = window_s
        self._calls_s: deque[float] = deque(maxlen=calls)

    def delay_s(self, now_s: float) -> float:
        """Return how long to wait before the next call; 0 when it may be made now."""
        if len(self._calls_s) < self.calls:
            return 0.0
        return max(0.0, self._calls_s[0] + self.window_s - now_s)

    def note(self, now_s: float) -> None:
        """Remember that a call is made now."""
        self._calls_s.append(now_s)

    def take(self, now_s: float) -> bool:
        """Remember a call now and return True, unless it has to wait."""
        if self.delay_s(now_s) > 0.0:
            return False
        self.note(now_s)
        return True
