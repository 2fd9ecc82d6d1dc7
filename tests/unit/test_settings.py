"""From names to the tree: layers, aliases, secrets, placeholders, what follows from several settings at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tickvault.errors import ConfigurationError
from tickvault.model import Mode, Subscription
from tickvault.settings import (
    SETTINGS,
    InfluxApi,
    InfluxLayout,
    LogFormat,
    LogLevel,
    Settings,
    load_settings,
    require_recordable,
)

CANARY = "canary-9f3b7c"
SECRETS = [setting for setting in SETTINGS if setting.secret]
# A sound text for every setting, and another one.
SAMPLES = {
    "UPSTOX_ACCESS_TOKEN": ("eyJ.a.b", "eyJ.c.d"),
    "UPSTOX_TOKEN_URL": ("http://tokens/a", "http://tokens/b"),
    "UPSTOX_CLIENT_ID": ("one", "two"),
    "UPSTOX_CLIENT_SECRET": ("one", "two"),
    "UPSTOX_REDIRECT_URI": ("http://127.0.0.1:1/one", "http://127.0.0.1:1/two"),
    "UPSTOX_API_URL": ("https://one.example", "https://two.example"),
    "UPSTOX_PLUS": ("yes", "off"),
    "UPSTOX_INSTRUMENTS_URL": ("off", "https://lists.example/x.json.gz"),
    "TICKVAULT_INSTRUMENTS": ("NSE_EQ|INE002A01018", "NSE_INDEX|Nifty 50"),
    "TICKVAULT_INSTRUMENTS_URL": ("http://lists/a", "http://lists/b"),
    "TICKVAULT_MODE": ("ltpc", "full_d30"),
    "TICKVAULT_DATA_DIR": ("/one", "/two"),
    "TICKVAULT_SINKS": ("parquet", "influx,parquet"),
    "INFLUX_URL": ("http://one:8086", "http://two:8086"),
    "INFLUX_ORG": ("one", "two"),
    "INFLUX_BUCKET": ("one", "two"),
    "INFLUX_TOKEN": ("one==", "two=="),
    "INFLUX_USERNAME": ("one", "two"),
    "INFLUX_PASSWORD": ("one", "two"),
    "INFLUX_API": ("v1", "v3"),
    "INFLUX_LAYOUT": ("tickvault", "tradedatafeed"),
    "INFLUX_DEPTH": ("0", "30"),
    "TICKVAULT_NOTIFY_URL": ("http://one/x", "http://two/x"),
    "TICKVAULT_NOTIFY_EVENTS": ("gap.opened", "all"),
    "TICKVAULT_NOTIFY_SECRET": ("one", "two"),
    "TICKVAULT_NOTIFY_INTERVAL_S": ("1", "2.5"),
    "TICKVAULT_NOTIFY_RETRY_S": ("1", "2.5"),
    "TICKVAULT_QUEUE_FRAMES": ("1", "2"),
    "TICKVAULT_QUEUE_MB": ("1", "2"),
    "TICKVAULT_HTTP": ("off", "127.0.0.1:0"),
    "TICKVAULT_HTTP_TOKEN": ("one", "two"),
    "TICKVAULT_RETAIN": ("1h", "2h"),
    "TICKVAULT_DISK_RESERVE": ("1%", "1GB"),
    "TICKVAULT_DISK_FULL": ("stop", "drop_oldest"),
    "TICKVAULT_COMPACT": ("auto", "off"),
    "TICKVAULT_SHUTDOWN_S": ("1", "2"),
    "TICKVAULT_LOG_LEVEL": ("debug", "error"),
    "TICKVAULT_LOG_FORMAT": ("json", "console"),
    "TICKVAULT_LOG_FILE": ("/one.log", "/two.log"),
    "NATS_URL": ("nats://one:4222", "nats://two:4222"),
    "TICKVAULT_ALLOW_PLAINTEXT": ("one", "two"),
    "REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL": ("true", "false"),
}
# What makes a setting show in the tree.
BESIDE = {"INFLUX_URL": "http://store:8086", "TICKVAULT_NOTIFY_URL": "http://hook/x"}
SEED_COMPOSE = {
    "INFLUX_DB_URL": "http://influxdb_dev:8086",
    "INFLUX_DB_ORG": "my_org",
    "INFLUX_BUCKET_NAME": "my_defualt_bucket",
    "INFLUX_DB_TOKEN": "my_token",
    "DATA_FEED_UPDATE_URL": "http://data_feed_mock:5005/message",
    "MAX_QUEUE_SIZE": "10000",
    "INSTRUMENTS_LIST": "NSE_EQ|INE531E01026 , NSE_EQ|INE047A01021, NSE_EQ|INE844O01030",
    "NOTIFICATION_SLEEP_TIME": "60",
    "NOTIFICATION_WAIT_TIME": "50",
}


def load(environ: dict[str, str] | None = None, **named: str) -> Settings:
    return load_settings(environ={**(environ or {}), **named}, env_file=None)


def refusal(environ: dict[str, str] | None = None, **named: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(environ, **named)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None
    return text


def same_but_warnings(one: Settings, other: Settings) -> bool:
    return dataclasses.replace(one, warnings=()) == dataclasses.replace(other, warnings=())


def test_nothing_set_gives_the_defaults():
    """A fresh machine records into ./data with Parquet only, and shows itself on loopback."""
    settings = load()

    assert settings.upstox.access_token is None
    assert settings.upstox.token_url is None
    assert settings.upstox.api_url == "https://api.upstox.com"
    assert settings.upstox.instruments_url == (
        "https://assets.upstox.com/market-quote/instruments/exchange/complete.json.gz"
    )
    assert (settings.subscriptions, settings.instruments_list_url, settings.mode) == ((), None, Mode.FULL)
    assert (settings.data_dir, settings.sinks) == (Path("data"), ("parquet",))
    assert (settings.influx, settings.notify, settings.nats_url, settings.allow_plaintext) == (None, None, None, ())
    assert (settings.queue_frames, settings.queue_bytes) == (10_000, 64_000_000)
    assert settings.http is not None
    assert (settings.http.host, settings.http.port, settings.http.token) == ("127.0.0.1", 8484, None)
    assert not settings.http.explicit
    assert (settings.retain_s, settings.shutdown_s) == (3 * 86400, 30)
    assert (settings.disk_reserve.percent, settings.disk_reserve.bytes) == (5, None)
    assert (settings.log_level, settings.log_format, settings.log_file) == (LogLevel.INFO, LogFormat.AUTO, None)
    assert settings.warnings == ()


def test_influx_and_notify_defaults():
    """With just an address, InfluxDB and the webhook have the table's defaults."""
    settings = load(INFLUX_URL="http://store:8086/", TICKVAULT_NOTIFY_URL="http://hook/x/")

    assert settings.sinks == ("parquet", "influx")
    assert settings.influx is not None
    assert settings.influx.url == "http://store:8086"
    assert (settings.influx.api, settings.influx.layouts) == (InfluxApi.AUTO, (InfluxLayout.TICKVAULT,))
    assert settings.influx.depth == 5
    assert settings.notify is not None
    assert settings.notify.url == "http://hook/x/"
    assert (settings.notify.events, settings.notify.sinks) == (None, None)
    assert (settings.notify.interval_s, settings.notify.retry_s) == (60, 50)


