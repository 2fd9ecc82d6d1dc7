"""The gap ledger: what was not recorded, folded from journal events and from nothing else. Pure.

Three steps, each a module: events tell of outages (`outages`); an outage is a gap as far as a market traded (`gaps`, by
`sessions`); and any stretch of time divides into states (`intervals`). What is subscribed to, and
on which connection, is told by `asked` and `carriers`. docs/gaps.md has the laws. A folder, since its
parts say nothing without one another.
"""

from tickvault.ledger.asked import Asked
from tickvault.ledger.carriers import Carried, carriers
from tickvault.ledger.gaps import Ledger
from tickvault.ledger.intervals import Interval, intervals
from tickvault.ledger.sessions import Sessions
from tickvault.ledger.states import KINDS, MEANINGS, State

__all__ = ["KINDS", "MEANINGS", "Asked", "Carried", "Interval", "Ledger", "Sessions", "State", "carriers", "intervals"]
