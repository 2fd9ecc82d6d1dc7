"""The login of the broker's OAuth code flow: a dialog in a browser, a code, a daily token.

    dialog_url ──▶ browser ──▶ the redirect URI ──▶ Callback (a loopback port) or paste ──▶ code ──▶ exchange ──▶ token

Laws. The code, the client secret and the token are in no message; `state` ties an answer to the question that this
process asked, so that no other page can slip in a code of its own account.
Source: Upstox documentation, "Authorize" and "Get Token".
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import aiohttp
from aiohttp import web
from yarl import URL

from tickvault.addresses import is_loopback
from tickvault.brokers.upstox.api import USER_AGENT, describe
from tickvault.errors import ConfigurationError, FeedUnavailable, Refused

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Callback", "Client", "code_of", "dialog_url", "exchange", "new_state"]

DIALOG_PATH: Final = "v2/login/authorization/dialog"
TOKEN_PATH: Final = "v2/login/authorization/token"  # noqa: S105 - a path
TIMEOUT_S: Final = 15.0
MAX_ANSWER_BYTES: Final = 64 * 1024  # a whole answer is below 4 kB
_CODE: Final = re.compile(r"[A-Za-z0-9._~-]{1,512}")
_PRINTABLE_TOKEN: Final = re.compile(r"[!-~]{1,8192}")

# The broker's code → (whether a setting has to be corrected, what to do). Source: Upstox documentation, error codes.
_TOO_MANY: Final = "too many requests: wait a minute, then run `tickvault login` again"
_STEPS: Final = {
    "UDAPI100057": (
        False,
        "the code is not valid: it is good for one try within minutes; run `tickvault login` again",
    ),
    "UDAPI100068": (
        True,
        "the app is not known by this client id and redirect URI: compare UPSTOX_CLIENT_ID and UPSTOX_REDIRECT_URI, "
        "to the letter, with the app's page",
    ),
    "UDAPI100069": (
        True,
        "client id and secret do not belong together: copy UPSTOX_CLIENT_ID and UPSTOX_CLIENT_SECRET anew from the "
        "app's page",
    ),
    "UDAPI100070": (
        True,
        "the redirect URI is not the app's: UPSTOX_REDIRECT_URI has to be the same to the letter, port and slash "
        "included",
    ),
    "UDAPI100016": (
        True,
        "the broker does not accept these credentials: compare UPSTOX_CLIENT_ID, UPSTOX_CLIENT_SECRET and "
        "UPSTOX_REDIRECT_URI with the app's page",
    ),
    "UDAPI100073": (True, "the app is inactive: activate it on the broker's page, or make another one"),
    "UDAPI1155": (True, "the app is still being reviewed by the broker: wait, or use an Analytics token"),
    "UDAPI1157": (True, "the app has expired: renew it on the broker's page, or make another one"),
    "UDAPI10005": (False, _TOO_MANY),
    "UDAPI100099": (False, _TOO_MANY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """The user's app with the broker.

    Attributes:
        client_id: its API key; no secret, but it names the app.
        client_secret: never shown.
        redirect_uri: what the app is registered with, to the letter.
        api_url: base of the broker's REST API; plain `http` only to loopback.

    Raises:
        ConfigurationError: names the setting that cannot work, and what was expected.
    """

    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    api_url: str = "https://api.upstox.com"

    def __post_init__(self) -> None:
        named = {
            "UPSTOX_CLIENT_ID": self.client_id,
            "UPSTOX_CLIENT_SECRET": self.client_secret,
            "UPSTOX_REDIRECT_URI": self.redirect_uri,
        }
        if missing := [name for name, value in named.items() if not value]:
            raise ConfigurationError(
                f"a login needs {' and '.join(missing)}: they are on the page of your app at the broker's; "
                "an Analytics token needs no login (`tickvault token set`)"
            )
        if self.redirect.scheme not in ("http", "https") or not self.redirect.host or self.redirect.fragment:
            raise ConfigurationError("UPSTOX_REDIRECT_URI: expected an address such as http://127.0.0.1:8485/callback")
        api = _parsed(self.api_url, "UPSTOX_API_URL")
        if api.scheme != "https" and not (api.scheme == "http" and is_loopback(api.host or "")):
            raise ConfigurationError("UPSTOX_API_URL: expected https (plain http is for loopback)")

    @property
    def redirect(self) -> URL:
        """The redirect URI, parsed."""
        return _parsed(self.redirect_uri, "UPSTOX_REDIRECT_URI")


def new_state() -> str:
    """Return what nobody can guess."""
    return secrets.token_urlsafe(24)


def dialog_url(client: Client, state: str) -> str:
    """Return the address that the account's owner opens in a browser; it holds no secret but `state`."""
    query = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": client.redirect_uri,
        "state": state,
    }
    return str((URL(client.api_url) / DIALOG_PATH).with_query(query))


