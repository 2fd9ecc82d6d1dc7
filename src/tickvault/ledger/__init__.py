"""The gap ledger: what was not recorded, folded from journal events and from nothing else. Pure."""

from tickvault.ledger.gaps import KINDS, Ledger
from tickvault.ledger.sessions import Sessions

__all__ = ["KINDS", "Ledger", "Sessions"]
