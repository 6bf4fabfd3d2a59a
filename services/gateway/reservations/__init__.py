"""Reservations of whoever spends without a proxied call: tools, approvals, batches, direct callers (GW-10)."""
