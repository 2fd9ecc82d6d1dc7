"""The status server: /api/status, /metrics, /healthz, /readyz and one page that shows them. Reads only."""

from __future__ import annotations

import asyncio
import hmac
import html
import json
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import BasicAuth, web

from tickvault.addresses import is_loopback
from tickvault.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tickvault.health import Snapshot

__all__ = ["StatusServer"]

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Server": "tickvault",  # in place of the versions of Python and aiohttp
}


class StatusServer:
    """Serves snapshots.

    Args:
        take: takes a snapshot, in a thread.
        token: asked for as `Authorization: Bearer …` on everything but /healthz; None = no token, loopback only.
    """

    def __init__(self, take: Callable[[], Snapshot], *, host: str, port: int, token: str | None) -> None:
        self._take = take
        self._host = host
        self._port = port
        self._token = token
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen and return `host:port`.

        Raises:
            Refused: the address cannot be had.
        """
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/api/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.on_response_prepare.append(_add_headers)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as exc:
            await runner.cleanup()
            raise Refused(
                f"cannot listen on {self._host}:{self._port} ({exc.strerror}); "
                "set TICKVAULT_HTTP to a free host:port, or to off"
            ) from exc
        self._runner = runner
        host, port = runner.addresses[0][:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        # Without a token only loopback may ask, by a name of its own: a web page elsewhere must not read it through
        # a name that it has pointed at 127.0.0.1.
        if self._token is None and not is_loopback(_host_of(request)):
            raise web.HTTPForbidden(text="expected a loopback Host header\n")
        if self._token is not None and request.path != "/healthz" and not self._knows(request):
            raise web.HTTPUnauthorized(
                text="expected TICKVAULT_HTTP_TOKEN, as a Bearer token or as the password of any user\n",
                headers={"WWW-Authenticate": 'Basic realm="tickvault"'},
            )
        return await handler(request)

    def _knows(self, request: web.Request) -> bool:
        given = _given_token(request).encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, (self._token or "").encode())

    async def _status(self, _request: web.Request) -> web.Response:
        text = await asyncio.to_thread(lambda: json.dumps(self._take().json()))
        return web.Response(text=text, content_type="application/json")

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._take_metrics)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    def _take_metrics(self) -> bytes:
        from tickvault.web.metrics import rendered  # most recorders are never asked, and a start waits for no import

        return rendered(self._take())

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        snapshot = await asyncio.to_thread(self._take)
        state = snapshot.feed.state if snapshot.feed is not None else "none"
        parked = [name for name, sink in snapshot.sinks.items() if sink.state == "parked"]
        full = snapshot.feed is not None and snapshot.feed.journal_full
        if state == "live" and not parked and not full:
            return web.Response(text="ready\n")
        if full:
            return web.Response(status=503, text="the disk is full: what is received waits in memory; make room\n")
        return web.Response(status=503, text=f"feed: {state}; parked sinks: {', '.join(parked) or 'none'}\n")

    async def _page(self, _request: web.Request) -> web.Response:
        text = await asyncio.to_thread(lambda: _render(self._take()))
        return web.Response(text=text, content_type="text/html")


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Refusals have them too."""
    response.headers.update(_HEADERS)


def _host_of(request: web.Request) -> str:
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return ""


def _given_token(request: web.Request) -> str:
    """Return what the caller offers: a Bearer token, or the password that a browser asks its user for."""
    scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return rest
    try:
        return str(BasicAuth.decode(f"Basic {rest}").password)
    except ValueError:
        return ""


def _render(snapshot: Snapshot) -> str:
    feed = snapshot.feed
    rows = [
        ("recorder", snapshot.recorder_id or "nothing recorded yet"),
        ("feed", f"{feed.state}, connection {feed.conn}, {feed.frames:,} frames" if feed else "no recorder runs"),
        *((("plan", f"{feed.planned:,} keys on {feed.sockets} socket{'s' * (feed.sockets != 1)}"),) if feed else ()),
        *(("not recorded", words) for words in ((feed.refused, *feed.skipped) if feed else ()) if words),
        *((("master list", feed.list_lost),) if feed and feed.list_lost else ()),
        *((("keys", feed.keys.shown()), ("market", feed.market.shown())) if feed else ()),
        ("token", (feed.token if feed else None) or "none yet"),
        ("journal", f"{snapshot.frames:,} frames, last seq {snapshot.last_seq:,}, {snapshot.bytes / 1e6:,.1f} MB"),
        *((f"sink {name}", f"{one.state}, lag {one.lag_frames:,} frames, {one.lag_s:,.1f} s {one.detail}")
          for name, one in snapshot.sinks.items()),
        ("open gaps", ", ".join(snapshot.open_gaps) or "none"),
        ("dead letters", f"{snapshot.dead_letters:,}"),
        ("disk free", f"{snapshot.disk_free_bytes / 1e9:,.1f} GB"),
    ]  # fmt: skip
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<title>tickvault</title><style>body{font:16px system-ui;margin:2rem;color-scheme:light dark}"
        "th{text-align:left;padding:.3rem 2rem .3rem 0;font-weight:600}</style>"
        f"<h1>tickvault</h1><table>{cells}</table></html>"
    )
