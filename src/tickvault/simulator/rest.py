"""The HTTP side: authorize, redirect, token, lists."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tickvault.simulator.envelope import error
from tickvault.simulator.master import master_list
from tickvault.simulator.script import RejectToken, Relist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickvault.simulator.gate import Conditions, Gate
    from tickvault.simulator.rules import Rules
    from tickvault.simulator.universe import Instrument

__all__ = ["AUTHORIZE_PATH", "DIRECT_PATH", "FEED_PATH", "INSTRUMENTS_PATH", "MASTER_PATH", "TOKEN_PATH", "Rest"]

DIRECT_PATH: Final = "/v3/feed/market-data-feed"
AUTHORIZE_PATH: Final = f"{DIRECT_PATH}/authorize"
FEED_PATH: Final = "/market-data-feeder/v3/upstox-developer-api/feeds"
MASTER_PATH: Final = "/market-quote/instruments/exchange/complete.json.gz"
TOKEN_PATH: Final = "/token"  # noqa: S105  # a path
INSTRUMENTS_PATH: Final = "/instruments"


class Rest:
    """Handlers of everything that is not a WebSocket."""

    def __init__(self, universe: Sequence[Instrument], gate: Gate, conditions: Conditions, rules: Rules) -> None:
        """Serve the universe's lists, and let in whom the gate lets in."""
        self._universe, self._gate, self._conditions, self._rules = universe, gate, conditions, rules
        self._listed = Relist(at_s=0.0)
        self._master = b""
        self._etag = ""

    def routes(self) -> list[web.RouteDef]:
        """Return what this class serves."""
        return [
            web.get(AUTHORIZE_PATH, self.authorize),
            web.get(DIRECT_PATH, self.redirect),
            web.get(TOKEN_PATH, self.token),
            web.get(INSTRUMENTS_PATH, self.instruments),
            web.get(MASTER_PATH, self.master),
        ]

    def relist(self, step: Relist) -> None:
        """Publish another master list."""
        self._listed, self._master = step, b""

    async def authorize(self, request: web.Request) -> web.Response:
        """Give a single-use WebSocket address for a token."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        address = self._address(request)
        data = {"authorized_redirect_uri": address, "authorizedRedirectUri": address}
        return web.json_response({"status": "success", "data": data})

    async def redirect(self, request: web.Request) -> web.Response:
        """Answer the direct WebSocket handshake with the address to follow."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        return web.Response(status=302, headers={"Location": self._address(request)})

    async def token(self, _request: web.Request) -> web.Response:
        """Give the access token, as a token service of the user's would."""
        return web.json_response({"access_token": self._gate.token})

    async def instruments(self, _request: web.Request) -> web.Response:
        """Give the list of keys, as a list service of the user's would."""
        return web.json_response({"instruments": [one.key for one in self._universe]})

    async def master(self, request: web.Request) -> web.Response:
        """Give the master list, or 304 to whoever has it."""
        if not self._master:
            listed = self._listed
            self._master = await asyncio.to_thread(master_list, self._universe, drop=listed.drop, reuse=listed.reuse)
            self._etag = hashlib.sha256(self._master).hexdigest()[:32]
        tag = {"strong": f'"{self._etag}"', "weak": f'W/"{self._etag}"', "none": ""}[self._rules.etag]
        headers = {"ETag": tag} if tag else {}
        if tag and any(known.value in {self._etag, "*"} for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._master, content_type="application/gzip", headers=headers)

    def _refusal(self, request: web.Request) -> web.Response | None:
        now_s = asyncio.get_running_loop().time()
        rejected = self._conditions.now(RejectToken, now_s) is not None
        if rejected or not self._gate.accepts(request.headers.get("Authorization", "")):
            return error(401)
        return None

    def _address(self, request: web.Request) -> str:
        request_id, code = self._gate.issue(asyncio.get_running_loop().time())
        # The host that the client called us by, so that it works through a container's or a tunnel's name too.
        return f"ws://{request.host}{FEED_PATH}?requestId={request_id}&code={code}"
