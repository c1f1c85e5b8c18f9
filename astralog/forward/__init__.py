"""Sealed segments into ClickHouse, each line once."""
