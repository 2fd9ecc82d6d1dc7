"""Option values and the shape of the day."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.simulator.pricing import RATE, black_scholes, day_start_ms, intraday_shape, session_fraction, smile

MIDNIGHT_IST_MS = 1_742_322_600_000  # 2025-03-19


@given(
    spot=st.floats(50, 50_000),
    ratio=st.floats(0.7, 1.4),
    years=st.floats(0.002, 1.0),
    volatility=st.floats(0.05, 0.9),
)
def test_a_call_less_a_put_is_the_forward(spot: float, ratio: float, years: float, volatility: float) -> None:
    """Put-call parity holds, and so do its derivatives."""
    strike = spot * ratio
    call = black_scholes(spot, strike, years, volatility, call=True)
    put = black_scholes(spot, strike, years, volatility, call=False)
    assert call.price - put.price == pytest.approx(spot - strike * math.exp(-RATE * years), abs=1e-6 * spot)
    assert call.delta - put.delta == pytest.approx(1.0)
    assert call.gamma == put.gamma
    assert call.vega == put.vega


@given(ratio=st.floats(0.8, 1.25), years=st.floats(0.01, 0.5), volatility=st.floats(0.08, 0.6), call=st.booleans())
def test_greeks_are_the_derivatives_of_the_price(ratio: float, years: float, volatility: float, call: bool) -> None:
    """Delta, vega and theta agree with finite differences, in the units documented."""
    spot, strike = 1000.0, 1000.0 * ratio
    at = black_scholes(spot, strike, years, volatility, call=call)
    up = black_scholes(spot + 0.01, strike, years, volatility, call=call)
    dearer = black_scholes(spot, strike, years, volatility + 1e-5, call=call)
    later = black_scholes(spot, strike, years - 1e-6, volatility, call=call)
    assert (up.price - at.price) / 0.01 == pytest.approx(at.delta, abs=1e-3)
    assert (dearer.price - at.price) / 1e-5 / 100 == pytest.approx(at.vega, abs=1e-3)
    assert (later.price - at.price) / 1e-6 / 365 == pytest.approx(at.theta, abs=1e-2)


def test_values_have_the_magnitude_of_the_published_sample() -> None:
    """An index call near the money a week before expiry looks like the broker's own example."""
    value = black_scholes(22_450.0, 22_450.0, 6 / 365, 0.1334, call=True)
    assert 0.5 < value.delta < 0.56
    assert -25 < value.theta < -5
    assert 0.0005 < value.gamma < 0.002
    assert 8 < value.vega < 18
    assert 1 < value.rho < 5


def test_the_smile_is_lowest_near_the_money() -> None:
    """Far strikes cost more volatility, low ones most."""
    assert smile(100, 100, 0.12) == pytest.approx(0.12)
    assert smile(100, 80, 0.12) > smile(100, 125, 0.12) > 0.12


def test_the_day_starts_at_midnight_in_india() -> None:
    """The published capture's 1d candle starts at the same millisecond."""
    assert day_start_ms(MIDNIGHT_IST_MS) == MIDNIGHT_IST_MS
    assert day_start_ms(MIDNIGHT_IST_MS + 86_399_999) == MIDNIGHT_IST_MS
    assert day_start_ms(MIDNIGHT_IST_MS - 1) == MIDNIGHT_IST_MS - 86_400_000


def test_volatility_is_a_u_over_the_session() -> None:
    """Open and close are wild, noon is calm, the mean is 1, and the shape repeats at night."""
    open_ms = MIDNIGHT_IST_MS + (9 * 60 + 15) * 60_000
    assert session_fraction(open_ms) == 0.0
    assert session_fraction(open_ms + 22_500_000) == 0.0
    assert 0.0 <= session_fraction(MIDNIGHT_IST_MS) < 1.0
    shape = [intraday_shape(i / 1000) for i in range(1001)]
    assert shape[0] == shape[-1] == pytest.approx(3 * shape[500])
    assert sum(shape) / len(shape) == pytest.approx(1.0, abs=0.01)
