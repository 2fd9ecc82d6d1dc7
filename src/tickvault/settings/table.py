"""Every thing a user can set: its names, its default, its meaning. docs/reference/settings.md is held against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["BY_FILE_NAME", "BY_NAME", "KNOWN", "SETTINGS", "Setting"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing a user can set.

    Attributes:
        name: its first name.
        default: the text that counts when nothing is set; empty for none.
        meaning: one line of Markdown.
        aliases: other names for it; those of the TradeDataFeed service, so that its deployments run unchanged.
        secret: never shown, and every name of it also exists as NAME_FILE.
    """

    name: str
    default: str
    meaning: str
    aliases: tuple[str, ...] = ()
    secret: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the first one first."""
        return (self.name, *self.aliases)


_MASTER_LIST: Final = "https://assets.upstox.com/market-quote/instruments/exchange/complete.json.gz"

SETTINGS: Final = (
    Setting(
        "UPSTOX_ACCESS_TOKEN",
        "",
        "static token (an Analytics token is advised); wins over the URL",
        aliases=("ACCESS_TOKEN",),
        secret=True,
    ),
    Setting(
        "UPSTOX_TOKEN_URL",
        "",
        'GET gives `{"access_token": …}`; asked anew at every attempt',
        aliases=("API_FETCH_TOKEN", "ACCESS_TOKEN_URL", "API_FETCH_TOKEN_URL"),
    ),
    Setting("UPSTOX_CLIENT_ID", "", "API key of the user's app, for `tickvault login`"),
    Setting("UPSTOX_CLIENT_SECRET", "", "its secret", secret=True),
    Setting(
        "UPSTOX_REDIRECT_URI", "", "its redirect address, the same to the letter, e.g. `http://127.0.0.1:8485/callback`"
    ),
    Setting("UPSTOX_API_URL", "https://api.upstox.com", "base of the broker's REST API; plain `http` only to loopback"),
    Setting(
        "UPSTOX_INSTRUMENTS_URL",
        _MASTER_LIST,
        "the broker's master list of instruments, or `off`; plain `http` only to loopback",
    ),
    Setting(
        "UPSTOX_PLUS", "false", "`true`: the account has Upstox Plus, so 5 connections instead of 2, and `full_d30`"
    ),
    Setting(
        "TICKVAULT_INSTRUMENTS",
        "",
        "comma-separated instrument keys or selections such as `chain:NIFTY:2`, `@mode` behind one to differ from the default mode; wins over the URL",
        aliases=("INSTRUMENTS_LIST",),
    ),
    Setting(
        "TICKVAULT_INSTRUMENTS_URL",
        "",
        'GET gives `{"instruments": [key, …]}`; read again at each reconnect, the last good list kept on failure',
        aliases=("GET_INSTRUMENTS_URL", "INSTRUMENTS_LIST_URL", "INSTRUMENT_KEYS_LIST_URL"),
    ),
    Setting("TICKVAULT_MODE", "full", "default mode: `ltpc`, `option_greeks`, `full`, `full_d30`"),
    Setting("TICKVAULT_DATA_DIR", "./data", "folder of journal, state and Parquet store"),
    Setting(
        "TICKVAULT_SINKS",
        "parquet",
        "which sinks run: `parquet`, `influx`; when not set, `influx` too once `INFLUX_URL` is set",
    ),
    Setting("INFLUX_URL", "", "InfluxDB, e.g. `http://localhost:8086`", aliases=("INFLUX_DB_URL", "INFLUXDB_URL")),
    Setting("INFLUX_ORG", "", "organization (v2)", aliases=("INFLUX_DB_ORG", "INFLUXDB_ORG")),
    Setting(
        "INFLUX_BUCKET",
        "",
        "bucket, `tickvault` when not set; on v1 and v3 the database",
        aliases=("INFLUX_BUCKET_NAME", "INFLUXDB_BUCKET_NAME"),
    ),
    Setting(
        "INFLUX_TOKEN",
        "",
        "token that may write to the bucket",
        aliases=("INFLUX_DB_TOKEN", "INFLUXDB_TOKEN"),
        secret=True,
    ),
    Setting("INFLUX_USERNAME", "", "user (v1)"),
    Setting("INFLUX_PASSWORD", "", "password (v1)", secret=True),
    Setting("INFLUX_API", "auto", "`v1`, `v2`, `v3`, or `auto`: ask the server"),
    Setting(
        "INFLUX_LAYOUT",
        "tickvault",
        "`tickvault`, `tradedatafeed` or both; when not set and a TradeDataFeed name is in use for InfluxDB: `tradedatafeed,tickvault`",
    ),
    Setting("INFLUX_DEPTH", "5", "book levels written to InfluxDB, 0 to 30; Parquet has all"),
    Setting(
        "TICKVAULT_NOTIFY_URL",
        "",
        "webhook; through a TradeDataFeed name only `data.stored` of sink `influx` is sent, unless `TICKVAULT_NOTIFY_EVENTS` is set",
        aliases=("DATA_FEED_UPDATE_URL", "DATA_FEED_UPDATE_INFORM_URL"),
    ),
    Setting("TICKVAULT_NOTIFY_EVENTS", "all", "comma-separated names of events, or `all`"),
    Setting("TICKVAULT_NOTIFY_SECRET", "", "key of the HMAC-SHA256 signature", secret=True),
    Setting(
        "TICKVAULT_NOTIFY_INTERVAL_S",
        "60",
        "seconds: at most one `data.stored` a sink in this time",
        aliases=("NOTIFICATION_SLEEP_TIME",),
    ),
    Setting(
        "TICKVAULT_NOTIFY_RETRY_S",
        "50",
        "seconds: longest pause between two tries",
        aliases=("NOTIFICATION_WAIT_TIME",),
    ),
    Setting(
        "TICKVAULT_QUEUE_FRAMES",
        "10000",
        "bound of the intake queue in frames; at the bound reading from the broker pauses",
        aliases=("MAX_QUEUE_SIZE",),
    ),
    Setting("TICKVAULT_QUEUE_MB", "64", "bound of the intake queue in MB (10⁶ bytes); whichever bound comes first"),
    Setting(
        "TICKVAULT_HTTP",
        "127.0.0.1:8484",
        "host:port of dashboard, `/api/status`, `/metrics`, `/healthz` and `/readyz`, or `off`; elsewhere than loopback only with `TICKVAULT_HTTP_TOKEN`",
    ),
    Setting("TICKVAULT_HTTP_TOKEN", "", "token that the dashboard and the status API ask for", secret=True),
    Setting(
        "TICKVAULT_RETAIN",
        "3d",
        "delivered frames are kept this long: `3d`, `12h`, `30m`, `90s`; what a sink in use has not stored is kept longer",
    ),
    Setting(
        "TICKVAULT_DISK_RESERVE",
        "5%",
        "below this much free disk delivered frames are removed, and if that is not enough intake stops with a gap: `5%`, `10GB`, `500MB`",
    ),
    Setting(
        "TICKVAULT_DISK_FULL",
        "stop",
        "what to do below the reserve when nothing delivered is left to remove: `stop` intake until there is room, or `drop_oldest`: remove the oldest frames, undelivered ones too, with a gap",
    ),
    Setting(
        "TICKVAULT_COMPACT",
        "auto",
        "`auto`: while nothing trades, by the exchanges' calendar, days of the Parquet store that are over are rewritten into one sorted file a table; `off`: only by `tickvault compact`",
    ),
    Setting("TICKVAULT_SHUTDOWN_S", "30", "seconds that a stopping recorder gives its sinks to take the rest"),
    Setting("TICKVAULT_LOG_LEVEL", "info", "`debug`, `info`, `warning`, `error`"),
    Setting("TICKVAULT_LOG_FORMAT", "auto", "`console`, `json`, or `auto`: JSON when stderr is not a terminal"),
    Setting("TICKVAULT_LOG_FILE", "", "file that gets the log too"),
    Setting("NATS_URL", "", "NATS JetStream, e.g. `nats://localhost:4222`; several servers comma-separated"),
    Setting(
        "TICKVAULT_ALLOW_PLAINTEXT",
        "",
        "comma-separated hosts that may be reached without TLS at public addresses too; never the broker",
    ),
    Setting(
        "REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL",
        "",
        "accepted, without effect: rows carry both the key and the trading symbol",
    ),
)

BY_NAME: Final = {name: setting for setting in SETTINGS for name in setting.names}
BY_FILE_NAME: Final = {f"{name}_FILE": setting for name, setting in BY_NAME.items() if setting.secret}
KNOWN: Final = (*BY_NAME, *BY_FILE_NAME)