_NO_CODE: Final = (
    "there is no code in it: expected the whole address that the browser was sent to after the login, "
    "such as http://127.0.0.1:8485/callback?code=…&state=…, or the code alone"
)


def code_of(pasted: str, state: str) -> str:
    """Return the code in what the user has pasted: the whole address that the browser was sent to, or the code alone.

    Raises:
        Refused: there is none in it, it answers another login, or the broker said no; nothing of it is quoted.
    """
    text = pasted.strip().strip("\"'")
    if _CODE.fullmatch(text):
        return text  # alone it brings no state along; who pastes it has seen where it comes from
    try:
        url = URL(text)
    except ValueError:
        raise Refused(_NO_CODE) from None
    if not url.query:
        raise Refused(_NO_CODE)
    return _code_in(url.query.get("code"), url.query.get("state"), url.query.get("error"), state)


def _code_in(code: str | None, answered: str | None, error: str | None, state: str) -> str:
    if not hmac.compare_digest((answered or "").encode(), state.encode()):
        raise Refused("this is the answer to another login (its `state` differs); open the address printed last")
    if error:
        raise Refused("the broker's dialog ended without a login; run `tickvault login` again")
    if code is None or not _CODE.fullmatch(code):
        raise Refused(_NO_CODE)
    return code


class Callback:
    """Listens on a loopback port for the one request that the browser is sent back with; listens while entered.

    Args:
        client: whose redirect URI's path is answered.
        state: what the answer has to carry; anything else is answered with 400 and otherwise ignored, so that no page
            of another origin can end the wait.
        port: to listen on; None takes the redirect URI's, 0 any free one.

    Attributes:
        port: the one it listens on, once entered.

    Raises:
        ConfigurationError: without a port given, the redirect URI is not of this machine.
        Refused: on entering: the port is taken.
    """

    def __init__(self, client: Client, state: str, *, port: int | None = None) -> None:
        redirect = client.redirect
        if port is None and (redirect.scheme != "http" or not is_loopback(redirect.host or "")):
            raise ConfigurationError(
                "UPSTOX_REDIRECT_URI does not lead to this machine (http://127.0.0.1:PORT/…): use "
                "`tickvault login --paste`, or --port PORT if it is forwarded to a port here"
            )
        self.port = port if port is not None else redirect.port or 80
        self._host = "::1" if redirect.host == "::1" else "127.0.0.1"
        self._path = redirect.path
        self._state = state
        # A queue of one: the first good answer counts, whatever follows it.
        self._answers: asyncio.Queue[str | Refused] = asyncio.Queue(1)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1024)
        app.router.add_get("/{path:.*}", self._answer)
        # The access log would have the code.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self.port).start()
        except OSError as exc:
            await self._runner.cleanup()
            raise Refused(
                f"cannot listen on {self._host}:{self.port}: {exc.strerror}; free the port, or use --paste"
            ) from exc
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def code(self, timeout_s: float) -> str:
        """Return the code that the browser brings.

        Raises:
            Refused: it does not come in time, or the broker's dialog said no.
        """
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._answers.get()
        except TimeoutError:
            raise Refused(
                f"nobody has logged in within {timeout_s:g} s; run `tickvault login` again, or with --paste when "
                "the browser is on another machine"
            ) from None
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path != self._path:
            return _page(404, "Not the address of a login.")
        query = request.query
        answered = query.get("state") or ""
        if not hmac.compare_digest(answered.encode(), self._state.encode()):
            return _page(400, "This is not the login that tickvault is waiting for. Open the address it printed last.")
        answer: str | Refused
        try:
            answer = _code_in(query.get("code"), answered, query.get("error"), self._state)
        except Refused as exc:
            answer = exc
        try:
            self._answers.put_nowait(answer)
        except asyncio.QueueFull:
            return _page(410, "This login has been answered already.")
        if isinstance(answer, Refused):
            return _page(400, "The login did not succeed. The terminal says more.")
        return _page(200, "tickvault has the answer. You may close this page; the terminal says how it went.")


