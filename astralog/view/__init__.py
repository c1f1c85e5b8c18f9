"""Stored lines to what people look at: filters, levels, the terminal."""
