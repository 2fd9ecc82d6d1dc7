"""The container files: valid, pinned, hardened, and set by names that exist."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml
from dotenv import dotenv_values

from tickvault.settings import SETTINGS, InfluxLayout, Settings, load_settings, require_recordable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests/data/compose-spec.json").read_text(encoding="utf-8"))
RECORDERS = (":data-feed-service", ":demo")
FULL, ALONE = "compose.yaml", "deploy/compose.recorder.yaml"
DEFAULTS = {setting.name: setting.default for setting in SETTINGS}
NAMES = {name for setting in SETTINGS for name in setting.names} | {
    f"{name}_FILE" for setting in SETTINGS if setting.secret for name in setting.names
}
# What the InfluxDB image itself reads.
OF_INFLUXDB = {
    f"DOCKER_INFLUXDB_INIT_{name}"
    for name in ("MODE", "USERNAME", "PASSWORD", "PASSWORD_FILE", "ADMIN_TOKEN_FILE", "ORG", "BUCKET", "RETENTION")
}
OF_PYTHON = {"PATH", "PYTHONUNBUFFERED", "PIP_NO_CACHE_DIR", "PIP_DISABLE_PIP_VERSION_CHECK"}
MINOR = re.compile(r"[a-z/]+:\d+\.\d+[\w.-]*")


def compose(name: str = FULL) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return loaded


def services() -> list[Any]:
    return [
        pytest.param(service, id=f"{Path(name).name}:{key}")
        for name in (FULL, ALONE)
        for key, service in compose(name)["services"].items()
    ]


def ours() -> list[Any]:
    return [one for one in services() if one.values[0]["image"] == "tickvault:local"]


def recorders() -> list[Any]:
    return [one for one in ours() if one.id.endswith(RECORDERS)]


def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def interpolated(text: str, given: Mapping[str, str]) -> str:
    """Do what Compose does with ${NAME} and nested ${NAME:-default}, the innermost first."""
    while found := re.search(r"\$\{(\w+)(?::-([^${}]*))?\}", text):
        text = text.replace(found[0], given.get(found[1]) or found[2] or "")
    assert "$" not in text
    return text


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"deploy/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(service: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    own = {name: interpolated(text, given) for name, text in service.get("environment", {}).items()}
    return {**(given if "env_file" in service else {}), **own}


def settings_with(env_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return what the recorder of compose.yaml is set to with this .env: first `secrets` runs, then the recorder."""
    given = {
        name: value or "" for name, value in dotenv_values(stream=io.StringIO(env_file), interpolate=False).items()
    }
    found = compose()["services"]
    with monkeypatch.context() as patched:
        for name, value in environment(found["secrets"], given).items():
            patched.setenv(name, value)
        script("make_secrets").main(tmp_path)
    environ = environment(found["data-feed-service"], given)
    here = {name: value.replace("/run/tickvault", str(tmp_path)) for name, value in environ.items()}
    return load_settings(environ=here, env_file=None)


@pytest.mark.parametrize("name", [FULL, ALONE])
def test_the_file_is_valid(name: str) -> None:
    """It follows the Compose specification's schema."""
    jsonschema.Draft202012Validator(SCHEMA).validate(compose(name))


@pytest.mark.parametrize("name", [FULL, ALONE])
def test_what_a_service_refers_to_exists(name: str) -> None:
    """Its volumes are named ones of that file, so nothing of the host is mounted; it waits for services that are there."""
    every = compose(name)
    for service in every["services"].values():
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= every["volumes"].keys()
        for other, how in service.get("depends_on", {}).items():
            one_shot = every["services"][other].get("restart") == "no"
            assert how["condition"] == ("service_completed_successfully" if one_shot else "service_healthy")


@pytest.mark.parametrize("service", services())
def test_a_service_can_do_little(service: dict[str, Any]) -> None:
    """No capability, no new privilege, a bounded log, and ports that only this machine reaches."""
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("service", ours())
def test_our_containers_cannot_write_beside_their_volumes(service: dict[str, Any]) -> None:
    """The root file system is read-only; the image's own user is kept."""
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert "user" not in service


