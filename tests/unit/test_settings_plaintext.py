"""Who may be spoken to without TLS."""

from __future__ import annotations

import pytest

from tickvault.addresses import bare_url, is_loopback
from tickvault.errors import ConfigurationError
from tickvault.settings import check_plaintext, load_settings

HOSTS = {
    "influxdb": ["172.18.0.3"],
    "hook": ["10.1.2.3", "fd00::5"],
    "here": ["127.0.0.1", "::1"],
    "public.example": ["93.184.215.14"],
    "mixed.example": ["10.0.0.1", "2606:2800::1"],
    "mapped.example": ["::ffff:8.8.8.8"],
    "mapped": ["::ffff:10.0.0.1"],
    "linked": ["fe80::1%eth0", "169.254.1.1"],
    "shared.example": ["100.64.0.1"],
    "odd.example": ["what"],
}


def resolve(host):
    if host not in HOSTS:
        raise OSError(f"no such host {host}")
    return HOSTS[host]


def check(resolver=resolve, **environ):
    return check_plaintext(load_settings(environ=environ, env_file=None), resolver)


@pytest.mark.parametrize(
    "url",
    [
        "https://public.example",
        "http://localhost:8086",
        "http://LOCALHOST.:8086",
        "http://127.0.0.1:8086",
        "http://[::1]:8086",
        "http://0.0.0.0:8086",
        "http://here",
    ],
)
def test_tls_and_loopback_are_not_worth_a_word(url):
    """No warning where nobody can listen."""
    assert check(INFLUX_URL=url) == ()


@pytest.mark.parametrize(
    "host",
    [
        "influxdb",
        "hook",
        "linked",
        "mapped",
        "192.168.0.9",
        "10.0.0.1",
        "172.31.0.1",
        "169.254.0.1",
        "[fd12::1]",
        "[fe80::1]",
    ],
)
def test_a_private_network_is_allowed_with_a_warning(host):
    """That is how Compose networks talk."""
    (warning,) = check(INFLUX_URL=f"http://{host}:8086")
    assert warning.startswith(f"INFLUX_URL (http://{host}:8086): no TLS")
    assert "private" in warning


def test_one_warning_for_all_of_a_kind():
    """Two addresses in a private network are one line; their paths and users are not in it."""
    (warning,) = check(INFLUX_DB_URL="http://u:pw@influxdb:8086", DATA_FEED_UPDATE_URL="http://hook/x?key=pw")
    assert "INFLUX_URL (http://influxdb:8086), TICKVAULT_NOTIFY_URL (http://hook)" in warning
    assert "pw" not in warning


@pytest.mark.parametrize(
    "host",
    [
        "public.example",
        "mixed.example",
        "mapped.example",
        "shared.example",
        "odd.example",
        "8.8.8.8",
        "172.32.0.1",
        "[2606::1]",
    ],
)
@pytest.mark.parametrize(
    "name", ["INFLUX_URL", "TICKVAULT_NOTIFY_URL", "UPSTOX_TOKEN_URL", "TICKVAULT_INSTRUMENTS_URL"]
)
def test_a_public_address_is_refused_unless_named(name, host):
    """One public address of a host is enough; the user's word lifts it, with a warning."""
    with pytest.raises(ConfigurationError) as caught:
        check(**{name: f"http://u:pw@{host}/path?pw"})
    assert str(caught.value).startswith(f"{name} (http://{host}) would send credentials and data unprotected")
    assert "TICKVAULT_ALLOW_PLAINTEXT" in str(caught.value)
    assert "pw" not in str(caught.value)

    for allowed in (host, f"other, {host.upper()}", f"http://{host}:1"):
        (warning,) = check(**{name: f"http://{host}/"}, TICKVAULT_ALLOW_PLAINTEXT=allowed)
        assert "TICKVAULT_ALLOW_PLAINTEXT" in warning


def test_every_refusal_is_told():
    """Two public addresses are two parts of one message."""
    with pytest.raises(ConfigurationError, match=r"UPSTOX_TOKEN_URL .*; INFLUX_URL "):
        check(INFLUX_URL="http://8.8.8.8", UPSTOX_TOKEN_URL="http://public.example")


@pytest.mark.parametrize("resolver", [resolve, lambda host: []])
def test_a_name_that_does_not_resolve_is_allowed_with_a_warning(resolver):
    """The store may be down; the recorder starts all the same."""
    (warning,) = check(resolver, INFLUX_URL="http://gone:8086")
    assert "does not resolve at present" in warning


@pytest.mark.parametrize("name", ["UPSTOX_API_URL", "UPSTOX_INSTRUMENTS_URL"])
def test_the_broker_is_reached_by_tls(name):
    """Plain text to the broker is for loopback, whatever the user allows."""
    for host in ("127.0.0.1", "localhost", "here"):
        assert check(**{name: f"http://{host}:9"}) == ()
    for host in ("influxdb", "10.0.0.1", "public.example", "gone"):
        with pytest.raises(ConfigurationError, match=rf"{name} \(http://{host}:9\) would reach the broker without TLS"):
            check(**{name: f"http://{host}:9"}, TICKVAULT_ALLOW_PLAINTEXT=host)


def test_only_what_is_in_use_is_asked_about():
    """A store that no sink writes to, and an address that another setting wins over, are never resolved."""
    environ = {
        "INFLUX_URL": "http://public.example",
        "NATS_URL": "nats://public.example",
        "TICKVAULT_SINKS": "parquet",
        "UPSTOX_INSTRUMENTS_URL": "off",
        "UPSTOX_ACCESS_TOKEN": "t",
        "UPSTOX_TOKEN_URL": "http://public.example",
        "TICKVAULT_INSTRUMENTS": "NSE_EQ|A",
        "TICKVAULT_INSTRUMENTS_URL": "http://public.example",
    }
    assert check(**environ) == ()


def test_each_nats_server_counts():
    """A list of servers is as safe as its worst."""
    assert check(TICKVAULT_SINKS="nats", NATS_URL="nats://localhost,tls://public.example") == ()
    with pytest.raises(ConfigurationError, match=r"NATS_URL .*public"):
        check(TICKVAULT_SINKS="nats", NATS_URL="nats://localhost,nats://public.example")


def test_what_of_a_url_is_shown():
    """Scheme, host, port."""
    assert bare_url("https://u:p@host.example:9/path?q#f") == "https://host.example:9"
    assert bare_url("http://[::1]:9/x") == "http://[::1]:9"
    assert bare_url("http://host") == "http://host"


def test_loopback_without_a_resolver():
    """By name or by number."""
    assert all(map(is_loopback, ("localhost", "a.localhost", "127.0.0.2", "::1", "[::1]", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "host", "localhost.example", "10.0.0.1", "")))
