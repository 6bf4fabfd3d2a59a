"""Delegations: keys and budgets of parts that were carved from others (BU-9)."""