def _page(status: int, text: str) -> web.Response:
    return web.Response(
        status=status,
        text=f"<!doctype html><title>tickvault</title><p>{text}",
        content_type="text/html",
        headers={
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": "default-src 'none'",
        },
    )


async def exchange(session: aiohttp.ClientSession, client: Client, code: str) -> str:
    """Return the access token that a code is good for; the code is used up even when this fails, once it was sent.

    Raises:
        ConfigurationError: the broker does not accept the app's settings; says which and what to do.
        Refused: it does not accept the code.
        FeedUnavailable: no sensible answer.
    """
    form = {
        "code": code,
        "client_id": client.client_id,
        "client_secret": client.client_secret,
        "redirect_uri": client.redirect_uri,
        "grant_type": "authorization_code",
    }
    headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
    url = URL(client.api_url) / TOKEN_PATH
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            session.post(url, data=form, headers=headers, allow_redirects=False) as response,
        ):
            status, body = response.status, await _bounded(response)
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        sent = not isinstance(exc, aiohttp.ClientConnectorError)
        code_is = "may be used up" if sent else "was not sent, but it is not good for long"
        raise FeedUnavailable(
            f"the broker cannot be reached: {describe(exc)}; the code {code_is}, log in again"
        ) from exc
    answer = _json(body)
    if status == 200:
        return _token_in(answer)
    raise _refusal(status, answer, (code, client.client_secret, client.client_id))


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise FeedUnavailable(f"the broker answers a login with more than {MAX_ANSWER_BYTES} bytes; log in again")
    return bytes(body)


def _json(body: bytes) -> dict[str, object]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _token_in(answer: dict[str, object]) -> str:
    # Flat, not in the envelope of every other answer; beside the token it names the account's owner.
    token = answer.get("access_token")
    if not isinstance(token, str) or not _PRINTABLE_TOKEN.fullmatch(token):
        raise FeedUnavailable("the broker's answer to the login has no token in it; log in again")
    return token


def _refusal(
    status: int, answer: dict[str, object], private: tuple[str, ...]
) -> ConfigurationError | Refused | FeedUnavailable:
    errors = answer.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    code = str(first.get("error_code") or first.get("errorCode") or "")
    words = str(first.get("message") or "")
    for secret in private:
        words = words.replace(secret, "[…]")
    said = re.sub(r"[^\x20-\x7e]+", " ", " ".join(part for part in (f"HTTP {status}", code, words) if part))[:300]
    if code in _STEPS:
        is_setting, step = _STEPS[code]
        kind = ConfigurationError if is_setting else Refused
        return kind(f"the broker refuses the login ({said}): {step}")
    if status == 429:
        return Refused(f"the broker refuses the login ({said}): {_TOO_MANY}")
    if status >= 500:
        return FeedUnavailable(f"the broker cannot answer the login now ({said}); log in again in a minute")
    return Refused(
        f"the broker refuses the login ({said}); compare the app's settings with the broker's page, and log in again"
    )


def _parsed(text: str, name: str) -> URL:
    try:
        return URL(text)
    except ValueError:
        raise ConfigurationError(f"{name}: expected an address; correct it") from None
