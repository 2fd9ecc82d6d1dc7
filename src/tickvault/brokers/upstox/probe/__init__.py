"""Measures what the broker's documentation leaves open, in one read-only session, for a fact sheet to send in.

Laws. Nothing is changed at the broker's, and the account's other programs are left alone: one connection at a time,
unless asked for more; at most six authorize calls a minute. The sheet holds counts, times and statuses: no token, no
address but the feed's host, no key, no price, nothing of the account but its plan.
Four rooms: what there is to do and to tell (`sheet`), what a frame is without what it says (`frames`), one connection
(`line`), and the session (`asking`).
"""

from tickvault.brokers.upstox.probe.asking import MAX_KEYS, run_probe
from tickvault.brokers.upstox.probe.sheet import Finding, Pace, Sheet, Step, steps

__all__ = ["MAX_KEYS", "Finding", "Pace", "Sheet", "Step", "run_probe", "steps"]
