"""HTTP with one InfluxDB or VictoriaMetrics: a request, its bounded answer, credentials; every failure in our words.

No message carries a credential: the URL is shown without its user part, and secrets are blotted out of answers.
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import aiohttp
from yarl import URL

from tickvault.addresses import bare_url, is_loopback
from tickvault.errors import ConfigurationError, SinkMisconfigured, SinkUnavailable
from tickvault.sinks.influx_answers import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

__all__ = ["Body", "ConnectionLost", "InfluxHttp"]

Body: TypeAlias = "bytes | memoryview"

# InfluxDB quotes every line it refuses; more than this much is not worth reading, bisecting is.
_MAX_ANSWER_BYTES: Final = 1_000_000
_PIECE_BYTES: Final = 512 * 1024


class ConnectionLost(SinkUnavailable):
    """The connection broke while a request was under way."""


class InfluxHttp:
    """Asks one server.

    Args:
        url: base URL; a user part in it counts as username and password.
        token: goes with the v2 and v3 APIs; with v1 only when there is no username.
        username: goes with the v1 API; with v2 only when there is no token.
        password: belongs to the username.
        api: `v1`, `v2`, `v3` or `auto`: whose credentials go with a question that does not say.
        timeout_s: bound of one request, from connecting to the end of the answer.
        session: used instead of a session of its own, and left open.

    Raises:
        ConfigurationError: no header can carry the token.

    Attributes:
        shown: the URL for messages.
        remote: the server is not on this machine.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str | None,
        username: str | None,
        password: str | None,
        api: str,
        timeout_s: float,
        session: aiohttp.ClientSession | None,
    ) -> None:
        given = URL(url)
        self.shown = bare_url(url)
        self.remote = not is_loopback(given.host or "")
        self._url = given.with_user(None).with_query(None).with_fragment(None)
        # A header cannot carry it, and aiohttp's words about that would.
        if token and not token.isprintable():
            raise ConfigurationError("INFLUX_TOKEN holds a line break or another control character; set it anew")
        self._token = token
        self._username = username or given.user
        self._password = password or given.password or ""
        self._api = api
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(10.0, timeout_s))
        self._given_session = session
        self._own_session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Make one request; every failure but an answer becomes SinkUnavailable or SinkMisconfigured."""
        url = (self._url / path).with_query(query or {})
        sent = {"Accept-Encoding": "identity", **(self.authorization(self._api) if headers is None else headers)}
        data: AsyncIterator[memoryview] | Body | None = body
        if body is not None and len(body) > _PIECE_BYTES:
            sent["Content-Length"], data = str(len(body)), _pieces(body)
        with _translating(self.shown):
            async with self._session().request(
                method, url, data=data, headers=sent, timeout=self._timeout, allow_redirects=False
            ) as response:
                told, cut = await _read_bounded(response)
                text = told.decode(errors="replace")
                return Answer(status=response.status, text=text, headers=response.headers, cut=cut)

    def authorization(self, api: str) -> dict[str, str]:
        """Return the header that goes with an API, empty without credentials."""
        if self._token and (api in {"v2", "v3"} or not self._username):
            return {"Authorization": f"{'Bearer' if api == 'v3' else 'Token'} {self._token}"}
        if self._username:
            return {"Authorization": f"Basic {self._pair()}"}
        return {}

    def blotted(self, answer: Answer) -> Answer:
        """Return an answer without our secrets: a server or a proxy may quote what we sent."""
        text = answer.text
        for secret in filter(None, (self._token, self._pair() if self._username else None, self._password)):
            text = text.replace(secret, "***")
        return Answer(status=answer.status, text=text, headers=answer.headers, cut=answer.cut)

    async def aclose(self) -> None:
        """Close the session unless it was given."""
        if self._own_session is not None:
            await self._own_session.close()
            self._own_session = None

    def _pair(self) -> str:
        """Return username and password as HTTP sends them."""
        return base64.b64encode(f"{self._username}:{self._password}".encode()).decode()

    def _session(self) -> aiohttp.ClientSession:
        if self._given_session is not None:
            return self._given_session
        if self._own_session is None:
            self._own_session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        return self._own_session


async def _pieces(body: Body) -> AsyncIterator[memoryview]:
    """Yield a body in pieces: aiohttp copies what is one, and hands it to the kernel, in one go of the event loop."""
    whole = memoryview(body)
    for begin in range(0, len(body), _PIECE_BYTES):
        yield whole[begin : begin + _PIECE_BYTES]
        await asyncio.sleep(0)


async def _read_bounded(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    data = b""
    while len(data) <= _MAX_ANSWER_BYTES and (more := await response.content.readany()):
        data += more
    return data[:_MAX_ANSWER_BYTES], len(data) > _MAX_ANSWER_BYTES


@contextmanager
def _translating(shown: str) -> Iterator[None]:
    """The one place where foreign exceptions become ours."""
    try:
        yield
    except TimeoutError as exc:
        raise SinkUnavailable(f"{shown} did not answer in time") from exc
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as exc:
        raise SinkMisconfigured(
            f"{shown}: TLS fails ({exc}); check the scheme of INFLUX_URL and the certificate"
        ) from exc
    except aiohttp.ClientConnectorError as exc:
        raise SinkUnavailable(f"{shown} cannot be reached: {exc.os_error.strerror or exc.os_error}") from exc
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError) as exc:
        raise ConnectionLost(f"{shown} broke the connection: {exc}") from exc
    except aiohttp.ClientError as exc:
        # Never str(exc): aiohttp quotes what came, and the URL.
        raise SinkUnavailable(f"{shown} does not answer as HTTP: {type(exc).__name__}") from exc
