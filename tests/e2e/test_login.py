"""`tickvault login` as typed, with a browser of our own and the simulator as the broker."""

from __future__ import annotations

import re
import socket
import stat
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from programs import Running, environ_for, fed, recorder, simulator, stats
from servers import free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "very-secret-client"


def environ_of_login(url: str, data: Path, port: int) -> dict[str, str]:
    environ = environ_for(url, data)
    del environ["UPSTOX_ACCESS_TOKEN"]
    return environ | {
        "UPSTOX_CLIENT_ID": "app-key",
        "UPSTOX_CLIENT_SECRET": SECRET,
        "UPSTOX_REDIRECT_URI": f"http://127.0.0.1:{port}/callback",
    }


@contextmanager
def logging_in(environ: dict[str, str], folder: Path, *words: str) -> Iterator[tuple[Running, str]]:
    """Run `tickvault login` and give the address that it asks to open."""
    process = Running(["login", *words], environ, folder, "login")
    try:
        wait_until(lambda: "/dialog?" in process.said() or not process.alive, "it prints the address")
        found = re.search(r"http://\S+/dialog\?\S+", process.said())
        assert found, process.said()
        yield process, found[0]
        assert SECRET not in process.said()
        assert "simulator-token" not in process.said()
        assert "Traceback" not in process.said()
    finally:
        if process.alive:
            process.kill()


def browse(url: str) -> tuple[int, str]:
    """Open an address as a browser does; return the status and the page."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_a_login_feeds_a_waiting_recorder(tmp_path: Path) -> None:
    """The stored token has died; a login stores another one, and the same process records."""
    data, (port,) = tmp_path / "data", free_ports(1)
    (tmp_path / "script.toml").write_text('[[steps]]\nat_s = 0\ndo = "rotate_token"\n')
    with simulator(tmp_path, "--script", "script.toml") as (url, simulated):
        environ = environ_of_login(url, data, port)
        assert fed(["token", "set"], "dead-token", environ, tmp_path).returncode == 0
        wait_until(lambda: "simulator.fault" in simulated.said(), "only a new token is accepted")
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: "token_rejected" in recording.said(), "the token is refused")
            with logging_in(environ, tmp_path) as (login, dialog):
                state = parse_qs(urlsplit(dialog).query)["state"][0]
                callback = f"http://127.0.0.1:{port}/callback"
                assert browse(f"{callback}?code=foreign&state=of-another-login")[0] == 400
                assert browse(f"{callback}?code=foreign")[0] == 400
                assert login.alive
                status, page = browse(dialog)
                assert (status, state in page) == (200, False)
                assert login.process.wait(20) == 0
                assert "stored in" in login.said()
            wait_until(lambda: stats(data)["last_seq"] > 0, "frames are journalled", 20)
            assert recording.alive
            assert recording.stop() == 0
    assert stat.S_IMODE((data / "token").stat().st_mode) == 0o600


def test_consent_that_is_denied(tmp_path: Path) -> None:
    """It ends at once, with the next step; nothing is stored."""
    data, (port,) = tmp_path / "data", free_ports(1)
    with simulator(tmp_path) as (url, _), logging_in(environ_of_login(url, data, port), tmp_path) as (login, dialog):
        state = parse_qs(urlsplit(dialog).query)["state"][0]
        assert browse(f"http://127.0.0.1:{port}/callback?error=access_denied&state={state}")[0] == 400
        assert login.process.wait(20) == 1
        assert "without a login; run `tickvault login` again" in login.said()
    assert not (data / "token").exists()


def test_a_port_in_use(tmp_path: Path) -> None:
    """Said before anybody is sent to the broker."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environ = environ_of_login("http://127.0.0.1:9", tmp_path / "data", taken.getsockname()[1])
        done = fed(["login"], "", environ, tmp_path)
    assert done.returncode == 1
    assert "--paste" in done.stderr
    assert "dialog" not in done.stdout


def test_nobody_comes(tmp_path: Path) -> None:
    """The wait has an end."""
    (port,) = free_ports(1)
    environ = environ_of_login("http://127.0.0.1:9", tmp_path / "data", port)
    done = fed(["login", "--timeout", "1"], "", environ, tmp_path)
    assert (done.returncode, "nobody has logged in" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("pasted", "words"),
    [
        ("http://127.0.0.1/callback?code=abc&state=another", "another login"),
        ("http://127.0.0.1/callback", "no code"),
        ("used-up-code", "UDAPI100057"),
        ("", "no code"),
    ],
)
def test_what_is_pasted_wrongly(tmp_path: Path, pasted: str, words: str) -> None:
    """Each is told with what was expected; nothing is stored."""
    data, (port,) = tmp_path / "data", free_ports(1)
    with simulator(tmp_path) as (url, _):
        done = fed(["login", "--paste"], pasted, environ_of_login(url, data, port), tmp_path)
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert not (data / "token").exists()


def test_a_code_that_is_pasted(tmp_path: Path) -> None:
    """The browser is on another machine; its user copies the code."""
    data, (port,) = tmp_path / "data", free_ports(1)
    with simulator(tmp_path) as (url, _):
        environ = environ_of_login(url, data, port)

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: object) -> None:
                return None

        query = f"response_type=code&client_id=app-key&redirect_uri=http://127.0.0.1:{port}/callback"
        with pytest.raises(urllib.error.HTTPError) as sent:
            urllib.request.build_opener(Stay).open(f"{url}/v2/login/authorization/dialog?{query}", timeout=10)
        with sent.value:
            code = parse_qs(urlsplit(sent.value.headers["Location"]).query)["code"][0]
        done = fed(["login", "--paste"], f"{code}\n", environ, tmp_path)
        again = fed(["login", "--paste"], f"{code}\n", environ, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (again.returncode, "good for one try" in again.stderr) == (1, True)
    assert code not in done.stdout + done.stderr + again.stdout + again.stderr