@pytest.mark.parametrize("service", recorders())
def test_a_recorder_may_finish(service: dict[str, Any]) -> None:
    """It has longer to stop than it takes, comes back by itself, and keeps its data in a named volume."""
    assert int(service["stop_grace_period"].removesuffix("s")) > float(DEFAULTS["TICKVAULT_SHUTDOWN_S"])
    assert service["restart"] == "unless-stopped"
    assert any(re.fullmatch(r"[a-z-]*data:/data", volume) for volume in service["volumes"])


def test_versions_are_pinned() -> None:
    """Every image names at least a minor version; ours is built here."""
    stages = [text.split()[0] for word, text in dockerfile() if word == "FROM"]
    foreign = [one.values[0]["image"] for one in services() if "build" not in one.values[0]]
    assert foreign
    for image in (*stages, *foreign):
        assert MINOR.fullmatch(image), image


def test_every_service_tells_whether_it_is_well() -> None:
    """InfluxDB and simulator have a check of their own, recorders that of the image, the one-shot needs none."""
    assert any(word == "HEALTHCHECK" for word, _ in dockerfile())
    for one in services():
        check = one.values[0].get("healthcheck")
        assert (check is None) == one.id.endswith(RECORDERS), one.id
        assert check is None or check.get("disable") or check["test"][0] == "CMD"


@pytest.mark.parametrize("name", [FULL, ALONE])
def test_every_name_that_is_set_exists(name: str) -> None:
    """Nothing is set that nobody reads."""
    for service in compose(name)["services"].values():
        assert service.get("environment", {}).keys() <= NAMES | OF_INFLUXDB
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+)", text)) <= NAMES | OF_INFLUXDB


def test_every_name_of_the_image_exists() -> None:
    """What the Dockerfile sets is a setting, Python's or pip's."""
    found = {name for word, text in dockerfile() if word == "ENV" for name in re.findall(r"(\w+)=", text)}
    assert {"TICKVAULT_DATA_DIR", "TICKVAULT_HTTP"} <= found <= NAMES | OF_PYTHON


def test_the_example_names_settings_and_sets_nothing() -> None:
    """Every line of .env.example is a comment, a blank or a setting; a copy of it as it is changes nothing."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^#?([A-Z][A-Z_]+)=", text)) <= NAMES
    given = {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}
    assert load_settings(environ=given, env_file=None) == load_settings(environ={}, env_file=None)


def test_the_image_ends_as_an_unprivileged_user_in_its_volume() -> None:
    """User, volume, signal, and a command in exec form, so that the program itself gets the signal."""
    found = dict(dockerfile())  # the last of each: the final stage
    assert found["USER"] == "10001:10001"
    assert found["VOLUME"] == found["WORKDIR"] == "/data"
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(found["ENTRYPOINT"]) == ["tickvault"]
    assert json.loads(found["CMD"]) == ["run"]
    assert json.loads(found["HEALTHCHECK"].partition("CMD ")[2])[0] == "python"


def test_nothing_private_enters_the_build() -> None:
    """The ignore file begins by excluding everything, and lets in neither `.env` nor the secrets' folder."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert not [line for line in lines if line.startswith(("!.", "!*", "!data", "!tests"))]