def test_samples_cover_the_table():
    """Every setting is in the tables of this file."""
    assert set(SAMPLES) == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_has_an_effect_and_blank_is_unset(setting):
    """Two texts give two trees, and a blank the one of not set."""
    beside = {name: text for name, text in BESIDE.items() if name != setting.name}
    one, two = (load(beside, **{setting.name: text}) for text in SAMPLES[setting.name])

    if not setting.name.startswith("REPLACE_"):
        assert one != two
    for blank in ("", "  ", '""', "''", ' " " '):
        assert load(beside, **{setting.name: blank}) == load(beside)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_default_is_what_the_table_says(setting):
    """To set a default's text changes nothing."""
    settings = load(BESIDE, **{setting.name: setting.default})

    if settings.http and setting.name == "TICKVAULT_HTTP":
        settings = dataclasses.replace(settings, http=dataclasses.replace(settings.http, explicit=False))
    if setting.name != "TICKVAULT_SINKS" and setting.name not in BESIDE:
        assert settings == load(BESIDE)


@pytest.mark.parametrize(
    ("setting", "alias"),
    [(setting, alias) for setting in SETTINGS for alias in setting.aliases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_alias_means_its_setting(setting, alias):
    """An alias gives what the first name gives; equal texts agree, others are refused by both names."""
    text, other = SAMPLES[setting.name]
    beside = {
        **{name: url for name, url in BESIDE.items() if name != setting.name},
        "INFLUX_LAYOUT": "tickvault",
        "TICKVAULT_NOTIFY_EVENTS": "all",
    }
    expected = load(beside, **{setting.name: text})

    assert load(beside, **{alias: text}) == expected
    assert load(beside, **{alias: f'  "{text}" ', setting.name: text}) == expected
    message = refusal(beside, **{alias: text, setting.name: other})
    assert alias in message
    assert setting.name in message
    assert text not in message or not setting.secret


def test_conflict_holds_across_sources(tmp_path):
    """A name is settled by precedence, two names of one setting have to agree wherever they stand."""
    env_file = tmp_path / "settings.env"
    env_file.write_text("INFLUX_DB_ORG=old\nTICKVAULT_MODE=ltpc\n")

    with pytest.raises(ConfigurationError, match=r"INFLUX_ORG in the environment and INFLUX_DB_ORG in .*settings\.env"):
        load_settings(environ={"INFLUX_ORG": "new"}, env_file=env_file)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TICKVAULT_MOD", "TICKVAULT_MODE"),
        ("TICKVAULT_INSTRUMENT", "TICKVAULT_INSTRUMENTS"),
        ("TICKVAULT_NOTIFY_INTERVAL", "TICKVAULT_NOTIFY_INTERVAL_S"),
        ("TICKVAULT_INFLUX_URL", "INFLUX_URL"),
        ("TICKVAULT_DATA_DIR_FILE", "TICKVAULT_DATA_DIR"),
        ("tickvault_mode", "TICKVAULT_MODE"),
    ],
)
@pytest.mark.parametrize("source", ["environ", "env_file", "config_file", "overrides"])
def test_unknown_name_is_refused_with_the_nearest(tmp_path, name, nearest, source):
    """A misspelt name never goes unnoticed, wherever it stands, and even when blank."""
    env_file, config_file = tmp_path / "x.env", tmp_path / "x.conf"
    env_file.write_text(f"{name}=\n" if source == "env_file" else "")
    config_file.write_text(f'{name} = ""\n' if source == "config_file" else "")

    shown = name
    if source == "config_file" and name.islower():
        # In TOML names have any case.
        config_file.write_text(f'{name}x = ""\n')
        shown = f"{name}x".upper()
    with pytest.raises(ConfigurationError, match=rf"{shown} in .* is not a setting; did you mean {nearest}\?"):
        load_settings(
            environ={name: ""} if source == "environ" else {},
            env_file=env_file,
            config_file=config_file,
            overrides={name: ""} if source == "overrides" else {},
        )


