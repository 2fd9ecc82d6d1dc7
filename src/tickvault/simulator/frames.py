"""States to protobuf frames (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import Mode
from tickvault.simulator.book import LEVELS
from tickvault.simulator.market import ALL, BOOK, GREEKS, LTPC, OHLC, TOTALS, Auctioned
from tickvault.simulator.universe import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tickvault.simulator.quote import Candle, Quote

__all__ = ["SEGMENTS", "STATUSES", "Entry", "data_frame", "empty_entry", "garbage", "market_info"]

SEGMENTS: Final = (
    "NSE_COM", "NCD_FO", "NSE_FO", "BSE_EQ", "BCD_FO", "BSE_FO", "NSE_EQ", "MCX_FO", "MCX_INDEX", "NSE_INDEX",
    "BSE_INDEX",
)  # fmt: skip
STATUSES: Final = tuple(pb.MarketStatus.keys())
_REQUEST_MODES: Final = {
    Mode.LTPC: pb.RequestMode.ltpc,
    Mode.OPTION_GREEKS: pb.RequestMode.option_greeks,
    Mode.FULL: pb.RequestMode.full_d5,
    Mode.FULL_D30: pb.RequestMode.full_d30,
}
_REFERENCE_QTY: Final = 5_000  # of an auction; its sign and size carry no meaning

# An instrument's state, the mode it is subscribed in and the parts of it to send.
Entry = tuple["Quote", Mode, int]


def data_frame(
    entries: Iterable[Entry], now_ms: int, *, snapshot: bool, auction: Auctioned = Auctioned.NONE
) -> pb.FeedResponse:
    """Build an `initial_feed` or `live_feed` frame.

    Args:
        entries: one per instrument.
        now_ms: becomes `currentTs`.
        snapshot: an initial feed; its type, 0, is not on the wire.
        auction: who is in a call auction.
    """
    frame = pb.FeedResponse(type=pb.Type.initial_feed if snapshot else pb.Type.live_feed, currentTs=now_ms)
    for quote, mode, parts in entries:
        _fill(frame.feeds[quote.instrument.key], quote, mode, parts, auction=auction.has(quote.instrument))
    return frame


def empty_entry(feed: pb.Feed, mode: Mode) -> None:
    """Make an entry as the broker sends for a key in the wrong format: every sub-message there, and empty."""
    feed.requestMode = _REQUEST_MODES[mode]
    if mode is Mode.LTPC:
        feed.ltpc.SetInParent()
    elif mode is Mode.OPTION_GREEKS:
        greeks = feed.firstLevelWithGreeks
        greeks.ltpc.SetInParent()
        greeks.firstDepth.SetInParent()
        greeks.optionGreeks.SetInParent()
    else:
        full = feed.fullFeed.marketFF
        full.ltpc.SetInParent()
        full.marketLevel.SetInParent()
        full.optionGreeks.SetInParent()
        full.marketOHLC.SetInParent()


def market_info(
    now_ms: int,
    statuses: Mapping[str, str],
    *,
    cas: Mapping[str, tuple[str, int]] | None = None,
    pre_open: Mapping[str, tuple[str, int]] | None = None,
) -> pb.FeedResponse:
    """Build a `market_info` frame.

    Args:
        now_ms: becomes `currentTs`.
        statuses: segment → name of its status.
        cas: segment → (status of its closing auction, since when in ms).
        pre_open: the same of its pre-open session.
    """
    frame = pb.FeedResponse(type=pb.Type.market_info, currentTs=now_ms)
    info = frame.marketInfo
    for segment, status in statuses.items():
        info.segmentStatus[segment] = pb.MarketStatus.Value(status)  # type: ignore[assignment]  # stubs lack int
    for auctions, field in ((cas or {}, info.casMarketStatus), (pre_open or {}, info.preOpenSessionStatus)):
        for segment, (status, since_ms) in auctions.items():
            field[segment].status, field[segment].updatedTime = status, since_ms
    return frame


def garbage(size: int) -> bytes:
    """Return `size` bytes (6 or more) that no protobuf parser accepts: a field that is longer than the frame."""
    return (b"\x12\xff\xff\xff\xff\x07" + b"\xa5" * size)[: max(6, size)]


def _fill(feed: pb.Feed, quote: Quote, mode: Mode, parts: int, *, auction: bool) -> None:
    one = quote.instrument
    feed.requestMode = _REQUEST_MODES[mode]
    if mode is Mode.LTPC:
        _fill_ltpc(feed.ltpc, quote, auction=auction)
    elif mode is Mode.OPTION_GREEKS:
        _fill_greeks_mode(feed.firstLevelWithGreeks, quote, auction=auction)
    elif one.kind is Kind.INDEX:
        index = feed.fullFeed.indexFF
        _fill_ltpc(index.ltpc, quote, auction=False)
        _fill_ohlc(index.marketOHLC, quote)
    else:
        _fill_full(feed.fullFeed.marketFF, quote, LEVELS if mode is Mode.FULL_D30 else 5, parts, auction=auction)


def _fill_full(full: pb.MarketFullFeed, quote: Quote, levels: int, parts: int, *, auction: bool) -> None:
    if parts & LTPC:
        _fill_ltpc(full.ltpc, quote, auction=auction)
    if parts & BOOK:
        _fill_book(full.marketLevel, quote, levels, auction=auction)
    if parts & GREEKS:
        _fill_greeks(full.optionGreeks, quote)
    if parts & OHLC:
        _fill_ohlc(full.marketOHLC, quote)
    if parts & TOTALS:
        full.atp, full.vtt, full.oi, full.iv = quote.atp, quote.vtt, quote.oi, quote.iv
        full.tbq, full.tsq = quote.book.total_bid(), quote.book.total_ask()
    if quote.instrument.cas_eligible and parts == ALL:
        full.casEligible = True
    if auction:
        imbalance = quote.book.total_bid() - quote.book.total_ask()
        full.iep, full.rp, full.ieq = quote.level(0, 0)[1], quote.cp, _REFERENCE_QTY
        full.iiqTotal, full.iiqM = imbalance, imbalance // 3


def _fill_ltpc(ltpc: pb.LTPC, quote: Quote, *, auction: bool) -> None:
    ltpc.ltp, ltpc.ltt, ltpc.ltq, ltpc.cp = quote.ltp, quote.ltt, quote.ltq, quote.cp
    if auction:
        ltpc.iep.value = quote.level(0, 0)[1]


def _fill_book(book: pb.MarketLevel, quote: Quote, levels: int, *, auction: bool) -> None:
    add, level = book.bidAskQuote.add, quote.level
    for i in range(levels):
        bid_qty, bid_price = level(0, i)
        ask_qty, ask_price = level(1, i)
        if auction:
            # Before the auction is struck the book is crossed, and the last rung is the market orders', without price.
            priced = i < levels - 1
            bid_price, ask_price = (ask_price, bid_price) if priced else (0.0, 0.0)
        add(bidQ=bid_qty, bidP=bid_price, askQ=ask_qty, askP=ask_price)


def _fill_greeks(greeks: pb.OptionGreeks, quote: Quote) -> None:
    greeks.SetInParent()  # equities have it too, empty
    greeks.delta, greeks.theta, greeks.gamma, greeks.vega, greeks.rho = quote.greeks


def _fill_ohlc(ohlc: pb.MarketOHLC, quote: Quote) -> None:
    _fill_candle(ohlc.ohlc.add(), "1d", quote.day)
    _fill_candle(ohlc.ohlc.add(), "I1", quote.minute)


def _fill_candle(ohlc: pb.OHLC, interval: str, candle: Candle | None) -> None:
    if candle is None:
        return  # an empty entry keeps its place
    ohlc.interval = interval
    ohlc.open, ohlc.high, ohlc.low, ohlc.close = candle.open, candle.high, candle.low, candle.close
    ohlc.vol, ohlc.ts = candle.volume, candle.start_ms


def _fill_greeks_mode(first: pb.FirstLevelWithGreeks, quote: Quote, *, auction: bool) -> None:
    _fill_ltpc(first.ltpc, quote, auction=auction)
    if quote.instrument.kind is Kind.INDEX:
        return
    first.firstDepth.bidQ, first.firstDepth.bidP = quote.level(0, 0)
    first.firstDepth.askQ, first.firstDepth.askP = quote.level(1, 0)
    _fill_greeks(first.optionGreeks, quote)
    first.vtt, first.oi, first.iv = quote.vtt, quote.oi, quote.iv
