"""How much data a minute of the day usually brings. Pure."""

from __future__ import annotations

import json
import math
from typing import Final

__all__ = ["MINUTES", "Baseline"]

MINUTES: Final = 1440  # of a day
LEARN: Final = 0.3  # weight of today
NEIGHBOURS: Final = 2  # minutes on both sides that it is smoothed over
SIMILAR: Final = 1.5  # a subscription with more or fewer times as many keys has no use for it


class Baseline:
    """How many updates each minute of a day usually brings, by segment; a few kB of JSON."""

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}
        self._minutes: dict[str, dict[int, float]] = {}

    @classmethod
    def from_json(cls, text: str) -> Baseline:
        """Return what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        baseline = cls()
        try:
            for segment, one in json.loads(text)["segments"].items():
                minutes = {int(minute): float(rate) for minute, rate in one["minutes"].items()}
                if int(one["keys"]) <= 0 or not all(0 <= m < MINUTES and 0 <= r < math.inf for m, r in minutes.items()):
                    raise ValueError(f"expected minutes, rates and a number of keys for {segment}")
                baseline._keys[segment], baseline._minutes[segment] = int(one["keys"]), minutes
        except (AttributeError, KeyError, TypeError, RecursionError) as exc:
            raise ValueError(f"expected a baseline as JSON, got {text[:40]!r}") from exc
        return baseline

    def to_json(self) -> str:
        """Return it as text."""
        segments = {
            segment: {"keys": self._keys[segment], "minutes": {str(m): round(r, 4) for m, r in minutes.items()}}
            for segment, minutes in self._minutes.items()
        }
        return json.dumps({"segments": segments}, separators=(",", ":"))

    def usual(self, segment: str, keys: int, minute: int) -> float | None:
        """Return updates a second usual in a minute of the day (IST), None when no earlier day tells."""
        known = self._minutes.get(segment)
        if not known or not 1 / SIMILAR <= keys / max(1, self._keys[segment]) <= SIMILAR:
            return None
        around = [(minute + offset) % MINUTES for offset in range(-NEIGHBOURS, NEIGHBOURS + 1)]
        # The minutes to come can only be known from another day; those past may be today's, and low already.
        if not any(one in known for one in around[NEIGHBOURS:]):
            return None
        rates = [known[one] for one in around if one in known]
        return sum(rates) / len(rates) * keys / max(1, self._keys[segment])

    def learn(self, segment: str, keys: int, minute: int, rate: float) -> None:
        """Take in what a minute of today brought."""
        before = max(1, self._keys.get(segment, keys))
        if not 1 / SIMILAR <= keys / before <= SIMILAR:
            self._minutes.pop(segment, None)
        minutes = self._minutes.setdefault(segment, {})
        if not minutes:
            self._keys[segment] = before = keys
        rate = rate * before / max(1, keys)
        minutes[minute] = minutes[minute] + LEARN * (rate - minutes[minute]) if minute in minutes else rate
