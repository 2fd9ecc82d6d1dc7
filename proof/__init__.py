"""Reliability at full size: every question put to real processes, real servers and real files (docs/reliability.md)."""
