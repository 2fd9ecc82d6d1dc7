"""Holds the plain-text rule at every connection: a name that was private at the start may resolve to anything later."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver

from tickvault.addresses import goes_beyond, plain_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.abc import ResolveResult

__all__ = ["GuardedResolver", "guarded", "resolve"]


def resolve(host: str) -> list[str]:
    """Return the addresses of a host. Blocks.

    Raises:
        OSError: it has none at present.
    """
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def guarded(plain_hosts: Mapping[str, str]) -> aiohttp.TCPConnector:
    """Return a connector that holds the rule for hosts that are spoken to without TLS, as `settings.plain_hosts`."""
    return aiohttp.TCPConnector(resolver=GuardedResolver(plain_hosts, aiohttp.DefaultResolver()))


class GuardedResolver(AbstractResolver):
    """Resolves as another resolver does, and refuses what may not be reached without TLS.

    Args:
        plain_hosts: host → how far it may be, `loopback` or `private`; other hosts may be anywhere.
        behind: what resolves.
    """

    def __init__(self, plain_hosts: Mapping[str, str], behind: AbstractResolver) -> None:
        self._plain_hosts = plain_hosts
        self._behind = behind

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return a host's addresses.

        Raises:
            OSError: it has none, or one of them is further away than the host may be.
        """
        found = await self._behind.resolve(host, port, family)
        reach = self._plain_hosts.get(plain_name(host))
        if reach is not None and any(goes_beyond(one["host"], reach) for one in found):
            raise OSError(
                errno.EACCES,
                f"{host} resolves to an address that is not {reach} any more; nothing is sent there without TLS: "
                "use https, or name the host in TICKVAULT_ALLOW_PLAINTEXT",
            )
        return found

    async def close(self) -> None:
        """Close what resolves."""
        await self._behind.close()
