"""How one text becomes a value, and what a wrong one is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.errors import ConfigurationError
from tickvault.model import Mode
from tickvault.selections import Key, parse_selections
from tickvault.settings import DiskReserve, InfluxLayout, load_settings, parse_list


def value(field, **environ):
    settings = load_settings(environ=environ, env_file=None)
    for part in field.split("."):
        settings = getattr(settings, part)
    return settings


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", ()),
        (" , ,,", ()),
        ("a", ("a",)),
        ("NSE_EQ|INE531E01026 , NSE_INDEX|Nifty 50", ("NSE_EQ|INE531E01026", "NSE_INDEX|Nifty 50")),
        ("b,a,b, a ,", ("b", "a")),
        ('"a, b"', ("a", "b")),
        (" 'a , b' ", ("a", "b")),
        ('"a", "b c"', ("a", "b c")),
        ("'a', b", ("a", "b")),
        ("\"a'", ("\"a'",)),
        ('"', ('"',)),
    ],
)
def test_lists(text, items):
    """Blanks round commas go, inner ones stay; no item is empty or there twice; one pair of quotes goes."""
    assert parse_list(text) == items


ITEMS = st.lists(st.text(st.characters(exclude_characters=",\"'"), min_size=1).map(str.strip).filter(bool))
BLANKS = st.text(" \t", max_size=3)


@given(items=ITEMS, blanks=BLANKS, quote=st.sampled_from(["", '"', "'"]), each=st.booleans(), empty=st.booleans())
def test_lists_come_back_however_they_are_written(items, blanks, quote, each, empty):
    """Spacing, quotes, empty items and repetition change nothing."""
    shown = [f"{blanks}{quote if each else ''}{item}{quote if each else ''}{blanks}" for item in (*items, *items)]
    text = ",".join([*shown, ""] if empty else shown)
    text = text if each else f"{quote}{text}{quote}"

    assert parse_list(text) == tuple(dict.fromkeys(items))


@given(st.text())
def test_lists_take_any_text(text):
    """Whatever comes, items are trimmed, non-empty, distinct and without commas; parsing them again changes nothing."""
    items = parse_list(text)
    assert len(set(items)) == len(items)
    assert all(item and item == item.strip() and "," not in item for item in items)


@pytest.mark.parametrize(
    ("item", "key", "mode"),
    [
        ("NSE_EQ|INE002A01018", "NSE_EQ|INE002A01018", Mode.FULL),
        ("NSE_INDEX|Nifty 50@ltpc", "NSE_INDEX|Nifty 50", Mode.LTPC),
        ("NSE_INDEX|Nifty 50 @ FULL_D30", "NSE_INDEX|Nifty 50", Mode.FULL_D30),
        ("GLOBAL_INDEX|^GSPC@option_greeks", "GLOBAL_INDEX|^GSPC", Mode.OPTION_GREEKS),
        ("MCX_FO|428750", "MCX_FO|428750", Mode.FULL),
    ],
)
def test_subscriptions(item, key, mode):
    """A key keeps its inner blanks and takes the default mode unless it names one."""
    (one,) = parse_selections([item], Mode.FULL)
    assert (one.what, one.mode) == (Key(key), mode)


@pytest.mark.parametrize(
    "item",
    ["RELIANCE", "NSE_EQ", "NSE_EQ|", "|INE1", "nse_eq|INE1", "NSE_EQ | INE1", "A|b|c", "A|b\x01c"],
)
def test_malformed_keys(item):
    """A key of another form is named, with the form expected."""
    with pytest.raises(ConfigurationError) as caught:
        parse_selections(["NSE_EQ|GOOD", item], Mode.FULL)
    assert str(caught.value) == (
        f"instrument key {item!r} is malformed: expected SEGMENT|name, e.g. NSE_EQ|INE002A01018, or NSE_INDEX|Nifty 50"
    )


def test_malformed_keys_through_settings():
    """The message says where the key stands."""
    with pytest.raises(
        ConfigurationError, match="INSTRUMENTS_LIST in the environment: instrument key 'foo' is malformed"
    ):
        value("selections", INSTRUMENTS_LIST="NSE_EQ|A,foo")


def test_one_key_in_two_modes():
    """The same mode twice is one subscription, two modes are refused, many problems are cut."""
    assert len(parse_selections(["A|b", "A|b@full"], Mode.FULL)) == 1
    with pytest.raises(ConfigurationError, match=r"'A\|b' is there in modes full and ltpc"):
        parse_selections(["A|b", "A|b@ltpc"], Mode.FULL)
    with pytest.raises(
        ConfigurationError, match=r"mode 'fast' of instrument 'A\|b' is unknown: expected one of ltpc, "
    ):
        parse_selections(["A|b@fast"], Mode.FULL)
    with pytest.raises(ConfigurationError, match=r"and 95 more$"):
        parse_selections([f"x{i}" for i in range(100)], Mode.FULL)


@pytest.mark.parametrize(
    ("name", "text", "field", "expected"),
    [
        ("TICKVAULT_RETAIN", "3d", "retain_s", 259200),
        ("TICKVAULT_RETAIN", "12h", "retain_s", 43200),
        ("TICKVAULT_RETAIN", "30m", "retain_s", 1800),
        ("TICKVAULT_RETAIN", "90s", "retain_s", 90),
        ("TICKVAULT_RETAIN", " 1.5 D ", "retain_s", 129600),
        ("TICKVAULT_DISK_RESERVE", "5%", "disk_reserve", DiskReserve(percent=5, bytes=None)),
        ("TICKVAULT_DISK_RESERVE", "2.5 %", "disk_reserve", DiskReserve(percent=2.5, bytes=None)),
        ("TICKVAULT_DISK_RESERVE", "10GB", "disk_reserve", DiskReserve(percent=None, bytes=10**10)),
        ("TICKVAULT_DISK_RESERVE", "500 mb", "disk_reserve", DiskReserve(percent=None, bytes=5 * 10**8)),
        ("TICKVAULT_DISK_RESERVE", "1GiB", "disk_reserve", DiskReserve(percent=None, bytes=2**30)),
        ("TICKVAULT_HTTP", "[::1]:80", "http.host", "::1"),
        ("TICKVAULT_HTTP", "localhost:80", "http.port", 80),
        ("TICKVAULT_QUEUE_MB", "0.5", "queue_bytes", 500_000),
        ("TICKVAULT_MODE", '"FULL_D30"', "mode", Mode.FULL_D30),
        ("TICKVAULT_LOG_LEVEL", "INFO", "log_level", "info"),
        ("UPSTOX_INSTRUMENTS_URL", "OFF", "upstox.instruments_url", None),
        ("UPSTOX_API_URL", "http://127.0.0.1:9/", "upstox.api_url", "http://127.0.0.1:9"),
        ("TICKVAULT_ALLOW_PLAINTEXT", "a.example, b.example", "allow_plaintext", ("a.example", "b.example")),
    ],
)
def test_values(name, text, field, expected):
    """Texts become values with a unit."""
    assert value(field, **{name: text}) == expected


def test_layouts_keep_the_order_given():
    """Duplicates go, the order stays."""
    layouts = value("influx.layouts", INFLUX_URL="http://x", INFLUX_LAYOUT="tradedatafeed , TICKVAULT,tradedatafeed")
    assert layouts == (InfluxLayout.TRADEDATAFEED, InfluxLayout.TICKVAULT)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("TICKVAULT_MODE", "ful", "'ltpc', 'option_greeks', 'full' or 'full_d30', got 'ful'"),
        ("INFLUX_API", "v4", "got 'v4'"),
        ("INFLUX_LAYOUT", "a", "'a' is unknown: expected names out of tickvault, tradedatafeed"),
        ("INFLUX_DEPTH", "31", "less than or equal to 30"),
        ("INFLUX_DEPTH", "-1", "greater than or equal to 0"),
        ("INFLUX_DEPTH", "1.5", "integer"),
        (
            "TICKVAULT_NOTIFY_EVENTS",
            "data.stored,gap",
            "'gap' is unknown: expected names out of data.stored, gap.opened",
        ),
        ("TICKVAULT_NOTIFY_INTERVAL_S", "-1", "greater than or equal to 0"),
        ("TICKVAULT_NOTIFY_RETRY_S", "0", "greater than 0"),
        ("TICKVAULT_QUEUE_FRAMES", "0", "greater than or equal to 1"),
        ("TICKVAULT_QUEUE_FRAMES", "many", "integer"),
        ("TICKVAULT_QUEUE_MB", "0", "greater than 0"),
        ("TICKVAULT_QUEUE_MB", "1e300", "less than or equal to 1000000"),
        ("TICKVAULT_SHUTDOWN_S", "inf", "finite"),
        ("TICKVAULT_SHUTDOWN_S", "30s", "number"),
        ("TICKVAULT_RETAIN", "3", "3d, 12h, 30m or 90s"),
        ("TICKVAULT_RETAIN", "-3d", "3d, 12h, 30m or 90s"),
        ("TICKVAULT_RETAIN", "9" * 400 + "d", "3d, 12h, 30m or 90s"),
        ("TICKVAULT_DISK_RESERVE", "100%", "less than 100%"),
        ("TICKVAULT_DISK_RESERVE", "x%", "5%, 10GB or 500MB"),
        ("TICKVAULT_DISK_RESERVE", "10", "5%, 10GB or 500MB"),
        ("TICKVAULT_HTTP", "8484", "expected host:port"),
        ("TICKVAULT_HTTP", ":8484", "expected host:port"),
        ("TICKVAULT_HTTP", "::1:8484", "expected host:port"),
        ("TICKVAULT_HTTP", "localhost:65536", "expected host:port"),
        ("TICKVAULT_HTTP", "http://localhost:80", "expected host:port"),
        ("TICKVAULT_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("TICKVAULT_LOG_FORMAT", "xml", "'auto', 'console' or 'json'"),
        ("TICKVAULT_DATA_DIR", "~no-such-user-here/x", "home folder"),
        ("INFLUX_URL", "localhost:8086", "begins with http:// or https://"),
        ("INFLUX_URL", "http://", "names a host"),
        ("INFLUX_URL", "http://host:port", "with a port from 0 to 65535"),
        ("INFLUX_URL", "http://[::1", "expected an address"),
        ("INFLUX_URL", "http://ho st", "without blanks"),
        ("NATS_URL", "http://host", "begins with nats:// or tls://"),
        ("NATS_URL", ",", "begins with nats:// or tls://"),
    ],
)
def test_refusals(name, text, expected):
    """A wrong text is told what was expected, where it stands and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ={name: text}, env_file=None)
    message = str(caught.value)
    assert message.startswith(f"{name} in the environment: ")
    assert expected in message
    assert "; correct it, or remove it" in message
    assert "9" * 100 not in message
