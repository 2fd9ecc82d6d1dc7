"""What the user set: names → one typed, frozen tree.

Four steps, each a section below: read the layers (`.env`, TOML, secret files: the only I/O, and the environment is an
argument); settle which text each setting has; let pydantic-settings give the texts their types; build the tree, with
what follows from several settings at once. SETTINGS drives all of them, and docs/reference/settings.md.

Laws. A name is first settled by precedence; then the names of one setting have to agree. Blank, and a placeholder of a
template, is not set. No message repeats a secret or an address.
"""

from __future__ import annotations

import difflib
import io
import re
import tomllib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from dotenv.parser import parse_stream
from dotenv.variables import parse_variables
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tickvault.addresses import Endpoint, check_endpoints, checked_url, is_loopback, split_listen
from tickvault.errors import ConfigurationError
from tickvault.model import Mode, Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "SETTINGS",
    "DiskReserve",
    "HttpSettings",
    "InfluxApi",
    "InfluxLayout",
    "InfluxSettings",
    "LogFormat",
    "LogLevel",
    "NotifySettings",
    "Setting",
    "Settings",
    "UpstoxSettings",
    "check_plaintext",
    "load_settings",
    "parse_list",
    "parse_subscriptions",
    "require_recordable",
]

# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    Setting("UPSTOX_API_URL", "https://api.upstox.com", "base of the broker's REST API; plain `http` only to loopback"),
    Setting(
        "UPSTOX_INSTRUMENTS_URL",
        _MASTER_LIST,
        "the broker's master list of instruments, or `off`; plain `http` only to loopback",
    ),
    Setting(
        "TICKVAULT_INSTRUMENTS",
        "",
        "comma-separated instrument keys, `key@mode` to differ from the default mode; wins over the URL",
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
        "which sinks run: `parquet`, `influx`, `nats`; when not set, `influx` too once `INFLUX_URL` is set",
    ),
    Setting("INFLUX_URL", "", "InfluxDB, e.g. `http://localhost:8086`", aliases=("INFLUX_DB_URL", "INFLUXDB_URL")),
    Setting("INFLUX_ORG", "", "organization (v2)", aliases=("INFLUX_DB_ORG", "INFLUXDB_ORG")),
    Setting(
        "INFLUX_BUCKET", "", "bucket; on v1 and v3 the database", aliases=("INFLUX_BUCKET_NAME", "INFLUXDB_BUCKET_NAME")
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
    Setting("TICKVAULT_RETAIN", "3d", "delivered frames are kept this long: `3d`, `12h`, `30m`, `90s`"),
    Setting("TICKVAULT_DISK_RESERVE", "5%", "below this much free disk intake stops with a gap: `5%`, `10GB`, `500MB`"),
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

_BY_NAME: Final = {name: setting for setting in SETTINGS for name in setting.names}
_BY_FILE_NAME: Final = {f"{name}_FILE": setting for name, setting in _BY_NAME.items() if setting.secret}
_KNOWN: Final = (*_BY_NAME, *_BY_FILE_NAME)

_SINKS: Final = ("parquet", "influx", "nats")
_EVENTS: Final = (
    "data.stored",
    "gap.opened",
    "gap.closed",
    "sink.parked",
    "sink.recovered",
    "token.rejected",
    "token.expiring",
    "disk.low",
)

# ── The tree ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class InfluxApi(StrEnum):
    """Which write API an InfluxDB server has."""

    AUTO = "auto"
    V1 = "v1"
    V2 = "v2"
    V3 = "v3"


class InfluxLayout(StrEnum):
    """How rows become points."""

    TICKVAULT = "tickvault"
    TRADEDATAFEED = "tradedatafeed"


class LogLevel(StrEnum):
    """The least important line that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log line looks."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstoxSettings:
    """How the broker is reached. At most one of token and token URL is there; addresses stay out of the repr."""

    access_token: SecretStr | None
    token_url: str | None = field(repr=False)
    api_url: str = field(repr=False)
    instruments_url: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluxSettings:
    """Where and how points are written. `url` has no trailing slash; `depth` is 0 to 30 book levels."""

    url: str = field(repr=False)
    org: str | None
    bucket: str | None
    token: SecretStr | None
    username: str | None
    password: SecretStr | None
    api: InfluxApi
    layouts: tuple[InfluxLayout, ...]
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySettings:
    """Who is told what. `events` and `sinks` are None for all of them."""

    url: str = field(repr=False)
    events: tuple[str, ...] | None
    sinks: tuple[str, ...] | None
    secret: SecretStr | None
    interval_s: float
    retry_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Where the web server listens; `explicit` when the user said so. Port 0 is any free port."""

    host: str
    port: int
    token: SecretStr | None
    explicit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReserve:
    """Free disk space that intake leaves alone: exactly one of the two."""

    percent: float | None
    bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the user set, checked.

    Attributes:
        subscriptions: in the user's order, each key once; when there are any, `instruments_list_url` is None.
        influx: None when there is no URL; there whether or not the sink runs.
        http: None when it is off.
        warnings: one line each, for the caller to say once.
    """

    upstox: UpstoxSettings
    subscriptions: tuple[Subscription, ...]
    instruments_list_url: str | None = field(repr=False)
    mode: Mode
    data_dir: Path
    sinks: tuple[str, ...]
    influx: InfluxSettings | None
    notify: NotifySettings | None
    queue_frames: int
    queue_bytes: int
    http: HttpSettings | None
    retain_s: float
    disk_reserve: DiskReserve
    shutdown_s: float
    log_level: LogLevel
    log_format: LogFormat
    log_file: Path | None
    nats_url: str | None = field(repr=False)
    allow_plaintext: tuple[str, ...]
    warnings: tuple[str, ...]


# ── From text to values ──────────────────────────────────────────────────────────────────────────────────────────────

_QUOTES: Final = "\"'"
_KEY: Final = re.compile(r"[A-Z][A-Z0-9_]*\|[^|\s](?:[^|]*[^|\s])?")
_QUANTITY: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([A-Za-z%]+)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES: Final = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_list(text: str) -> tuple[str, ...]:
    """Return the items between commas: trimmed, without quotes, each once, in order, none empty.

    One pair of quotes goes, round the whole list or round each item; blanks inside an item stay.
    """
    whole = _unquoted(text)
    items = whole.split(",") if whole != text.strip() else [_unquoted(item) for item in text.split(",")]
    return tuple(dict.fromkeys(item.strip() for item in items if item.strip()))


def _unquoted(text: str) -> str:
    """Return the text trimmed and without one pair of quotes round all of it (`"a", "b"` has two pairs and keeps them)."""
    text = text.strip()
    quoted = len(text) >= 2 and text[0] in _QUOTES and text[-1] == text[0] and text[0] not in text[1:-1]
    return text[1:-1].strip() if quoted else text


def parse_subscriptions(items: Iterable[str], default: Mode) -> tuple[Subscription, ...]:
    """Return one subscription for each instrument key.

    Args:
        items: `SEGMENT|name`, or `SEGMENT|name@mode`.
        default: the mode of an item that names none.

    Raises:
        ConfigurationError: a key or mode is malformed, or one key is there in two modes; names the first five.
    """
    modes: dict[str, Mode] = {}
    problems = []
    for item in items:
        try:
            key, mode = _subscription(item, default)
            if modes.setdefault(key, mode) != mode:
                problems.append(f"instrument {key!r} is there in modes {modes[key]} and {mode}; keep one of them")
        except ValueError as exc:
            problems.append(str(exc))
    if problems:
        more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise ConfigurationError("; ".join([*problems[:5], *more]))
    return tuple(Subscription(instrument_key=key, mode=mode) for key, mode in modes.items())


def _subscription(item: str, default: Mode) -> tuple[str, Mode]:
    key, at, mode = (part.strip() for part in item.partition("@"))
    if not (_KEY.fullmatch(key) and key.isprintable()):
        msg = (
            f"instrument key {_shortened(item)} is malformed: expected SEGMENT|name, "
            "e.g. NSE_EQ|INE002A01018, or NSE_INDEX|Nifty 50"
        )
        raise ValueError(msg)
    if at and mode.lower() not in tuple(Mode):
        msg = f"mode {_shortened(mode)} of instrument {key!r} is unknown: expected {_one_of(Mode)}"
        raise ValueError(msg)
    return key, Mode(mode.lower()) if at else default


def _shortened(text: str) -> str:
    """Return the text quoted, and cut to what fits a line."""
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _one_of(choices: Iterable[str]) -> str:
    return "one of " + ", ".join(str(choice) for choice in choices)


def _quantity(text: str, units: Mapping[str, float], expected: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if not match or match[2].lower() not in units:
        raise ValueError(expected)
    return float(match[1]) * units[match[2].lower()]


def _duration(text: str) -> float:
    return _quantity(text, _SECONDS, "expected a number and one of d, h, m, s, e.g. 3d, 12h, 30m or 90s")


def _disk_reserve(text: str) -> DiskReserve:
    expected = "expected less than 100%, or a size, e.g. 5%, 10GB or 500MB"
    if not text.endswith("%"):
        return DiskReserve(percent=None, bytes=int(_quantity(text, _BYTES, expected)))
    percent = _quantity(text, {"%": 1}, expected)
    if percent >= 100:
        raise ValueError(expected)
    return DiskReserve(percent=percent, bytes=None)


def _listen(text: str) -> tuple[str, int] | None:
    return None if text.lower() == "off" else split_listen(text)


def _master_list(text: str) -> str | None:
    return None if text.lower() == "off" else checked_url(text, ("https", "http"))


def _web_url(text: str) -> str:
    return checked_url(text, ("http", "https"))


def _base_url(text: str) -> str:
    return _web_url(text).rstrip("/")


def _nats_url(text: str) -> str:
    return ",".join(checked_url(item, ("nats", "tls", "ws", "wss")) for item in parse_list(text) or [""])


def _header_safe(secret: SecretStr) -> SecretStr:
    """Pass a token that can stand in an HTTP header; anything else would fail late, with the token in the message."""
    token = secret.get_secret_value()
    if not (token.isascii() and token.isprintable() and " " not in token):
        msg = "expected a token in one piece, of printable ASCII characters without blanks"
        raise ValueError(msg)
    return secret


def _members(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    choices = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        items = tuple(dict.fromkeys(item.lower() for item in parse_list(text)))
        unknown = [item for item in items if item not in choices]
        if unknown:
            msg = f"{_shortened(unknown[0])} is unknown: expected names out of {', '.join(choices)}"
            raise ValueError(msg)
        return items

    return parse


def _events(text: str) -> tuple[str, ...] | None:
    return None if text.lower() == "all" else _members(_EVENTS)(text)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        msg = "expected a path; the home folder it names is unknown"
        raise ValueError(msg) from None


_Url = Annotated[str, AfterValidator(_web_url)]
_BaseUrl = Annotated[str, AfterValidator(_base_url)]
_Token = Annotated[SecretStr, AfterValidator(_header_safe)]
_Word = TypeVar("_Word", bound=StrEnum)
_AnyCase = Annotated[_Word, BeforeValidator(str.lower)]
_Names = Annotated[tuple[str, ...], BeforeValidator(parse_list)]
_Path = Annotated[Path, BeforeValidator(_path)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Typed(BaseSettings):
    """Every setting under its first name, with its type. What has a default in the table is required here."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False)

    UPSTOX_ACCESS_TOKEN: _Token | None = None
    UPSTOX_TOKEN_URL: _Url | None = None
    UPSTOX_API_URL: _BaseUrl
    UPSTOX_INSTRUMENTS_URL: Annotated[str | None, BeforeValidator(_master_list)]
    TICKVAULT_INSTRUMENTS: _Names = ()
    TICKVAULT_INSTRUMENTS_URL: _Url | None = None
    TICKVAULT_MODE: _AnyCase[Mode]
    TICKVAULT_DATA_DIR: _Path
    TICKVAULT_SINKS: Annotated[tuple[str, ...], BeforeValidator(_members(_SINKS))]
    INFLUX_URL: _BaseUrl | None = None
    INFLUX_ORG: str | None = None
    INFLUX_BUCKET: str | None = None
    INFLUX_TOKEN: _Token | None = None
    INFLUX_USERNAME: str | None = None
    INFLUX_PASSWORD: SecretStr | None = None
    INFLUX_API: _AnyCase[InfluxApi]
    INFLUX_LAYOUT: Annotated[tuple[InfluxLayout, ...], BeforeValidator(_members(InfluxLayout))]
    INFLUX_DEPTH: Annotated[int, Field(ge=0, le=30)]
    TICKVAULT_NOTIFY_URL: _Url | None = None
    TICKVAULT_NOTIFY_EVENTS: Annotated[tuple[str, ...] | None, BeforeValidator(_events)]
    TICKVAULT_NOTIFY_SECRET: SecretStr | None = None
    TICKVAULT_NOTIFY_INTERVAL_S: _Seconds
    TICKVAULT_NOTIFY_RETRY_S: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    TICKVAULT_QUEUE_FRAMES: Annotated[int, Field(ge=1)]
    TICKVAULT_QUEUE_MB: Annotated[float, Field(gt=0, le=1_000_000)]
    TICKVAULT_HTTP: Annotated[tuple[str, int] | None, BeforeValidator(_listen)]
    TICKVAULT_HTTP_TOKEN: _Token | None = None
    TICKVAULT_RETAIN: Annotated[float, BeforeValidator(_duration)]
    TICKVAULT_DISK_RESERVE: Annotated[DiskReserve, BeforeValidator(_disk_reserve)]
    TICKVAULT_SHUTDOWN_S: _Seconds
    TICKVAULT_LOG_LEVEL: _AnyCase[LogLevel]
    TICKVAULT_LOG_FORMAT: _AnyCase[LogFormat]
    TICKVAULT_LOG_FILE: _Path | None = None
    NATS_URL: Annotated[str, AfterValidator(_nats_url)] | None = None
    TICKVAULT_ALLOW_PLAINTEXT: _Names = ()
    REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL: str | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (pydantic-settings passes it)
        init_settings: PydanticBaseSettingsSource,
        *_: object,
        **__: object,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the constructor only: pydantic's own sources read the process environment by themselves."""
        return (init_settings,)


# ── Reading the layers ───────────────────────────────────────────────────────────────────────────────────────────────

_ENV_FILE: Final = Path(".env")  # the one file that may be missing
# A token takes a few KB; a bound, so that a wrong path (a device, a log) cannot fill the memory.
_MAX_FILE_CHARS: Final = 1_000_000


@dataclass(slots=True)
class _Findings:
    """What loading has to say."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Given:
    """A text, the name it was given under and where; `names` when it was given under several."""

    text: str
    name: str
    where: str
    names: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        return f"{self.name} in {self.where}"


def _read(path: Path, what: str) -> str:
    try:
        with path.expanduser().open(encoding="utf-8-sig") as file:
            text = file.read(_MAX_FILE_CHARS + 1)
    except FileNotFoundError:
        if path == _ENV_FILE:
            return ""
        raise ConfigurationError(f"{what}: there is no such file; create it or correct the path") from None
    except (OSError, ValueError, RuntimeError) as exc:
        # Not str(exc): of a decoding error it has bytes of the file.
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text, or has no such home folder"
        raise ConfigurationError(f"{what} cannot be read: {reason}; correct the path or the file") from None
    if len(text) > _MAX_FILE_CHARS:
        raise ConfigurationError(f"{what} has more than {_MAX_FILE_CHARS} characters; correct the path")
    return text


def _read_env_file(path: Path, environ: Mapping[str, str], findings: _Findings) -> dict[str, str]:
    """Return the names of a `.env` file as python-dotenv reads it, except that `${NAME}` is taken from `environ`."""
    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(_read(path, f"env file {str(path)!r}"))):
        if binding.error:
            findings.warnings.append(f"line {binding.original.line} of {path} is not NAME=value and is ignored")
        elif binding.key is not None and binding.value is not None:
            scope = {**values, **environ}
            values[binding.key] = "".join(atom.resolve(scope) for atom in parse_variables(binding.value))
    return values


def _read_toml(path: Path, findings: _Findings) -> dict[str, str]:
    """Return the names of a TOML file; a table is a prefix (`[tickvault]` `mode` is TICKVAULT_MODE), a list its items."""
    try:
        document = tomllib.loads(_read(path, f"configuration file {str(path)!r}"))
    except tomllib.TOMLDecodeError as exc:
        place = re.search(r"\(at .*\)$", str(exc))
        raise ConfigurationError(f"{str(path)!r} is not valid TOML {place[0] if place else ''}; correct it") from None
    values: dict[str, str] = {}
    for name, value in _flattened(document, ""):
        if name in values:
            findings.problems.append(f"{name} is there twice in {path}; keep one of them")
        elif isinstance(value, list) and all(isinstance(item, str) and "," not in item for item in value):
            values[name] = ",".join(value)
        elif isinstance(value, str | int | float):
            values[name] = str(value).lower() if isinstance(value, bool) else str(value)
        else:
            findings.problems.append(f"{name} in {path}: expected a text, a number or a list of texts without commas")
    return values


def _flattened(table: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        name = f"{prefix}{key}".upper()
        if isinstance(value, dict):
            yield from _flattened(value, f"{name}_")
        else:
            yield name, value


# ── Settling the texts ───────────────────────────────────────────────────────────────────────────────────────────────

# What TradeDataFeed's templates, README and compose files have where a value belongs.
_PLACEHOLDERS: Final = frozenset(
    {
        "your-token",
        "comma-separated-list-of-instruments",
        "influxdb-url",
        "influxdb-organization",
        "influxdb-bucket-name",
        "influxdb-token",
        "your-api-fetch-token-url",
        "your-access-token",
        "your-instruments-list-url",
        "<instrument1>, <instrument2>,...",
        "your-data-feed-update-notification-url",
        "influxdb-org",
        "your-influxdb-token",
        "your_org_name",
        "your_bucket_name",
        "your_influxdb_token",
        "your_data_feed_update_url",
        "your_access_token_url_or_empty_if_not_used",
        "your_instruments_list_url_or_empty_if_not_used",
    }
)
_PLACEHOLDER_FORM: Final = re.compile(r"url-to-[a-z-]+|example-\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """Names → texts from one place; `ours` when nothing but settings belongs there."""

    where: str
    values: Mapping[str, str]
    ours: bool = False


def _settle(overrides: _Layer, layers: Sequence[_Layer], findings: _Findings) -> dict[str, _Given]:
    """Return the text of each setting that has one, by its first name.

    Args:
        overrides: wins over every layer under whatever name; a blank there means not set.
        layers: the strongest first.
        findings: gets what is wrong or doubtful.
    """
    known = [(layer, _known(layer, findings)) for layer in (overrides, *layers)]
    overridden = {_setting_of(name).name for name in known[0][1]}
    candidates: dict[str, list[_Given]] = {}
    settled: set[str] = set()
    for layer, values in known:
        for name, raw in values.items():
            setting = _setting_of(name)
            if name in settled or (layer is not overrides and setting.name in overridden):
                continue
            given = _meaningful(_Given(_unquoted(raw), name, layer.where), findings)
            if given:
                settled.add(name)
                candidates.setdefault(setting.name, []).append(given)
    return {name: _agreed(name, found, findings) for name, found in candidates.items()}


def _setting_of(name: str) -> Setting:
    return _BY_NAME.get(name) or _BY_FILE_NAME[name]


def _known(layer: _Layer, findings: _Findings) -> dict[str, str]:
    """Return a layer's settings; what is no setting there and is not another program's is a problem."""
    known = {name: text for name, text in layer.values.items() if name in _KNOWN}
    for name in layer.values:
        if name not in known and (layer.ours or name.upper().startswith("TICKVAULT_")):
            findings.problems.append(f"{name} in {layer.where} is not a setting; did you mean {_nearest(name)}?")
    return known


def _nearest(name: str) -> str:
    name = name.upper()
    exact = (name, name.removeprefix("TICKVAULT_"), f"TICKVAULT_{name}")
    return next((known for known in exact if known in _KNOWN), difflib.get_close_matches(name, _KNOWN, 1, 0)[0])


def _meaningful(given: _Given, findings: _Findings) -> _Given | None:
    """Return what was given, read from its file where it names one; None when it counts as not set."""
    if given.text and given.name in _BY_FILE_NAME:
        try:
            text = _read(Path(given.text), f"{given.origin}{_shown_path(given.text)}").strip()
        except ConfigurationError as exc:
            findings.problems.append(str(exc))
            return None
        if not text:
            findings.warnings.append(f"the file that {given.origin} names is empty; it counts as not set")
        given = replace(given, text=text)
    if given.text.lower() in _PLACEHOLDERS or _PLACEHOLDER_FORM.fullmatch(given.text.lower()):
        findings.warnings.append(f"{given.origin} still has a template's placeholder; it counts as not set")
        return None
    return given if given.text else None


def _shown_path(text: str) -> str:
    """Return a path to show; nothing for what may be the secret itself, put where its path belongs."""
    return f" ({text!r})" if text.startswith(("/", "./", "../", "~")) and len(text) < 200 else ""


def _agreed(name: str, candidates: Sequence[_Given], findings: _Findings) -> _Given:
    """Return one of the texts given for a setting, its first name's if there; that they differ is a problem."""
    chosen = next((given for given in candidates if given.name == name), candidates[0])
    differing = [other for other in candidates if other.text != chosen.text]
    if differing:
        origins = " and ".join(given.origin for given in (chosen, *differing))
        findings.problems.append(f"{origins} mean one setting and differ; keep one of them")
    return replace(chosen, names=tuple(given.name for given in candidates))


# ── Building the tree ────────────────────────────────────────────────────────────────────────────────────────────────

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def load_settings(
    *,
    environ: Mapping[str, str],
    env_file: Path | None = _ENV_FILE,
    config_file: Path | None = None,
    overrides: Mapping[str, str] = _NOTHING,
) -> Settings:
    """Return the settings that the environment, a `.env` file and a TOML file give, in that order of precedence.

    Args:
        environ: the process environment.
        env_file: only `.env` itself may be missing; None for none.
        config_file: a TOML file; None for none.
        overrides: options of a command; each wins over every other source and name of its setting, blank means unset.

    Raises:
        ConfigurationError: names every setting that is wrong, what was expected and where it was set; one line, no
            secret in it.
    """
    findings = _Findings()
    layers = [_Layer(where="the environment", values=environ)]
    if env_file is not None:
        layers.append(_Layer(where=str(env_file), values=_read_env_file(env_file, environ, findings)))
    if config_file is not None:
        layers.append(_Layer(where=str(config_file), values=_read_toml(config_file, findings), ours=True))
    given = _settle(_Layer(where="the command line", values=overrides, ours=True), layers, findings)
    typed = _typed(given, findings)
    if typed is None or findings.problems:
        raise ConfigurationError("; ".join(findings.problems))
    settings = _tree(typed, given, findings)
    if findings.problems:
        raise ConfigurationError("; ".join(findings.problems))
    return settings


def _typed(given: Mapping[str, _Given], findings: _Findings) -> _Typed | None:
    texts: dict[str, str | SecretStr] = {setting.name: setting.default for setting in SETTINGS if setting.default}
    for name, one in given.items():
        # Wrapped before pydantic-settings sees it: told to by its own debug variable, that logs what it gets.
        texts[name] = SecretStr(one.text) if _BY_NAME[name].secret else one.text
    try:
        return _Typed.model_validate(texts)
    except ValidationError as exc:
        for error in exc.errors(include_url=False, include_input=False):
            setting = _BY_NAME[str(error["loc"][0])]
            cause = error.get("ctx", {}).get("error")
            expected = str(cause) if cause else error["msg"][:1].lower() + error["msg"][1:]
            findings.problems.append(_complaint(setting, given[setting.name], expected))
        return None


def _complaint(setting: Setting, given: _Given, expected: str) -> str:
    shown = "" if setting.secret or setting.name.endswith("_URL") else f", got {_shortened(given.text)}"
    default = f", or remove it to get {setting.default}" if setting.default else ", or remove it"
    return f"{given.origin}: {expected}{shown}; correct it{default}"


def _tree(typed: _Typed, given: Mapping[str, _Given], findings: _Findings) -> Settings:
    has_token, subscriptions = typed.UPSTOX_ACCESS_TOKEN is not None, _subscriptions(typed, given, findings)
    for winner, loser in (
        ("UPSTOX_ACCESS_TOKEN", "UPSTOX_TOKEN_URL"),
        ("TICKVAULT_INSTRUMENTS", "TICKVAULT_INSTRUMENTS_URL"),
    ):
        if winner in given and loser in given:
            findings.warnings.append(f"{given[loser].origin} is not used, because {given[winner].origin} wins over it")
    if typed.REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL:
        findings.warnings.append(
            "REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL has no effect: rows carry both the key and the trading symbol"
        )
    return Settings(
        upstox=UpstoxSettings(
            access_token=typed.UPSTOX_ACCESS_TOKEN,
            token_url=None if has_token else typed.UPSTOX_TOKEN_URL,
            api_url=typed.UPSTOX_API_URL,
            instruments_url=typed.UPSTOX_INSTRUMENTS_URL,
        ),
        subscriptions=subscriptions,
        instruments_list_url=None if subscriptions else typed.TICKVAULT_INSTRUMENTS_URL,
        mode=typed.TICKVAULT_MODE,
        data_dir=typed.TICKVAULT_DATA_DIR,
        sinks=_sinks(typed, given, findings),
        influx=_influx(typed, given),
        notify=_notify(typed, given),
        queue_frames=typed.TICKVAULT_QUEUE_FRAMES,
        queue_bytes=int(typed.TICKVAULT_QUEUE_MB * 1_000_000),
        http=_http(typed, given, findings),
        retain_s=typed.TICKVAULT_RETAIN,
        disk_reserve=typed.TICKVAULT_DISK_RESERVE,
        shutdown_s=typed.TICKVAULT_SHUTDOWN_S,
        log_level=typed.TICKVAULT_LOG_LEVEL,
        log_format=typed.TICKVAULT_LOG_FORMAT,
        log_file=typed.TICKVAULT_LOG_FILE,
        nats_url=typed.NATS_URL,
        allow_plaintext=typed.TICKVAULT_ALLOW_PLAINTEXT,
        warnings=tuple(dict.fromkeys(findings.warnings)),
    )


def _subscriptions(typed: _Typed, given: Mapping[str, _Given], findings: _Findings) -> tuple[Subscription, ...]:
    try:
        return parse_subscriptions(typed.TICKVAULT_INSTRUMENTS, typed.TICKVAULT_MODE)
    except ConfigurationError as exc:
        findings.problems.append(f"{given['TICKVAULT_INSTRUMENTS'].origin}: {exc}")
        return ()


def _sinks(typed: _Typed, given: Mapping[str, _Given], findings: _Findings) -> tuple[str, ...]:
    urls = {"influx": "INFLUX_URL", "nats": "NATS_URL"}
    if "TICKVAULT_SINKS" not in given or not typed.TICKVAULT_SINKS:
        sinks: tuple[str, ...] = ("parquet", "influx") if typed.INFLUX_URL else ("parquet",)
    else:
        sinks = typed.TICKVAULT_SINKS
        findings.problems.extend(
            f"{given['TICKVAULT_SINKS'].origin} names {sink}, but {url} is not set; set it, or take {sink} out"
            for sink, url in urls.items()
            if sink in sinks and url not in given
        )
    findings.warnings.extend(
        f"{given[url].origin} is not used, because TICKVAULT_SINKS does not name {sink}"
        for sink, url in urls.items()
        if url in given and sink not in sinks
    )
    if "influx" in sinks and not typed.INFLUX_BUCKET:
        findings.warnings.append("INFLUX_BUCKET is not set; InfluxDB refuses rows without one")
    return sinks


def _influx(typed: _Typed, given: Mapping[str, _Given]) -> InfluxSettings | None:
    if not typed.INFLUX_URL:
        return None
    layouts = typed.INFLUX_LAYOUT or (InfluxLayout.TICKVAULT,)
    names = {
        name for setting in SETTINGS if setting.name.startswith("INFLUX_") for name in _aliases_used(setting, given)
    }
    if "INFLUX_LAYOUT" not in given and names:
        layouts = (InfluxLayout.TRADEDATAFEED, InfluxLayout.TICKVAULT)
    return InfluxSettings(
        url=typed.INFLUX_URL,
        org=typed.INFLUX_ORG,
        bucket=typed.INFLUX_BUCKET,
        token=typed.INFLUX_TOKEN,
        username=typed.INFLUX_USERNAME,
        password=typed.INFLUX_PASSWORD,
        api=typed.INFLUX_API,
        layouts=layouts,
        depth=typed.INFLUX_DEPTH,
    )


def _aliases_used(setting: Setting, given: Mapping[str, _Given]) -> set[str]:
    """Return the TradeDataFeed names under which a setting was given."""
    used = given[setting.name].names if setting.name in given else ()
    return {name.removesuffix("_FILE") for name in used} & set(setting.aliases)


def _notify(typed: _Typed, given: Mapping[str, _Given]) -> NotifySettings | None:
    if not typed.TICKVAULT_NOTIFY_URL:
        return None
    # What listens at such an address knows one message only.
    narrow = given["TICKVAULT_NOTIFY_URL"].name != "TICKVAULT_NOTIFY_URL" and "TICKVAULT_NOTIFY_EVENTS" not in given
    return NotifySettings(
        url=typed.TICKVAULT_NOTIFY_URL,
        events=("data.stored",) if narrow else typed.TICKVAULT_NOTIFY_EVENTS or None,
        sinks=("influx",) if narrow else None,
        secret=typed.TICKVAULT_NOTIFY_SECRET,
        interval_s=typed.TICKVAULT_NOTIFY_INTERVAL_S,
        retry_s=typed.TICKVAULT_NOTIFY_RETRY_S,
    )


def _http(typed: _Typed, given: Mapping[str, _Given], findings: _Findings) -> HttpSettings | None:
    if typed.TICKVAULT_HTTP is None:
        return None
    host, port = typed.TICKVAULT_HTTP
    if not is_loopback(host) and typed.TICKVAULT_HTTP_TOKEN is None:
        findings.problems.append(
            f"{given['TICKVAULT_HTTP'].origin}: {host} can be reached by others; set TICKVAULT_HTTP_TOKEN to a secret "
            "of your choice, or listen on 127.0.0.1"
        )
    explicit = "TICKVAULT_HTTP" in given
    return HttpSettings(host=host, port=port, token=typed.TICKVAULT_HTTP_TOKEN, explicit=explicit)


# ── What some commands ask besides ───────────────────────────────────────────────────────────────────────────────────


def require_recordable(settings: Settings) -> None:
    """Pass settings that say whose feed to record.

    Raises:
        ConfigurationError: there is no token, or no instrument; the message says what to set.
    """
    missing = []
    if settings.upstox.access_token is None and settings.upstox.token_url is None:
        missing.append("no token: set UPSTOX_ACCESS_TOKEN (an Analytics token is advised) or UPSTOX_TOKEN_URL")
    if not settings.subscriptions and settings.instruments_list_url is None:
        missing.append(
            "no instruments: set TICKVAULT_INSTRUMENTS, e.g. NSE_EQ|INE002A01018,NSE_INDEX|Nifty 50, "
            "or TICKVAULT_INSTRUMENTS_URL"
        )
    if missing:
        raise ConfigurationError("; ".join([*missing, "`tickvault demo` needs no credentials"]))


def check_plaintext(settings: Settings, resolve: Callable[[str], Sequence[str]]) -> tuple[str, ...]:
    """Apply the plain-text rule (tickvault.addresses) to every address in use and return the warnings.

    Args:
        settings: what is in use.
        resolve: host name → its addresses; empty, or OSError, when it has none at present. May block.

    Raises:
        ConfigurationError: an address would send data unprotected through a public network.
    """
    urls = [
        ("UPSTOX_TOKEN_URL", settings.upstox.token_url),
        ("TICKVAULT_INSTRUMENTS_URL", settings.instruments_list_url),
        ("INFLUX_URL", settings.influx.url if settings.influx and "influx" in settings.sinks else None),
        ("TICKVAULT_NOTIFY_URL", settings.notify.url if settings.notify else None),
        *(("NATS_URL", url) for url in (settings.nats_url or "").split(",") if "nats" in settings.sinks),
    ]
    endpoints = [
        Endpoint(name="UPSTOX_API_URL", url=settings.upstox.api_url, broker=True),
        *(
            Endpoint(name="UPSTOX_INSTRUMENTS_URL", url=url, broker=True)
            for url in [settings.upstox.instruments_url]
            if url
        ),
        *(Endpoint(name=name, url=url) for name, url in urls if url),
    ]
    return check_endpoints(endpoints, allowed=settings.allow_plaintext, resolve=resolve)
