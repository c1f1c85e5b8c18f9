"""Batches to segment files and back: queue, group commit, sync, recovery, retention, tail."""