def test_names_of_other_programs_are_left_alone(tmp_path):
    """The environment and a .env file have other programs' names too; a TOML file of ours has not."""
    (tmp_path / "x.env").write_text("POSTGRES_PASSWORD=x\nINFLUXDB_DB=y\n")
    (tmp_path / "x.toml").write_text('INFLUX_URLL = "http://x"\n')

    assert load_settings(environ={"PATH": "/bin"}, env_file=tmp_path / "x.env") == load()
    with pytest.raises(ConfigurationError, match=r"INFLUX_URLL in .* is not a setting; did you mean INFLUX_URL"):
        load_settings(environ={}, env_file=None, config_file=tmp_path / "x.toml")


def test_precedence(tmp_path):
    """Overrides, environment, .env, TOML, default: in this order, each name by itself; a blank does not hide."""
    env_file, config_file = tmp_path / "x.env", tmp_path / "x.toml"
    levels = ("TICKVAULT_SHUTDOWN_S", "TICKVAULT_QUEUE_FRAMES", "TICKVAULT_NOTIFY_RETRY_S", "INFLUX_DEPTH")
    config_file.write_text("".join(f"{name} = 4\n" for name in levels) + 'TICKVAULT_MODE = "ltpc"\n')
    env_file.write_text("".join(f"{name}=3\n" for name in levels[:3]) + "INFLUX_DEPTH=\n")
    settings = load_settings(
        environ={**BESIDE, levels[0]: "2", levels[1]: "2", levels[2]: "  "},
        env_file=env_file,
        config_file=config_file,
        overrides={levels[0]: "1"},
    )

    assert settings.influx is not None
    assert settings.notify is not None
    found = (settings.shutdown_s, settings.queue_frames, settings.notify.retry_s, settings.influx.depth, settings.mode)
    assert found == (1, 2, 3, 4, Mode.LTPC)
    assert settings.retain_s == 3 * 86400


def test_overrides_win_over_every_name_of_a_setting():
    """An option hides aliases and secret files, placeholders and all; a blank one unsets."""
    environ = {**SEED_COMPOSE, "ACCESS_TOKEN_FILE": "/no/such/file"}
    overrides = {"TICKVAULT_INSTRUMENTS": "NSE_EQ|X", "UPSTOX_ACCESS_TOKEN": "t", "INFLUX_URL": "", "INFLUX_BUCKET": ""}
    settings = load_settings(environ=environ, env_file=None, overrides=overrides)

    assert settings.subscriptions == (Subscription(instrument_key="NSE_EQ|X", mode=Mode.FULL),)
    assert settings.upstox.access_token is not None
    assert settings.influx is None
    assert settings.sinks == ("parquet",)


