"""No secret leaves the program but to the server it is for: not in output, log, page, metric, error or file.

Every secret here is recognisable. The servers spoken to are as careless as servers are: they quote what they were sent.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from programs import Running, call, fed, recorder, simulator, stats
from servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

USER = "someone"
TOKEN = "Canary-upstox-token"
STORED_TOKEN = "Canary-stored-token"
CLIENT_SECRET = "Canary-client-secret"
AUTH_CODE = "Canary-auth-code"  # of a login: good for one token
INFLUX_TOKEN = "Canary-influx-token"
INFLUX_PASSWORD = "Canary-influx-password"
NOTIFY_SECRET = "Canary-notify-secret"
HTTP_TOKEN = "Canary-http-token"
IN_URL = "Canary-in-url"  # in the user part, the path and the query of addresses
URI_CODE = "Canary-feed-code"  # of the authorized address, which opens the feed to whoever has it
PLAIN = b"canary"
# What Basic authorization makes of them: as good as the secret itself.
CODED = [base64.b64encode(f"{USER}:{secret}".encode()).rstrip(b"=") for secret in (INFLUX_PASSWORD, HTTP_TOKEN, IN_URL)]
KEYS = "NSE_EQ|INE002A01018"


def leaks(*texts: str | bytes) -> list[str]:
    """Return the surroundings of every secret in some texts."""
    found = []
    for text in texts:
        data = text.encode() if isinstance(text, str) else text
        for needle, hay in [(PLAIN, data.lower()), *((code, data) for code in CODED)]:
            at = hay.find(needle)
            if at >= 0:
                found.append(data[max(0, at - 120) : at + 80].decode(errors="replace"))
    return found


def leaks_in_files(folder: Path) -> list[str]:
    """Return the files below a folder that hold a secret, in their content or name; not the one that is for a token."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / "data" / "token"]
    return [
        f"{path.name}: {found}" for path in files if (found := leaks(path.read_bytes(), str(path.relative_to(folder))))
    ]


class Careless:
    """Broker, InfluxDB and webhook in one, quoting whatever they are sent.

    Attributes:
        broker: `refuse` the token, or give a `uri` that then refuses the handshake.
        login: whether a code is exchanged for a token.
        influx, hook: statuses that they answer a POST with.
        rows_first: take what comes before the first row of ticks, then quote the last such row before the headers.
        seen: (path, what was quoted) of every request.
    """

    def __init__(self) -> None:
        self.broker = "refuse"
        self.login = True
        self.influx = 204
        self.rows_first = False
        self.row = ""
        self.hook = 204
        self.seen: list[tuple[str, str]] = []
        self.url = ""

    def answer(self, method: str, path: str, quoted: str) -> tuple[int, Any]:
        self.seen.append((path, quoted))
        bare = path.partition("?")[0]
        errors = {"errors": [{"errorCode": "UDAPI100050", "message": quoted}]}
        match method, bare.rpartition("/")[2]:
            case "POST", "token" if not self.login:
                return 401, {"errors": [{"errorCode": "UDAPI100057", "message": quoted}]}
            case _, "token":
                return 200, {"access_token": TOKEN}
            case _, "instruments":
                return 200, {"instruments": [KEYS]}
            case _, "authorize" if self.broker == "uri":
                uri = f"ws{self.url.removeprefix('http')}/feed?code={URI_CODE}"
                return 200, {"status": "success", "data": {"authorized_redirect_uri": uri}}
            case _, "authorize":
                return 401, errors
            case "POST", "write" if self.rows_first and not self.row:
                return 204, {}
            case "POST", "write":
                return self.influx, {"code": "invalid", "message": f"unable to parse {quoted}", "error": quoted}
            case "POST", "hook":
                return self.hook, errors
            case _, "ping" | "health":
                return 204, {}
            case _:
                return 403, errors


