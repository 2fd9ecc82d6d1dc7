"""The real servers that contract tests talk to: started on free loopback ports, stopped by their pid.

`tools/fetch_servers.py` puts the binaries into `.servers/`. Everything here blocks: an async test calls it through
`asyncio.to_thread`. A server's log stays in the test's temporary folder. At the end are builders of batches to send.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from tickvault.model import SCHEMAS, Batch, Definition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SERVERS_DIR = Path(__file__).resolve().parent.parent / ".servers"
BINARIES = {
    "influxd": "influxdb/usr/bin/influxd",
    "victoria-metrics": "victoria-metrics/usr/bin/victoria-metrics",
    "nats-server": "nats-server/usr/sbin/nats-server",
    "prometheus": "prometheus/usr/bin/prometheus",
    "strace": "strace/usr/bin/strace",
}
READY_WITHIN_S = 30.0


def require_server(name: str) -> Path:
    """Return the server's binary; without it skip the test, or fail it where `CI=true`."""
    binary = SERVERS_DIR / BINARIES[name]
    if binary.is_file():
        return binary
    reason = f"{name} IS NOT HERE, THIS TEST DID NOT RUN: python tools/fetch_servers.py fetches it into .servers/"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def strace() -> tuple[str, ...]:
    """Return the words that run strace; without it skip the test, or fail it where `CI=true`."""
    binary = require_server("strace")
    [library] = SERVERS_DIR.glob("libunwind8/usr/lib/*/libunwind.so.8")
    return ("env", f"LD_LIBRARY_PATH={library.parent}", str(binary))


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listened on a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def wait_until(probe: Callable[[], bool], what: str, within_s: float = READY_WITHIN_S) -> None:
    """Poll until the probe says yes; fail the test, naming what was waited for, when it never does."""
    deadline = time.monotonic() + within_s
    while not probe():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {within_s} s")
        time.sleep(0.02)


class Server:
    """One server process that can be killed and started again on the same port and folder.

    Attributes:
        url: where it listens; the same after every start.
        log: everything it said, over all starts.
    """

    def __init__(self, command: list[str], url: str, ready_path: str, log: Path) -> None:
        self.url = url
        self.log = log
        self._command = command
        self._ready_path = ready_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and return when it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self._ready, f"{self._command[0]} answers at {self.url}, log: {self.log}")

    def kill(self) -> None:
        """SIGKILL: nothing is flushed."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not heed it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"{self._command[0]} ended with {self._process.returncode}:\n{self.log.read_text()[-3000:]}")
        try:
            return get(self.url + self._ready_path).status < 300
        except OSError:
            return False


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run the server for the length of the block."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def influxd(
    tmp_path: Path, *, auth: bool = False, max_body_size: int = 25_000_000, max_values_per_tag: int = 100_000
) -> Iterator[Server]:
    """Run InfluxDB 1.6.7 in the folder."""
    binary = require_server("influxd")
    http, rpc = free_ports(2)
    folder = tmp_path / f"influxd-{http}"
    folder.mkdir(parents=True)
    config = folder / "influxdb.conf"
    config.write_text(f"""
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
dir = "{folder}/meta"
[data]
dir = "{folder}/data"
wal-dir = "{folder}/wal"
max-values-per-tag = {max_values_per_tag}
[http]
bind-address = "127.0.0.1:{http}"
auth-enabled = {str(auth).lower()}
max-body-size = {max_body_size}
log-enabled = false
[monitor]
store-enabled = false
""")
    command = [str(binary), "run", "-config", str(config)]
    with running(Server(command, f"http://127.0.0.1:{http}", "/ping", folder / "influxd.log")) as server:
        yield server


@contextlib.contextmanager
def victoria_metrics(tmp_path: Path, *flags: str) -> Iterator[Server]:
    """Run VictoriaMetrics 1.79.5 in the folder, set up as tickvault asks for it unless flags are given."""
    binary = require_server("victoria-metrics")
    [http] = free_ports(1)
    folder = tmp_path / f"victoria-{http}"
    folder.mkdir(parents=True)
    flags = flags or ("-dedup.minScrapeInterval=1ms", "-retentionPeriod=100y")
    command = [str(binary), f"-storageDataPath={folder}/data", f"-httpListenAddr=127.0.0.1:{http}", *flags]
    with running(Server(command, f"http://127.0.0.1:{http}", "/health", folder / "victoria.log")) as server:
        yield server


@pytest.fixture
def influx_server(tmp_path: Path) -> Iterator[Server]:
    """An empty InfluxDB 1.6.7."""
    with influxd(tmp_path) as server:
        yield server


@pytest.fixture
def victoria_server(tmp_path: Path) -> Iterator[Server]:
    """An empty VictoriaMetrics 1.79.5 with one sample per field and ms."""
    with victoria_metrics(tmp_path) as server:
        yield server


class Reply:
    """Status and body of an answer, whatever the status."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body