def test_env_file_reads_as_dotenv(tmp_path):
    """Comments, quotes, export, blanks, interpolation from environment and file; a broken line is said."""
    env_file = tmp_path / "x.env"
    env_file.write_text(
        "\ufeff# comment\n"
        "export TICKVAULT_MODE = ltpc   # comment\n"
        'INFLUX_ORG="my org # not a comment"\n'
        "INFLUX_BUCKET='b'\n"
        "HOST=store\n"
        "INFLUX_URL=http://${HOST}:${PORT:-8086}/${BASE}\n"
        "this is 'not a line\n"
        "LONELY\n"
        "TICKVAULT_SHUTDOWN_S=\n"
        "INSTRUMENTS_LIST=NSE_EQ|INE531E01026 , NSE_INDEX|Nifty 50\n",
        encoding="utf-8",
    )
    settings = load_settings(environ={"BASE": "base"}, env_file=env_file)

    assert settings.mode is Mode.LTPC
    assert settings.influx is not None
    assert (settings.influx.url, settings.influx.org, settings.influx.bucket) == (
        "http://store:8086/base",
        "my org # not a comment",
        "b",
    )
    assert [one.instrument_key for one in settings.subscriptions] == ["NSE_EQ|INE531E01026", "NSE_INDEX|Nifty 50"]
    assert settings.warnings == (f"line 7 of {env_file} is not NAME=value and is ignored",)


def test_default_env_file_is_that_of_the_current_directory(tmp_path, monkeypatch):
    """`.env` is read where it stands and may be missing; a file that was asked for may not."""
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}) == load()
    (tmp_path / ".env").write_text("TICKVAULT_MODE=ltpc\n")
    assert load_settings(environ={}).mode is Mode.LTPC
    with pytest.raises(ConfigurationError, match=r"env file '.*other\.env': there is no such file"):
        load_settings(environ={}, env_file=tmp_path / "other.env")


def test_the_process_environment_is_not_read(monkeypatch, tmp_path):
    """The environment is an argument, whatever pydantic-settings reads by habit."""
    (tmp_path / "x.env").write_text("TICKVAULT_LOG_FILE=${TICKVAULT_MODE}${HOME}\n")
    for name in ("TICKVAULT_MODE", "tickvault_mode", "INFLUX_URL"):
        monkeypatch.setenv(name, "ltpc")
    assert load() == load_settings(environ={}, env_file=tmp_path / "x.env")


def test_toml(tmp_path):
    """Names stand flat or under tables, in any case; numbers, lists and truth values are texts of their kind."""
    config_file = tmp_path / "x.toml"
    config_file.write_text(
        'TICKVAULT_INSTRUMENTS = ["NSE_EQ|A", "NSE_INDEX|Nifty 50@ltpc"]\n'
        "TICKVAULT_QUEUE_MB = 1.5\n"
        "REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL = true\n"
        "[tickvault]\nshutdown_s = 7\n[tickvault.notify]\nurl = 'http://hook'\n[influx]\ndepth = 3\n"
        'url = "http://store"\nbucket = "b"\n'
    )
    settings = load_settings(environ={}, env_file=None, config_file=config_file)

    assert settings.subscriptions == (
        Subscription(instrument_key="NSE_EQ|A", mode=Mode.FULL),
        Subscription(instrument_key="NSE_INDEX|Nifty 50", mode=Mode.LTPC),
    )
    assert (settings.queue_bytes, settings.shutdown_s) == (1_500_000, 7)
    assert settings.notify is not None
    assert settings.notify.url == "http://hook"
    assert settings.influx is not None
    assert settings.influx.depth == 3
    assert len(settings.warnings) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TICKVAULT_MODE = ", r"is not valid TOML \(at"),
        ("TICKVAULT_MODE = 2026-01-01", "TICKVAULT_MODE in .*: expected a text"),
        ("TICKVAULT_INSTRUMENTS = ['a,b']", "TICKVAULT_INSTRUMENTS in .*: expected a text"),
        ("TICKVAULT_INSTRUMENTS = [1]", "TICKVAULT_INSTRUMENTS in .*: expected a text"),
        ("TICKVAULT_MODE = 'full'\n[tickvault]\nmode = 'ltpc'", "TICKVAULT_MODE is there twice in"),
    ],
)
def test_toml_refusals(tmp_path, text, message):
    """A TOML file that says nothing clear is refused."""
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_settings(environ={}, env_file=None, config_file=tmp_path / "x.toml")


