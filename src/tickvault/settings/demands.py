"""What some commands ask of the settings besides their being sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tickvault import addresses
from tickvault.addresses import Endpoint
from tickvault.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tickvault.settings.tree import Settings

__all__ = ["check_plaintext", "plain_hosts", "require_recordable"]


_SINKS: Final = ("parquet", "influx")


def require_recordable(settings: Settings, *, has_stored_token: bool = False) -> None:
    """Pass settings that say whose feed to record.

    Args:
        settings: to be looked at.
        has_stored_token: whether the data folder has a token, which will do.

    Raises:
        ConfigurationError: there is no token, or no instrument, or a sink that is not built in; the message says what to
            set.
    """
    missing = []
    if settings.upstox.access_token is None and settings.upstox.token_url is None and not has_stored_token:
        missing.append(
            "no token: set UPSTOX_ACCESS_TOKEN (an Analytics token is advised) or UPSTOX_TOKEN_URL, "
            "or store one with `tickvault token set`"
        )
    if not settings.selections and settings.instruments_list_url is None:
        missing.append(
            "no instruments: set TICKVAULT_INSTRUMENTS, e.g. NSE_EQ|INE002A01018,NSE_INDEX|Nifty 50, "
            "or TICKVAULT_INSTRUMENTS_URL"
        )
    if unknown := [sink for sink in settings.sinks if sink not in _SINKS]:
        raise ConfigurationError(
            f"TICKVAULT_SINKS names {', '.join(unknown)}, which this version cannot write to; "
            f"expected names out of {', '.join(_SINKS)}"
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
    return addresses.check_endpoints(_endpoints(settings), allowed=settings.allow_plaintext, resolve=resolve)


def plain_hosts(settings: Settings) -> dict[str, str]:
    """Return how far the hosts that are spoken to without TLS may be, whatever they resolve to later."""
    return addresses.plain_hosts(_endpoints(settings), allowed=settings.allow_plaintext)


def _endpoints(settings: Settings) -> list[Endpoint]:
    """Return every address in use."""
    broker = [("UPSTOX_API_URL", settings.upstox.api_url), ("UPSTOX_INSTRUMENTS_URL", settings.upstox.instruments_url)]
    others = [
        ("UPSTOX_TOKEN_URL", settings.upstox.token_url),
        ("TICKVAULT_INSTRUMENTS_URL", settings.instruments_list_url),
        ("INFLUX_URL", settings.influx.url if settings.influx and "influx" in settings.sinks else None),
        ("TICKVAULT_NOTIFY_URL", settings.notify.url if settings.notify else None),
        *(("NATS_URL", url) for url in (settings.nats_url or "").split(",") if "nats" in settings.sinks),
    ]
    return [
        *(Endpoint(name=name, url=url, broker=True) for name, url in broker if url),
        *(Endpoint(name=name, url=url) for name, url in others if url),
    ]
