"""Brokers whose feeds tickvault can record."""