@pytest.mark.parametrize("what", ["folder", "binary", "large", "home"])
def test_unreadable_files(tmp_path, what):
    """What cannot be read is an error in one line, with nothing of the file in it."""
    path = tmp_path / "x"
    if what == "folder":
        path.mkdir()
    elif what == "home":
        path = Path("~no-such-user-here/x")
    else:
        path.write_bytes(CANARY.encode() + (b"\xff\xfe" if what == "binary" else b"x" * 1_000_001))
    for arguments in (
        {"environ": {}, "env_file": path},
        {"environ": {}, "env_file": None, "config_file": path},
        {"environ": {"INFLUX_TOKEN_FILE": str(path)}, "env_file": None},
    ):
        with pytest.raises(ConfigurationError) as caught:
            load_settings(**arguments)
        assert CANARY not in str(caught.value)
        assert "correct the path" in str(caught.value)


SECRET_PLACES = {
    "UPSTOX_CLIENT_SECRET": lambda settings: settings.upstox.client_secret,
    "UPSTOX_ACCESS_TOKEN": lambda settings: settings.upstox.access_token,
    "INFLUX_TOKEN": lambda settings: settings.influx.token,
    "INFLUX_PASSWORD": lambda settings: settings.influx.password,
    "TICKVAULT_NOTIFY_SECRET": lambda settings: settings.notify.secret,
    "TICKVAULT_HTTP_TOKEN": lambda settings: settings.http.token,
}
SECRET_NAMES = [(setting, name) for setting in SECRETS for name in setting.names]


@pytest.mark.parametrize(("setting", "name"), SECRET_NAMES, ids=lambda value: value if isinstance(value, str) else "")
def test_secrets(tmp_path, setting, name):
    """A secret comes from a variable or a file, is where it belongs, and is shown nowhere."""
    path = tmp_path / "secret"
    path.write_text(f"\n {CANARY}\r\n")
    for given in ({name: f" {CANARY} "}, {f"{name}_FILE": str(path)}, {name: CANARY, f"{name}_FILE": str(path)}):
        settings = load(BESIDE, **given)

        assert SECRET_PLACES[setting.name](settings).get_secret_value() == CANARY
        assert CANARY not in f"{settings!r} {settings} {dataclasses.asdict(settings)} {settings.warnings}"


@pytest.mark.parametrize(("setting", "name"), SECRET_NAMES, ids=lambda value: value if isinstance(value, str) else "")
def test_secret_refusals(tmp_path, setting, name):
    """A missing file, and a name and a file that differ, are refused by name, without what they hold."""
    path = tmp_path / "secret"
    message = refusal(**{f"{name}_FILE": str(path)})
    assert f"{name}_FILE in the environment ('{path}'): there is no such file" in message

    assert CANARY not in refusal(**{f"{name}_FILE": CANARY})

    path.write_text(CANARY)
    message = refusal(**{f"{name}_FILE": str(path), name: f"{CANARY}2"})
    assert CANARY not in message
    assert f"{name} in the environment and {name}_FILE in the environment" in message or (
        f"{name}_FILE in the environment and {name} in the environment" in message
    )


def test_an_empty_secret_file_is_not_set(tmp_path):
    """An empty file is like a blank, and said; a placeholder in one too."""
    path = tmp_path / "secret"
    for text, words in ((" \n", "is empty"), ("your-token", "placeholder")):
        path.write_text(text)
        settings = load(ACCESS_TOKEN_FILE=str(path))
        assert settings.upstox.access_token is None
        assert len(settings.warnings) == 1
        assert words in settings.warnings[0]


@pytest.mark.parametrize("name", ["UPSTOX_ACCESS_TOKEN", "INFLUX_TOKEN", "TICKVAULT_HTTP_TOKEN"])
@pytest.mark.parametrize("text", [f"{CANARY} x", f"{CANARY}\nx", f"{CANARY}é", f"{CANARY}\x00"])
def test_a_token_that_no_header_can_carry(name, text):
    """A token in two pieces is refused here, not in a request that would show it."""
    message = refusal(**{name: text})
    assert f"{name} in the environment: expected a token in one piece" in message
    assert CANARY not in message


def test_addresses_are_never_repeated():
    """A token pasted where an address belongs, or a password in an address, does not come out again."""
    for name in [setting.name for setting in SETTINGS if setting.name.endswith("_URL")]:
        for text in (
            CANARY,
            f"ftp://{CANARY}@host",
            f"http://{CANARY}",
            f"https://host:{CANARY}",
            f"https://{CANARY} x",
        ):
            try:
                shown = repr(load(**{name: text}))
            except ConfigurationError as exc:
                shown = f"{exc} {exc.__cause__}"
            assert CANARY not in shown


