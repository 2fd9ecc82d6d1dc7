"""Where the access token comes from; asked at every attempt, since tokens die at 03:30 IST.

Which token is tried (`Tokens`), in this order:
    1. Of the settings and the files, the one that was put in place last; one that has expired by its own word is passed
       over while there is another.
    2. What the token URL gives.
    3. Of those passed over, the one put in place last: this machine's clock may be wrong.
One that the broker has refused is never tried again: asking with it once more would tell nothing.
When a token was put in place: the one of DATA_DIR/token at that file's time; the one of the settings when it was made,
if it says so, else when the program started; a file that changes while the program runs, when that is seen.
No message made here holds a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, Self, runtime_checkable

from yarl import URL

from tickvault import hidden
from tickvault.brokers.upstox.api import get
from tickvault.brokers.upstox.jwt import read_claims
from tickvault.brokers.upstox.token_files import (
    STORED_NAME,
    Found,
    Origin,
    Place,
    is_formed,
    read_env_token,
    read_token,
)
from tickvault.errors import FeedUnavailable, TokenRefused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import aiohttp

    from tickvault.settings import Settings

__all__ = ["ChangingTokens", "StaticToken", "TokenSource", "TokenUrl", "Tokens", "is_static", "refuse", "wait_changed"]

_WHAT: Final = "the token URL"
_LOOK_S: Final = 0.5  # between two looks at the files while a changed token is waited for: a stat each
_FIRST_S: Final = 10.0  # for the first token that the URL gives
_URL_PAUSE_S: Final = 15.0  # between two questions to the URL while waiting: a service of the user's
_REMEMBERED: Final = 256  # refused tokens
_REFUSED: Final = (
    "the broker refused every access token there is; `tickvault login` or `tickvault token set` puts another in place"
)


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


@runtime_checkable
class ChangingTokens(TokenSource, Protocol):
    """A source that can tell when another token is to be had.

    For the implementer: several feeds may share it. `wait_changed` is called in place of a feed's pause, and may be
    cancelled at any time.
    """

    def refuse(self, token: str) -> bool:
        """Never give this token again; return whether that is news."""

    async def wait_changed(self, refused: str, timeout_s: float) -> None:
        """Return as soon as there is another token than the refused one, at the latest after a time."""


async def wait_changed(source: TokenSource, refused: str, timeout_s: float) -> None:
    """Wait for another token than the one the broker refused, for `timeout_s` seconds at most.

    A source that cannot tell is asked again after a while.
    """
    if isinstance(source, ChangingTokens):
        await source.wait_changed(refused, timeout_s)
    else:
        await asyncio.sleep(min(timeout_s, _URL_PAUSE_S))


def refuse(source: TokenSource, token: str) -> bool:
    """Tell the source that the broker refuses a token; return whether that is news, which a source may not know."""
    return source.refuse(token) if isinstance(source, ChangingTokens) else True


def is_static(source: TokenSource) -> bool:
    """Whether the token given last is from the settings and there is no other: its refusal is the user's to mend."""
    return isinstance(source, StaticToken) or (isinstance(source, Tokens) and source.static)


