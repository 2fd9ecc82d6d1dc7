"""The planner: every key on one socket or refused, within the limits, and where it was."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tickvault.brokers.upstox.plan import LIMITS
from tickvault.brokers.upstox.planner import EMPTY, Plan, arithmetic, plan
from tickvault.model import Mode, Subscription

MODES = list(Mode)


def keys(count: int, mode: Mode = Mode.FULL, prefix: str = "A") -> tuple[Subscription, ...]:
    return tuple(Subscription(instrument_key=f"NSE_EQ|{prefix}{i}", mode=mode) for i in range(count))


def sizes(outcome: Plan) -> list[int]:
    return [len(socket) for socket in outcome.sockets]


def assert_sound(outcome: Plan, wanted: tuple[Subscription, ...], *, plus: bool) -> None:
    placed = [one for socket in outcome.sockets for one in socket]
    assert Counter([*placed, *outcome.refused]) == Counter(wanted)
    assert len(outcome.sockets) <= (5 if plus else 2)
    for socket in outcome.sockets:
        counts = Counter(one.mode for one in socket)
        for mode, count in counts.items():
            assert count <= LIMITS[mode][len(counts) > 1]
        assert counts[Mode.FULL_D30] <= 50
    assert plus or not any(one.mode is Mode.FULL_D30 for one in placed)


def test_one_socket_where_one_will_do() -> None:
    """The user's other connection stays free."""
    assert sizes(plan(keys(2000), plus=False)) == [2000]
    assert sizes(plan((*keys(1500), *keys(2000, Mode.LTPC, "B")), plus=False)) == [3500]
    assert plan((), plus=False) == EMPTY


def test_more_sockets_where_they_are_needed() -> None:
    """2,001 keys take a second socket; modes get sockets of their own when mixing would cost room."""
    assert sizes(plan(keys(2001), plus=False)) == [2000, 1]
    assert sorted(sizes(plan((*keys(1800), *keys(100, Mode.LTPC, "B")), plus=False))) == [100, 1800]
    assert sizes(plan(keys(10_000), plus=True)) == [2000] * 5
    assert sorted(sizes(plan((*keys(100, Mode.FULL_D30), *keys(10, prefix="B")), plus=True))) == [50, 60]


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    """The first keys are served, the rest named by number."""
    outcome = plan(keys(4412), plus=False)
    assert (sizes(outcome), outcome.refused) == ([2000, 2000], keys(4412)[4000:])
    assert arithmetic(outcome, plus=False) == (
        "412 of 4,412 keys do not fit on the 2 sockets that an account without Plus has: "
        "412 of 4,412 in full, of which a socket takes 2,000"
    )
    d30 = plan(keys(3, Mode.FULL_D30), plus=False)
    assert (d30.sockets, len(d30.refused)) == ((), 3)
    assert "needs Upstox Plus (UPSTOX_PLUS=true)" in arithmetic(d30, plus=False)
    assert arithmetic(plan(keys(501), plus=False), plus=False) == "501 keys on 1 socket, 2 messages"


def test_growth_leaves_keys_where_they_are() -> None:
    """A socket fills up before the next one is opened, and nothing moves."""
    before = plan(keys(1990), plus=False)
    after = plan((*keys(1990), *keys(20, prefix="B")), plus=False, previous=before)
    assert (after.sockets[0][:1990], sizes(after)) == (before.sockets[0], [2000, 10])
    assert plan(keys(1990), plus=False, previous=after).sockets == (keys(1990), ())


def test_a_socket_that_is_full_in_one_mode_takes_no_other() -> None:
    """1,800 keys in full are more than a mixed socket serves, so another mode opens the second one."""
    before = plan(keys(1800), plus=False)
    after = plan((*keys(1800), *keys(5, Mode.LTPC, "B")), plus=False, previous=before)
    assert sizes(after) == [1800, 5]


counts = st.fixed_dictionaries({mode: st.sampled_from([0, 1, 40, 60, 600, 1501, 2100, 5200]) for mode in Mode})


def of_counts(by_mode: dict[Mode, int], prefix: str) -> tuple[Subscription, ...]:
    return tuple(one for mode, count in by_mode.items() for one in keys(count, mode, f"{prefix}{mode}"))


@given(first=counts, second=counts, plus=st.booleans(), leaving=st.integers(1, 7))
@settings(deadline=None, max_examples=25)
def test_every_key_once_within_the_limits_and_stable(
    first: dict[Mode, int], second: dict[Mode, int], plus: bool, leaving: int
) -> None:
    """Whatever comes and goes: sound plans, and a key that stays wanted stays on its socket."""
    one = of_counts(first, "A")
    before = plan(one, plus=plus)
    assert_sound(before, one, plus=plus)
    two = (*(key for i, key in enumerate(one) if i % leaving or leaving == 1), *of_counts(second, "B"))
    after = plan(two, plus=plus, previous=before)
    assert_sound(after, two, plus=plus)
    where, wanted = {key: i for i, socket in enumerate(after.sockets) for key in socket}, set(two)
    assert all(where[key] == i for i, socket in enumerate(before.sockets) for key in socket if key in wanted)
    assert plan(two, plus=plus, previous=after) == after


@pytest.mark.parametrize("plus", [False, True])
@given(by_mode=counts)
@settings(deadline=None, max_examples=25)
def test_nothing_is_refused_that_some_way_fits(plus: bool, by_mode: dict[Mode, int]) -> None:
    """Compared with trying every way to use the sockets, and no more of them than that takes."""
    if not plus:
        by_mode = {**by_mode, Mode.FULL_D30: 0}
    limits = {None: {mode: min(LIMITS[mode]) for mode in Mode}, **{mode: {mode: LIMITS[mode][0]} for mode in Mode}}
    enough = [
        count
        for count in range(1, 6 if plus else 3)
        if any(
            all(sum(limits[use].get(mode, 0) for use in way) >= wanted for mode, wanted in by_mode.items())
            for way in product(limits, repeat=count)
        )
    ]
    outcome = plan(of_counts(by_mode, "A"), plus=plus)
    assert bool(outcome.refused) == (not enough)
    if enough and outcome.keys:
        assert len(outcome.sockets) <= enough[0]
