"""Black-Scholes prices and the shape of a trading day (pure)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = [
    "RATE",
    "YEAR_S",
    "Greeks",
    "black_scholes",
    "day_start_ms",
    "intraday_shape",
    "session_fraction",
    "smile",
]

RATE: Final = 0.065  # about the Indian 91-day treasury bill
SESSION_S: Final = 22_500  # 09:15 to 15:30
YEAR_S: Final = 252 * SESSION_S  # volatility is annual, over traded seconds
_IST_MS: Final = 19_800_000
_DAY_MS: Final = 86_400_000
_OPEN_MS: Final = 33_300_000  # 09:15
_SQRT2: Final = math.sqrt(2.0)
_SQRT2PI: Final = math.sqrt(2.0 * math.pi)


class Greeks(NamedTuple):
    """An option's value and its sensitivities.

    Attributes:
        price: INR.
        delta: INR a rupee of spot.
        theta: INR a calendar day.
        gamma: delta a rupee of spot.
        vega: INR a volatility point (0.01).
        rho: INR a percentage point of interest.
    """

    price: float
    delta: float
    theta: float
    gamma: float
    vega: float
    rho: float


def black_scholes(spot: float, strike: float, years: float, volatility: float, *, call: bool) -> Greeks:
    """Return the value of a European option and its greeks, at the interest rate RATE.

    Args:
        spot: INR, above zero.
        strike: INR, above zero.
        years: calendar years to expiry, above zero.
        volatility: annual, a fraction, above zero.
        call: a put otherwise.
    """
    root = math.sqrt(years)
    spread = volatility * root
    d1 = (math.log(spot / strike) + (RATE + 0.5 * volatility * volatility) * years) / spread
    d2 = d1 - spread
    density = math.exp(-0.5 * d1 * d1) / _SQRT2PI
    owed = strike * math.exp(-RATE * years)
    sign = 1.0 if call else -1.0
    n1 = 0.5 * (1.0 + math.erf(sign * d1 / _SQRT2))
    n2 = 0.5 * (1.0 + math.erf(sign * d2 / _SQRT2))
    decay = -spot * density * volatility / (2.0 * root) - sign * RATE * owed * n2
    return Greeks(
        price=sign * (spot * n1 - owed * n2),
        delta=sign * n1,
        theta=decay / 365.0,
        gamma=density / (spot * spread),
        vega=spot * density * root / 100.0,
        rho=sign * owed * years * n2 / 100.0,
    )


def smile(spot: float, strike: float, at_the_money: float) -> float:
    """Return the implied volatility of a strike: dearer away from the money, and more so below it."""
    moneyness = math.log(strike / spot)
    return max(0.03, min(2.0, at_the_money * (1.0 - 0.9 * moneyness + 9.0 * moneyness * moneyness)))


def day_start_ms(now_ms: int) -> int:
    """Return 00:00 IST of the day of `now_ms`."""
    return (now_ms + _IST_MS) // _DAY_MS * _DAY_MS - _IST_MS


def session_fraction(now_ms: int) -> float:
    """Return how much of the session has passed, 0 to 1.

    Outside 09:15 to 15:30 IST the session repeats round the clock, so that a demonstration at night sees a whole day's
    shape too.
    """
    since_open = (now_ms - day_start_ms(now_ms) - _OPEN_MS) / 1000.0
    return (since_open % SESSION_S) / SESSION_S


def intraday_shape(fraction: float) -> float:
    """Return volatility relative to the day's mean: a U, 1.8 at the open and the close, 0.6 at noon, 1 on average."""
    centred = 2.0 * fraction - 1.0
    return 0.6 + 1.2 * centred * centred