@contextmanager
def careless() -> Iterator[Careless]:
    one = Careless()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            parts = [str(dict(self.headers)), body[:200].decode(errors="replace")]
            if one.rows_first and (found := re.search(rb"tick,.{20,200}", body)):
                one.row = found[0].decode()
            parts[1] = one.row or parts[1]
            quoted = " ".join([self.path, *(parts[::-1] if one.rows_first else parts)])
            status, answer = one.answer(self.command, self.path, quoted)
            data = b"" if status == 204 else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Influxdb-Version", "v2.7.1")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = respond

        def log_message(self, *_args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_args: object) -> None:
            pass  # a recorder that stops hangs up

    server = Server(("127.0.0.1", 0), Handler)
    one.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield one
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def secretive(url: str, path: str) -> str:
    """Return an address with secrets wherever an address can hold one."""
    return url.replace("//", f"//{USER}:{IN_URL}@") + f"{path}?key={IN_URL}"


def secrets(folder: Path, broker: str, other: str, **more: str) -> dict[str, str]:
    """Return settings with a secret in every place that takes one; blank leaves a setting out."""
    settings = {
        "UPSTOX_ACCESS_TOKEN": TOKEN,
        "UPSTOX_API_URL": broker,
        "UPSTOX_CLIENT_ID": "app-key",
        "UPSTOX_CLIENT_SECRET": CLIENT_SECRET,
        "UPSTOX_REDIRECT_URI": "https://127.0.0.1/callback",
        "UPSTOX_INSTRUMENTS_URL": f"{broker}/market-quote/instruments/exchange/complete.json.gz?key={IN_URL}",
        "TICKVAULT_INSTRUMENTS_URL": secretive(broker, "/instruments"),
        "INFLUX_URL": other,
        "INFLUX_BUCKET": "b",
        "INFLUX_ORG": "o",
        "INFLUX_TOKEN": INFLUX_TOKEN,
        "INFLUX_USERNAME": USER,
        "INFLUX_PASSWORD": INFLUX_PASSWORD,
        "TICKVAULT_NOTIFY_URL": secretive(other, f"/{IN_URL}/hook"),
        "TICKVAULT_NOTIFY_SECRET": NOTIFY_SECRET,
        "TICKVAULT_NOTIFY_INTERVAL_S": "0",
        "TICKVAULT_HTTP": "127.0.0.1:0",
        "TICKVAULT_HTTP_TOKEN": HTTP_TOKEN,
        "TICKVAULT_DATA_DIR": str(folder / "data"),
        "TICKVAULT_LOG_LEVEL": "debug",
        "TICKVAULT_SHUTDOWN_S": "3",
        **more,
    }
    return {name: text for name, text in settings.items() if text}


def page(address: str, path: str, authorization: str | None) -> str:
    """Return an answer of the status server: its headers and body, whatever its status."""
    request = urllib.request.Request(f"http://{address}{path}")
    if authorization is not None:
        request.add_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return f"{answer.headers}{answer.read().decode()}"
    except urllib.error.HTTPError as exc:
        with exc:
            return f"{exc.headers}{exc.read().decode()}"


def pages(data_dir: Path) -> list[str]:
    """Return everything that the status server of a running recorder serves, to friend and stranger."""
    address = json.loads((data_dir / "lock").read_text())["http"]
    paths = ("/", "/api/status", "/metrics", "/healthz", "/readyz", "/nowhere")
    basic = base64.b64encode(f"{USER}:{HTTP_TOKEN}".encode()).decode()
    given = (f"Bearer {HTTP_TOKEN}", f"Basic {basic}", "Bearer another", None)
    return [page(address, path, authorization) for path in paths for authorization in given]


def observe(environ: Mapping[str, str], folder: Path, pid: int) -> list[str]:
    """Return what people and programs can see of a running recorder."""
    seen = [Path(f"/proc/{pid}/cmdline").read_text(), *pages(folder / "data")]
    for words in (
        ["status"], ["status", "--json"], ["check"], ["journal", "stats"], ["query", "SELECT * FROM gaps"],
        ["dead-letters", "list", "--json"], ["day"],
    ):  # fmt: skip
        done = call(*words, environ=environ, folder=folder)
        seen += [done.stdout, done.stderr]
        assert done.stdout, done.stderr
    return seen


