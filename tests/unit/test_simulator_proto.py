"""Our .proto against the official SDK's, and the generated code against our .proto."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as ours

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FileDescriptor

PROTO = Path(ours.__file__).parent

# The SDK has a process of its own: its generated code warns, and its descriptors register under a common pool.
DESCRIBE_SDK = """
import importlib.util, json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from test_simulator_proto import describe
import upstox_client
from upstox_client.feeder.proto import MarketDataFeedV3_pb2
print(json.dumps(describe(MarketDataFeedV3_pb2.DESCRIPTOR)))
"""


def describe(file: FileDescriptor) -> dict[str, Any]:
    """Return every message and enum of a file: fields by number with type and label, values by number."""
    found: dict[str, Any] = {}

    def visit(message: Descriptor) -> None:
        found[short(message.full_name)] = {
            str(field.number): [
                field.name,
                field.type,
                "repeated" if field.is_repeated else "singular",
                bool(field.has_presence),
                short(target.full_name) if (target := field.message_type or field.enum_type) else None,
                field.containing_oneof.name if field.containing_oneof else None,
            ]
            for field in message.fields
        }
        for nested in message.nested_types:
            visit(nested)

    def short(name: str) -> str:
        return name.removeprefix(f"{file.package}.")

    for message in file.message_types_by_name.values():
        visit(message)
    for enum in file.enum_types_by_name.values():
        found[short(enum.full_name)] = {str(value.number): value.name for value in enum.values}
    return found


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    """The official SDK's messages and enums."""
    command = [sys.executable, "-c", DESCRIBE_SDK, str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    described: dict[str, Any] = json.loads(result.stdout)
    return described


def test_every_message_and_enum_is_the_official_one(official: dict[str, Any]) -> None:
    """Same names, numbers, types, labels and presence; nothing more and nothing less."""
    mine = json.loads(json.dumps(describe(ours.DESCRIPTOR)))
    assert mine.keys() == official.keys()
    for name, fields in official.items():
        assert mine[name] == fields, name


def test_the_official_one_has_the_auction_fields(official: dict[str, Any]) -> None:
    """The comparison is with the schema of September 2026, not with an older SDK's."""
    assert official["MarketFullFeed"]["16"][0] == "casEligible"
    assert official["LTPC"]["5"][4] == "google.protobuf.DoubleValue"


def test_the_committed_code_is_what_protoc_makes(tmp_path: Path) -> None:
    """Both generated files equal a fresh generation, byte for byte."""
    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}",
        "market_data_feed.proto",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    for name in ("market_data_feed_pb2.py", "market_data_feed_pb2.pyi"):
        assert (PROTO / name).read_text() == (tmp_path / name).read_text()
