"""docs/reference/settings.md has the table as it is. Run this file with `--write` to bring the page up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tickvault.settings import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def rendered() -> str:
    rows = ["| setting | also accepted | default | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS:
        aliases = ", ".join(f"`{alias}`" for alias in setting.aliases) or "-"
        default = f"`{setting.default}`" if setting.default else "-"
        secret = " (secret)" if setting.secret else ""
        rows.append(f"| `{setting.name}`{secret} | {aliases} | {default} | {setting.meaning} |")
    return "\n".join(rows) + "\n"


def test_the_page_has_the_table():
    """Table and page are one."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == rendered()


# As promised to users: a change here breaks their deployments.
PROMISED = """
UPSTOX_ACCESS_TOKEN ACCESS_TOKEN
UPSTOX_TOKEN_URL API_FETCH_TOKEN ACCESS_TOKEN_URL API_FETCH_TOKEN_URL
UPSTOX_CLIENT_ID
UPSTOX_CLIENT_SECRET
UPSTOX_REDIRECT_URI
UPSTOX_API_URL=https://api.upstox.com
UPSTOX_PLUS=false
UPSTOX_INSTRUMENTS_URL=https://assets.upstox.com/market-quote/instruments/exchange/complete.json.gz
TICKVAULT_INSTRUMENTS INSTRUMENTS_LIST
TICKVAULT_INSTRUMENTS_URL GET_INSTRUMENTS_URL INSTRUMENTS_LIST_URL INSTRUMENT_KEYS_LIST_URL
TICKVAULT_MODE=full
TICKVAULT_DATA_DIR=./data
TICKVAULT_SINKS=parquet
INFLUX_URL INFLUX_DB_URL INFLUXDB_URL
INFLUX_ORG INFLUX_DB_ORG INFLUXDB_ORG
INFLUX_BUCKET INFLUX_BUCKET_NAME INFLUXDB_BUCKET_NAME
INFLUX_TOKEN INFLUX_DB_TOKEN INFLUXDB_TOKEN
INFLUX_USERNAME
INFLUX_PASSWORD
INFLUX_API=auto
INFLUX_LAYOUT=tickvault
INFLUX_DEPTH=5
TICKVAULT_NOTIFY_URL DATA_FEED_UPDATE_URL DATA_FEED_UPDATE_INFORM_URL
TICKVAULT_NOTIFY_EVENTS=all
TICKVAULT_NOTIFY_SECRET
TICKVAULT_NOTIFY_INTERVAL_S=60 NOTIFICATION_SLEEP_TIME
TICKVAULT_NOTIFY_RETRY_S=50 NOTIFICATION_WAIT_TIME
TICKVAULT_QUEUE_FRAMES=10000 MAX_QUEUE_SIZE
TICKVAULT_QUEUE_MB=64
TICKVAULT_HTTP=127.0.0.1:8484
TICKVAULT_HTTP_TOKEN
TICKVAULT_RETAIN=3d
TICKVAULT_DISK_RESERVE=5%
TICKVAULT_DISK_FULL=stop
TICKVAULT_COMPACT=auto
TICKVAULT_SHUTDOWN_S=30
TICKVAULT_LOG_LEVEL=info
TICKVAULT_LOG_FORMAT=auto
TICKVAULT_LOG_FILE
NATS_URL
TICKVAULT_ALLOW_PLAINTEXT
REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL
"""


def test_names_and_defaults_are_the_promised_ones():
    """Every name and default that users rely on is there, and nothing else."""
    promised = {}
    for line in PROMISED.split("\n"):
        first, *aliases = line.split() or [""]
        name, _, default = first.partition("=")
        promised[name] = (default, tuple(aliases))
    del promised[""]

    assert {setting.name: (setting.default, setting.aliases) for setting in SETTINGS} == promised


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_what_is_secret_looks_like_it(setting):
    """Tokens, passwords and keys are secrets, and nothing else is."""
    assert setting.secret == setting.name.endswith(("_TOKEN", "_PASSWORD", "_SECRET"))


if __name__ == "__main__" and "--write" in sys.argv:
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}{rendered()}{END}{rest.partition(END)[2]}", encoding="utf-8")
