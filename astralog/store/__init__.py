"""Batches to segment files, and back: queue, group commit, sync, seal, recovery, retention, tail."""
