"""The status server: what it shows, and to whom."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tickvault import snapshots
from tickvault.errors import Refused
from tickvault.health import FeedHealth, KeysHealth, MarketHealth
from tickvault.web.status import StatusServer

if TYPE_CHECKING:
    from pathlib import Path


async def answer(url: str, **headers: str) -> tuple[int, str]:
    """GET a page."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


async def test_it_shows_a_snapshot_in_every_form(tmp_path: Path) -> None:
    """JSON, metrics, a page, alive; not ready while no feed is live."""
    server = StatusServer(lambda: snapshots.take(tmp_path), host="127.0.0.1", port=0, token=None)
    url = f"http://{await server.start()}"
    try:
        assert (await answer(f"{url}/healthz"))[0] == 200
        assert (await answer(f"{url}/readyz"))[0] == 503
        status, body = await answer(f"{url}/api/status")
        assert status == 200
        assert '"last_seq": 0' in body
        assert "tickvault_journal_last_seq 0.0" in (await answer(f"{url}/metrics"))[1]
        page = (await answer(f"{url}/"))[1]
        assert "<h1>tickvault</h1>" in page
        assert '<meta name="viewport"' in page
        assert "<th>recorder</th>" in page
    finally:
        await server.stop()


async def test_a_full_disk_is_not_ready(tmp_path: Path) -> None:
    """The feed is live and goes on, but nothing more becomes durable: that is said on every page."""
    feed = FeedHealth(
        state="live", conn=1, frames=0, reconnects=0, last_frame_age_s=None, queued=9, queue_waits=0, held_s=0.0,
        last_error=None, keys=KeysHealth(), market=MarketHealth(), journal_full=True,
    )  # fmt: skip
    server = StatusServer(lambda: snapshots.take(tmp_path, feed=feed), host="127.0.0.1", port=0, token=None)
    url = f"http://{await server.start()}"
    try:
        status, text = await answer(f"{url}/readyz")
        assert (status, "disk is full" in text) == (503, True)
        assert "tickvault_journal_full 1.0" in (await answer(f"{url}/metrics"))[1].splitlines()
    finally:
        await server.stop()


async def test_what_is_not_asked_for_has_metrics(tmp_path: Path) -> None:
    """The plan's keys, those that do not fit, and selections that come to nothing."""
    feed = FeedHealth(
        state="live", conn=1, frames=0, reconnects=0, last_frame_age_s=None, queued=0, queue_waits=0, held_s=0.0,
        last_error=None, keys=KeysHealth(), market=MarketHealth(),
        sockets=2, planned=4000, refused="412 of 4,412 keys do not fit", keys_refused=412,
        skipped=["x"] * 20, skipped_count=23,
    )  # fmt: skip
    server = StatusServer(lambda: snapshots.take(tmp_path, feed=feed), host="127.0.0.1", port=0, token=None)
    url = f"http://{await server.start()}"
    try:
        page = (await answer(f"{url}/metrics"))[1].splitlines()
    finally:
        await server.stop()
    assert {
        "tickvault_sockets 2.0",
        "tickvault_keys_planned 4000.0",
        "tickvault_keys_refused 412.0",
        "tickvault_selections_skipped 23.0",
    } <= set(page)


async def test_a_name_that_points_here_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """Without a token the Host header must be a loopback name."""
    server = StatusServer(lambda: snapshots.take(tmp_path), host="127.0.0.1", port=0, token=None)
    url = f"http://{await server.start()}"
    try:
        assert (await answer(f"{url}/api/status", Host="evil.example"))[0] == 403
        for host in ("localhost:1", "tv.localhost", "[::1]:1", "127.0.0.2"):
            assert (await answer(f"{url}/api/status", Host=host))[0] == 200, host
        for host in ("localhost.example", "[::1", "10.0.0.1:8484"):
            assert (await answer(f"{url}/api/status", Host=host))[0] in {400, 403}, host
    finally:
        await server.stop()


async def test_with_a_token_nothing_but_health_is_shown_without_it(tmp_path: Path) -> None:
    """As Bearer token or as a password; everything else is 401."""
    server = StatusServer(lambda: snapshots.take(tmp_path), host="127.0.0.1", port=0, token="s3cret")
    url = f"http://{await server.start()}"
    try:
        assert (await answer(f"{url}/healthz"))[0] == 200
        for path in ("/", "/api/status", "/metrics", "/readyz"):
            assert (await answer(f"{url}{path}"))[0] == 401
        basic = base64.b64encode(b"me:s3cret").decode()
        for given in ("Bearer s3cret", f"Basic {basic}"):
            assert (await answer(f"{url}/api/status", Authorization=given))[0] == 200
        for given in ("Bearer wrong", "Basic !!", "Basic bWU6d3Jvbmc=", "s3cret"):
            assert (await answer(f"{url}/api/status", Authorization=given))[0] == 401
    finally:
        await server.stop()


async def test_a_taken_port_is_said_with_the_next_step(tmp_path: Path) -> None:
    """The error names the address and the setting."""
    first = StatusServer(lambda: snapshots.take(tmp_path), host="127.0.0.1", port=0, token=None)
    port = int((await first.start()).rpartition(":")[2])
    try:
        second = StatusServer(lambda: snapshots.take(tmp_path), host="127.0.0.1", port=port, token=None)
        with pytest.raises(Refused, match="TICKVAULT_HTTP"):
            await second.start()
    finally:
        await first.stop()


async def test_it_reads_only_and_tells_browsers_to_keep_out(tmp_path: Path) -> None:
    """No method but GET, with a token or without; answers and refusals forbid scripts, frames, storing and sniffing."""
    for token in (None, "s3cret"):
        server = StatusServer(lambda: snapshots.take(tmp_path), host="127.0.0.1", port=0, token=token)
        url = f"http://{await server.start()}"
        given = {"Authorization": "Bearer s3cret"} if token else {}
        try:
            async with aiohttp.ClientSession(headers=given) as session:
                for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                    for path in ("/", "/api/status", "/metrics", "/healthz", "/readyz"):
                        async with session.request(method, f"{url}{path}", data=b"x") as response:
                            assert response.status == 405, (method, path)
                for path, host in (("/", ""), ("/nowhere", ""), ("/", "evil.example")):
                    async with session.get(f"{url}{path}", headers={"Host": host} if host else {}) as response:
                        policy = response.headers["Content-Security-Policy"]
                        assert "default-src 'none'" in policy
                        assert "frame-ancestors 'none'" in policy
                        assert response.headers["Cache-Control"] == "no-store"
                        assert response.headers["X-Content-Type-Options"] == "nosniff"
                        assert response.headers["Server"] == "tickvault"
                        assert "Access-Control-Allow-Origin" not in response.headers
        finally:
            await server.stop()
