"""Faults and attacks against the real service: `make faults` runs them all and counts."""