@pytest.mark.parametrize(
    ("influx", "hook", "credentials"),
    [
        pytest.param(204, 204, {}, id="all well"),
        pytest.param(401, 500, {}, id="refused"),
        pytest.param(400, 302, {}, id="rows refused"),
        pytest.param(503, 404, {"INFLUX_TOKEN": ""}, id="down, with a password"),
        pytest.param(422, 404, {"INFLUX_TOKEN": "", "INFLUX_API": "v1"}, id="rows refused, with a password"),
        pytest.param(
            401, 404, {"INFLUX_TOKEN": "", "INFLUX_USERNAME": "", "INFLUX_PASSWORD": ""}, id="user in the URL"
        ),
    ],
)
def test_a_recorder_keeps_secrets(tmp_path: Path, influx: int, hook: int, credentials: dict[str, str]) -> None:
    """While it records, however its stores answer."""
    with simulator(tmp_path, "--instruments", "5") as (broker, process), careless() as server:
        server.influx, server.hook = influx, hook
        other = secretive(server.url, "").partition("?")[0] if "INFLUX_USERNAME" in credentials else server.url
        environ = secrets(tmp_path, broker, other, TICKVAULT_NOTIFY_URL=secretive(server.url, "/hook"), **credentials)
        with recorder(tmp_path, environ) as running:

            def met() -> bool:
                assert running.alive, running.said()
                paths = [path for path, _ in server.seen]
                return any("write" in path for path in paths) and any("hook" in path for path in paths)

            wait_until(lambda: stats(tmp_path / "data")["last_seq"] > 1 and met(), "store and webhook are spoken to")
            wait_until(lambda: (tmp_path / "data" / "lock").read_text().count("127.0.0.1") == 1, "status is served")
            seen = observe(environ, tmp_path, running.process.pid)
            running.stop()
            seen += [running.said(), process.said()]
        # The test would prove nothing had the servers not got them.
        sent = " ".join(quoted for _, quoted in server.seen)
        assert leaks(sent)
        assert "X-Tickvault-Signature" in sent
    assert leaks(*seen) == []
    assert leaks_in_files(tmp_path) == []


def test_a_broker_that_refuses_hears_nothing_back(tmp_path: Path) -> None:
    """It quotes the token in its refusal; the exit code is 3, and neither line nor journal has the quotation."""
    with careless() as server:
        environ = secrets(tmp_path, server.url, server.url)
        done = call("run", environ=environ, folder=tmp_path)
        checked = call("check", environ=environ, folder=tmp_path)
        assert TOKEN in " ".join(quoted for _, quoted in server.seen)
    assert (done.returncode, checked.returncode) == (3, 1)
    assert "UDAPI100050" in done.stderr
    assert leaks(done.stdout, done.stderr, checked.stdout, checked.stderr) == []
    assert leaks_in_files(tmp_path) == []


def test_an_authorized_address_stays_secret(tmp_path: Path) -> None:
    """A feed that refuses the handshake, a token from a URL: the recorder goes on, and says neither."""
    with careless() as server:
        server.broker = "uri"
        urls = {"UPSTOX_ACCESS_TOKEN": "", "UPSTOX_TOKEN_URL": secretive(server.url, "/token")}
        environ = secrets(tmp_path, server.url, server.url, **urls)
        with recorder(tmp_path, environ) as running:
            wait_until(lambda: any("/feed?" in path for path, _ in server.seen), "the address is tried")
            wait_until(lambda: "feed.failed" in running.said(), "the refusal is told")
            seen = observe(environ, tmp_path, running.process.pid)
            assert running.stop() == 0
            seen.append(running.said())
    assert leaks(*seen) == []
    assert leaks_in_files(tmp_path) == []


