"""InfluxSink against a real VictoriaMetrics 1.79.5, over its /write and its /api/v2/write."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import TYPE_CHECKING

import pytest
from servers import AT, AT_MS, KEY, Server, batch_of, candle, get, tick, victoria_export, victoria_metrics, wait_until

from tickvault.errors import SinkMisconfigured, SinkUnavailable
from tickvault.sinks import influx
from tickvault.sinks.influx import InfluxSink

if TYPE_CHECKING:
    from pathlib import Path

TICK = tick(
    seq=12_345_678,
    kind="snapshot",
    ltp=24512.35,
    ltt=AT,
    ltq=75,
    cp=22050.05,
    atp=24500.1,
    vtt=2**53 - 1,
    oi=123456789.0,
    iv=0.155,
    tbq=2_000_000.0,
    delta=-0.48215,
    theta=-1.25e-7,
    gamma=0.0005,
    cas_eligible=True,
    bid_price=[24512.3, 24512.25, 0.0],
    bid_qty=[75, 150, 0],
    ask_price=[24512.4],
    ask_qty=[2**40],
)
LEFT_OUT = {"time", "recorder_id", "instrument_key", "symbol", "kind", "mode", "received_at", "ltt"}


async def samples(server: Server, prefix: str) -> dict[str, dict[int, float]]:
    """Return metric name without prefix → time in ms → value, of one instrument."""
    found = await asyncio.to_thread(victoria_export, server, f'{{__name__=~"{prefix}_.*"}}')
    return {dict(labels)["__name__"].removeprefix(f"{prefix}_"): values for labels, values in found.items()}


@pytest.mark.parametrize("api", ["auto", "v1", "v2"])
async def test_numbers_read_back_equal(victoria_server: Server, api: str) -> None:
    """Once, however often they are written."""
    sink = InfluxSink(url=victoria_server.url, bucket="market", api=api)
    batch = batch_of(ticks=[TICK], candles=[candle(open=1.5, high=2.0, low=1.0, close=1.75, volume=24147)])
    await sink.write(batch)
    await sink.write(batch)
    await sink.aclose()

    expected = {name: value for name, value in TICK.items() if name not in LEFT_OUT and value is not None}
    for side in ("bid_price", "bid_qty", "ask_price", "ask_qty"):
        expected |= {f"{side}_{level}": value for level, value in enumerate(expected.pop(side), 1)}
    expected |= {"received_at": float(AT_MS * 1_000_000), "ltt": AT_MS, "snapshot": 1, "cas_eligible": 1}
    assert await samples(victoria_server, "tick") == {name: {AT_MS: value} for name, value in expected.items()}
    bar = {"open": 1.5, "high": 2.0, "low": 1.0, "close": 1.75, "volume": 24147, "seq": 1}
    assert await samples(victoria_server, "candle") == {name: {AT_MS: value} for name, value in bar.items()}


async def test_tags_become_labels_whatever_they_hold(victoria_server: Server) -> None:
    """A backslash is doubled for VictoriaMetrics, which would otherwise eat it and lose lines."""
    keys = ["NSE_FO|A, B=C", "a\\b", "a\\\\b", "a\\,b", "a\\ b", "\\=", 'quo"te']
    sink = InfluxSink(url=victoria_server.url, bucket="market")
    await sink.write(batch_of(ticks=[tick(instrument_key=key, symbol=key, ltp=1.5) for key in keys]))
    await sink.aclose()
    found = await asyncio.to_thread(victoria_export, victoria_server, '{__name__="tick_ltp"}')
    labels = [dict(series) for series in found]
    assert sorted(each["instrument_key"] for each in labels) == sorted(keys)
    assert all(each["symbol"] == each["instrument_key"] for each in labels)


async def test_what_it_cannot_hold_is_not_sent(victoria_server: Server) -> None:
    """No strings, which it would store as zeros, and no daily candles."""
    status = {"time": AT, "scope": "segment", "segment": "NSE_EQ", "status": "NORMAL_OPEN", "seq": 7}
    gap = {"opened_at": AT, "scope": "recorder", "reason": "start", "planned": True, "detail": "words"}
    sink = InfluxSink(url=victoria_server.url, bucket="market")
    await sink.write(batch_of(candles=[candle(interval="1d", close=1.5)], market_status=[status], gaps=[gap]))
    await sink.aclose()
    assert await samples(victoria_server, "market_status") == {"seq": {AT_MS: 7}}
    assert await samples(victoria_server, "gap") == {"planned": {AT_MS: 1}}
    assert await samples(victoria_server, "candle") == {}
    metrics = (await asyncio.to_thread(get, f"{victoria_server.url}/metrics")).body.decode()
    assert 'vm_rows_invalid_total{type="influx"} 0' in metrics


async def test_floats_keep_twelve_digits(victoria_server: Server) -> None:
    """It is a view: more digits than these are rounded, which docs/influxdb.md says."""
    sink = InfluxSink(url=victoria_server.url, bucket="market")
    await sink.write(batch_of(ticks=[tick(delta=0.12345678901234567)]))
    await sink.aclose()
    [delta] = (await samples(victoria_server, "tick"))["delta"].values()
    assert delta != 0.12345678901234567
    assert delta == pytest.approx(0.12345678901234567, rel=1e-11)


async def test_updates_within_a_ms_leave_one_sample(victoria_server: Server) -> None:
    """It is a view: this is what it makes of them, which docs/influxdb.md says."""
    sink = InfluxSink(url=victoria_server.url, bucket="market")
    later = AT + dt.timedelta(milliseconds=1)
    await sink.write(
        batch_of(ticks=[tick(seq=i, ltp=float(i)) for i in (1, 2, 3)] + [tick(seq=4, time=later, ltp=4.0)])
    )
    await sink.aclose()
    assert set((await samples(victoria_server, "tick"))["ltp"]) == {AT_MS, AT_MS + 1}


async def test_an_acknowledgement_settles_after_a_while(victoria_server: Server) -> None:
    """Known from the first answer on, and still while the server is down."""
    sink = InfluxSink(url=victoria_server.url, bucket="market")
    assert sink.settle_s == 0.0
    assert "VictoriaMetrics" in await sink.check()
    await asyncio.to_thread(victoria_server.kill)
    assert sink.settle_s == 20.0
    await sink.aclose()


async def test_a_restart_that_no_request_noticed_is_an_outage(
    victoria_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write after it fails once, so that delivery goes back to what was settled."""
    monkeypatch.setattr(influx, "_VICTORIA_ASK_S", 0.0)
    sink = InfluxSink(url=victoria_server.url, bucket="market")
    await sink.write(batch_of(ticks=[tick(seq=1)]))
    await sink.write(batch_of(ticks=[tick(seq=2)]))
    second = int(time.time())
    await asyncio.to_thread(wait_until, lambda: time.time() >= second + 1, "it can start in another second")
    await asyncio.to_thread(victoria_server.kill)
    await asyncio.to_thread(victoria_server.start)
    await sink.aclose()  # the next request opens a connection of its own
    with pytest.raises(SinkUnavailable, match="restarted"):
        await sink.write(batch_of(ticks=[tick(seq=3)]))
    await sink.write(batch_of(ticks=[tick(seq=3)]))
    await sink.aclose()


@pytest.mark.parametrize("flags", [("-retentionPeriod=100y",), ("-dedup.minScrapeInterval=1s",)])
async def test_check_demands_one_sample_per_ms(tmp_path: Path, flags: tuple[str, ...]) -> None:
    def start_and_check() -> None:
        with victoria_metrics(tmp_path, *flags) as server, pytest.raises(SinkMisconfigured, match="=1ms"):
            asyncio.run(check(server.url))

    async def check(url: str) -> None:
        sink = InfluxSink(url=url, bucket="market")
        try:
            await sink.check()
        finally:
            await sink.aclose()

    await asyncio.to_thread(start_and_check)


async def test_a_wrong_path_is_a_setting_to_correct(victoria_server: Server) -> None:
    sink = InfluxSink(url=f"{victoria_server.url}/nowhere", bucket="market")
    with pytest.raises(SinkMisconfigured, match="unsupported path"):
        await sink.write(batch_of(ticks=[tick(instrument_key=KEY)]))
    await sink.aclose()
