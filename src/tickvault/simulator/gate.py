"""Who may come in: tokens, single-use addresses, and which faults are in force."""

from __future__ import annotations

import uuid
from typing import Final, TypeVar

from tickvault.simulator.script import Timed

__all__ = ["Conditions", "Gate"]

_MAX_OPEN_CODES: Final = 10_000  # issued and never used; the oldest are forgotten

_MAX_SEEN: Final = 10_000

T = TypeVar("T", bound=Timed)


class Conditions:
    """The timed faults now in force; a later one of a kind replaces an earlier one."""

    def __init__(self) -> None:
        """Start with none."""
        self._until: dict[type[Timed], tuple[float, Timed]] = {}

    def impose(self, step: Timed, now_s: float, speed: float = 1.0) -> None:
        """Let a step hold from `now_s` (monotonic seconds) on, for its seconds of a clock that is `speed` times as fast."""
        self._until[type(step)] = (now_s + step.seconds / speed, step)

    def now(self, kind: type[T], now_s: float) -> T | None:
        """Return the step of this kind that holds at `now_s`."""
        until_s, step = self._until.get(kind, (0.0, None))
        return step if isinstance(step, kind) and now_s < until_s else None


class Gate:
    """Tokens and the addresses issued for them.

    Attributes:
        token: what `/token` gives out.
    """

    def __init__(self, tokens: frozenset[str] | None, address_life_s: float) -> None:
        """Accept `tokens`, or any (None); an address issued is good for `address_life_s`."""
        self.token = "simulator-token" if tokens is None else min(tokens, default="")
        self._accepted = tokens
        self._dead: set[str] = set()
        self._seen: set[str] = set()
        self._made = 1
        self._life_s = address_life_s
        self._codes: dict[str, tuple[str, float]] = {}

    def accepts(self, authorization: str) -> bool:
        """Say whether an Authorization header carries an accepted token."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or token in self._dead:
            return False
        good = self._accepted is None or token in self._accepted
        if good and len(self._seen) < _MAX_SEEN:
            self._seen.add(token)
        return good

    def rotate(self, *, old_lives: bool = False) -> str:
        """Return a new token that is accepted; every other one no more, unless the old ones live."""
        token = self._make()
        if not old_lives:
            self._accepted = frozenset({token})
        elif self._accepted is not None:
            self._accepted |= {token}
        return token

    def expire(self) -> str:
        """Return a new token; every one that was used or given out so far is accepted no more."""
        self._dead |= self._seen | {self.token} | (self._accepted or frozenset())
        token = self._make()
        if self._accepted is not None:
            self._accepted = frozenset({token})
        return token

    def issue(self, now_s: float) -> tuple[str, str]:
        """Return a new (requestId, code) pair, good for one handshake from `now_s` (monotonic) on."""
        if len(self._codes) >= _MAX_OPEN_CODES:
            del self._codes[next(iter(self._codes))]
        request_id, code = str(uuid.uuid4()), str(uuid.uuid4())
        self._codes[request_id] = code, now_s + self._life_s
        return request_id, code

    def redeem(self, request_id: str, code: str, now_s: float) -> bool:
        """Use a pair up; False if it was never issued, has been used, or is too old."""
        issued, until_s = self._codes.pop(request_id, ("", 0.0))
        return bool(code) and issued == code and now_s < until_s

    def _make(self) -> str:
        self._made += 1
        return f"simulator-token-{self._made}"
