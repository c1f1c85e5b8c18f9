"""The file by which the master sees that a worker is alive, in memory instead of a directory.

gunicorn makes it where `worker_tmp_dir` says, and stops for good where no file can be made there:
any local user can fill /dev/shm or /tmp.
"""

import os
import time
from typing import Any

from gunicorn.workers import base
from gunicorn.workers.workertmp import WorkerTmp

from astralog.memory_file import make_memory_file


class Heartbeat:
    """A worker sets the time of its file, and the master looks at it; as gunicorn's WorkerTmp."""

    def __init__(self, fd: int, uid: int, gid: int) -> None:
        """Own the file by the user that the worker runs as, who may set its time."""
        self._fd = fd
        os.fchown(fd, uid, gid)

    def notify(self) -> None:
        """Say that the worker is alive."""
        now = time.monotonic()
        os.utime(self._fd, (now, now))

    def last_update(self) -> float:
        """Return when the worker last was, by the monotonic clock."""
        return os.fstat(self._fd).st_mtime

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the file; once is enough."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def make_heartbeat(cfg: Any) -> Any:
    """Return a new worker's heartbeat; gunicorn's own where the system has no files in memory."""
    try:
        fd = make_memory_file("astralog-heartbeat")
    except OSError:
        return WorkerTmp(cfg)
    return Heartbeat(fd, cfg.uid, cfg.gid)


def keep_in_memory() -> None:
    """Have gunicorn's workers take heartbeats that no full directory can deny."""
    base.WorkerTmp = make_heartbeat
