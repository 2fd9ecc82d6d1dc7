"""Who may come in: tokens, single-use addresses, and which faults are in force."""

from __future__ import annotations

import uuid
from typing import Final, TypeVar

from tickvault.simulator.script import Timed

__all__ = ["Conditions", "Gate"]

_MAX_OPEN_CODES: Final = 10_000  # issued and never used; the oldest are forgotten

T = TypeVar("T", bound=Timed)


class Conditions:
    """The timed faults now in force; a later one of a kind replaces an earlier one."""

    def __init__(self) -> None:
        """Start with none."""
        self._until: dict[type[Timed], tuple[float, Timed]] = {}

    def impose(self, step: Timed, now_s: float) -> None:
        """Let a step hold from `now_s` (monotonic seconds) on, for its seconds."""
        self._until[type(step)] = (now_s + step.seconds, step)

    def now(self, kind: type[T], now_s: float) -> T | None:
        """Return the step of this kind that holds at `now_s`."""
        until_s, step = self._until.get(kind, (0.0, None))
        return step if isinstance(step, kind) and now_s < until_s else None


class Gate:
    """Tokens and the addresses issued for them.

    Attributes:
        token: what `/token` gives out.
    """

    def __init__(self, tokens: frozenset[str] | None) -> None:
        """Accept `tokens`; None accepts any."""
        self.token = "simulator-token" if tokens is None else min(tokens, default="")
        self._accepted = tokens
        self._rotations = 1
        self._codes: dict[str, str] = {}

    def accepts(self, authorization: str) -> bool:
        """Say whether an Authorization header carries an accepted token."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        return scheme.lower() == "bearer" and bool(token) and (self._accepted is None or token in self._accepted)

    def rotate(self) -> None:
        """Replace every accepted token by a new one."""
        self._rotations += 1
        self.token = f"simulator-token-{self._rotations}"
        self._accepted = frozenset({self.token})

    def issue(self) -> tuple[str, str]:
        """Return a new (requestId, code) pair, good for one handshake."""
        if len(self._codes) >= _MAX_OPEN_CODES:
            del self._codes[next(iter(self._codes))]
        request_id, code = str(uuid.uuid4()), str(uuid.uuid4())
        self._codes[request_id] = code
        return request_id, code

    def redeem(self, request_id: str, code: str) -> bool:
        """Use a pair up; False if it was never issued or has been used."""
        return bool(code) and self._codes.pop(request_id, None) == code
