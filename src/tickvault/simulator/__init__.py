"""A server that speaks the Upstox V3 protocol, for demonstrations and tests."""
