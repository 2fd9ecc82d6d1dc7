"""Tells of a token that is about to end: in the log, in the journal, and so to the webhook.

Laws. A warning is said once a token and mark while the program runs. Nothing that is said holds a token, or tells whose
it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import structlog

from tickvault.brokers.upstox.jwt import Kind, described, expiry, read_claims, warnings_due
from tickvault.brokers.upstox.token_files import Origin
from tickvault.errors import FeedUnavailable, TokenRefused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tickvault.brokers.upstox.jwt import Claims, Expiry, Mark
    from tickvault.brokers.upstox.token_files import Found
    from tickvault.brokers.upstox.tokens import Tokens

__all__ = ["TokenWatch"]

LOOK_S: Final = 60.0

_log: Final = structlog.get_logger(__name__)


class TokenWatch:
    """Looks at the token in use.

    Args:
        tokens: of the feed; asked for another one only when a warning is due.
        wall_ns: UTC wall clock in ns.
        session: when the session opens and ends that runs at a time or is next, all UTC ns;
            None: not known.
        fact: journals the fact `token`.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        wall_ns: Callable[[], int],
        session: Callable[[int], tuple[int, int] | None],
        fact: Callable[[str, Mapping[str, object]], Awaitable[None]],
    ) -> None:
        self._tokens = tokens
        self._wall_ns = wall_ns
        self._session = session
        self._fact = fact
        self._told: set[tuple[int, Mark]] = set()

    @property
    def shown(self) -> str | None:
        """Kind, plan and expiry of the token given last, for people; None before there was one."""
        given = self._tokens.given
        return None if given is None else described(given.token, self._wall_ns(), obtained_ns=_obtained_ns(given))

    @property
    def expires_s(self) -> float | None:
        """When it ends, UTC in s; None when that is not known."""
        given = self._tokens.given
        end = None if given is None else _read(given)[1]
        return None if end is None else end.at_ns / 1e9

    async def keep(self) -> None:
        """Look once a minute."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Warn of the token's end if that is due; by then another one may be to be had."""
        if not self._due():
            return
        with contextlib.suppress(FeedUnavailable, TokenRefused):
            await self._tokens.token()
        due, given = self._due(), self._tokens.given
        if not due or given is None:
            return
        claims, end = _read(given)
        assert end is not None
        self._told.update((end.at_ns, mark) for mark in due)
        _log.warning("token.expiring", mark=due[0].value, token=self.shown)
        kind = claims.kind if claims is not None else Kind.UNKNOWN
        body = {
            "state": "expiring",
            "mark": due[0].value,
            "kind": kind.value,
            "ends": str(end),
            "expires_ns": end.at_ns,
        }
        await self._fact("token", body)

    def _due(self) -> tuple[Mark, ...]:
        given = self._tokens.given
        if given is None:
            return ()
        claims, end = _read(given)
        if end is None:
            return ()
        now_ns = self._wall_ns()
        made_ns = claims.issued_ns if claims is not None and claims.issued_ns is not None else _obtained_ns(given)
        told = [mark for at_ns, mark in self._told if at_ns == end.at_ns]
        return warnings_due(end.at_ns, now_ns, self._session(now_ns), issued_ns=made_ns, told=told)


def _read(given: Found) -> tuple[Claims | None, Expiry | None]:
    claims = read_claims(given.token)
    return claims, expiry(claims, obtained_ns=_obtained_ns(given))


def _obtained_ns(given: Found) -> int | None:
    # Of the others it is only known since when they stand there.
    return given.placed_ns if given.origin is Origin.STORED else None
