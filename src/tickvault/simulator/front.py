"""What answers before the broker does: its CDN, and whoever refuses an address altogether."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tickvault.simulator.envelope import error
from tickvault.simulator.rest import AUTHORIZE_PATH, DIRECT_PATH, MASTER_PATH, TOKEN_PATH
from tickvault.simulator.script import Cloudflare, Refuse

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from tickvault.simulator.gate import Conditions, Gate
    from tickvault.simulator.rules import Rules

__all__ = ["Front"]

_MARKET: Final = "/v2/market/"
_NAMES: Final = {AUTHORIZE_PATH: "authorize", DIRECT_PATH: "authorize", MASTER_PATH: "master", TOKEN_PATH: "token"}
_BROKERS: Final = ("authorize", "master", "market")  # the token service is the user's own
_PAGE: Final = """<!DOCTYPE html>
<html><head><title>Access denied | api.upstox.com used Cloudflare to restrict access</title></head>
<body><h1>Error <span>1010</span></h1><p>Error code: 1010</p><h2>Access denied</h2>
<p>The owner of this website has banned your access based on your browser's signature.</p></body></html>
"""
_JSON: Final = {"title": "Error 1010: Access denied", "status": 403, "error_code": 1010,
                "error_name": "browser_signature_banned", "cloudflare_error": True, "retryable": False}  # fmt: skip


class Front:
    """A middleware."""

    def __init__(self, gate: Gate, conditions: Conditions, rules: Rules) -> None:
        """Refuse by rules and by what a script has imposed."""
        self._gate, self._conditions, self._rules = gate, conditions, rules

    def middleware(self) -> Middleware:
        """Return it in the HTTP server's form."""

        @web.middleware
        async def front(request: web.Request, handler: Handler) -> web.StreamResponse:
            return self._refusal(request) or await handler(request)

        return front

    def _refusal(self, request: web.Request) -> web.Response | None:
        name = "market" if request.path.startswith(_MARKET) else _NAMES.get(request.path, "")
        now_s = asyncio.get_running_loop().time()
        banned = self._conditions.now(Cloudflare, now_s)
        if name in _BROKERS and (banned is not None or self._is_bare(request)):
            if banned is not None and banned.form == "json":
                return web.json_response(_JSON, status=403)
            return web.Response(status=403, text=_PAGE, content_type="text/html")
        refuse = self._conditions.now(Refuse, now_s)
        if name and refuse is not None and refuse.what in {name, "all"}:
            return error(refuse.status, refuse.code, casing=refuse.casing)
        if name == "market" and self._rules.market_token:
            return None if self._gate.accepts(request.headers.get("Authorization", "")) else error(401)
        return None

    def _is_bare(self, request: web.Request) -> bool:
        agent = request.headers.get("User-Agent", "")
        # The official client follows the direct handshake's redirect without a User-Agent, and is let through.
        checked = self._rules.browser_check and request.path != DIRECT_PATH
        return checked and (not agent or agent.startswith("Python-urllib"))