def test_a_fresh_clone_uses_the_influxdb_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without .env both sides have the same org, bucket and drawn token, and the status server is protected."""
    settings = settings_with("", tmp_path, monkeypatch)
    assert settings.influx is not None
    assert settings.influx.token is not None
    assert settings.http is not None
    assert settings.http.token is not None
    initial = environment(compose()["services"]["influxdb"], {})
    assert settings.influx.url == "http://influxdb:8086"
    assert settings.influx.org == initial["DOCKER_INFLUXDB_INIT_ORG"]
    assert settings.influx.bucket == initial["DOCKER_INFLUXDB_INIT_BUCKET"]
    assert settings.influx.layouts == (InfluxLayout.TICKVAULT,)
    drawn = (tmp_path / "influx-token").read_text()
    assert settings.influx.token.get_secret_value() == drawn
    assert len({drawn, settings.http.token.get_secret_value(), (tmp_path / "influx-password").read_text()}) == 3
    assert not settings.warnings


NATIVE = """
INFLUX_URL=https://influx.example.org
INFLUX_ORG=desk
INFLUX_BUCKET=nse
INFLUX_TOKEN=mine
"""
OLD_SERVICE = """
INFLUX_DB_URL="https://influx.example.org"
INFLUX_DB_ORG=desk
INFLUX_BUCKET_NAME=nse
INFLUX_DB_TOKEN=mine
"""
OLD_COMPOSE = """
INFLUXDB_URL=https://influx.example.org
INFLUXDB_ORG=desk
INFLUXDB_BUCKET_NAME=nse
INFLUXDB_TOKEN=mine
"""


@pytest.mark.parametrize(
    ("env_file", "layouts"),
    [
        (NATIVE, (InfluxLayout.TICKVAULT,)),
        (OLD_SERVICE, (InfluxLayout.TRADEDATAFEED, InfluxLayout.TICKVAULT)),
        (OLD_COMPOSE, (InfluxLayout.TRADEDATAFEED, InfluxLayout.TICKVAULT)),
        (NATIVE + OLD_SERVICE + OLD_COMPOSE, (InfluxLayout.TRADEDATAFEED, InfluxLayout.TICKVAULT)),
    ],
    ids=["native", "TradeDataFeed's service", "TradeDataFeed's compose file", "all at once"],
)
def test_an_influxdb_of_the_users_wins(
    env_file: str, layouts: tuple[InfluxLayout, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under whichever names .env gives it; the InfluxDB beside the recorder gets the same org, bucket and token."""
    settings = settings_with(env_file, tmp_path, monkeypatch)
    assert settings.influx is not None
    assert settings.influx.token is not None
    assert settings.influx.url == "https://influx.example.org"
    assert (settings.influx.org, settings.influx.bucket) == ("desk", "nse")
    assert settings.influx.token.get_secret_value() == (tmp_path / "influx-token").read_text() == "mine"
    assert settings.influx.layouts == layouts


