"""From the layers to the tree, with what follows from several settings at once. No message repeats a secret or an address."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr, ValidationError

from tickvault.addresses import is_loopback
from tickvault.errors import ConfigurationError
from tickvault.selections import Key, ListFile, parse_selections
from tickvault.settings.layers import ENV_FILE, Findings, Layer, read_env_file, read_toml
from tickvault.settings.precedence import settle
from tickvault.settings.table import BY_NAME, SETTINGS
from tickvault.settings.tree import HttpSettings, InfluxLayout, InfluxSettings, NotifySettings, Settings, UpstoxSettings
from tickvault.settings.values import Typed
from tickvault.subscriptions import shortened

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tickvault.selections import Selection
    from tickvault.settings.precedence import Given
    from tickvault.settings.table import Setting

__all__ = ["load_settings"]

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def load_settings(
    *,
    environ: Mapping[str, str],
    env_file: Path | None = ENV_FILE,
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
    findings = Findings()
    layers = [Layer(where="the environment", values=environ)]
    if env_file is not None:
        layers.append(read_env_file(env_file, environ, findings))
    if config_file is not None:
        layers.append(read_toml(config_file, findings))
    given = settle(Layer(where="the command line", values=overrides, ours=True), layers, findings)
    typed = _typed(given, findings)
    settings = _tree(typed, given, findings, env_file) if typed and not findings.problems else None
    if settings is None or findings.problems:
        raise ConfigurationError("; ".join(findings.problems))
    return settings


def _typed(given: Mapping[str, Given], findings: Findings) -> Typed | None:
    texts: dict[str, str | SecretStr] = {setting.name: setting.default for setting in SETTINGS if setting.default}
    for name, one in given.items():
        # Wrapped before pydantic-settings sees it: told to by its own debug variable, that logs what it gets.
        texts[name] = SecretStr(one.text) if BY_NAME[name].secret else one.text
    try:
        return Typed.model_validate(texts)
    except ValidationError as exc:
        for error in exc.errors(include_url=False, include_input=False):
            setting = BY_NAME[str(error["loc"][0])]
            cause = error.get("ctx", {}).get("error")
            expected = str(cause) if cause else error["msg"][:1].lower() + error["msg"][1:]
            findings.problems.append(_complaint(setting, given[setting.name], expected))
        return None


def _complaint(setting: Setting, given: Given, expected: str) -> str:
    shown = "" if setting.secret or setting.name.endswith(("_URL", "_URI")) else f", got {shortened(given.text)}"
    default = f", or remove it to get {setting.default}" if setting.default else ", or remove it"
    return f"{given.origin}: {expected}{shown}; correct it{default}"


def _tree(typed: Typed, given: Mapping[str, Given], findings: Findings, env_file: Path | None) -> Settings:
    has_token, selections = typed.UPSTOX_ACCESS_TOKEN is not None, _selections(typed, given, findings)
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
            token_file=given["UPSTOX_ACCESS_TOKEN"].file if has_token else None,
            env_file=env_file,
            token_url=None if has_token else typed.UPSTOX_TOKEN_URL,
            api_url=typed.UPSTOX_API_URL,
            instruments_url=typed.UPSTOX_INSTRUMENTS_URL,
            client_id=typed.UPSTOX_CLIENT_ID,
            client_secret=typed.UPSTOX_CLIENT_SECRET,
            redirect_uri=typed.UPSTOX_REDIRECT_URI,
            plus=typed.UPSTOX_PLUS,
        ),
        selections=selections,
        instruments_list_url=None if selections else typed.TICKVAULT_INSTRUMENTS_URL,
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
        disk_full=typed.TICKVAULT_DISK_FULL,
        compact=typed.TICKVAULT_COMPACT,
        shutdown_s=typed.TICKVAULT_SHUTDOWN_S,
        log_level=typed.TICKVAULT_LOG_LEVEL,
        log_format=typed.TICKVAULT_LOG_FORMAT,
        log_file=typed.TICKVAULT_LOG_FILE,
        nats_url=typed.NATS_URL,
        allow_plaintext=typed.TICKVAULT_ALLOW_PLAINTEXT,
        warnings=tuple(dict.fromkeys(findings.warnings)),
    )


def _selections(typed: Typed, given: Mapping[str, Given], findings: Findings) -> tuple[Selection, ...]:
    try:
        selections = parse_selections(typed.TICKVAULT_INSTRUMENTS, typed.TICKVAULT_MODE)
    except ConfigurationError as exc:
        findings.problems.append(f"{given['TICKVAULT_INSTRUMENTS'].origin}: {exc}")
        return ()
    listless = [one.text for one in selections if not isinstance(one.what, Key | ListFile)]
    if listless and typed.UPSTOX_INSTRUMENTS_URL is None:
        findings.problems.append(
            f"{given['TICKVAULT_INSTRUMENTS'].origin}: {shortened(listless[0])} needs the master list, but "
            "UPSTOX_INSTRUMENTS_URL is off; remove that, or name instrument keys"
        )
    return selections


def _sinks(typed: Typed, given: Mapping[str, Given], findings: Findings) -> tuple[str, ...]:
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
        findings.warnings.append("INFLUX_BUCKET is not set; rows go to the bucket tickvault")
    return sinks


def _influx(typed: Typed, given: Mapping[str, Given]) -> InfluxSettings | None:
    if not typed.INFLUX_URL:
        return None
    layouts = typed.INFLUX_LAYOUT or (InfluxLayout.TICKVAULT,)
    seeded = any(_has_alias(setting, given) for setting in SETTINGS if setting.name.startswith("INFLUX_"))
    if "INFLUX_LAYOUT" not in given and seeded:
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


def _has_alias(setting: Setting, given: Mapping[str, Given]) -> bool:
    """Return whether a setting was given under a TradeDataFeed name."""
    used = given[setting.name].names if setting.name in given else ()
    return any(name.removesuffix("_FILE") in setting.aliases for name in used)


def _notify(typed: Typed, given: Mapping[str, Given]) -> NotifySettings | None:
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


def _http(typed: Typed, given: Mapping[str, Given], findings: Findings) -> HttpSettings | None:
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
