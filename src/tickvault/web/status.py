"""The status server: /api/status, /metrics, /healthz, /readyz and one page that shows them. Reads only."""

from __future__ import annotations

import asyncio
import hmac
import html
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import BasicAuth, web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tickvault.addresses import is_loopback
from tickvault.errors import Refused
from tickvault.health import ALARMS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client.core import Metric

    from tickvault.health import FeedHealth, KeysHealth, Snapshot

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
        return web.json_response((await asyncio.to_thread(self._take)).json())

    async def _metrics(self, _request: web.Request) -> web.Response:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Metrics(await asyncio.to_thread(self._take)))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

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
        snapshot = await asyncio.to_thread(self._take)
        return web.Response(text=_render(snapshot), content_type="text/html")


class _Metrics(Collector):
    """Renders one snapshot for Prometheus."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        one = self._snapshot
        yield _gauge("tickvault_journal_last_seq", "Sequence number of the last durable frame", one.last_seq)
        yield _gauge("tickvault_journal_bytes", "Bytes of the journal's files", one.bytes)
        yield _gauge("tickvault_disk_free_bytes", "Free bytes on the data folder's disk", one.disk_free_bytes)
        yield _gauge("tickvault_dead_letters", "Rows that a sink refused", one.dead_letters)
        yield _gauge("tickvault_outbox_events", "Events waiting for the webhook", one.outbox)
        yield _gauge("tickvault_open_gaps", "Gaps that are open now", len(one.open_gaps))
        lag = GaugeMetricFamily("tickvault_sink_lag_frames", "Frames journalled and not delivered", labels=["sink"])
        age = GaugeMetricFamily("tickvault_sink_lag_seconds", "Age of the oldest undelivered frame", labels=["sink"])
        parked = GaugeMetricFamily("tickvault_sink_parked", "1 when the sink is parked", labels=["sink"])
        for name, sink in one.sinks.items():
            lag.add_metric([name], sink.lag_frames)
            age.add_metric([name], sink.lag_s)
            parked.add_metric([name], float(sink.state == "parked"))
        yield from (lag, age, parked)
        if (feed := one.feed) is not None:
            yield CounterMetricFamily(
                "tickvault_frames_received", "Messages received since the start", value=feed.frames
            )
            yield CounterMetricFamily(
                "tickvault_reconnects", "Connections opened after the first", value=feed.reconnects
            )
            yield _gauge("tickvault_feed_live", "1 when the feed is live", float(feed.state == "live"))
            yield _gauge("tickvault_queue_frames", "Messages waiting for the journal", feed.queued)
            yield _gauge(
                "tickvault_journal_full", "1 when the disk has no room for the journal", float(feed.journal_full)
            )
            yield from _of_plan(feed)
            yield from _of_keys(feed.keys)
            yield from _of_market(feed)
            if feed.token_expires_s is not None:
                yield _gauge("tickvault_token_expires_seconds", "When the access token ends, UTC", feed.token_expires_s)


def _of_plan(feed: FeedHealth) -> Iterable[Metric]:
    yield _gauge("tickvault_sockets", "Connections that the plan has", feed.sockets)
    yield _gauge("tickvault_keys_planned", "Keys that are to be subscribed to", feed.planned)
    yield _gauge("tickvault_keys_refused", "Keys that are wanted and do not fit the broker's limits", feed.keys_refused)
    yield _gauge("tickvault_selections_skipped", "Selections that come to nothing", feed.skipped_count)


def _of_keys(keys: KeysHealth) -> Iterable[Metric]:
    yield _gauge("tickvault_keys_subscribed", "Keys subscribed to", keys.subscribed)
    yield _gauge("tickvault_keys_delivering", "Keys that have delivered on this connection", keys.delivering)
    yield _gauge("tickvault_keys_never_seen", "Keys that have not delivered since the start", keys.never_seen)
    silent = GaugeMetricFamily("tickvault_keys_silent", "Keys that have not delivered, and why", labels=["why"])
    for why, count in keys.silent.items():
        silent.add_metric([why], count)
    yield silent


def _of_market(feed: FeedHealth) -> Iterable[Metric]:
    market = feed.market
    state = GaugeMetricFamily("tickvault_feed_state", "1 at what the session is doing", labels=["state"])
    state.add_metric([feed.state], 1)
    yield state
    phases = GaugeMetricFamily("tickvault_market_phase", "1 at what a segment is doing", labels=["segment", "phase"])
    for segment, phase in market.phases.items():
        phases.add_metric([segment, phase], 1)
    yield phases
    alarm = GaugeMetricFamily("tickvault_segment_alarm", "1 while a segment is silent, …", labels=["segment", "state"])
    for segment in market.segments if market.state in ALARMS else ():
        alarm.add_metric([segment, market.state], 1)
    yield alarm
    yield CounterMetricFamily("tickvault_frames_unobserved", "Messages not looked at", value=market.unobserved)


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


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


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
