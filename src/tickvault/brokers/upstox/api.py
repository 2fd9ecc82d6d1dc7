"""The broker's REST API as far as a recorder needs it: permission to open the feed, asked once an attempt.

No message, log line or exception text made here holds a token or an authorized URI: both open the user's account
or feed to whoever reads them.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from tickvault import __version__
from tickvault.addresses import is_loopback
from tickvault.errors import ConfigurationError, FeedUnavailable, TokenRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["USER_AGENT", "Answer", "BrokerUnavailable", "Failure", "UpstoxApi", "describe", "get"]

# The broker's CDN refuses the default names of HTTP libraries (403, Cloudflare 1010) before it looks at the token.
USER_AGENT: Final = f"tickvault/{__version__}"

AUTHORIZE_PATH: Final = "v3/feed/market-data-feed/authorize"
TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 256 * 1024  # a whole answer is below 1 kB; Cloudflare's error pages have some 10 kB
MAX_REDIRECTS: Final = 3
MAX_RETRY_AFTER_S: Final = 300.0  # a longer wish is not obeyed: a session would be over before the next try

_TOKEN_CODES: Final = frozenset(
    {
        "UDAPI100050",  # invalid or expired
        "UDAPI100016",  # invalid credentials
        "UDAPI100067",  # not for this kind of token (extended)
        "UDAPI100073",  # the app it was made for is inactive
    }
)
_RATE_CODES: Final = frozenset({"UDAPI10005", "UDAPI100099"})
_CLOUDFLARE_1010: Final = re.compile(rb"browser_signature_banned|error[ _]code[\"']?: ?\"?1010", re.IGNORECASE)


class Failure(StrEnum):
    """Why an attempt to open the feed failed; journalled."""

    TOKEN_REJECTED = "token_rejected"  # noqa: S105 - a reason, not a token
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    RATE_LIMITED = "rate_limited"


class BrokerUnavailable(FeedUnavailable):
    """The broker was asked and did not open the feed.

    Args:
        message: the cause, in one line, without secrets.
        reason: what kind of failure it is.
        retry_after_s: how long the broker asked to be left alone, if it said so.
    """

    def __init__(self, message: str, *, reason: Failure, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        """Return the body decoded as JSON, or None when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):  # RecursionError: nested deeper than any honest answer
            return None


def describe(exc: BaseException) -> str:
    """Return a network error in a few words that are the same each time and hold no address with its query."""
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not accepted ({exc.certificate_error})"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    # Never str(exc): aiohttp puts the whole URL into some of its texts.
    return type(exc).__name__


async def get(
    session: aiohttp.ClientSession,
    url: URL,
    *,
    what: str,
    headers: Mapping[str, str] | None = None,
    follow: bool = True,
    timeout_s: float = TIMEOUT_S,
    max_bytes: int = MAX_ANSWER_BYTES,
) -> Answer:
    """Return the answer to a GET request, whatever its status.

    Args:
        session: the program's HTTP session.
        url: absolute URL.
        what: the server's name in messages; its URL may hold a secret.
        headers: in addition to a User-Agent.
        follow: go after redirects: never from https to http, nor to another host without TLS.
        timeout_s: bound of the whole exchange.
        max_bytes: bound of the (decompressed) body.

    Raises:
        FeedUnavailable: no whole answer within the bounds.
    """
    sent = {"User-Agent": USER_AGENT, **(headers or {})}
    try:
        async with asyncio.timeout(timeout_s):
            for _ in range(MAX_REDIRECTS + 1):
                async with session.get(url, headers=sent, allow_redirects=False) as response:
                    target = response.headers.get("Location") if response.status // 100 == 3 else None
                    if not follow or target is None:
                        body = await _bounded(response, what, max_bytes)
                        return Answer(status=response.status, headers=response.headers, body=body)
                    url = _redirected(url, target, what)
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise FeedUnavailable(f"{what} cannot be reached: {describe(exc)}") from exc
    raise FeedUnavailable(f"{what} redirects more than {MAX_REDIRECTS} times; set its final address")


