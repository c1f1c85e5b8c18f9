"""Small changes to gunicorn and the process, each with its reason or figure."""

import os
import resource
from typing import Any

from gunicorn.workers import base
from gunicorn.workers.workertmp import WorkerTmp

from astralog.memory_file import make_memory_file


def flatten_settings(cfg: Any) -> None:
    """Copy gunicorn's settings to plain attributes; later changes of `cfg` have no effect.

    gunicorn reads 20 of them for each head that it parses: 10 of 75 µs less.
    """
    cfg.__dict__.update({name: item.get() for name, item in cfg.settings.items()})


def raise_open_files_limit() -> None:
    """Raise the limit of open files to the system's maximum; 1,024 is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- Heartbeats in memory


def keep_heartbeats_in_memory() -> None:
    """Keep the heartbeat files of the workers in memory.

    gunicorn creates them in `worker_tmp_dir`, and its master ends if it cannot: any local user can
    fill /dev/shm or /tmp.
    """
    base.WorkerTmp = Heartbeat


class Heartbeat(WorkerTmp):
    """A file in memory, whose time a worker sets and the master reads."""

    def __init__(self, cfg: Any) -> None:
        """Create the file for the worker's user, so that the worker may set the time."""
        fd = make_memory_file("astralog-heartbeat")
        os.fchown(fd, cfg.uid, cfg.gid)
        self._tmp = os.fdopen(fd, "r+b", buffering=0)