def test_pydantic_settings_does_not_log_secrets(monkeypatch, caplog):
    """Its debug log of all that it gets has no secret in it."""
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    with caplog.at_level("DEBUG"):
        load(INFLUX_TOKEN=CANARY, UPSTOX_ACCESS_TOKEN=CANARY)
    assert "INFLUX_TOKEN" in caplog.text
    assert CANARY not in caplog.text


def test_errors_do_not_carry_secrets_in_their_context():
    """Not even a printed traceback has the secret: nothing chained holds it."""
    with pytest.raises(ConfigurationError) as caught:
        load(UPSTOX_ACCESS_TOKEN=f"{CANARY} x", TICKVAULT_MODE="ful")
    seen: BaseException | None = caught.value
    while seen:
        assert CANARY not in f"{seen!r} {seen}"
        seen = seen.__cause__ or seen.__context__


PLACEHOLDERS = {
    "ACCESS_TOKEN": ["your-token", "your-access-token"],
    "DATA_FEED_UPDATE_URL": [
        "url-to-update-datafeed",
        "your-data-feed-update-notification-url",
        "your_data_feed_update_url",
    ],
    "DATA_FEED_UPDATE_INFORM_URL": ["your-data-feed-update-notification-url"],
    "GET_INSTRUMENTS_URL": ["url-to-fetch-instruments", "your-instruments-list-url"],
    "INSTRUMENTS_LIST_URL": ["your_instruments_list_url_or_empty_if_not_used"],
    "INSTRUMENTS_LIST": ["comma-separated-list-of-instruments", "<instrument1>, <instrument2>,..."],
    "NOTIFICATION_SLEEP_TIME": ["example-60"],
    "NOTIFICATION_WAIT_TIME": ["example-50"],
    "API_FETCH_TOKEN": ["url-to-fetch-access-token", "your-api-fetch-token-url"],
    "ACCESS_TOKEN_URL": ["your_access_token_url_or_empty_if_not_used"],
    "INFLUX_DB_URL": ["influxdb-url"],
    "INFLUX_DB_ORG": ["influxdb-organization", "influxdb-org"],
    "INFLUXDB_ORG": ["your_org_name"],
    "INFLUX_BUCKET_NAME": ["influxdb-bucket-name"],
    "INFLUXDB_BUCKET_NAME": ["your_bucket_name"],
    "INFLUX_DB_TOKEN": ["influxdb-token", "your-influxdb-token"],
    "INFLUXDB_TOKEN": ["your_influxdb_token"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in PLACEHOLDERS.items() for text in texts])
def test_a_placeholder_is_not_set_and_said(name, text):
    """A line of a template that nobody filled in counts as not there: no value, no conflict, no seed name in use."""
    setting = next(setting for setting in SETTINGS if name in setting.names)
    warning = f"{name} in the environment still has a template's placeholder; it counts as not set"
    expected = load(BESIDE, **{setting.name: SAMPLES[setting.name][0]})

    settings = load({name: f'"{text}"'})
    assert same_but_warnings(settings, load())
    assert settings.warnings == (warning,)
    beside = load(BESIDE, **{name: text, setting.name: SAMPLES[setting.name][0]})
    assert same_but_warnings(beside, expected)
    assert set(beside.warnings) - set(expected.warnings) == {warning}


def test_a_placeholder_in_the_environment_does_not_hide_the_env_file(tmp_path):
    """The template's compose line beside a .env that was filled in."""
    (tmp_path / "x.env").write_text("ACCESS_TOKEN=real\n")
    settings = load_settings(environ={"ACCESS_TOKEN": "your-token"}, env_file=tmp_path / "x.env")
    assert settings.upstox.access_token is not None
    assert settings.upstox.access_token.get_secret_value() == "real"


def test_the_template_as_it_is_loads_with_a_warning_a_line(tmp_path):
    """A copied template is like no settings; `run` then says what is missing."""
    lines = [f"{name}={texts[0]}" for name, texts in PLACEHOLDERS.items()]
    (tmp_path / "x.env").write_text("# comment\n" + "\n".join(lines) + "\n")
    settings = load_settings(environ={}, env_file=tmp_path / "x.env")

    assert same_but_warnings(settings, load())
    assert len(settings.warnings) == len(lines)
    with pytest.raises(ConfigurationError, match="tickvault demo"):
        require_recordable(settings)