def test_a_stored_token_stays_where_it_is(tmp_path: Path) -> None:
    """Stored, refused, waited for, shown, stored anew: only its own file has it, and only its owner can read that."""
    with careless() as server:
        environ = secrets(tmp_path, server.url, server.url, UPSTOX_ACCESS_TOKEN="")
        done = [fed(["token", "set"], f"{STORED_TOKEN}\n", environ, tmp_path)]
        with recorder(tmp_path, environ) as running:
            wait_until(lambda: "token_rejected" in running.said(), "the token is refused")
            seen = observe(environ, tmp_path, running.process.pid)
            assert running.alive
            done.append(fed(["token", "set"], f"{STORED_TOKEN}-another\n", environ, tmp_path))
            wait_until(lambda: running.said().count("token_rejected") == 2, "the other one is refused too")
            assert running.stop() == 0
            seen.append(running.said())
        done += [
            call(*words, environ=environ, folder=tmp_path) for words in (["token", "show"], ["token", "show", "--json"])
        ]
        done.append(fed(["token", "set"], f"{STORED_TOKEN} twice", environ, tmp_path))
        done.append(call("probe", "--yes", environ=environ, folder=tmp_path))
        assert f"{STORED_TOKEN}-another" in " ".join(quoted for _, quoted in server.seen)
    assert [one.returncode for one in done] == [0, 0, 0, 0, 1, 3]
    assert leaks(*seen, *(one.stdout + one.stderr for one in done)) == []
    assert leaks_in_files(tmp_path) == []
    assert ((tmp_path / "data" / "token").stat().st_mode & 0o077) == 0


