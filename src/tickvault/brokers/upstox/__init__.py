"""The Upstox market data feed, V3."""