def test_the_seed_compose_environment_loads_unchanged():
    """A TradeDataFeed deployment: its schema beside ours, its one message, its bounds."""
    settings = load(SEED_COMPOSE)

    assert [one.instrument_key for one in settings.subscriptions] == [
        "NSE_EQ|INE531E01026",
        "NSE_EQ|INE047A01021",
        "NSE_EQ|INE844O01030",
    ]
    assert settings.sinks == ("parquet", "influx")
    assert settings.influx is not None
    assert (settings.influx.url, settings.influx.org, settings.influx.bucket) == (
        "http://influxdb_dev:8086",
        "my_org",
        "my_defualt_bucket",
    )
    assert settings.influx.token is not None
    assert settings.influx.token.get_secret_value() == "my_token"
    assert settings.influx.layouts == (InfluxLayout.TRADEDATAFEED, InfluxLayout.TICKVAULT)
    assert settings.notify is not None
    assert (settings.notify.events, settings.notify.sinks) == (("data.stored",), ("influx",))
    assert settings.warnings == ()


def test_the_template_filled_in_loads():
    """Every name of the template with a value of its own."""
    settings = load(
        ACCESS_TOKEN="eyJ",
        DATA_FEED_UPDATE_URL="http://hook/x",
        GET_INSTRUMENTS_URL="http://lists/x",
        NOTIFICATION_SLEEP_TIME="30",
        NOTIFICATION_WAIT_TIME="20",
        INFLUX_DB_URL="http://influxdb:8086",
        INFLUX_DB_ORG="o",
        INFLUX_BUCKET_NAME="b",
        INFLUX_DB_TOKEN="t",
    )
    require_recordable(settings)
    assert settings.instruments_list_url == "http://lists/x"
    assert settings.notify is not None
    assert (settings.notify.interval_s, settings.notify.retry_s) == (30, 20)
    assert settings.warnings == ()


@pytest.mark.parametrize(
    "name",
    [alias for setting in SETTINGS if setting.name.startswith("INFLUX_") for alias in setting.aliases],
)
def test_any_seed_influx_name_brings_its_layout(tmp_path, name):
    """One name of the seed is enough, beside an equal one of ours and through a file too; INFLUX_LAYOUT decides."""
    setting = next(setting for setting in SETTINGS if name in setting.names)
    text = BESIDE["INFLUX_URL"] if setting.name == "INFLUX_URL" else SAMPLES[setting.name][0]
    (tmp_path / "secret").write_text(text)
    given = [{name: text}, {name: text, setting.name: text}]
    given += [{f"{name}_FILE": str(tmp_path / "secret")}] if setting.secret else []
    for names in given:
        settings = load({"INFLUX_URL": BESIDE["INFLUX_URL"], **names})
        assert settings.influx is not None
        assert settings.influx.layouts == (InfluxLayout.TRADEDATAFEED, InfluxLayout.TICKVAULT)
        settings = load({"INFLUX_URL": BESIDE["INFLUX_URL"], **names}, INFLUX_LAYOUT="tickvault")
        assert settings.influx is not None
        assert settings.influx.layouts == (InfluxLayout.TICKVAULT,)


def test_a_seed_webhook_hears_one_message_unless_told_otherwise():
    """Our name, or events chosen, lift the limit of the seed's name."""
    url = "http://hook/x"
    for given, expected in [
        ({"DATA_FEED_UPDATE_URL": url}, (("data.stored",), ("influx",))),
        ({"DATA_FEED_UPDATE_INFORM_URL": url}, (("data.stored",), ("influx",))),
        ({"DATA_FEED_UPDATE_URL": url, "TICKVAULT_NOTIFY_EVENTS": "all"}, (None, None)),
        ({"DATA_FEED_UPDATE_URL": url, "TICKVAULT_NOTIFY_EVENTS": "gap.opened"}, (("gap.opened",), None)),
        ({"DATA_FEED_UPDATE_URL": url, "TICKVAULT_NOTIFY_URL": url}, (None, None)),
    ]:
        notify = load(given).notify
        assert notify is not None
        assert (notify.events, notify.sinks) == expected


def test_what_wins_is_used_alone_and_the_other_said():
    """A static token wins over its URL, a list of keys over its URL."""
    settings = load(
        ACCESS_TOKEN="t", API_FETCH_TOKEN="http://t", TICKVAULT_INSTRUMENTS="NSE_EQ|A", GET_INSTRUMENTS_URL="http://l"
    )
    assert (settings.upstox.token_url, settings.instruments_list_url) == (None, None)
    assert settings.warnings == (
        "API_FETCH_TOKEN in the environment is not used, because ACCESS_TOKEN in the environment wins over it",
        "GET_INSTRUMENTS_URL in the environment is not used, "
        "because TICKVAULT_INSTRUMENTS in the environment wins over it",
    )
    assert load(TICKVAULT_INSTRUMENTS=" , ", GET_INSTRUMENTS_URL="http://l").instruments_list_url == "http://l"


