"""What the design costs on this machine; `python -m benchmarks` prints it."""
