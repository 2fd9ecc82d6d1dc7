"""How long to wait between tries: feed, sinks and webhook alike. Pure."""

from __future__ import annotations

import datetime as dt
import email.utils
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

__all__ = ["backoff", "retry_after_s"]

# A server whose clock or proxy is wrong must not silence us for days.
_LONGEST_WAIT_S: Final = 3600.0


def backoff(random: Random, *, first_s: float, cap_s: float) -> Iterator[float]:
    """Yield the seconds to wait before each further try, for ever.

    Jitter over the upper half: each is uniform between half a ceiling and the ceiling, which doubles from `first_s` to
    `cap_s`. Recorders thrown off at one moment do not come back at one moment, and none comes back at once.
    """
    ceiling_s = min(first_s, cap_s)
    while True:
        yield random.uniform(ceiling_s / 2.0, ceiling_s)
        ceiling_s = min(ceiling_s * 2.0, cap_s)


def retry_after_s(value: str, now: dt.datetime) -> float | None:
    """Return the seconds a Retry-After header asks for, given as seconds or as an HTTP date; None if it is neither.

    An hour is the longest wait that is believed.
    """
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return min(_LONGEST_WAIT_S, float(value))
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=dt.UTC)
    return min(_LONGEST_WAIT_S, max(0.0, (aware - now).total_seconds()))
