"""The image's health check: exit 0 when a recorder holds the data folder and its status server answers.

It asks where that recorder says it listens, so it follows TICKVAULT_HTTP; /healthz needs no token. With
TICKVAULT_HTTP=off, holding the folder is all there is to see.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from pathlib import Path

from tickvault.datafolder import holder

TIMEOUT_S = 4.0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - told, not bound


def local_url(listening: str) -> str:
    """Return the health address for `host:port`; a wildcard address is asked by loopback."""
    host, _, port = listening.rpartition(":")
    return f"http://{LOOPBACK.get(host, host)}:{port}/healthz"


def complaint() -> str | None:
    """Return what is wrong; None when nothing is."""
    folder = Path(os.environ.get("TICKVAULT_DATA_DIR") or "/data")
    who = holder(folder)
    if who is None:
        return f"no recorder runs on {folder}"
    if who.http is None:
        off = os.environ.get("TICKVAULT_HTTP", "").strip().lower() == "off"
        return None if off else "the status server does not listen yet"
    try:
        # Straight to loopback, whatever proxy the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(local_url(who.http), timeout=TIMEOUT_S):
            return None
    except OSError as exc:
        return f"{local_url(who.http)}: {exc}"


if __name__ == "__main__":
    sys.exit(complaint())
