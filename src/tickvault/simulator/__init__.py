"""A server that speaks the Upstox V3 protocol, for demonstrations and tests.

    universe ──▶ market ──▶ frames ──▶ connection ──▶ socket
                   ▲          pure ▲ │ ▼ edge            │
                 pricing, book       server ◀── script   └──▶ framelog

What it does carries, in behaviours.py, how well it is known that the broker does the same.
"""

from tickvault.simulator.server import Simulator, serve
from tickvault.simulator.settings import SimulatorSettings

__all__ = ["Simulator", "SimulatorSettings", "serve"]
