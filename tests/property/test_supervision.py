"""Whatever the broker sends, looking at it never ends the recording: no exception, and a report that can be shown."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tickvault.brokers.upstox.observe import RawFrame
from tickvault.brokers.upstox.plan import chunks
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.supervision import Supervision
from tickvault.brokers.upstox.transitions import State
from tickvault.brokers.upstox.watch import Watch
from tickvault.model import Mode, Subscription

AT_NS = 1_788_238_800_000_000_000  # 10:00 IST on a Tuesday
KEYS = ("NSE_EQ|A", "NSE_EQ|B", "NSE_FO|1")
WANTED = tuple(Subscription(instrument_key=key, mode=Mode.FULL) for key in KEYS)
INT64 = st.one_of(
    st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), AT_NS // 1_000_000]), st.integers(-(2**63), 2**63 - 1)
)
NAMES = st.one_of(st.sampled_from(["NSE_EQ", "NSE_FO", ""]), st.text(max_size=5))
WORDS = st.one_of(st.sampled_from(["CTS_CLOSE", "CAS_LM_START", "PRE_OPEN_END", ""]), st.text(max_size=5))
STATUS = st.builds(lambda status, at: pb.StatusInfo(status=status, updatedTime=at), WORDS, INT64)
FEEDS = st.one_of(
    st.just(pb.Feed()),
    st.builds(lambda ltp, ltt: pb.Feed(ltpc=pb.LTPC(ltp=ltp, ltt=ltt)), st.floats(), INT64),
    st.builds(lambda vtt: pb.Feed(fullFeed=pb.FullFeed(marketFF=pb.MarketFullFeed(vtt=vtt))), INT64),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Return a frame: a message of any kind, then perhaps cut or with bytes behind it."""
    message = pb.FeedResponse(currentTs=draw(INT64))
    message.type = draw(st.integers(0, 4))  # type: ignore[assignment]
    for key, feed in draw(st.dictionaries(st.sampled_from([*KEYS, "X"]), FEEDS, max_size=4)).items():
        message.feeds[key].CopyFrom(feed)
    info: Any = message.marketInfo
    for name, number in draw(st.dictionaries(NAMES, st.integers(-(2**31), 2**31 - 1), max_size=3)).items():
        info.segmentStatus[name] = number
    for name, status in draw(st.dictionaries(NAMES, STATUS, max_size=3)).items():
        info.casMarketStatus[name].CopyFrom(status)
        info.preOpenSessionStatus[name].CopyFrom(status)
    payload = message.SerializeToString()
    return draw(st.sampled_from([payload, payload[: len(payload) // 2], payload + b"\x98\x06\x01"]))


def auction(updated_ms: int) -> bytes:
    """Return a market_info in whose open segment an auction began at some time."""
    info = pb.MarketInfo(
        segmentStatus={"NSE_EQ": pb.NORMAL_OPEN},
        casMarketStatus={"NSE_EQ": pb.StatusInfo(status="CTS_CLOSE", updatedTime=updated_ms)},
    )
    return pb.FeedResponse(type=pb.market_info, marketInfo=info).SerializeToString()


@example(payloads=[auction(2**63 - 1), b""], step_s=0.1)
@example(payloads=[auction(-(2**63)), b""], step_s=0.1)
@settings(max_examples=200, deadline=None)
@given(
    payloads=st.lists(st.one_of(messages(), st.binary(max_size=40)), max_size=30), step_s=st.sampled_from([0.1, 9.0])
)
def test_nothing_that_comes_is_an_error(payloads: list[bytes], step_s: float) -> None:
    """Any bytes, any numbers, any names."""
    supervision, now_s = Supervision(Watch()), 1000.0
    supervision.connected(1, chunks(WANTED), now_s, AT_NS)
    supervision.subscribed(0, now_s)
    for payload in payloads:
        now_s += step_s
        now_ns = AT_NS + int((now_s - 1000.0) * 1e9)
        seen = supervision.observe([RawFrame(conn=1, received_ns=now_ns, received_s=now_s, payload=payload)])
        supervision.digest(seen, now_s, now_ns, reading=True)
        supervision.expects(now_ns)
    json.dumps(supervision.take_facts())
    assert supervision.keys.delivering <= len(KEYS)


def test_keys_that_go_missing_are_facts() -> None:
    """As many in each as in a request, told once; and not while nothing at all is served, which is one of its own."""
    wanted = [Subscription(instrument_key=f"NSE_EQ|{n}", mode=Mode.FULL) for n in range(1200)]
    supervision, requests = Supervision(Watch()), chunks(wanted)
    supervision.connected(1, requests, 0.0, AT_NS)
    for number in range(len(requests)):
        supervision.subscribed(number, 0.0)

    def digest(at_s: float, *delivering: str) -> list[dict[str, object]]:
        message = pb.FeedResponse(type=pb.live_feed, currentTs=AT_NS // 1_000_000)
        for key in delivering:
            message.feeds[key].ltpc.ltp = 1.0
        frame = RawFrame(conn=1, received_ns=AT_NS, received_s=at_s, payload=message.SerializeToString())
        supervision.digest(supervision.observe([frame]), at_s, AT_NS + int(at_s * 1e9), reading=True)
        return [one for one in supervision.take_facts() if "keys" in one]

    supervision.moved(State.SNAPSHOTS, State.MUTE, AT_NS)
    assert digest(20.0) == []
    assert digest(21.0, "NSE_EQ|0") == []
    supervision.moved(State.MUTE, State.LIVE, AT_NS)
    assert digest(22.0) == []
    assert digest(23.0) == []
    found = digest(31.0)
    assert [(one["state"], len(one["keys"]), one["since_ns"]) for one in found] == [  # type: ignore[arg-type]
        ("missing", size, AT_NS) for size in (500, 500, 199)
    ]
    assert digest(32.0) == []
    back = digest(33.0, "NSE_EQ|7", "NSE_EQ|8")
    assert [(one["state"], one["keys"]) for one in back] == [("delivering", ["NSE_EQ|7", "NSE_EQ|8"])]
