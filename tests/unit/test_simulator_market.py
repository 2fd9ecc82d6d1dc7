"""The synthetic market and the frames made of it."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import Mode
from tickvault.simulator.exchange import pace
from tickvault.simulator.frames import SEGMENTS, data_frame, empty_entry, garbage, market_info
from tickvault.simulator.market import ALL, BOOK, GREEKS, LTPC, OHLC, TOTALS, TRADE, Auctioned, Market, Watch
from tickvault.simulator.pricing import RATE, day_start_ms
from tickvault.simulator.universe import Instrument, Kind, build_universe

if TYPE_CHECKING:
    from collections.abc import Iterator

START_MS = 1_795_413_600_000  # Monday 2026-11-23 11:30 IST
UNIVERSE = build_universe(100, dt.date(2026, 11, 23))
MINUTE_MS = 60_000


def watch_all(market: Market) -> Watch:
    return Watch(market.weights, dict.fromkeys(range(len(market.universe)), True))


def frames(
    seed: int = 1, steps: int = 200, count: int = 30, step_ms: int = 250, start_ms: int = START_MS
) -> Iterator[tuple[int, dict[int, int], pb.FeedResponse]]:
    """Run a market and yield (time, parts changed, live frame in full mode)."""
    market = Market(UNIVERSE, seed=seed, start_ms=start_ms)
    watch = watch_all(market)
    for step in range(1, steps + 1):
        now_ms = start_ms + step * step_ms
        changed = market.advance(now_ms, watch, count)
        entries = [(market.look(i, now_ms, fresh=False), Mode.FULL, parts) for i, parts in changed.items()]
        yield now_ms, changed, data_frame(entries, now_ms, snapshot=False)


def snapshot(market: Market, position: int, mode: Mode = Mode.FULL, *, auction: Auctioned = Auctioned.NONE) -> pb.Feed:
    quote = market.look(position, START_MS, fresh=False)
    frame = data_frame([(quote, mode, ALL)], START_MS, snapshot=True, auction=auction)
    return frame.feeds[quote.instrument.key]


def positions(kind: Kind) -> list[int]:
    return [i for i, one in enumerate(UNIVERSE) if one.kind is kind]


def test_the_same_seed_gives_the_same_bytes() -> None:
    """Two markets with the same seed, start and calls are equal; another seed is not."""
    runs = [[f.SerializeToString(deterministic=True) for _, _, f in frames(seed, steps=40)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_each_step_changes_as_many_instruments_as_asked() -> None:
    """Exactly `count` distinct ones; all of them when it asks for more."""
    market = Market(UNIVERSE, seed=1, start_ms=START_MS)
    assert len(market.advance(START_MS + 250, watch_all(market), 30)) == 30
    assert len(market.advance(START_MS + 500, watch_all(market), 1000)) == len(UNIVERSE)
    assert set(market.advance(START_MS + 750, Watch(market.weights, {5: True, 7: True}), 1)) < {5, 7}


def test_activity_is_unequal() -> None:
    """The busiest tenth of the tradables makes several times the updates of the quietest tenth."""
    counts = Counter(i for _, changed, _ in frames(steps=400, count=15) for i in changed)
    ranked = sorted((counts[i] for i in range(3, len(UNIVERSE))), reverse=True)
    assert sum(ranked[:10]) > 5 * sum(ranked[-10:])


def test_volumes_only_grow_and_days_candle_contains_the_price() -> None:
    """Volume never falls within a day; atp stays between low and high; ltt and 1d.vol never go back."""
    last: dict[str, tuple[int, int]] = {}
    seen = 0
    for now_ms, _, frame in frames(steps=600):
        for key, feed in frame.feeds.items():
            full = feed.fullFeed.marketFF
            if not full.HasField("ltpc") or not full.vtt:
                continue
            day = full.marketOHLC.ohlc[0]
            before = last.get(key, (0, 0))
            assert before <= (full.vtt, full.ltpc.ltt)
            assert full.ltpc.ltt <= now_ms
            last[key] = (full.vtt, full.ltpc.ltt)
            assert day.vol <= full.vtt
            assert day.low <= full.ltpc.ltp <= day.high
            assert day.ts == day_start_ms(now_ms)
            seen += 1
    assert seen > 5000


def test_prices_are_multiples_of_the_tick() -> None:
    """Last prices, books and candles lie on the price steps, as the nearest double."""
    ticks = {one.key: one.tick_paise for one in UNIVERSE}
    for _, _, frame in frames(steps=100):
        for key, feed in frame.feeds.items():
            full = feed.fullFeed.marketFF
            prices = [full.ltpc.ltp, *(p for rung in full.marketLevel.bidAskQuote for p in (rung.bidP, rung.askP))]
            prices += [p for candle in full.marketOHLC.ohlc for p in (candle.open, candle.high, candle.low)]
            for price in prices:
                paise = round(price * 100)
                assert paise % ticks[key] == 0
                assert price == paise / 100


def test_books_are_ordered_and_never_crossed() -> None:
    """Bids fall, asks rise, the best bid is below the best ask; a rung without quantity has no price."""
    for _, _, frame in frames(steps=100):
        for feed in frame.feeds.values():
            rungs = feed.fullFeed.marketFF.marketLevel.bidAskQuote
            bids = [rung.bidP for rung in rungs if rung.bidQ]
            asks = [rung.askP for rung in rungs if rung.askQ]
            assert bids == sorted(bids, reverse=True)
            assert asks == sorted(asks)
            assert not bids or not asks or bids[0] < asks[0]
            assert all(bool(rung.bidQ) == bool(rung.bidP) for rung in rungs)


def test_thin_contracts_leave_rungs_of_zeros_and_may_never_have_traded() -> None:
    """A universe of thousands has empty rungs, and contracts without a price, a time or candles."""
    universe = build_universe(2000, dt.date(2026, 11, 23))
    market = Market(universe, seed=1, start_ms=START_MS)
    feeds = [snapshot(market, i).fullFeed.marketFF for i, one in enumerate(universe) if one.kind is Kind.PUT]
    assert any(rung == pb.Quote() for full in feeds for rung in full.marketLevel.bidAskQuote)
    never = [full for full in feeds if not full.ltpc.ltt]
    assert 0 < len(never) < len(feeds)
    assert all(full.ltpc.ltp == full.vtt == full.oi == 0 and full.ltpc.cp > 0 for full in never)
    assert all(list(full.marketOHLC.ohlc) == [pb.OHLC(), pb.OHLC()] for full in never)


def test_calls_and_puts_are_in_parity_through_their_quotes() -> None:
    """At one instant the middle of a call less that of its put is the forward, within the spreads."""
    market = Market(UNIVERSE, seed=3, start_ms=START_MS)
    now_ms = START_MS + 60_000
    market.advance(now_ms, watch_all(market), len(UNIVERSE))
    spot = market.look(0, now_ms).fair
    pairs: dict[tuple[float, dt.date | None], dict[Kind, float]] = defaultdict(dict)
    for i, one in enumerate(UNIVERSE):
        if one.underlying == 0 and one.strike:
            quote = market.look(i, now_ms)
            pairs[one.strike, one.expiry][one.kind] = (quote.level(0, 0)[1] + quote.level(1, 0)[1]) / 2
    compared = 0
    for (strike, expiry), price in pairs.items():
        if len(price) == 2 and expiry is not None:
            close = dt.datetime.combine(expiry, dt.time(10), dt.UTC).timestamp()
            years = (close - now_ms / 1000) / 86_400 / 365
            forward = spot - strike * math.exp(-RATE * years)
            assert price[Kind.CALL] - price[Kind.PUT] == pytest.approx(forward, abs=0.5)
            compared += 1
    assert compared >= 5


def test_greeks_are_sane_and_only_options_have_them() -> None:
    """Call deltas in 0…1, put deltas in -1…0, decay and convexity of the right sign; others empty but present."""
    market = Market(UNIVERSE, seed=1, start_ms=START_MS)
    for kind, low, high in ((Kind.CALL, 0, 1), (Kind.PUT, -1, 0)):
        for i in positions(kind):
            full = snapshot(market, i).fullFeed.marketFF
            assert low <= full.optionGreeks.delta <= high
            assert full.optionGreeks.gamma >= 0
            assert full.optionGreeks.vega >= 0
            assert 0.03 <= full.iv <= 2
    for i in (*positions(Kind.EQUITY), *positions(Kind.FUTURE)):
        full = snapshot(market, i).fullFeed.marketFF
        assert full.HasField("optionGreeks")
        assert full.optionGreeks == pb.OptionGreeks()
        assert full.iv == 0


def test_open_interest_belongs_to_derivatives() -> None:
    """Equities have none; futures have, in whole lots."""
    market = Market(UNIVERSE, seed=1, start_ms=START_MS)
    assert all(snapshot(market, i).fullFeed.marketFF.oi == 0 for i in positions(Kind.EQUITY))
    for i in positions(Kind.FUTURE):
        oi = snapshot(market, i).fullFeed.marketFF.oi
        assert oi > 0
        assert oi % UNIVERSE[i].lot_size == 0


def test_i1_is_the_last_completed_minute() -> None:
    """Its start is a whole minute at least one minute back, it never goes back, and its values never change."""
    starts: dict[str, int] = {}
    values: dict[tuple[str, int], bytes] = {}
    for now_ms, _, frame in frames(steps=400, step_ms=900):
        for key, feed in frame.feeds.items():
            union = feed.fullFeed.indexFF if feed.fullFeed.HasField("indexFF") else feed.fullFeed.marketFF
            for candle in union.marketOHLC.ohlc:
                if candle.interval == "I1":
                    assert candle.ts % MINUTE_MS == 0
                    assert candle.ts + MINUTE_MS <= now_ms
                    assert candle.ts >= starts.get(key, 0)
                    starts[key] = candle.ts
                    assert values.setdefault((key, candle.ts), candle.SerializeToString()) == candle.SerializeToString()
    assert len(values) > 3 * len(starts)


def test_a_new_day_starts_over() -> None:
    """Across midnight IST volume restarts, the last price becomes cp, and 1d gets the new date."""
    market = Market(UNIVERSE, seed=1, start_ms=START_MS)
    before = snapshot(market, 5).fullFeed.marketFF
    tomorrow_ms = START_MS + 86_400_000
    only = Watch(market.weights, {5: False})  # ltpc only: every update is a trade
    market.advance(tomorrow_ms, only, 1)
    after = snapshot(market, 5).fullFeed.marketFF
    assert after.ltpc.cp == before.ltpc.ltp
    assert after.vtt < before.vtt
    assert after.marketOHLC.ohlc[0].ts == day_start_ms(tomorrow_ms)


def test_indices_have_prices_and_candles_only() -> None:
    """An index entry is indexFF, whole, without quantity or volume."""
    for _, changed, frame in frames(steps=20):
        for i in changed.keys() & {0, 1, 2}:
            index = frame.feeds[UNIVERSE[i].key].fullFeed.indexFF
            assert index.ltpc.ltp > 0
            assert index.ltpc.ltq == 0
            assert [c.interval for c in index.marketOHLC.ohlc] == ["1d", "I1"]
            assert not any(c.vol for c in index.marketOHLC.ohlc)


def test_volatility_follows_the_clock() -> None:
    """The index moves more in the first ten minutes than in ten minutes at noon, over many seeds."""

    def moves(start_ms: int) -> float:
        total = 0.0
        for seed in range(60):
            market = Market(UNIVERSE[:1], seed=seed, start_ms=start_ms)
            first = market.look(0, start_ms).fair
            total += (market.look(0, start_ms + 600_000).fair - first) ** 2
        return total

    midnight = day_start_ms(START_MS)
    assert moves(midnight + 33_300_000) > 2 * moves(midnight + 43_800_000)


def test_shares_of_partial_entries() -> None:
    """About 72 % of entries are whole, 18 % lack book and greeks, 10 % lack ltpc, of which most are book only."""
    parts: Counter[int] = Counter()
    for _, changed, frame in frames(steps=400):
        for i, bits in changed.items():
            if UNIVERSE[i].kind is Kind.INDEX:
                continue
            parts[bits] += 1
            full = frame.feeds[UNIVERSE[i].key].fullFeed.marketFF
            assert full.HasField("ltpc") == bool(bits & LTPC)
            assert full.HasField("marketLevel") == bool(bits & BOOK)
            assert full.HasField("optionGreeks") == bool(bits & GREEKS)
            assert full.HasField("marketOHLC") == bool(bits & OHLC)
            assert bool(full.tbq or full.tsq) == bool(bits & TOTALS)
    share = {bits: n / parts.total() for bits, n in parts.items()}
    assert share[ALL] == pytest.approx(0.72, abs=0.03)
    assert share[TRADE] == pytest.approx(0.18, abs=0.03)
    assert share[BOOK] == pytest.approx(0.07, abs=0.02)
    assert 1 - share[ALL] - share[TRADE] == pytest.approx(0.10, abs=0.02)


def test_entries_have_the_brokers_size() -> None:
    """Mean wire size of whole entries, by kind and mode, is within a tenth of the published figures."""
    market = Market(UNIVERSE, seed=1, start_ms=START_MS)

    def mean(kind: Kind, mode: Mode) -> float:
        sizes = []
        for i in positions(kind):
            frame = pb.FeedResponse()
            frame.feeds[UNIVERSE[i].key].CopyFrom(snapshot(market, i, mode))
            sizes.append(frame.ByteSize())
        return sum(sizes) / len(sizes)

    assert mean(Kind.EQUITY, Mode.FULL) == pytest.approx(341, rel=0.1)
    assert mean(Kind.CALL, Mode.FULL) == pytest.approx(397, rel=0.1)
    assert mean(Kind.CALL, Mode.FULL_D30) == pytest.approx(1050, rel=0.1)
    assert mean(Kind.INDEX, Mode.FULL) == pytest.approx(160, rel=0.1)
    assert mean(Kind.CALL, Mode.OPTION_GREEKS) == pytest.approx(146, rel=0.1)
    assert mean(Kind.EQUITY, Mode.LTPC) == pytest.approx(55, rel=0.1)


@pytest.mark.parametrize(
    ("mode", "request_mode", "branch", "levels"),
    [
        (Mode.LTPC, "ltpc", "ltpc", 0),
        (Mode.OPTION_GREEKS, "option_greeks", "firstLevelWithGreeks", 0),
        (Mode.FULL, "full_d5", "fullFeed", 5),
        (Mode.FULL_D30, "full_d30", "fullFeed", 30),
    ],
)
def test_modes(mode: Mode, request_mode: str, branch: str, levels: int) -> None:
    """Each mode has its branch, its number and its depth."""
    market = Market(UNIVERSE, seed=1, start_ms=START_MS)
    feed = snapshot(market, positions(Kind.CALL)[0], mode)
    assert pb.RequestMode.Name(feed.requestMode) == request_mode
    assert feed.WhichOneof("FeedUnion") == branch
    assert len(feed.fullFeed.marketFF.marketLevel.bidAskQuote) == levels
    if mode is Mode.OPTION_GREEKS:
        first = feed.firstLevelWithGreeks
        assert first.ltpc.ltp
        assert first.firstDepth.bidP < first.firstDepth.askP
        assert first.optionGreeks.vega
        assert first.iv


def test_in_an_auction_books_cross_and_nothing_trades() -> None:
    """Equities show indicative prices and a rung without price; no volume is added; derivatives go on."""
    market = Market(UNIVERSE, seed=1, start_ms=START_MS)
    before = snapshot(market, 4).fullFeed.marketFF.vtt
    market.auction = Auctioned.ALL
    market.advance(START_MS + 250, watch_all(market), len(UNIVERSE))
    full = snapshot(market, 4, auction=Auctioned.ALL).fullFeed.marketFF
    assert full.vtt == before
    assert full.ltpc.HasField("iep")
    assert full.ltpc.iep.value == full.iep > 0
    assert full.rp == full.ltpc.cp
    assert full.ieq > 0
    assert full.iiqTotal != 0
    rungs = full.marketLevel.bidAskQuote
    assert rungs[0].bidP > rungs[0].askP
    assert rungs[4].bidQ > 0
    assert rungs[4].bidP == rungs[4].askP == 0
    future = snapshot(market, positions(Kind.FUTURE)[0], auction=Auctioned.ALL).fullFeed.marketFF
    assert future.iep == 0
    assert not future.ltpc.HasField("iep")


def test_an_entry_for_a_wrong_key_is_there_and_empty() -> None:
    """Every sub-message is present without a value, in each mode."""
    for mode in Mode:
        feed = pb.Feed()
        empty_entry(feed, mode)
        assert feed.WhichOneof("FeedUnion")
        assert feed.ltpc == pb.LTPC()
    full = feed.fullFeed.marketFF
    assert all(full.HasField(name) for name in ("ltpc", "marketLevel", "optionGreeks", "marketOHLC"))
    assert full.ByteSize() == 8


def test_market_info_has_eleven_segments_in_154_bytes() -> None:
    """As observed on the live service."""
    frame = market_info(START_MS, dict.fromkeys(SEGMENTS, "NORMAL_OPEN"), cas={}, pre_open={})
    assert len(frame.marketInfo.segmentStatus) == 11
    assert frame.ByteSize() == 154


@pytest.mark.parametrize("size", [6, 7, 64, 4096])
def test_garbage_does_not_decode(size: int) -> None:
    """No parser takes it."""
    assert len(garbage(size)) == size
    with pytest.raises(Exception, match="pars"):
        pb.FeedResponse.FromString(garbage(size))


@pytest.mark.parametrize(("watched", "rate"), [(100, 100), (2000, 540), (2000, 4000), (100, 5000), (10, 5000), (1, 50)])
def test_pace_carries_the_rate(watched: int, rate: float) -> None:
    """The frames of a second have room for a second's updates; the broker's pace is kept while it has."""
    grid_s, chance = pace(watched, rate)
    assert chance / grid_s * watched >= rate
    if rate <= 2 * watched:
        assert (grid_s, chance) == (0.15, 0.6)


def test_an_instrument_is_a_value() -> None:
    """Equal lists compare equal."""
    assert isinstance(UNIVERSE[0], Instrument)
    assert build_universe(100, dt.date(2026, 11, 23)) == UNIVERSE
