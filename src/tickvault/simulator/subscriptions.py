"""What one connection has asked for (pure): requests, limits, wrong keys."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault.model import Mode, segment_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tickvault.simulator.rules import Rules

__all__ = ["COMBINED", "INDIVIDUAL", "Answer", "Request", "Subscriptions", "parse_request"]

# Keys a connection may have in a mode: alone, and while other modes are in use too.
INDIVIDUAL: Final[Mapping[Mode, int]] = {
    Mode.LTPC: 5000,
    Mode.OPTION_GREEKS: 3000,
    Mode.FULL: 2000,
    Mode.FULL_D30: 50,
}
COMBINED: Final[Mapping[Mode, int]] = {
    Mode.LTPC: 2000,
    Mode.OPTION_GREEKS: 2000,
    Mode.FULL: 1500,
    Mode.FULL_D30: 1500,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One understood request; `mode` is None only for `unsub`."""

    method: str
    keys: tuple[str, ...]
    mode: Mode | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request is answered with, in one `initial_feed` frame; with neither, there is no answer.

    Attributes:
        positions: instruments whose state is due.
        malformed: keys that get an entry with every sub-message empty.
        mode: of all of them.
    """

    positions: tuple[int, ...] = ()
    malformed: tuple[str, ...] = ()
    mode: Mode = Mode.LTPC


def parse_request(body: bytes) -> Request | None:
    """Return the request in a binary message, or None for anything that is to be ignored without a word."""
    try:
        document = json.loads(body)
        data = document["data"]
        method, keys = document["method"], data["instrumentKeys"]
        wanted = data.get("mode", Mode.LTPC if method == "sub" else None)
        mode = None if wanted is None or method == "unsub" else Mode(wanted)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        return None
    if method not in {"sub", "change_mode", "unsub"} or (mode is None and method != "unsub"):
        return None
    return Request(method=method, keys=tuple(dict.fromkeys(keys)), mode=mode)


class Subscriptions:
    """The keys of one connection and their modes.

    Attributes:
        modes: position in the universe → mode.
    """

    def __init__(self, listed: Mapping[str, int], rules: Rules) -> None:
        """Start with nothing; `listed` maps key → position."""
        self.modes: dict[int, Mode] = {}
        self._listed = listed
        self._rules = rules
        self._counts: Counter[Mode] = Counter()

    def apply(self, request: Request) -> Answer:
        """Carry out a request; keys that are unknown, over the limit or not in the plan are dropped silently."""
        if request.mode is None:
            for key in request.keys:
                self._drop(self._listed.get(key))
            return Answer()
        if request.mode is Mode.FULL_D30 and not self._rules.plus:
            return Answer()
        positions, malformed = [], []
        for key in request.keys:
            position = self._listed.get(key)
            if position is None:
                if _is_malformed(key, expired=self._rules.expired_keys == "empty"):
                    malformed.append(key)
            elif self._keeps(position, request) or self._is_unseen(position):
                continue
            elif self._put(position, request.mode):
                positions.append(position)
        if request.method == "change_mode" and not self._rules.change_snapshot:
            return Answer()
        return Answer(positions=tuple(positions), malformed=tuple(malformed), mode=request.mode)

    def _put(self, position: int, mode: Mode) -> bool:
        before = self.modes.get(position)
        if before is mode:
            return True
        others = sum(self._counts.values()) - self._counts[mode] - (before is not None)
        if self._counts[mode] >= (COMBINED if others else INDIVIDUAL)[mode]:
            return False
        self._drop(position)
        self.modes[position] = mode
        self._counts[mode] += 1
        return True

    def _keeps(self, position: int, request: Request) -> bool:
        first = self._rules.two_modes == "first" and request.method == "sub"
        return first and self.modes.get(position, request.mode) is not request.mode

    def _is_unseen(self, position: int) -> bool:
        every = self._rules.unseen
        return bool(every) and position % every == every - 1

    def _drop(self, position: int | None) -> None:
        if position is not None and (mode := self.modes.pop(position, None)) is not None:
            self._counts[mode] -= 1


def _is_malformed(key: str, *, expired: bool) -> bool:
    """Say whether a key names a derivative by something else than its numeric token, or (`expired`) one not listed."""
    name = key.partition("|")[2]
    return segment_of(key).endswith("_FO") and bool(name) and (expired or not name.isdigit())