def get(url: str, body: bytes | None = None, user: str = "", password: str = "") -> Reply:
    """GET the URL, or POST the body to it."""
    request = urllib.request.Request(url, data=body)
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Reply(answer.status, answer.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return Reply(exc.code, exc.read())


def influx_query(server: Server, query: str, db: str = "", user: str = "", password: str = "") -> list[dict[str, Any]]:
    """Run InfluxQL and return its rows, `time` in ns, the tags of a GROUP BY among the columns."""
    form = urllib.parse.urlencode({"q": query, "db": db, "epoch": "ns"}).encode()
    reply = get(f"{server.url}/query", form, user, password)
    answer = json.loads(reply.body)
    if "error" in answer or "error" in answer["results"][0]:
        raise AssertionError(f"{query}: {reply.body.decode()}")
    return [
        dict(zip(series["columns"], values, strict=True)) | series.get("tags", {})
        for series in answer["results"][0].get("series", [])
        for values in series.get("values", [])
    ]


def victoria_export(server: Server, match: str) -> dict[tuple[tuple[str, str], ...], dict[int, float]]:
    """Return what VictoriaMetrics holds: labels sorted by name → time in ms → value.

    Args:
        server: where to ask.
        match: selector such as `{__name__=~"tick_.*"}`.
    """
    get(f"{server.url}/internal/force_flush")
    # Without an end, samples newer than the current whole second are left out.
    query = urllib.parse.urlencode({"match[]": match, "start": "0", "end": "4102444800"})
    lines = get(f"{server.url}/api/v1/export?{query}").body.splitlines()
    found: dict[tuple[tuple[str, str], ...], dict[int, float]] = {}
    for series in map(json.loads, lines):
        samples = dict(zip(series["timestamps"], series["values"], strict=True))
        found.setdefault(tuple(sorted(series["metric"].items())), {}).update(samples)
    return found


# Batches by hand -----------------------------------------------------------------------------------------------------

AT = dt.datetime(2026, 9, 1, 3, 45, 0, 123000, dt.UTC)
AT_MS = 1_788_234_300_123
KEY = "NSE_EQ|INE531E01026"


def tick(**values: Any) -> dict[str, Any]:
    """Return a tick with nothing but what every tick has, and the values given."""
    empty = dict.fromkeys(SCHEMAS["ticks"].names)
    always = {
        "time": AT,
        "received_at": AT,
        "recorder_id": "r",
        "seq": 1,
        "instrument_key": KEY,
        "symbol": "HINDCOPPER",
    }
    return {**empty, **always, "kind": "live", "mode": "full_d5", **values}


def candle(**values: Any) -> dict[str, Any]:
    """Return a one-minute candle with the values given."""
    always = {"time": AT, "recorder_id": "r", "seq": 1, "instrument_key": KEY, "symbol": "HINDCOPPER", "interval": "I1"}
    return {**dict.fromkeys(SCHEMAS["candles"].names), **always, **values}


def batch_of(definitions: Mapping[str, Definition] | None = None, **tables: list[dict[str, Any]] | pa.Table) -> Batch:
    """Return a batch of the rows given by table name."""
    filled = {
        name: rows if isinstance(rows := tables.get(name, []), pa.Table) else pa.Table.from_pylist(rows, schema=schema)
        for name, schema in SCHEMAS.items()
    }
    return Batch(recorder_id="r", lo=1, hi=1, tables=filled, definitions=definitions or {})
