"""The token that a feed authorizes with, attempt after attempt, and the ones that were refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tickvault.brokers.upstox.tokens import is_static, refuse, wait_changed
from tickvault.errors import FeedUnavailable, TokenRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tickvault.brokers.upstox.api import UpstoxApi
    from tickvault.brokers.upstox.tokens import TokenSource

__all__ = ["Credentials"]


class Credentials:
    """One feed's.

    Args:
        api: authorizes.
        tokens: asked once an attempt, and for each look for another token.

    Attributes:
        is_wanted: whether another token would help: there is none, or the last one was refused.
    """

    def __init__(self, api: UpstoxApi, tokens: TokenSource) -> None:
        self.is_wanted = False
        self._api = api
        self._tokens = tokens
        self._token = ""  # of the attempt under way
        self._used = ""  # authorized last
        self._refused: str | None = None  # last
        self._words = ""  # of that
        self._is_news = False  # and nobody was told yet

    @property
    def is_static(self) -> bool:
        """Whether the token is from the settings, and there is no other."""
        return is_static(self._tokens)

    def take_news(self) -> bool:
        """Return, once, whether a refusal is news."""
        is_news, self._is_news = self._is_news, False
        return is_news

    async def take(self) -> None:
        """Get the token of the attempt that begins.

        Raises:
            FeedUnavailable: there is none at present.
            TokenRefused: there is none that was not refused.
        """
        self.is_wanted = True
        try:
            self._token = await self._tokens.token()
        except TokenRefused as exc:
            raise TokenRefused(self._words or str(exc)) from None
        if self._token == self._refused:
            raise TokenRefused(self._words)
        self.is_wanted = False

    async def authorize(self) -> str:
        """Return an address to open once.

        Raises:
            FeedUnavailable: none is given at present.
            TokenRefused: the token is refused; it is never tried again.
        """
        try:
            uri = await self._api.authorize(self._token)
        except TokenRefused as exc:
            self.is_wanted, self._is_news = True, self._refuse(self._token, str(exc))
            raise
        self._used = self._token
        return uri

    async def wait_changed(self, timeout_s: float) -> None:
        """Return as soon as there is another token than the one refused, at the latest after a time."""
        await wait_changed(self._tokens, self._refused or "", timeout_s)

    async def is_renewed(self, may_call: Callable[[], bool]) -> bool:
        """Return whether there is another token than the one in use, and the broker accepts it.

        Args:
            may_call: asked in the instant before the broker is; whether it may be.

        Raises:
            TokenRefused: there is another one, and the broker refuses it; told once, then it is False.
        """
        try:
            token = await self._tokens.token()
        except (FeedUnavailable, TokenRefused):
            return False
        if token in (self._used, self._refused) or not may_call():
            return False
        try:
            await self._api.authorize(token)
        except FeedUnavailable:
            return False
        except TokenRefused as exc:
            if self._refuse(token, str(exc)):
                raise
            return False
        return True

    def _refuse(self, token: str, words: str) -> bool:
        self._refused, self._words = token, words
        return refuse(self._tokens, token)
