"""Which socket takes which keys: within the broker's limits, on as few sockets as will do. Pure.

Laws:
    Every wanted key is on one socket, or refused; a socket never has more keys of a mode than the broker serves on it.
    A key that is placed stays where it is for as long as it is wanted in the same mode.
    Nothing is refused that fits on some number of sockets without moving a placed key.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Final

from tickvault.brokers.upstox.plan import LIMITS, chunks
from tickvault.model import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tickvault.model import Subscription

__all__ = ["EMPTY", "PLUS_SOCKETS", "SOCKETS", "Plan", "arithmetic", "plan"]

# Connections the broker allows a user. A socket more than these is refused or pushes another one out; nobody knows.
SOCKETS: Final = 2
PLUS_SOCKETS: Final = 5

# How a socket is used: for one mode alone, or for several (None), which lowers the limits.
_Use = Mode | None
_USES: Final[tuple[_Use, ...]] = (*Mode, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the keys go.

    Attributes:
        sockets: what each connection subscribes to, in the order in which it was placed; none is empty unless all its
            keys have left.
        refused: what fits nowhere.
    """

    sockets: tuple[tuple[Subscription, ...], ...] = ()
    refused: tuple[Subscription, ...] = ()

    @property
    def keys(self) -> int:
        """How many keys are placed."""
        return sum(map(len, self.sockets))

    @property
    def messages(self) -> int:
        """How many messages subscribe to all of them."""
        return sum(len(chunks(socket)) for socket in self.sockets)


EMPTY: Final = Plan()


def plan(wanted: Iterable[Subscription], *, plus: bool, previous: Plan = EMPTY) -> Plan:
    """Return where the wanted keys go.

    Args:
        wanted: each key once; the first have precedence when not all fit.
        plus: whether the account has the broker's Plus plan: more sockets, and `full_d30`.
        previous: the plan in force; its sockets stay, though they be empty.
    """
    wanted = tuple(wanted)
    most = max(PLUS_SOCKETS if plus else SOCKETS, len(previous.sockets))
    known = set(wanted)
    kept = [[one for one in socket if one in known] for socket in previous.sockets]
    placed = {one for socket in kept for one in socket}
    new = [one for one in wanted if one not in placed and (plus or one.mode is not Mode.FULL_D30)]
    refused = [one for one in wanted if not plus and one.mode is Mode.FULL_D30 and one not in placed]
    demand = Counter(one.mode for one in new)
    room: Sequence[Counter[Mode]] = ()
    for count in range(max(1, len(kept)), most + 1):
        room = _room(demand, [Counter(one.mode for one in socket) for socket in kept], count)
        if all(sum(one[mode] for one in room) >= demand[mode] for mode in demand):
            break
    sockets = [*kept, *([] for _ in range(len(room) - len(kept)))]
    for one in new:
        place = next((i for i, left in enumerate(room) if left[one.mode] > 0), None)
        if place is None:
            refused.append(one)
            continue
        room[place][one.mode] -= 1
        sockets[place].append(one)
    while len(sockets) > len(previous.sockets) and not sockets[-1]:
        sockets.pop()
    return Plan(sockets=tuple(map(tuple, sockets)), refused=tuple(refused))


def arithmetic(outcome: Plan, *, plus: bool) -> str:
    """Return in words what of a plan fits and what does not.

    E.g. `412 of 4,412 keys do not fit: 412 of 4,412 in full, where 2 sockets take 2,000 each`.
    """
    total = outcome.keys + len(outcome.refused)
    if not outcome.refused:
        sockets = len(outcome.sockets)
        return f"{total:,} key{_s(total)} on {sockets} socket{_s(sockets)}, {outcome.messages} message{_s(outcome.messages)}"
    wanted: Counter[Mode] = Counter(one.mode for socket in (*outcome.sockets, outcome.refused) for one in socket)
    parts = []
    for mode, over in Counter(one.mode for one in outcome.refused).items():
        if mode is Mode.FULL_D30 and not plus:
            parts.append(f"{over:,} in {mode}, which needs Upstox Plus (UPSTOX_PLUS=true)")
            continue
        limit = _limits(None if len(wanted) > 1 else mode)[mode]
        mixed = " beside other modes" if len(wanted) > 1 else ""
        parts.append(f"{over:,} of {wanted[mode]:,} in {mode}, of which a socket takes {limit:,}{mixed}")
    allowed = PLUS_SOCKETS if plus else SOCKETS
    return (
        f"{len(outcome.refused):,} of {total:,} keys do not fit on the {allowed} sockets that "
        f"{'Upstox Plus' if plus else 'an account without Plus'} has: {', '.join(parts)}"
    )


def _room(demand: Mapping[Mode, int], kept: Sequence[Counter[Mode]], count: int) -> list[Counter[Mode]]:
    """Return how many more keys of each mode `count` sockets should take; the way to use them that takes the most."""
    best: list[Counter[Mode]] = []
    most = -1
    for uses in _ways(kept, count, demand):
        left = [
            Counter({mode: limit - held[mode] for mode, limit in _limits(use).items()})
            for use, held in zip(uses, (*kept, *(Counter[Mode]() for _ in range(count - len(kept)))), strict=True)
        ]
        taken = sum(min(wanted, sum(one[mode] for one in left)) for mode, wanted in demand.items())
        if taken > most:
            best, most = left, taken
    return best


def _ways(kept: Sequence[Counter[Mode]], count: int, demand: Mapping[Mode, int]) -> Iterator[tuple[_Use, ...]]:
    """Yield ways to use the sockets that leave what they hold within the limits; mixed ones last."""
    in_use = {*demand, *(mode for held in kept for mode in held)}
    uses = [use for use in _USES if use is None or use in in_use]
    fixed: list[tuple[_Use, ...]] = [()]
    for held in kept:
        fitting = [use for use in uses if all(held[mode] <= _limits(use).get(mode, 0) for mode in held)]
        fixed = [(*way, use) for way in fixed for use in fitting]
    for way in fixed:
        for new in combinations_with_replacement(uses, count - len(kept)):
            yield (*way, *new)


def _limits(use: _Use) -> dict[Mode, int]:
    """Return mode → keys that a socket used so takes."""
    if use is not None:
        return {use: LIMITS[use][0]}
    # A limit that grows when other modes join (full_d30: 50 alone, 1,500 documented beside others) is taken for a slip.
    return {mode: min(limits) for mode, limits in LIMITS.items()}


def _s(count: int) -> str:
    return "" if count == 1 else "s"
