"""A snapshot as Prometheus reads it (docs/reference/metrics.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tickvault.health import ALARMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from tickvault.health import FeedHealth, KeysHealth, Snapshot

__all__ = ["rendered"]


def rendered(snapshot: Snapshot) -> bytes:
    """Return a snapshot in Prometheus' text format, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(snapshot))
    return generate_latest(registry)


class _Metrics(Collector):
    """Renders one snapshot for Prometheus."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        one = self._snapshot
        yield _gauge("tickvault_journal_last_seq", "Sequence number of the last durable frame", one.last_seq)
        yield _gauge("tickvault_journal_bytes", "Bytes of the journal's files", one.bytes)
        yield _gauge("tickvault_disk_free_bytes", "Free bytes on the data folder's disk", one.disk_free_bytes)
        yield _gauge("tickvault_dead_letters", "Rows that a sink refused", one.dead_letters)
        yield _gauge("tickvault_outbox_events", "Events waiting for the webhook", one.outbox)
        yield _gauge("tickvault_open_gaps", "Gaps that are open now", len(one.open_gaps))
        lag = GaugeMetricFamily("tickvault_sink_lag_frames", "Frames journalled and not delivered", labels=["sink"])
        age = GaugeMetricFamily("tickvault_sink_lag_seconds", "Age of the oldest undelivered frame", labels=["sink"])
        parked = GaugeMetricFamily("tickvault_sink_parked", "1 when the sink is parked", labels=["sink"])
        for name, sink in one.sinks.items():
            lag.add_metric([name], sink.lag_frames)
            age.add_metric([name], sink.lag_s)
            parked.add_metric([name], float(sink.state == "parked"))
        yield from (lag, age, parked)
        if (feed := one.feed) is not None:
            yield CounterMetricFamily(
                "tickvault_frames_received", "Messages received since the start", value=feed.frames
            )
            yield CounterMetricFamily(
                "tickvault_reconnects", "Connections opened after the first", value=feed.reconnects
            )
            yield _gauge("tickvault_feed_live", "1 when the feed is live", float(feed.state == "live"))
            yield _gauge("tickvault_queue_frames", "Messages waiting for the journal", feed.queued)
            yield _gauge(
                "tickvault_journal_full", "1 when the disk has no room for the journal", float(feed.journal_full)
            )
            yield from _of_plan(feed)
            yield from _of_keys(feed.keys)
            yield from _of_market(feed)
            if feed.token_expires_s is not None:
                yield _gauge("tickvault_token_expires_seconds", "When the access token ends, UTC", feed.token_expires_s)


def _of_plan(feed: FeedHealth) -> Iterable[Metric]:
    yield _gauge("tickvault_sockets", "Connections that the plan has", feed.sockets)
    yield _gauge("tickvault_keys_planned", "Keys that are to be subscribed to", feed.planned)
    yield _gauge("tickvault_keys_refused", "Keys that are wanted and do not fit the broker's limits", feed.keys_refused)
    yield _gauge("tickvault_selections_skipped", "Selections that come to nothing", feed.skipped_count)


def _of_keys(keys: KeysHealth) -> Iterable[Metric]:
    yield _gauge("tickvault_keys_subscribed", "Keys subscribed to", keys.subscribed)
    yield _gauge("tickvault_keys_delivering", "Keys that have delivered on this connection", keys.delivering)
    yield _gauge("tickvault_keys_never_seen", "Keys that have not delivered since the start", keys.never_seen)
    silent = GaugeMetricFamily("tickvault_keys_silent", "Keys that have not delivered, and why", labels=["why"])
    for why, count in keys.silent.items():
        silent.add_metric([why], count)
    yield silent


def _of_market(feed: FeedHealth) -> Iterable[Metric]:
    market = feed.market
    state = GaugeMetricFamily("tickvault_feed_state", "1 at what the session is doing", labels=["state"])
    state.add_metric([feed.state], 1)
    yield state
    phases = GaugeMetricFamily("tickvault_market_phase", "1 at what a segment is doing", labels=["segment", "phase"])
    for segment, phase in market.phases.items():
        phases.add_metric([segment, phase], 1)
    yield phases
    alarm = GaugeMetricFamily("tickvault_segment_alarm", "1 while a segment is silent, …", labels=["segment", "state"])
    for segment in market.segments if market.state in ALARMS else ():
        alarm.add_metric([segment, market.state], 1)
    yield alarm
    yield CounterMetricFamily("tickvault_frames_unobserved", "Messages not looked at", value=market.unobserved)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
