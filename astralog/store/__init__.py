"""Write batches to segment files, and read them: queue, group commit, sync, recovery, retention."""
