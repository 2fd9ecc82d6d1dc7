"""A real InfluxDB 1.6.7 for the length of a block; `tools/fetch_servers.py` fetches the binary."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tickvault.sinks.influx_http import InfluxHttp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tickvault.sinks.influx_http import Body

__all__ = ["Influxd", "client", "create_database", "free_port", "influxd", "post"]

_BINARY = Path(__file__).parent.parent / ".servers/influxdb/usr/bin/influxd"


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Influxd:
    """The server; `url` stays the same when it is taken away and brought back."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        http, rpc = free_port(), free_port()
        self.url = f"http://127.0.0.1:{http}"
        self._log = folder / "log"
        self._config = folder / "influxdb.conf"
        self._config.write_text(
            f'reporting-disabled = true\nbind-address = "127.0.0.1:{rpc}"\n[meta]\ndir = "{folder}/meta"\n[data]\n'
            f'dir = "{folder}/data"\nwal-dir = "{folder}/wal"\n[http]\nbind-address = "127.0.0.1:{http}"\n'
            "log-enabled = false\n[monitor]\nstore-enabled = false\n"
        )
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([_BINARY, "run", "-config", self._config], stdout=log, stderr=log)
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/ping", timeout=2).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise SystemExit(f"{_BINARY} does not answer; `python tools/fetch_servers.py` fetches it")

    def stop(self) -> None:
        """Take it away."""
        self._process.kill()
        self._process.wait()


@contextmanager
def influxd(folder: Path) -> Iterator[Influxd]:
    """Run the server with its files in `folder`."""
    server = Influxd(folder)
    try:
        yield server
    finally:
        server.stop()


def client(url: str) -> InfluxHttp:
    """Return the recorder's own client of a server."""
    return InfluxHttp(url=url, token=None, username=None, password=None, api="v1", timeout_s=30.0, session=None)


async def create_database(url: str) -> None:
    """Create the one that is written to."""
    http = client(url)
    assert (await http.ask("POST", "query", {"q": "CREATE DATABASE ticks"})).status == 200
    await http.aclose()


async def post(http: InfluxHttp, body: Body) -> None:
    """Have lines stored."""
    answer = await http.ask("POST", "write", {"db": "ticks", "precision": "n"}, body)
    assert answer.status == 204, answer
