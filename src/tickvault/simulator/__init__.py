"""A server that speaks the Upstox V3 protocol, for demonstrations and tests.

    universe ──▶ market ──▶ frames ──▶ connection ──▶ socket
                   ▲          pure ▲ │ ▼ edge            │
                 pricing, book       server ◀── script   └──▶ framelog

What it does carries, in behaviours.py, how well it is known that the broker does the same.
"""

from tickvault.simulator.reading import Script, load_script, script_names
from tickvault.simulator.rules import Rules
from tickvault.simulator.server import Simulator, serve
from tickvault.simulator.settings import SimulatorSettings

__all__ = ["Rules", "Script", "Simulator", "SimulatorSettings", "load_script", "script_names", "serve"]
