"""InfluxSink against a real InfluxDB 1.6.7: what goes in comes out, once, and every refusal is sorted."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import AT, AT_MS, KEY, Server, batch_of, candle, get, influx_query, influxd, tick

from tickvault.errors import BatchRejected, BatchTooLarge, SinkMisconfigured, SinkUnavailable
from tickvault.model import Definition
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.lineprotocol import Lines, encode_tickvault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tickvault.model import Batch

DB = 'market data "x"'
BOTH = ("tradedatafeed", "tickvault")
STRANGE = "NSE_FO|A, B=C\\D"
OPTION = Definition(
    instrument_key=STRANGE,
    segment="NSE_FO",
    underlying_symbol="A, B",
    expiry=dt.date(2026, 9, 29),
    strike=22.5,
    option_type="PE",
)
FULL_TICK = tick(
    seq=12_345_678,
    received_at=AT + dt.timedelta(microseconds=98_765),
    instrument_key=STRANGE,
    symbol="A,B=C 22.5 PE",
    kind="snapshot",
    ltp=0.1 + 0.2,
    ltt=AT,
    ltq=75,
    cp=22050.05,
    atp=1e-7,
    vtt=2**53 + 1,
    oi=123456789012.0,
    iv=5e-324,
    tbq=1.7976931348623157e308,
    tsq=-3.0,
    delta=-0.123456789012345678,
    theta=1e22,
    gamma=1e-5,
    vega=1e15,
    rho=1.0,
    iep=2.0,
    rp=3.0,
    ieq=-6,
    iiq_total=2**62,
    iiq_m=8,
    cas_eligible=True,
    bid_price=[float(level) + 0.05 for level in range(30)],
    bid_qty=list(range(30)),
    ask_price=[float(level) + 0.1 for level in range(30)],
    ask_qty=[2**40 + level for level in range(30)],
)
STATUS = {"time": AT, "scope": "segment", "segment": "NSE_EQ", "status": 'x "y" \\z\\', "seq": 7}
GAP = {
    "opened_at": AT,
    "closed_at": AT + dt.timedelta(seconds=2.5),
    "duration_s": 2.5,
    "scope": "instrument",
    "subject": STRANGE,
    "reason": "stale",
    "planned": False,
    "detail": "a, b=c",
}


@pytest.fixture
async def sink(influx_server: Server) -> AsyncIterator[InfluxSink]:
    sink = InfluxSink(url=influx_server.url, bucket=DB, layouts=BOTH, depth=30)
    yield sink
    await sink.aclose()


async def rows(server: Server, query: str, db: str = DB) -> list[dict[str, Any]]:
    return await asyncio.to_thread(influx_query, server, query, db)


async def points(server: Server, measurement: str, db: str = DB) -> list[dict[str, Any]]:
    """Return points with their fields and tags that are set."""
    found = await rows(server, f'SELECT * FROM "{measurement}"', db)
    return [{name: value for name, value in row.items() if value is not None} for row in found]


async def test_everything_is_stored_and_reads_back_equal(influx_server: Server, sink: InfluxSink) -> None:
    """Keys with commas, blanks, equals signs and backslashes, 30 levels, extreme doubles; the database is created."""
    bar = candle(instrument_key=STRANGE, open=1.5, high=2.0, low=1.0, close=1.75, volume=24147, seq=9)
    batch = batch_of({STRANGE: OPTION}, ticks=[FULL_TICK, tick()], candles=[bar], market_status=[STATUS], gaps=[GAP])
    await sink.write(batch)

    tags = {"underlying": "A, B", "expiry": "2026-09-29", "strike": "22.5", "option_type": "PE", "segment": "NSE_FO"}
    book = {
        f"{side}_{level + 1}": value
        for side in ("bid_price", "bid_qty", "ask_price", "ask_qty")
        for level, value in enumerate(FULL_TICK[side])
    }
    left_out = {"time", "recorder_id", "kind", "mode", "bid_price", "bid_qty", "ask_price", "ask_qty"}
    scalars = {name: value for name, value in FULL_TICK.items() if name not in left_out}
    scalars |= {"ltt": AT_MS, "received_at": AT_MS * 1_000_000 + 98_765_000, "snapshot": True}
    first, second = await points(influx_server, "tick")
    assert second == {"time": AT_MS * 1_000_000 + 345_678, **scalars, **book, **tags}
    common = {"instrument_key": KEY, "segment": "NSE_EQ", "symbol": "HINDCOPPER", "seq": 1}
    assert first == {"time": AT_MS * 1_000_000 + 1, "received_at": AT_MS * 1_000_000, **common}

    [stored] = await points(influx_server, "candle")
    ohlcv = {"open": 1.5, "high": 2.0, "low": 1.0, "close": 1.75, "volume": 24147, "seq": 9}
    names = {"instrument_key": STRANGE, "symbol": "HINDCOPPER", "interval": "I1"}
    assert stored == {"time": AT_MS * 1_000_000, **ohlcv, **names, **tags}
    [stored] = await points(influx_server, "market_status")
    status = {name: STATUS[name] for name in ("scope", "segment", "status", "seq")}
    assert stored == {"time": AT_MS * 1_000_000 + 7, **status}
    [stored] = await points(influx_server, "gap")
    closed = {"closed_at": (AT_MS + 2500) * 1_000_000}
    assert stored == {"time": AT_MS * 1_000_000} | {k: v for k, v in GAP.items() if k != "opened_at"} | closed


async def test_field_types_are_as_documented(influx_server: Server, sink: InfluxSink) -> None:
    await sink.write(batch_of(ticks=[FULL_TICK]))
    kinds = {row["fieldKey"]: row["fieldType"] for row in await rows(influx_server, 'SHOW FIELD KEYS FROM "tick"')}
    integers = {"ltt", "ltq", "vtt", "ieq", "iiq_total", "iiq_m", "received_at", "seq"}
    integers |= {f"{side}_qty_{level}" for side in ("bid", "ask") for level in range(1, 31)}
    assert {name for name, kind in kinds.items() if kind == "integer"} == integers
    assert {name for name, kind in kinds.items() if kind == "boolean"} == {"cas_eligible", "snapshot"}
    assert "string" not in kinds.values()


async def test_a_thousand_updates_in_one_ms_written_twice_are_a_thousand_points(
    influx_server: Server, sink: InfluxSink
) -> None:
    """Identity is (instrument, ms, seq): no two updates collapse, no repeat adds one."""
    batch = batch_of(ticks=[tick(seq=999_500 + i, ltp=float(i + 1)) for i in range(1000)])
    for part in (batch, batch, batch.slice(300, 700), batch.slice(0, 1)):
        await sink.write(part)
    stored = await rows(influx_server, 'SELECT seq, ltp FROM "tick"')
    assert sorted((row["seq"], row["ltp"]) for row in stored) == [(999_500 + i, i + 1) for i in range(1000)]


async def test_tradedatafeed_goes_on_beside_our_layout(influx_server: Server, sink: InfluxSink) -> None:
    """Both layouts and a line of the former recorder live in one database, and the line's point is ours."""
    bar = candle(time=AT, symbol="X", open=1.5, high=2.0, low=1.0, close=1.75, volume=24147)
    await sink.write(batch_of(candles=[bar, {**bar, "interval": "1d", "symbol": "A B"}]))
    [before] = await points(influx_server, "I1")
    golden = f"I1,feed_name=NSE_EQ|INE531E01026,trade_symbol=X Open=1.5,High=2,Low=1,Close=1.75,Volume=24147 {AT_MS}"
    url = f"{influx_server.url}/write?db=market%20data%20%22x%22&precision=ms"
    assert (await asyncio.to_thread(get, url, golden.encode())).status == 204
    assert await points(influx_server, "I1") == [before]
    assert before["time"] == AT_MS * 1_000_000
    [daily] = await points(influx_server, "1d")
    assert daily["trade_symbol"] == "A B"
    assert len(await points(influx_server, "candle")) == 2


