"""Which hosts may be spoken to without TLS, and how an address is shown. Pure: name resolution is passed in.

Two laws. The broker is reached by TLS; plain `http` to it is for loopback. Everything else may be plain inside a private
network, with one warning, and never in public unless the user names the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from tickvault.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from ipaddress import IPv4Address

__all__ = [
    "Endpoint",
    "bare_url",
    "check_endpoints",
    "checked_url",
    "goes_beyond",
    "is_loopback",
    "plain_hosts",
    "plain_name",
    "reach_of_url",
    "split_listen",
]

# RFC 1918, link-local (RFC 3927, 4291) and unique-local (RFC 4193). Narrower than `is_private` of ipaddress, which also
# has documentation and benchmark ranges; carrier-grade NAT (100.64/10) is shared with strangers, so it stays out.
_PRIVATE: Final = tuple(
    ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fe80::/10", "fc00::/7")
)
_TLS: Final = frozenset({"https", "wss", "tls"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address that the settings make us speak to.

    Attributes:
        name: the setting it comes from.
        url: may carry credentials: never shown whole.
        broker: plain text only to loopback, whatever the user allows.
    """

    name: str
    url: str
    broker: bool = False


def bare_url(url: str) -> str:
    """Return scheme, host and port of a URL: what may be shown, since user, path and query can carry secrets."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port is not None else "")


def checked_url(text: str, schemes: Collection[str]) -> str:
    """Return the text when it is a URL with one of the schemes and a host.

    Raises:
        ValueError: it is not; the message does not repeat it, for a token pasted into the wrong line ends up here.
    """
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    parts = _split(text, wanted)
    if parts.scheme.lower() not in schemes or not parts.hostname:
        msg = f"expected an address that begins with {wanted} and names a host"
        raise ValueError(msg)
    return text


def _split(text: str, wanted: str) -> SplitResult:
    if not text.isprintable() or " " in text:
        msg = f"expected an address without blanks and control characters, such as {wanted}host"
        raise ValueError(msg)
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  (raises for a port that is none)
    except ValueError:
        # Not chained: the original repeats the text.
        msg = f"expected an address such as {wanted}host:port, with a port from 0 to 65535"
        raise ValueError(msg) from None
    return parts


def split_listen(text: str) -> tuple[str, int]:
    """Return (host, port) of `host:port`; an IPv6 host stands in brackets.

    Raises:
        ValueError: it has another form.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    sound = host and host.isprintable() and not set(host) & set(" /[]@") and (":" not in host or bracketed)
    if not (sound and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        msg = "expected host:port, e.g. 127.0.0.1:8484 or [::1]:8484, with a port from 0 to 65535, or off"
        raise ValueError(msg)
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether a host, without asking a resolver, is this machine by name (`localhost`) or number."""
    host = plain_name(host)
    address = _literal(host)
    return address.is_loopback if address else host == "localhost" or host.endswith(".localhost")


def check_endpoints(
    endpoints: Iterable[Endpoint], *, allowed: Collection[str], resolve: Callable[[str], Sequence[str]]
) -> tuple[str, ...]:
    """Apply the plain-text rule to every address and return the warnings, at most one of a kind.

    Args:
        endpoints: the addresses in use.
        allowed: hosts that the user lets us reach in plain text, wherever they are.
        resolve: host name → its addresses; empty, or OSError, when it has none at present.

    Raises:
        ConfigurationError: at least one address would send data unprotected through a public network.
    """
    permitted = _permitted(allowed)
    refused: list[str] = []
    seen: dict[str, list[str]] = {}
    for endpoint in endpoints:
        verdict = _verdict(endpoint, permitted, resolve)
        shown = f"{endpoint.name} ({bare_url(endpoint.url)})"
        if verdict in _REFUSALS:
            refused.append(f"{shown} {_REFUSALS[verdict]}")
        elif verdict in _WARNINGS:
            seen.setdefault(verdict, []).append(shown)
    if refused:
        raise ConfigurationError("; ".join(refused))
    return tuple(f"{', '.join(seen[verdict])}: {text}" for verdict, text in _WARNINGS.items() if verdict in seen)


def plain_hosts(endpoints: Iterable[Endpoint], *, allowed: Collection[str]) -> dict[str, str]:
    """Return how far hosts that are spoken to without TLS may be, `loopback` or `private`; arguments as above."""
    permitted, found = _permitted(allowed), dict[str, str]()
    for endpoint in endpoints:
        parts = urlsplit(endpoint.url)
        host = plain_name(parts.hostname or "")
        if parts.scheme.lower() in _TLS or (host in permitted and not endpoint.broker):
            continue
        # The broker's rule is the narrower one, for a host that is both.
        found[host] = "loopback" if endpoint.broker or found.get(host) == "loopback" else "private"
    return found


def goes_beyond(address: str, reach: str) -> bool:
    """Tell whether an address is further away than `loopback` or `private`."""
    return _REACHES.index(_reach_of(address)) < _REACHES.index(reach)


def reach_of_url(url: str) -> str:
    """Return how far a URL's host is, without asking a resolver: loopback, private, public, or `named` by a name."""
    host = plain_name(urlsplit(url).hostname or "")
    if is_loopback(host):
        return "loopback"
    return "named" if _literal(host) is None else _reach_of(host)


def _permitted(allowed: Collection[str]) -> set[str]:
    return {plain_name(urlsplit(entry).hostname or "" if "://" in entry else entry) for entry in allowed}


_REACHES: Final = ("public", "private", "loopback")
_WARNINGS: Final = {
    "private": "no TLS, so credentials and data can be read by whoever shares this private network",
    "unresolved": "no TLS, and the host does not resolve at present, so it is taken for one of a private network",
    "permitted": "no TLS, on the user's word (TICKVAULT_ALLOW_PLAINTEXT); credentials and data can be read on the way",
}
_REFUSALS: Final = {
    "public": "would send credentials and data unprotected to a public address; "
    "use TLS (https), or name the host in TICKVAULT_ALLOW_PLAINTEXT",
    "broker": "would reach the broker without TLS, which is for loopback only; use https",
}


def _verdict(endpoint: Endpoint, permitted: set[str], resolve: Callable[[str], Sequence[str]]) -> str:
    """Return `tls`, `loopback`, or a key of _WARNINGS or _REFUSALS."""
    parts = urlsplit(endpoint.url)
    host = plain_name(parts.hostname or "")
    if parts.scheme.lower() in _TLS:
        return "tls"
    if not endpoint.broker and host in permitted:
        return "permitted"
    reach = "loopback" if is_loopback(host) else _reach(host, resolve)
    return "broker" if endpoint.broker and reach != "loopback" else reach


def _reach(host: str, resolve: Callable[[str], Sequence[str]]) -> str:
    """Return loopback, private, public or unresolved: the widest of a host's addresses."""
    literal = _literal(host)
    try:
        texts = [host] if literal else list(resolve(host))
    except OSError:
        texts = []
    reaches = {_reach_of(text) for text in texts}
    return next((reach for reach in _REACHES if reach in reaches), "unresolved")


def _reach_of(text: str) -> str:
    address = _literal(text)
    if address is None:
        return "public"
    # Connecting to the unspecified address reaches this machine.
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    return "private" if any(address in network for network in _PRIVATE) else "public"


def plain_name(host: str) -> str:
    """Return a host's name as names are compared."""
    return host.strip().strip("[]").rstrip(".").lower()


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address a host is written as; one of IPv4 in IPv6 clothes counts as IPv4."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