@pytest.mark.parametrize("succeeds", [True, False])
def test_a_login_keeps_its_code_and_secret(tmp_path: Path, succeeds: bool) -> None:
    """Code, client secret and the token that comes of them go to the broker alone, even when it quotes them."""
    with careless() as server:
        server.login = succeeds
        environ = secrets(tmp_path, server.url, server.url, UPSTOX_ACCESS_TOKEN="")
        done = fed(["login", "--paste"], AUTH_CODE, environ, tmp_path)
        wrong = fed(["login", "--paste"], f"https://127.0.0.1/callback?code={AUTH_CODE}&state=x", environ, tmp_path)
        sent = " ".join(quoted for _, quoted in server.seen)
        assert AUTH_CODE in sent
        assert CLIENT_SECRET in sent
    assert (done.returncode, wrong.returncode) == (0 if succeeds else 1, 1)
    assert leaks(done.stdout, done.stderr, wrong.stdout, wrong.stderr) == []
    assert leaks_in_files(tmp_path) == []


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"UPSTOX_ACCESS_TOKEN": f"{TOKEN} twice"}, id="token with a blank"),
        pytest.param({"UPSTOX_ACCESS_TOKEN": f"{TOKEN}\u20b9"}, id="token that no header carries"),
        pytest.param({"ACCESS_TOKEN": f"{TOKEN}-another"}, id="two tokens"),
        pytest.param({"UPSTOX_ACCESS_TOKEN": "", "UPSTOX_ACCESS_TOKEN_FILE": TOKEN}, id="token in place of its file"),
        pytest.param({"UPSTOX_ACCESS_TOKEN": "", "UPSTOX_TOKEN_URL": TOKEN}, id="token in place of its URL"),
        pytest.param({"UPSTOX_API_URL": f"http://{USER}:{IN_URL}@8.8.8.8/{IN_URL}"}, id="broker without TLS"),
        pytest.param({"INFLUX_URL": f"http://{USER}:{IN_URL}@8.8.8.8:8086/{IN_URL}"}, id="store without TLS"),
        pytest.param({"INFLUX_URL": f"ftp://{USER}:{IN_URL}@127.0.0.1"}, id="store by ftp"),
        pytest.param({"INFLUX_TOKEN": f"{INFLUX_TOKEN}\tx"}, id="InfluxDB token with a tab"),
        pytest.param({"UPSTOX_CLIENT_SECRET_FILE": f"/nowhere/{USER}"}, id="two client secrets"),
        pytest.param({"UPSTOX_REDIRECT_URI": CLIENT_SECRET}, id="client secret in place of the redirect URI"),
        pytest.param({"INFLUX_PASSWORD_FILE": f"/nowhere/{USER}"}, id="two passwords"),
        pytest.param({"TICKVAULT_NOTIFY_URL": f"127.0.0.1/{IN_URL}"}, id="webhook without scheme"),
        pytest.param({"TICKVAULT_NOTIFY_URL": f"http://{IN_URL}:port/{IN_URL}"}, id="webhook with a wrong port"),
        pytest.param({"TICKVAULT_INSTRUMENTS_URL": f"https://{USER}:{IN_URL} x@h"}, id="list URL with a blank"),
        pytest.param({"TICKVAULT_HTTP_TOKN": HTTP_TOKEN}, id="misspelt"),
        pytest.param({"TICKVAULT_QUEUE_FRAMES": "many"}, id="another one wrong"),
    ],
)
def test_wrong_settings_are_told_without_their_values(tmp_path: Path, wrong: dict[str, str]) -> None:
    """A secret in the wrong place, or beside a wrong setting, is not repeated."""
    environ = secrets(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9", **wrong)
    done = call("run", environ=environ, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert leaks(done.stdout, done.stderr) == []
    assert leaks_in_files(tmp_path) == []


@pytest.mark.parametrize("name", [".env", "settings.toml"])
def test_settings_files_are_not_quoted(tmp_path: Path, name: str) -> None:
    """A file with secrets and mistakes is named, its content is not."""
    here = tmp_path / "here"
    here.mkdir()
    lines = {
        ".env": f"UPSTOX_ACCESS_TOKEN={TOKEN}\nTICKVAULT_TOKEN={TOKEN}\n= {TOKEN}\nTICKVAULT_NOTIFY_SECRET '{NOTIFY_SECRET}\n",
        "settings.toml": f'UPSTOX_ACCESS_TOKEN = ["{TOKEN}"]\nINFLUX_TOKEN = "{INFLUX_TOKEN}\n',
    }
    (here / name).write_text(lines[name])
    words = ["run"] if name == ".env" else ["run", "--config", name]
    done = call(*words, environ={"TICKVAULT_LOG_LEVEL": "debug"}, folder=here)
    assert done.returncode == 2
    assert name in done.stderr
    assert leaks(done.stdout, done.stderr) == []


BUG = """
import sys, threading, warnings, logging
from tickvault import cli, pipeline
async def run(self, stopping, *, until_close=False):
    urls = [self._settings.notify.url, self._settings.upstox.token_url or "", self._settings.influx.url]
    words = f"{self._settings.upstox.access_token and self._settings.upstox.access_token.get_secret_value()} {urls}"
    words += f" {self._settings.influx.password.get_secret_value()} {self._settings.http.token.get_secret_value()!r}"
    logging.getLogger("asyncio").error("told by a library: %s", words)
    warnings.warn(words)
    def fail():
        raise ValueError(words)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    raise KeyError(words)
pipeline.Recorder.run = run
sys.argv = ["tickvault", "run"]
cli.main()
"""


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_bug_tells_no_secret(tmp_path: Path, level: str) -> None:
    """An exception with every secret in it, in the program, a thread, a warning, a library's log: none is printed."""
    environ = secrets(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9", TICKVAULT_LOG_LEVEL=level)
    done = Running(["-c", BUG], environ, tmp_path, "bug", program=(sys.executable,))
    assert done.process.wait(30) == 1
    said = done.said()
    for expected in ("told by a library", "UserWarning", "ValueError", "KeyError"):
        assert expected in said
    assert ("unexpected KeyError" in said) == (level == "info")
    assert said.count("***") >= 20
    assert leaks(said) == []


ACCOUNT = "7PBC6D"
PARTS = ("README", "versions", "settings", "status", "gaps", "files", "forms", "log")


def token_of_account() -> str:
    """Return a JWT that names the account, as the broker's do."""
    claims = {"sub": ACCOUNT, "email": "owner@example.com", "iat": time.time(), "exp": time.time() + 86400}
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims)]
    return ".".join([*coded, "Canary-signature"])


def bundle(path: Path) -> dict[str, str]:
    """Return the files of a report: name without its ending → text."""
    assert path.stat().st_mode & 0o077 == 0
    found = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            assert member.name.startswith("tickvault-report/")
            found[member.name.partition("/")[2].partition(".")[0]] = file.read().decode()
    return found


def test_a_report_has_no_secret_price_account_or_key(tmp_path: Path) -> None:
    """A store quotes rows and headers, the broker's words are kept, and of all that nothing is in the archive."""
    log, token = tmp_path / "run.log", token_of_account()
    with simulator(tmp_path, "--instruments", "5", "--script", "garbage") as (broker, _), careless() as server:
        server.influx, server.rows_first = 401, True
        environ = secrets(
            tmp_path, broker, server.url, UPSTOX_ACCESS_TOKEN=token, TICKVAULT_LOG_FILE=str(log), INFLUX_ORG=ACCOUNT
        )
        with recorder(tmp_path, environ) as running:
            wait_until(lambda: log.exists() and "sink.misconfigured" in log.read_text(), "a row is quoted")
            with log.open("a") as file:
                file.write(f"\x1b[31mafter all: {ACCOUNT} owner@example.com {token} 241.27 at {tmp_path}\x1b[0m\n")
            made = [call("report", "--out", "live.tar.gz", environ=environ, folder=tmp_path)]
            assert running.stop() == 0
        words = ["report", "--out", "later.tar.gz", "--no-check", "--log", "recorder.err"]
        made.append(call(*words, environ=environ, folder=tmp_path))
        again = call(*words, environ=environ, folder=tmp_path)
        asked = "SELECT DISTINCT unnest(list_concat([ltp, cp, atp], bid_price, ask_price)) FROM ticks"
        prices = set(call("query", asked, "--format", "csv", environ=environ, folder=tmp_path).stdout.split()[1:])
    assert [one.returncode for one in made] == [0, 0], made[0].stderr + made[1].stderr
    assert again.returncode == 1, "it overwrites nothing"
    assert "--out" in again.stderr
    live, later = bundle(tmp_path / "live.tar.gz"), bundle(tmp_path / "later.tar.gz")
    assert set(live) == {*PARTS, "check"}
    assert set(later) == set(PARTS)
    assert not any("unavailable" in text for text in (*live.values(), *later.values()))
    # What a developer needs is there.
    assert json.loads(live["status"])["sinks"]["influx"]["state"] == "misconfigured"
    assert json.loads(live["status"])["feed"]["state"] == "live"
    assert json.loads(live["forms"])["state.db"]["version"] >= 1
    assert "parquet/ticks" in json.loads(later["forms"])
    assert "sink.misconfigured" in live["log"]
    assert "sink.misconfigured" in later["log"]
    # Prices that the store quoted are in the log, and the account is in the token: the test would prove nothing else.
    exact = {price for price in prices if re.fullmatch(r"\d{2,}\.\d+", price)}
    raw = log.read_text()
    assert any(price in raw for price in exact)
    for text in (*live.values(), *later.values()):
        assert leaks(text) == []
        figures = set(re.findall(r"(?<![\d.])\d{2,}\.\d+(?![\d.])", text))
        assert figures & exact == set()
        for private in (ACCOUNT, "owner@", token.split(".")[1], "241.27", "NSE_EQ|", "INE", str(tmp_path), USER):
            assert private not in text, private
    assert leaks(*(one.stdout + one.stderr for one in (*made, again))) == []
