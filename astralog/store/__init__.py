"""Batches to segment files: queue, group commit, sync, seal, recovery and retention."""