async def test_a_type_conflict_is_rejected_without_naming_rows(influx_server: Server, sink: InfluxSink) -> None:
    """InfluxDB only counts them, so delivery has to bisect; the rows beside them are stored."""
    await sink.write(batch_of(ticks=[tick()]))
    url = f"{influx_server.url}/write?db=market%20data%20%22x%22"
    await asyncio.to_thread(get, url, f"tick,instrument_key=other ltp=1i {AT_MS}000000".encode())
    with pytest.raises(BatchRejected, match="field type conflict") as caught:
        await sink.write(batch_of(ticks=[tick(seq=2, ltp=1.5), tick(seq=3, cp=2.5)]))
    assert caught.value.rejected is None
    assert 3 in [row["seq"] for row in await points(influx_server, "tick") if "seq" in row]


async def test_a_row_that_cannot_be_written_is_named_and_the_others_are_stored(
    influx_server: Server, sink: InfluxSink
) -> None:
    batch = batch_of(ticks=[tick(), tick(instrument_key="ends\\", seq=2), tick(seq=3)])
    with pytest.raises(BatchRejected) as caught:
        await sink.write(batch)
    assert set(caught.value.rejected or {}) == {1}
    assert [row["seq"] for row in await points(influx_server, "tick")] == [1, 3]


