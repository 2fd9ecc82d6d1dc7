"""Where the access token comes from; asked at every attempt, since tokens die at 03:30 IST."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from yarl import URL

from tickvault.brokers.upstox.api import get
from tickvault.errors import FeedUnavailable, TokenRefused

if TYPE_CHECKING:
    import aiohttp

__all__ = ["StaticToken", "TokenSource", "TokenUrl"]

# What may stand behind `Authorization: Bearer`; a JWT has some 500 characters.
_TOKEN: Final = re.compile(r"[!-~]{1,8192}")
_WHAT: Final = "the token URL"


class TokenSource(Protocol):
    """Gives the access token.

    For the implementer: called once before every attempt to open the feed, never concurrently by one feed. Do not
    cache: the attempt is made because the last one failed, perhaps by the token. Never log or quote the token.
    """

    async def token(self) -> str:
        """Return the token to try now.

        Raises:
            FeedUnavailable: there is none at present; the feed asks again after its pause.
        """


class StaticToken:
    """The token of the settings, the same each time."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.strip()

    async def token(self) -> str:
        """Return the token.

        Raises:
            TokenRefused: it is none that HTTP can carry.
        """
        if not _TOKEN.fullmatch(self._secret):
            raise TokenRefused("the access token is empty or has characters that no token has; copy it once more")
        return self._secret


class TokenUrl:
    """A URL that answers with `{"access_token": …}`, asked anew each time.

    Args:
        url: its query may hold a secret; never quoted.
        session: the program's HTTP session; not closed here.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = URL(url)
        self._session = session

    async def token(self) -> str:
        """Return the token that the URL gives now.

        Raises:
            FeedUnavailable: no answer within 10 s, an error, or no token in it.
        """
        headers = {"Accept": "application/json", "Cache-Control": "no-cache"}
        answer = await get(self._session, self._url, what=_WHAT, headers=headers)
        if answer.status != 200:
            raise FeedUnavailable(f"{_WHAT} answers with HTTP {answer.status}")
        body = answer.json()
        token = body.get("access_token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token := token.strip()):
            raise FeedUnavailable(f'{_WHAT} answers without a token; expected {{"access_token": "…"}}')
        return token
