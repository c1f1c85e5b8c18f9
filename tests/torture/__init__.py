"""Faults and attacks against the real service: `make torture` runs them all and counts."""