@pytest.mark.parametrize(
    "token", ["ACCESS_TOKEN=a", "API_FETCH_TOKEN=http://auth:5000/t", "ACCESS_TOKEN_URL=http://auth/t"]
)
@pytest.mark.parametrize(
    "listed",
    [
        "INSTRUMENTS_LIST=NSE_EQ|INE531E01026 , NSE_EQ|INE047A01021, NSE_INDEX|Nifty 50",
        "GET_INSTRUMENTS_URL=http://auth/i",
        "INSTRUMENTS_LIST_URL=http://auth/i",
    ],
)
def test_a_tradedatafeed_env_file_records(
    token: str, listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names whose feed and what to record, and its webhook gets the one message that it knows."""
    rest = "DATA_FEED_UPDATE_URL=http://mock:5005/message\nNOTIFICATION_SLEEP_TIME=60\nNOTIFICATION_WAIT_TIME=50\n"
    settings = settings_with(f"{token}\n{listed}\n{rest}MAX_QUEUE_SIZE=10000\n", tmp_path, monkeypatch)
    require_recordable(settings)
    assert settings.notify is not None
    assert (settings.notify.events, settings.notify.sinks) == (("data.stored",), ("influx",))
    assert settings.sinks == ("parquet", "influx")


def test_a_users_status_token_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token, whether it comes from .env or is drawn; the container's address and folder are not for .env to move."""
    env_file = "TICKVAULT_HTTP_TOKEN=mine\nTICKVAULT_HTTP=127.0.0.1:8484\nTICKVAULT_DATA_DIR=./data\n"
    settings = settings_with(env_file, tmp_path, monkeypatch)
    assert settings.http is not None
    assert settings.http.token is not None
    assert settings.http.token.get_secret_value() == "mine"
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", 8000)
    assert settings.data_dir == Path("/data")


def test_the_demo_is_set_to_the_simulator_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It records without credentials, to Parquet only, on the network and the volume of the simulator's own."""
    found = compose()["services"]
    environ = environment(found["demo"], {})
    (tmp_path / "http-token").write_text("x")
    settings = load_settings(
        environ={name: value.replace("/run/tickvault", str(tmp_path)) for name, value in environ.items()}, env_file=None
    )
    require_recordable(settings)
    port = found["simulator"]["command"][found["simulator"]["command"].index("--port") + 1]
    assert settings.upstox.api_url == f"http://127.0.0.1:{port}"
    assert settings.sinks == ("parquet",)
    assert found["demo"]["network_mode"] == "service:simulator"
    assert "env_file" not in found["demo"]
    assert not set(found["demo"]["volumes"]) & {"data:/data"}


def test_drawn_secrets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start changes only what the environment gives; files can be read by other users and written by none."""
    for name in ("INFLUX_TOKEN", "DOCKER_INFLUXDB_INIT_PASSWORD", "TICKVAULT_HTTP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    make = script("make_secrets")
    make.main(tmp_path)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    monkeypatch.setenv("INFLUX_TOKEN", " given\n")
    make.main(tmp_path)
    second = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert first.keys() == second.keys() == {"influx-token", "influx-password", "http-token"}
    assert second == {**first, "influx-token": "given"}
    assert all(len(text) >= 32 for text in first.values())
    monkeypatch.setenv("INFLUX_TOKEN", "influxdb-token")  # TradeDataFeed's template
    make.main(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == second
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o444}


def test_the_guide_to_moving_names_every_old_name() -> None:
    """Each row of its table has the old names of one setting and the new one; no name in it is invented."""
    text = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    rows = [
        re.findall(r"`([A-Z_]+)`", cell)
        for line in text.splitlines()
        if line.startswith("| `")
        for cell in line.split("|")[1:3]
    ]
    told = {(tuple(new) or tuple(old))[0]: set(old) for old, new in zip(rows[::2], rows[1::2], strict=True)}
    expected = {setting.name: set(setting.aliases) for setting in SETTINGS if setting.aliases}
    alone = "REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL"
    assert told == expected | {alone: {alone}}


@pytest.mark.parametrize("name", ["docker.md", "migrating.md"])
def test_the_pages_name_what_exists(name: str) -> None:
    """Settings by their names, files and services of the repository by theirs."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert set(re.findall(r"\b((?:TICKVAULT|UPSTOX|INFLUX|INFLUXDB)_[A-Z_]*[A-Z])\b", text)) <= NAMES
    assert set(re.findall(r"--file (\S+?\.yaml)", text)) == {ALONE}
    assert set(re.findall(r"docker compose (?:exec|logs) (\S+?)(?:`|\s)", text)) <= compose()["services"].keys()


@pytest.mark.parametrize(
    ("listening", "asked"),
    [
        ("0.0.0.0:8000", "http://127.0.0.1:8000/healthz"),
        ("127.0.0.1:8484", "http://127.0.0.1:8484/healthz"),
        ("[::]:8000", "http://[::1]:8000/healthz"),
    ],
)
def test_the_health_check_asks_by_loopback(listening: str, asked: str) -> None:
    """Wherever the recorder listens."""
    assert script("healthcheck").local_url(listening) == asked


def test_the_health_check_tells_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a recorder it is a sentence, which makes the exit code 1."""
    monkeypatch.setenv("TICKVAULT_DATA_DIR", str(tmp_path))
    assert script("healthcheck").complaint() == f"no recorder runs on {tmp_path}"
