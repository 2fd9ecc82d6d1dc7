"""What a running recorder shows over HTTP."""
