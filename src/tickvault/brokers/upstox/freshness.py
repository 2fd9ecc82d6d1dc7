"""Whether one segment's data is fresh: how long silence may last in it, and what rate is too low. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tickvault.brokers.upstox.baseline import Baseline

__all__ = ["AUCTION", "OPEN", "PRE_OPEN", "SegmentWatch", "WatchSettings"]

# What a segment does while data is due from it; the empty text: none is.
OPEN, AUCTION, PRE_OPEN = "open", "auction", "pre_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """What counts as silence and as a brown-out.

    Attributes:
        silent_s: silence shorter than this never counts.
        chance: of a silence at the learned rate, below which it is alarming.
        memory_s: how far back the learned rate looks.
        prior_s: what is assumed before anything is learned weighs as much as so many seconds of it.
        prior_per_key: frames a second that a key is assumed to bring to a trading segment (equities average 0.16).
        prior_per_index: the same of an index, which changes about once a second.
        prior_most: the broker sends no more frames a second than this.
        lapse_s: looks that are further apart say nothing about the time between them.
        low_share: of the usual updates, below which it is a brown-out; it ends at twice that.
        low_s: over how many seconds updates are counted for that.
        hold_s: for how long it must be so.
        low_least: updates that `low_s` must usually bring for fewer to mean anything.
        own_s: how far back today's own usual looks; `own_after_s`: how much of that it takes at least.
        resign_s: a brown-out that lasts so long is what is usual now.
    """

    silent_s: float = 15.0
    chance: float = 1e-6
    memory_s: float = 300.0
    prior_s: float = 30.0
    prior_per_key: float = 0.01
    prior_per_index: float = 0.5
    prior_most: float = 4.0
    lapse_s: float = 5.0
    low_share: float = 0.25
    low_s: float = 20.0
    hold_s: float = 40.0
    low_least: float = 30.0
    own_s: float = 600.0
    own_after_s: float = 120.0
    resign_s: float = 1800.0


@dataclass(slots=True)
class _Rate:
    """Events and seconds, the older the less they count."""

    memory_s: float
    events: float = 0.0
    seconds: float = 0.0

    def add(self, events: int, seconds: float) -> None:
        fade = math.exp(-seconds / self.memory_s)
        self.events, self.seconds = self.events * fade + events, self.seconds * fade + seconds

    @property
    def per_s(self) -> float:
        return self.events / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class SegmentWatch:
    """What is known of one subscribed segment."""

    name: str
    keys: int
    settings: WatchSettings
    label: str  # in the baseline
    served: int = 0  # keys, on this connection; only these can be expected to bring anything
    doing: str = ""  # open, auction, pre_open: data is due; empty: none is
    frames: dict[str, _Rate] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)  # the longest silence lately that was no alarm
    own: dict[str, _Rate] = field(default_factory=dict)
    fast: _Rate = field(init=False)
    came_frames: int = 0
    came_updates: int = 0
    quiet_since_s: float = 0.0
    quiet_since_ns: int = 0
    data_ns: int = 0
    silent: bool = False
    factor: float = 1.0
    tried: bool = False  # a new connection, for this silence or brown-out
    low_since_s: float | None = None
    usual_since_s: float | None = None
    brown: bool = False
    brown_since_s: float = 0.0
    doubts_baseline: bool = False
    known: float = 0.0  # updates a second that earlier days brought at this time
    minute: int = -1
    minute_updates: int = 0
    minute_s: float = 0.0

    def __post_init__(self) -> None:
        self.fast = _Rate(self.settings.low_s)

    def restart(self, now_s: float, now_ns: int) -> None:
        """Begin to count silence and updates anew."""
        self.quiet_since_s, self.quiet_since_ns = now_s, now_ns
        self.fast = _Rate(self.settings.low_s)
        self.low_since_s = self.usual_since_s = None
        self.minute = -1

    def patience_s(self) -> float:
        """Return how long silence may last: until its chance, with what is known of the rate, is tiny."""
        settings, learned = self.settings, self.frames.get(self.doing, _Rate(1.0))
        prior = 0.0
        if self.doing == OPEN:
            per_key = settings.prior_per_index if self.name.endswith("_INDEX") else settings.prior_per_key
            updates = max(per_key * self.served, settings.low_share * self.known)
            # Updates that fall into one frame of the broker's are one event.
            prior = settings.prior_most * -math.expm1(-updates / settings.prior_most)
        events, seconds = learned.events + prior * settings.prior_s, learned.seconds + settings.prior_s
        if events <= 0:
            return math.inf
        # P(no event in T) when the rate itself is only known from `events` in `seconds`: (s / (s + T)) ** events.
        power = -math.log10(settings.chance) / events
        patience_s = seconds * (10.0**power - 1.0) if power < 100 else math.inf
        return max(settings.silent_s, patience_s, 2.0 * self.gaps.get(self.doing, 0.0)) * self.factor

    def learn(self, now_s: float, elapsed_s: float) -> bool:
        """Take in what came since the last look; return whether anything did that was due."""
        settings, doing = self.settings, self.doing
        if not doing:
            self.came_frames = self.came_updates = 0
            return False
        if came := self.came_frames > 0:
            gap_s = now_s - self.quiet_since_s
            if not self.silent and doing in self.frames and self.frames[doing].events:
                kept_s = self.gaps.get(doing, 0.0) * math.exp(-elapsed_s / settings.memory_s)
                self.gaps[doing] = max(gap_s, kept_s)
            self.quiet_since_s, self.quiet_since_ns, self.factor = now_s, self.data_ns, 1.0
            self.tried = self.tried and self.brown
        if came or not self.silent:
            self.frames.setdefault(doing, _Rate(settings.memory_s)).add(self.came_frames, elapsed_s)
        self.fast.add(self.came_updates, elapsed_s)
        if self.low_since_s is None and not self.brown and not self.silent:
            self.own.setdefault(doing, _Rate(settings.own_s)).add(self.came_updates, elapsed_s)
        self.minute_updates += self.came_updates
        self.minute_s += elapsed_s
        self.came_frames = self.came_updates = 0
        return came

    def usual(self, baseline: Baseline, minute: int) -> float:
        """Return updates a second to be expected now; 0 when nothing tells."""
        known = None if self.doubts_baseline else baseline.usual(self.label, self.keys, minute)
        self.known = known or 0.0
        if known is not None:
            return known
        own = self.own.get(self.doing)
        return own.per_s if own is not None and own.seconds >= self.settings.own_after_s else 0.0

    def judge_rate(self, usual: float, now_s: float) -> bool | None:
        """Return True when a brown-out begins, False when it ends, None when nothing changes."""
        settings = self.settings
        told = bool(self.doing) and not self.silent and self.fast.seconds >= settings.low_s / 2
        if not told or usual * settings.low_s < settings.low_least:
            self.low_since_s = None
            return False if self.brown and not (self.doing and usual) else None
        share = self.fast.per_s / usual
        self.low_since_s = (self.low_since_s or now_s) if share < settings.low_share else None
        self.usual_since_s = (self.usual_since_s or now_s) if share >= 2 * settings.low_share else None
        if not self.brown:
            began = self.low_since_s is not None and now_s - self.low_since_s >= settings.hold_s
            return True if began else None
        if now_s - self.brown_since_s >= settings.resign_s:
            self.doubts_baseline = True
            self.own.pop(self.doing, None)
            return False
        ended = self.usual_since_s is not None and now_s - self.usual_since_s >= settings.hold_s / 2
        return False if ended else None
