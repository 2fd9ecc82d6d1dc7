"""Connections of ours that close one another, told from those that end for other reasons."""

from __future__ import annotations

from collections import deque

import pytest

from tickvault.brokers.upstox.evictions import FIRST_REST_S, FORGET_S, LONGEST_REST_S, MANY, Evictions


def carousel(evictions: Evictions, begin_s: float, *, sockets: int = 3, allowed: int = 2) -> list[tuple[int, float]]:
    """Open all, each a second after it was evicted; return who was told to stay away, and for how long, until it is calm."""
    waiting, open_, rests, now_s = deque(range(1, sockets + 1)), deque[int](), list[tuple[int, float]](), begin_s
    for _ in range(20):
        if not waiting:
            break
        now_s += 1.0
        socket = waiting.popleft()
        evictions.opened(socket, now_s)
        open_.append(socket)
        if len(open_) > allowed:
            evicted = open_.popleft()
            rest_s = evictions.ended(evicted, now_s + 0.1, by_us=False)
            if rest_s:
                rests.append((evicted, rest_s))
            else:
                waiting.append(evicted)
    return rests


def test_three_where_two_are_allowed_come_to_rest() -> None:
    """The last one stays away, after one round; when it tries again and it is no better, for longer."""
    evictions = Evictions()
    assert carousel(evictions, 0.0) == [(3, FIRST_REST_S)]
    assert carousel(evictions, 1000.0) == [(3, 2 * FIRST_REST_S)]
    for number in range(2, 6):
        [(_, longest_s)] = carousel(evictions, 1000.0 * number)
    assert longest_s == LONGEST_REST_S
    assert carousel(evictions, 1e5 + FORGET_S) == [(3, FIRST_REST_S)]


def test_four_come_down_to_two() -> None:
    """The last ones stay away, one after the other."""
    assert [socket for socket, _ in carousel(Evictions(), 0.0, sockets=4)] == [4, 3]
    assert [socket for socket, _ in carousel(Evictions(), 0.0, sockets=4, allowed=3)] == [4]


@pytest.mark.parametrize("step_s", [0.5, 1.0, 3.0])
def test_a_broker_that_drops_everything_is_no_eviction(step_s: float) -> None:
    """Neither all at once, nor one after the other, however soon they are back."""
    evictions, now_s = Evictions(), 0.0
    for _ in range(50):
        for socket in (1, 2):
            now_s += step_s
            evictions.opened(socket, now_s)
        for socket in (1, 2):
            assert evictions.ended(socket, now_s + 0.1, by_us=False) == 0.0


def test_an_end_of_another_kind_begins_anew() -> None:
    """The newest, or long after another one opened, or by us."""
    evictions = Evictions()
    for number in range(4 * MANY):
        evictions.opened(1, 10.0 * number)
        evictions.opened(2, 10.0 * number + 5.0)
        assert evictions.ended(1 if number % MANY else 2, 10.0 * number + 6.0, by_us=False) == 0.0
        assert evictions.ended(2, 10.0 * number + 9.0, by_us=True) == 0.0
