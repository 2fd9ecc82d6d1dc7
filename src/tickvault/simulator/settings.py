"""What a simulator is told at its start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tickvault.errors import ConfigurationError
from tickvault.simulator.calendar import ALWAYS_OPEN
from tickvault.simulator.clock import check_speed, parse_start_ms
from tickvault.simulator.rules import Rules

if TYPE_CHECKING:
    from pathlib import Path

    from tickvault.simulator.calendar import Calendar
    from tickvault.simulator.reading import Script
    from tickvault.simulator.script import Step

__all__ = ["SimulatorSettings"]

_MAX_INSTRUMENTS: Final = 20_000  # more than any user may subscribe to
_MAX_UPDATES: Final = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """A simulator's settings.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        instruments: how many the master list has.
        updates_per_second: instrument updates in live frames, over all subscribed instruments, however many they are.
        seed: of the market; the same seed, start and subscriptions give the same market.
        script: what to play: the name of a built-in script, a file, a script, or steps.
        log: file to which every data frame is appended before it is sent.
        tokens: access tokens that are accepted; None = any.
        rules: the account's, and the broker's habits; a script may have others.
        calendar: when the exchanges trade; statuses and `/v2/market/…` follow it.
        start: when in India the simulation starts, HH:MM[:SS] today or an ISO date with it; None = now.
        speed: seconds of the simulation in one of the wall clock's; None = 1.
        ping_after_s: seconds without data after which the server pings.
    """

    host: str = "127.0.0.1"
    port: int = 0
    instruments: int = 100
    updates_per_second: float = 100.0
    seed: int = 1
    script: str | Path | Script | tuple[Step, ...] | None = None
    log: Path | None = None
    tokens: frozenset[str] | None = None
    rules: Rules = field(default_factory=Rules)
    calendar: Calendar = ALWAYS_OPEN
    start: str | None = None
    speed: float | None = None
    ping_after_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated.

        Raises:
            ConfigurationError: names the setting, its bounds and what was got.
        """
        if not 0 <= self.port <= 65_535:
            raise ConfigurationError(f"--port: expected 0 to 65535 (0 = any free port), got {self.port}")
        if not 1 <= self.instruments <= _MAX_INSTRUMENTS:
            raise ConfigurationError(f"--instruments: expected 1 to {_MAX_INSTRUMENTS}, got {self.instruments}")
        if not 0 <= self.updates_per_second <= _MAX_UPDATES:
            raise ConfigurationError(
                f"--updates-per-second: expected 0 to {_MAX_UPDATES:g}, got {self.updates_per_second:g}"
            )
        if self.start is not None:
            parse_start_ms(self.start, 0, "--start")
        if self.speed is not None:
            check_speed(self.speed, "--speed")
        if not 0 < self.ping_after_s < math.inf:
            raise ConfigurationError(f"ping_after_s: expected more than 0, got {self.ping_after_s:g}")
