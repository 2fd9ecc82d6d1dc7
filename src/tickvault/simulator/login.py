"""The broker's login: a dialog that consents at once, and a code that is good for one exchange."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

from aiohttp import web
from yarl import URL

from tickvault.simulator.envelope import error

if TYPE_CHECKING:
    from tickvault.simulator.gate import Gate

__all__ = ["DIALOG_PATH", "EXCHANGE_PATH", "Login"]

DIALOG_PATH: Final = "/v2/login/authorization/dialog"
EXCHANGE_PATH: Final = "/v2/login/authorization/token"

_MAX_CODES: Final = 1000  # given out and never exchanged; the oldest are forgotten


class Login:
    """Handlers of the OAuth code flow; any app with a secret is known."""

    def __init__(self, gate: Gate) -> None:
        """Give out the gate's token."""
        self._gate = gate
        self._asked: dict[str, tuple[str, str]] = {}  # code → client id and redirect URI that it was given for

    def routes(self) -> list[web.RouteDef]:
        """Return what this class serves."""
        return [web.get(DIALOG_PATH, self.dialog), web.post(EXCHANGE_PATH, self.exchange)]

    async def dialog(self, request: web.Request) -> web.Response:
        """Send the browser back with a code, as if its user had logged in."""
        query = request.query
        client_id, redirect_uri = query.get("client_id", ""), query.get("redirect_uri", "")
        if query.get("response_type") != "code" or not client_id or not redirect_uri:
            return error(400, "UDAPI100068")
        if len(self._asked) >= _MAX_CODES:
            del self._asked[next(iter(self._asked))]
        code = uuid.uuid4().hex
        self._asked[code] = client_id, redirect_uri
        back = {"code": code, **({"state": query["state"]} if "state" in query else {})}
        return web.Response(status=302, headers={"Location": str(URL(redirect_uri).update_query(back))})

    async def exchange(self, request: web.Request) -> web.Response:
        """Give the access token for a code; the code is used up whatever comes of it."""
        form = {name: str(value) for name, value in (await request.post()).items()}
        asked = self._asked.pop(form.get("code", ""), None)
        if asked is None:
            return error(401, "UDAPI100057")
        if form.get("client_id") != asked[0] or not form.get("client_secret"):
            return error(401, "UDAPI100069")
        if form.get("redirect_uri") != asked[1]:
            return error(401, "UDAPI100070")
        # Flat, unlike every other answer of the broker.
        return web.json_response({"user_id": "SIM001", "is_active": True, "access_token": self._gate.token})