class StaticToken:
    """The token of the settings, the same each time."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.strip()

    async def token(self) -> str:
        """Return the token.

        Raises:
            TokenRefused: it is none that HTTP can carry.
        """
        if not is_formed(self._secret):
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
        if not isinstance(token, str) or not is_formed(token := token.strip()):
            raise FeedUnavailable(f'{_WHAT} answers without a token; expected {{"access_token": "…"}}')
        return token


# Set before the start by the one who started the program.
_STATIC: Final = frozenset({Origin.SETTINGS, Origin.FILE, Origin.ENV_FILE})


class Tokens:
    """Every place a token may stand in, read again at every attempt (the order: this module's head).

    Args:
        access_token: from the settings, with or without a NAME_FILE.
        token_file: the file that the NAME_FILE setting names, if that is where `access_token` is from.
        env_file: the `.env` file in use; a token line that changes there counts, one that was there does not: the
            settings have it, or have something stronger.
        data_dir: the data folder; need not exist.
        url: asked when no other place has a usable token.
        wall_ns: UTC wall clock in ns.
        monotonic_s: monotonic clock in s.

    Attributes:
        given: what was given last, None before; by the URL with the time of asking.
    """

    def __init__(
        self,
        *,
        access_token: str | None = None,
        token_file: Path | None = None,
        env_file: Path | None = None,
        data_dir: Path | None = None,
        url: TokenSource | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.given: Found | None = None
        self._has_given = asyncio.Event()
        self._wall_ns = wall_ns
        self._monotonic_s = monotonic_s
        self._url = url
        self._url_asked_s = -_URL_PAUSE_S
        self._url_found: str | None = None  # by a wait, for the next attempt
        self._url_answer: str | None = None
        self._url_words = ""  # why there is no answer
        self._asking = asyncio.Lock()
        self._refused: dict[str, None] = {}
        self._others = False
        self._settings: Found | None = None
        if access_token is not None:
            token = access_token.strip()
            claims = read_claims(token)
            made_ns = claims.issued_ns if claims is not None else None
            self._settings = Found(
                token=token, origin=Origin.SETTINGS, placed_ns=wall_ns() if made_ns is None else made_ns
            )
        self._places = [
            Place(path, origin, read, known)
            for path, origin, read, known in (
                (token_file, Origin.FILE, read_token, access_token and access_token.strip()),
                (env_file, Origin.ENV_FILE, read_env_token, None),
                (data_dir and data_dir / STORED_NAME, Origin.STORED, read_token, None),
            )
            if path is not None
        ]
        self._looking = threading.Lock()  # a look that was cancelled goes on in its thread

    @classmethod
    def of(
        cls, settings: Settings, session: aiohttp.ClientSession, *, wall_ns: Callable[[], int] = time.time_ns
    ) -> Self:
        """Return the tokens of the places that the settings name, and of the data folder."""
        upstox = settings.upstox
        return cls(
            access_token=upstox.access_token.get_secret_value() if upstox.access_token is not None else None,
            token_file=upstox.token_file,
            env_file=upstox.env_file,
            data_dir=settings.data_dir,
            url=TokenUrl(upstox.token_url, session) if upstox.token_url is not None else None,
            wall_ns=wall_ns,
        )

    @property
    def static(self) -> bool:
        """Whether what was given last is from the settings or their files, and no other place has anything to try."""
        return self.given is not None and self.given.origin in _STATIC and not self._others

    async def look(self) -> tuple[Found, ...]:
        """Return what the settings and the files have now, each token once, the one put in place last first."""
        return await asyncio.to_thread(self._look)

    async def token(self) -> str:
        """Return the token to try now.

        Raises:
            FeedUnavailable: the URL has none, or nothing has.
            TokenRefused: the broker refused all there are, or the only one is none that HTTP can carry.
        """
        found = await self.look()
        usable = [one for one in found if not self._is_spent(one)]
        expired = [one for one in found if one.token not in self._refused and one not in usable]
        self._others = len(usable) > 1 or self._url is not None
        if not usable and self._url is not None:
            asked = Found(token=await self._ask(), origin=Origin.URL, placed_ns=self._wall_ns())
            usable = [asked] if asked.token not in self._refused else []
        if candidates := usable or expired:
            self.given = candidates[0]
            hidden.hide([self.given.token])
            self._has_given.set()
            return self.given.token
        if found or self._url is not None:
            raise TokenRefused(_REFUSED)
        if self._settings is not None:
            return await StaticToken(self._settings.token).token()
        raise FeedUnavailable("there is no token; `tickvault login` or `tickvault token set` puts one in place")

    async def known(self) -> str | None:
        """Return the token given last, else one of the settings and the files.

        The URL is not asked: where there is nothing else, what it gives to another caller is waited for, not for long.
        """
        if self.given is None and self._url is not None and not await self.look():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_S):
                    await self._has_given.wait()
        if self.given is not None:
            return self.given.token
        return next((one.token for one in await self.look() if not self._is_spent(one)), None)

    def refuse(self, token: str) -> bool:
        """Never give this token again; return whether that is news."""
        news = token not in self._refused
        self._refused[token] = None
        while len(self._refused) > _REMEMBERED:
            del self._refused[next(iter(self._refused))]
        return news

    async def wait_changed(self, refused: str, timeout_s: float) -> None:
        """Return as soon as a place has another token than those refused, at the latest after `timeout_s` seconds."""
        self.refuse(refused)
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(self._files_changed(), name="tokens:files")]
            if self._url is not None:
                waits.append(group.create_task(self._url_changed(), name="tokens:url"))
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            for task in waits:
                task.cancel()

    async def _files_changed(self) -> None:
        while True:
            if any(not self._is_spent(one) for one in await self.look()):
                return
            await asyncio.sleep(_LOOK_S)

    async def _url_changed(self) -> None:
        while self._url_is_no_help():
            if (rest_s := self._url_rest_s()) > 0:
                await asyncio.sleep(min(rest_s, _LOOK_S))  # another feed's wait may hear of it before
                continue
            with contextlib.suppress(FeedUnavailable):
                token = await self._ask()
                self._url_found = None if token in self._refused else token

    async def _ask(self) -> str:
        """Return the URL's answer; what a wait has just learned counts as the next one.

        While it has nothing that could be tried, it is asked once in 15 s, whoever asks.
        """
        assert self._url is not None
        async with self._asking:
            if self._url_found is not None:
                token, self._url_found = self._url_found, None
                return token
            if not self._url_is_no_help() or self._url_rest_s() <= 0:
                self._url_asked_s = self._monotonic_s()
                self._url_answer, self._url_words = None, f"{_WHAT} has not answered yet"
                try:
                    self._url_answer = await self._url.token()
                except FeedUnavailable as exc:
                    self._url_words = str(exc)
                    raise
            if self._url_answer is None:
                raise FeedUnavailable(self._url_words)
            return self._url_answer

    def _url_is_no_help(self) -> bool:
        return self._url_answer is None or self._url_answer in self._refused

    def _url_rest_s(self) -> float:
        return self._url_asked_s + _URL_PAUSE_S - self._monotonic_s()

    def _look(self) -> tuple[Found, ...]:
        with self._looking:
            found = [one for place in self._places if (one := place.look(self._wall_ns())) is not None]
        if self._settings is not None and is_formed(self._settings.token):
            found.append(self._settings)
        found.sort(key=lambda one: one.placed_ns, reverse=True)
        first = {one.token: one for one in reversed(found)}
        return tuple(one for one in found if first[one.token] is one)

    def _is_spent(self, one: Found) -> bool:
        return one.token in self._refused or self._has_expired(one)

    def _has_expired(self, one: Found) -> bool:
        claims = read_claims(one.token)
        return claims is not None and claims.expires_ns is not None and claims.expires_ns <= self._wall_ns()