async def _bounded(response: aiohttp.ClientResponse, what: str, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise FeedUnavailable(f"{what} answers with more than {max_bytes} bytes")
    return bytes(body)


def _redirected(url: URL, target: str, what: str) -> URL:
    try:
        joined = url.join(URL(target))
    except ValueError as exc:
        raise FeedUnavailable(f"{what} redirects to something that is no address") from exc
    if joined.scheme not in ("http", "https") or (url.scheme, joined.scheme) == ("https", "http"):
        raise FeedUnavailable(f"{what} redirects from {url.scheme} to {joined.scheme}; refused")
    # The settings' rule on plain text was held for the host that they name, and for no other.
    if joined.scheme == "http" and joined.host != url.host:
        raise FeedUnavailable(f"{what} redirects to another host without TLS; refused: set its final address")
    return joined


class UpstoxApi:
    """The broker's REST API at one base address.

    Args:
        base_url: `https://…`; plain `http` only to loopback, where a simulator is.
        session: the program's HTTP session; not closed here.

    Raises:
        ConfigurationError: another kind of address.
    """

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        try:
            base = URL(base_url)
        except ValueError as exc:
            raise ConfigurationError("UPSTOX_API_URL: expected an address such as https://api.upstox.com") from exc
        if not _is_safe(base, "https", "http"):
            raise ConfigurationError(
                f"UPSTOX_API_URL: expected https (plain http is for loopback), got {base.scheme or 'no scheme'}"
            )
        self._authorize_url = base / AUTHORIZE_PATH
        self._session = session

    async def authorize(self, token: str) -> str:
        """Return the address of a feed that may be opened once, at once.

        Raises:
            TokenRefused: the broker does not accept the token.
            BrokerUnavailable: anything else; `reason` and `retry_after_s` say what.
        """
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        try:
            # A redirect would be nothing that the API documents, and would carry the token along.
            answer = await get(self._session, self._authorize_url, what="the broker", headers=headers, follow=False)
        except FeedUnavailable as exc:
            raise BrokerUnavailable(str(exc), reason=Failure.UNREACHABLE) from exc
        if answer.status != 200:
            raise _refusal(answer, token)
        return _authorized_uri(answer.json())


def _authorized_uri(body: object) -> str:
    data = body.get("data") if isinstance(body, dict) else None
    data = data if isinstance(data, dict) else {}
    uri = data.get("authorized_redirect_uri") or data.get("authorizedRedirectUri")
    # Printable ASCII only: it goes into a request line as it is.
    if not isinstance(uri, str) or not re.fullmatch(r"[!-~]{1,4096}", uri):
        raise BrokerUnavailable("the broker authorizes without an address for the feed", reason=Failure.REFUSED)
    try:
        url = URL(uri, encoded=True)
        safe = _is_safe(url, "wss", "ws")
    except ValueError:
        safe = False
    if not safe:
        raise BrokerUnavailable("the broker names a feed that is not wss://; refused", reason=Failure.REFUSED)
    return uri


def _refusal(answer: Answer, token: str) -> TokenRefused | BrokerUnavailable:
    code, words = _broker_words(answer.json())
    said = " ".join(part for part in (f"HTTP {answer.status}", code, words) if part)
    # A gateway may echo the request; its words go to logs and the journal.
    said = re.sub(r"[^\x20-\x7e]+", " ", said.replace(token, "[token]"))[:300]
    if answer.status == 403 and _CLOUDFLARE_1010.search(answer.body):
        return BrokerUnavailable(
            f"Cloudflare (error 1010) refuses {USER_AGENT} by its signature before the broker sees the token; "
            "a proxy between may change the User-Agent",
            reason=Failure.REFUSED,
        )
    if answer.status == 429 or code in _RATE_CODES:
        return BrokerUnavailable(
            f"too many requests: {said}",
            reason=Failure.RATE_LIMITED,
            retry_after_s=_retry_after_s(answer.headers.get("Retry-After", "")),
        )
    if answer.status == 401 or code in _TOKEN_CODES:
        return TokenRefused(f"the broker refuses the token: {said}")
    return BrokerUnavailable(f"the broker does not authorize the feed: {said}", reason=Failure.REFUSED)


def _broker_words(body: object) -> tuple[str, str]:
    errors = body.get("errors") if isinstance(body, dict) else None
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    return str(first.get("error_code") or first.get("errorCode") or ""), str(first.get("message") or "")


def _retry_after_s(value: str) -> float | None:
    # The form with a date is left out: the broker documents no Retry-After at all, proxies send seconds.
    return min(float(value), MAX_RETRY_AFTER_S) if re.fullmatch(r"[0-9]{1,9}", value) else None


def _is_safe(url: URL, scheme: str, loopback_scheme: str) -> bool:
    return bool(url.host) and (url.scheme == scheme or (url.scheme == loopback_scheme and is_loopback(url.host or "")))
