"""Farthing: a spend ledger and gateway for AI agents."""

__version__ = "0.1.0"
