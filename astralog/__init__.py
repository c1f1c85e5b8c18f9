"""AstraLog: a log collector that answers 200 when every line is on disk."""

__version__ = "0.1.0"
