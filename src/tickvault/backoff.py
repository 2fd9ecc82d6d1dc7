"""How long to wait between tries: feed, sinks and webhook alike. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

__all__ = ["backoff"]


def backoff(random: Random, *, first_s: float, cap_s: float) -> Iterator[float]:
    """Yield the seconds to wait before each further try, for ever.

    Jitter over the upper half: each is uniform between half a ceiling and the ceiling, which doubles from `first_s` to
    `cap_s`. Recorders thrown off at one moment do not come back at one moment, and none comes back at once.
    """
    ceiling_s = min(first_s, cap_s)
    while True:
        yield random.uniform(ceiling_s / 2.0, ceiling_s)
        ceiling_s = min(ceiling_s * 2.0, cap_s)
