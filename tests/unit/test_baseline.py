"""What is usual in a minute of the day."""

from __future__ import annotations

import pytest

from tickvault.brokers.upstox.baseline import Baseline


def test_baseline_of_another_subscription_is_not_used() -> None:
    """Ten keys say nothing of five hundred; somewhat more or fewer are scaled."""
    baseline = Baseline()
    baseline.learn("NSE_EQ", 500, 600, 100.0)
    assert baseline.usual("NSE_EQ", 500, 600) == pytest.approx(100.0)
    assert baseline.usual("NSE_EQ", 400, 600) == pytest.approx(80.0)
    assert baseline.usual("NSE_EQ", 10, 600) is None
    assert baseline.usual("NSE_FO", 500, 600) is None
    assert baseline.usual("NSE_EQ", 500, 603) is None
    baseline.learn("NSE_EQ", 500, 600, 200.0)
    assert baseline.usual("NSE_EQ", 500, 600) == pytest.approx(130.0)
    baseline.learn("NSE_EQ", 10, 601, 5.0)
    assert (baseline.usual("NSE_EQ", 10, 601), baseline.usual("NSE_EQ", 500, 600)) == (pytest.approx(5.0), None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"segments": {"A": {}}}',
        '{"segments": {"A": 3}}',
        '{"segments": {"A": {"keys": 1, "minutes": {"5": NaN}}}}',
    ],
)
def test_baseline_that_is_none(text: str) -> None:
    """A damaged file is refused in one way."""
    with pytest.raises(ValueError, match=r"."):
        Baseline.from_json(text)
