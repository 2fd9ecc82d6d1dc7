"""Users of TradeDataFeed move over with their settings as they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from programs import recorder, simulator, stats
from servers import free_ports, get, influx_query, influxd, wait_until
from webhooks import receiver

if TYPE_CHECKING:
    from pathlib import Path

# The lines as the seed writes them: a float is written without a point when it is whole.
GOLDEN = b"I1,feed_name=NSE_EQ|INE531E01026,trade_symbol=HINDCOPPER Open=1.5,High=2,Low=1,Close=1.75,Volume=24147 1757615400000"


def test_the_filled_in_template_starts_unchanged(tmp_path: Path) -> None:
    """A `.env` with the template's names, comments and left-over placeholders records, stores and tells as the seed did."""
    (port,) = free_ports(1)
    with influxd(tmp_path / "influx") as influx, simulator(tmp_path) as (url, _), receiver(port) as told:
        (tmp_path / ".env").write_text(
            "# Either provide ACCESS_TOKEN directly or use API_FETCH_TOKEN to get a new token\n"
            "ACCESS_TOKEN=a-real-token\n\n"
            f"DATA_FEED_UPDATE_URL=http://127.0.0.1:{port}/message\n"
            "GET_INSTRUMENTS_URL=url-to-fetch-instruments\n"
            "INSTRUMENTS_LIST=NSE_EQ|INE531E01026 , NSE_EQ|INE047A01021, NSE_INDEX|Nifty 50\n\n"
            "NOTIFICATION_SLEEP_TIME=1\n"
            "NOTIFICATION_WAIT_TIME=example-50\n\n"
            "API_FETCH_TOKEN=url-to-fetch-access-token\n\n"
            f"INFLUX_DB_URL={influx.url}\n"
            "INFLUX_DB_ORG=my_org\nINFLUX_BUCKET_NAME=my_bucket\nINFLUX_DB_TOKEN=my_token\n"
            "REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL=True\n"
        )
        get(f"{influx.url}/query?q=CREATE+DATABASE+my_bucket", body=b"")
        assert get(f"{influx.url}/write?db=my_bucket&precision=ms", body=GOLDEN).status == 204
        environ = {
            "UPSTOX_API_URL": url,
            "UPSTOX_INSTRUMENTS_URL": f"{url}/market-quote/instruments/exchange/complete.json.gz",
        }
        with recorder(tmp_path, environ) as recording:
            data = tmp_path / "data"
            wait_until(lambda: stats(data)["sinks"].get("influx", {}).get("cursor_seq", 0) > 3, "InfluxDB has rows")
            wait_until(lambda: bool(told.posts), "the trading bot is told")
            assert recording.stop() == 0, recording.said()
        points = influx_query(influx, 'SELECT * FROM "I1"', db="my_bucket")
        assert {one["feed_name"] for one in points} == {
            "NSE_EQ|INE531E01026", "NSE_EQ|INE047A01021", "NSE_INDEX|Nifty_50",
        }  # fmt: skip
        assert {one["trade_symbol"] for one in points} == {"HINDCOPPER", "GRASIM", "NIFTY"}
        golden = next(one for one in points if one["time"] == 1757615400000 * 10**6)
        assert (golden["Open"], golden["Close"], golden["Volume"]) == (1.5, 1.75, 24147)
        assert influx_query(influx, "SELECT count(ltp) FROM tick", db="my_bucket")[0]["count"] > 0
        # Through the seed's name the receiver hears of InfluxDB and of nothing else.
        bodies = [json.loads(body) for _, body in told.posts]
        assert {(body["event"], body["sink"]) for body in bodies} == {("data.stored", "influx")}
        assert bodies[0]["message"] == "Data feed has been successfully transferred to InfluxDB"
        assert "placeholder" in recording.said()
        assert "a-real-token" not in recording.said()


def test_the_development_compose_environment_starts_unchanged(tmp_path: Path) -> None:
    """Its names, blanks in the list and hosts that only Compose can resolve are taken; stores that are away wait."""
    with simulator(tmp_path) as (url, _):
        environ = {
            "INFLUX_DB_URL": "http://influxdb_dev:8086",
            "INFLUX_DB_ORG": "my_org",
            "INFLUX_BUCKET_NAME": "my_defualt_bucket",
            "INFLUX_DB_TOKEN": "my_token",
            "DATA_FEED_UPDATE_URL": "http://data_feed_mock:5005/message",
            "MAX_QUEUE_SIZE": "10000",
            "INSTRUMENTS_LIST": "NSE_EQ|INE531E01026 , NSE_EQ|INE047A01021, NSE_EQ|INE844O01030",
            "NOTIFICATION_SLEEP_TIME": "60",
            "NOTIFICATION_WAIT_TIME": "50",
            # What its users keep in the mounted .env, and where this test's broker is.
            "ACCESS_TOKEN": "a-real-token",
            "UPSTOX_API_URL": url,
            "UPSTOX_INSTRUMENTS_URL": "off",
            "TICKVAULT_SHUTDOWN_S": "5",  # InfluxDB uses it up; Parquet has to be done within it
        }
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: stats(tmp_path / "data")["last_seq"] > 3, "it records")
            assert recording.stop() == 0, recording.said()
    assert "Traceback" not in recording.said()
    assert stats(tmp_path / "data")["sinks"]["parquet"]["lag_frames"] == 0