async def test_a_batch_made_ready_ahead_is_encoded_once_and_stored_whole(
    influx_server: Server, sink: InfluxSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is written meanwhile keeps what was made ready of it; before the server is known nothing is."""
    encoded: list[int] = []
    monkeypatch.setattr("tickvault.sinks.influx.encode_tickvault", lambda *a: encoded.append(1) or encode_tickvault(*a))
    first, second, third = (batch_of(ticks=[tick(seq=seq)], candles=[candle(seq=seq)]) for seq in (1, 2, 3))
    await sink.prepare(first)
    assert not encoded
    await sink.write(first)
    await sink.prepare(second)
    await sink.prepare(third)
    await sink.write(second)
    await sink.write(third)
    assert len(encoded) == 3
    assert [row["seq"] for row in await points(influx_server, "tick")] == [1, 2, 3]
    assert [row["seq"] for row in await points(influx_server, "candle")] == [3]


async def test_lines_that_the_server_quotes_are_named(
    influx_server: Server, sink: InfluxSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder makes no bad line, so one is smuggled in behind it."""

    def spoilt(*given: Any) -> Any:
        lines = encode_tickvault(*given)
        text = [line.replace("ltp=2", "ltp=oops") for line in lines.text.to_pylist()]
        return Lines(text=pa.array(text, pa.string()), rows=lines.rows)

    monkeypatch.setattr("tickvault.sinks.influx.encode_tickvault", spoilt)
    with pytest.raises(BatchRejected) as caught:
        await sink.write(batch_of(ticks=[tick(ltp=float(seq), seq=seq) for seq in (1, 2, 3)]))
    assert list(caught.value.rejected or {}) == [1]
    assert "invalid" in str(caught.value)
    assert [row["seq"] for row in await points(influx_server, "tick")] == [1, 3]


async def test_points_beyond_the_retention_are_counted_and_passed(influx_server: Server) -> None:
    """They are in Parquet; a server that keeps a week must not hold up the others' rows."""
    await rows(influx_server, "CREATE DATABASE short WITH DURATION 1h")
    sink = InfluxSink(url=influx_server.url, bucket="short")
    old = AT - dt.timedelta(days=3650)
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    await sink.write(batch_of(ticks=[tick(time=old), tick(time=old, seq=2), tick(time=now, seq=3)]))
    await sink.aclose()
    assert sink.beyond_retention == 2
    assert [row["seq"] for row in await points(influx_server, "tick", "short")] == [3]


async def test_the_limit_of_tag_values_is_a_setting_not_a_bad_row(tmp_path: Path) -> None:
    """Otherwise every new instrument would become a dead letter."""
    with influxd(tmp_path, max_values_per_tag=3) as server:
        sink = InfluxSink(url=server.url, bucket="d")
        for i in range(3):
            await sink.write(batch_of(ticks=[tick(instrument_key=f"NSE_EQ|{i}")]))
        with pytest.raises(SinkMisconfigured, match="max-values-per-tag"):
            await sink.write(batch_of(ticks=[tick(instrument_key="NSE_EQ|one too many")]))
        await sink.aclose()


async def insist(sink: InfluxSink, batch: Batch) -> None:
    """Write as delivery does: again after SinkUnavailable, a few times."""
    for _ in range(2):
        with contextlib.suppress(SinkUnavailable):
            return await sink.write(batch)
    return await sink.write(batch)


async def test_a_body_over_the_limit_is_too_large_until_it_fits(tmp_path: Path) -> None:
    """Whether InfluxDB answers 413 or hangs up while the body is under way, the batch is to be halved."""
    with influxd(tmp_path, max_body_size=100_000) as server:
        sink = InfluxSink(url=server.url, bucket="d", layouts=("tickvault",))
        batch = batch_of(ticks=[tick(seq=seq, ltp=1.5) for seq in range(1, 3001)])
        with pytest.raises(BatchTooLarge):
            await insist(sink, batch)
        for start in range(0, 3000, 500):
            await sink.write(batch.slice(start, start + 500))
        await sink.aclose()
        [count] = await rows(server, 'SELECT count("seq") FROM "tick"', "d")
    assert count["count"] == 3000


async def test_a_killed_server_is_unavailable_and_goes_on_where_it_was(influx_server: Server, sink: InfluxSink) -> None:
    await sink.write(batch_of(ticks=[tick()]))
    await asyncio.to_thread(influx_server.kill)
    with pytest.raises(SinkUnavailable):
        await sink.write(batch_of(ticks=[tick(seq=2)]))
    await asyncio.to_thread(influx_server.start)
    await sink.write(batch_of(ticks=[tick(seq=2)]))
    assert [row["seq"] for row in await points(influx_server, "tick")] == [1, 2]


async def test_nothing_to_write_needs_no_server() -> None:
    sink = InfluxSink(url="http://127.0.0.1:9", bucket="d")
    await sink.write(batch_of(instruments=[{"valid_from_seq": 1, "instrument_key": KEY}]))
    await sink.aclose()


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[Server]:
    with influxd(tmp_path, auth=True) as server:
        influx_query(server, "CREATE USER root WITH PASSWORD 'hush' WITH ALL PRIVILEGES")
        influx_query(server, "CREATE USER guest WITH PASSWORD 'hush'", user="root", password="hush")
        yield server


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"token": "hush"},
        {"username": "root", "password": "hush-wrong"},
        {"username": "guest", "password": "hush"},
    ],
)
async def test_refused_credentials_are_a_setting_and_stay_unsaid(
    guarded_server: Server, credentials: dict[str, str]
) -> None:
    sink = InfluxSink(url=guarded_server.url, bucket="d", **credentials)  # type: ignore[arg-type]
    with pytest.raises(SinkMisconfigured) as caught:
        await sink.write(batch_of(ticks=[tick()]))
    await sink.aclose()
    assert "hush" not in str(caught.value)


