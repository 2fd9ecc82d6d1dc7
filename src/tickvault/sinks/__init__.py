"""Stores that tickvault delivers to."""