def test_sinks():
    """Order is the user's; a sink without its address is refused, an address without its sink said."""
    assert load(BESIDE, TICKVAULT_SINKS="INFLUX, parquet,influx").sinks == ("influx", "parquet")
    assert load(BESIDE, TICKVAULT_SINKS=",").sinks == ("parquet", "influx")
    assert load(TICKVAULT_SINKS="nats", NATS_URL="nats://a:4222, tls://b").nats_url == "nats://a:4222,tls://b"
    assert "'kafka' is unknown: expected names out of parquet, influx, nats" in refusal(TICKVAULT_SINKS="kafka")
    assert "TICKVAULT_SINKS in the environment names influx, but INFLUX_URL is not set" in refusal(
        TICKVAULT_SINKS="influx"
    )
    assert "names nats, but NATS_URL is not set" in refusal(TICKVAULT_SINKS="nats")
    assert load(NATS_URL="nats://a").warnings == (
        "NATS_URL in the environment is not used, because TICKVAULT_SINKS does not name nats",
    )
    assert "INFLUX_BUCKET is not set; rows go to the bucket tickvault" in load(INFLUX_URL="http://store").warnings[0]


def test_replace_instrument_key_is_said_once():
    """The one setting without effect says so."""
    settings = load(REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL="True")
    assert same_but_warnings(settings, load())
    assert len(settings.warnings) == 1
    assert "REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL has no effect" in settings.warnings[0]


def test_http_beyond_loopback_needs_a_token():
    """What others can reach asks for a token."""
    for text in ("0.0.0.0:8000", "[::]:8000", "192.168.1.5:8000", "recorder:8000"):
        assert "set TICKVAULT_HTTP_TOKEN" in refusal(TICKVAULT_HTTP=text)
        assert load(TICKVAULT_HTTP=text, TICKVAULT_HTTP_TOKEN="t").http is not None
    for text in ("127.0.0.1:0", "localhost:8000", "[::1]:8000", "127.9.9.9:1"):
        http = load(TICKVAULT_HTTP=text).http
        assert http is not None
        assert http.explicit
    assert load(TICKVAULT_HTTP="Off").http is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ("UPSTOX_ACCESS_TOKEN", "UPSTOX_TOKEN_URL", "TICKVAULT_INSTRUMENTS", "TICKVAULT_INSTRUMENTS_URL")),
        ({"ACCESS_TOKEN": "t"}, ("TICKVAULT_INSTRUMENTS", "TICKVAULT_INSTRUMENTS_URL")),
        ({"INSTRUMENTS_LIST": "NSE_EQ|A"}, ("UPSTOX_ACCESS_TOKEN", "UPSTOX_TOKEN_URL")),
    ],
)
def test_require_recordable_names_what_is_missing(given, words):
    """`run` without a token or instruments says which setting comes next, and that the demo needs none."""
    with pytest.raises(ConfigurationError) as caught:
        require_recordable(load(given))
    assert all(word in str(caught.value) for word in (*words, "`tickvault demo`"))


@pytest.mark.parametrize("token", ["UPSTOX_ACCESS_TOKEN", "UPSTOX_TOKEN_URL"])
@pytest.mark.parametrize("instruments", ["TICKVAULT_INSTRUMENTS", "TICKVAULT_INSTRUMENTS_URL"])
def test_require_recordable_passes(token, instruments):
    """Either kind of token with either kind of list will do."""
    require_recordable(load({token: SAMPLES[token][0], instruments: SAMPLES[instruments][0]}))


def test_the_tree_is_frozen():
    """Nobody changes settings after loading."""
    settings = load(BESIDE)
    for part in (settings, settings.upstox, settings.influx, settings.notify, settings.http, settings.disk_reserve):
        assert part is not None
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)


def test_several_problems_are_told_together():
    """One start shows everything that has to be corrected."""
    message = refusal(
        TICKVAULT_MODE="x", INFLUX_DEPTH="31", TICKVAULT_MOD="y", ACCESS_TOKEN="a", UPSTOX_ACCESS_TOKEN="b"
    )
    assert all(name in message for name in ("TICKVAULT_MODE", "INFLUX_DEPTH", "TICKVAULT_MOD ", "ACCESS_TOKEN"))