async def test_username_and_password_are_used_on_v1_even_beside_a_token(guarded_server: Server) -> None:
    """1.6.7 answers 401 to a token; the password may stand in the URL."""
    url = guarded_server.url.replace("http://", "http://root:hush@")
    sink = InfluxSink(url=url, bucket="d", token="a-v2-token")
    await sink.write(batch_of(ticks=[tick()]))
    assert "hush" not in await sink.check()
    await sink.aclose()


async def test_check_says_what_it_found_and_writes_nothing(influx_server: Server, sink: InfluxSink) -> None:
    first = await sink.check()
    assert "InfluxDB 1.6.7" in first
    assert "first write creates" in first
    assert [row["name"] for row in await rows(influx_server, "SHOW DATABASES")] == []
    await sink.write(batch_of(ticks=[tick()]))
    assert "first write creates" not in await sink.check()
    assert sink.settle_s == 0.0


async def test_check_names_a_refusal_and_an_absence(guarded_server: Server) -> None:
    sink = InfluxSink(url=guarded_server.url, bucket="d", username="root", password="wrong")
    with pytest.raises(SinkMisconfigured, match="INFLUX_PASSWORD"):
        await sink.check()
    await asyncio.to_thread(guarded_server.kill)
    sink._server = None
    with pytest.raises(SinkUnavailable):
        await sink.check()
    await sink.aclose()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with influxd(tmp_path_factory.mktemp("influx")) as server:
        yield server


FINITE = st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: value != 0)
TAGS = st.text(st.sampled_from("\\,= aZ\"'|é"), min_size=1, max_size=6).filter(lambda tag: not tag.endswith("\\"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TAGS, TAGS, FINITE), min_size=1, max_size=100))
def test_any_tag_and_double_reads_back_equal(shared_server: Server, drawn: list[tuple[str, str, float]]) -> None:
    """The server's own parser is the judge of escaping and of digits."""

    async def store() -> None:
        sink = InfluxSink(url=shared_server.url, bucket="drawn")
        ticks = [tick(instrument_key=k, symbol=s, ltp=v, seq=i) for i, (k, s, v) in enumerate(drawn, 1)]
        try:
            await sink.write(batch_of(ticks=ticks))
        finally:
            await sink.aclose()

    influx_query(shared_server, "DROP DATABASE drawn")
    asyncio.run(store())
    stored = influx_query(shared_server, 'SELECT seq, instrument_key, symbol, ltp FROM "tick"', "drawn")
    found = {row["seq"]: (row["instrument_key"], row["symbol"], float(row["ltp"])) for row in stored}
    assert found == dict(enumerate(drawn, 1))
