"""The private directory through which the workers share what they count.

prometheus_client writes each worker's numbers to files there. It lies in memory: writing to it
must not wait for the disk, and must not fail when the disk is full. The master makes it, buries
what dead workers leave, and removes it.
"""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

#: Where gunicorn.conf.py tells prometheus_client the directory.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

#: The directories' names start like this; gunicorn.conf.py adds the master's id and chance.
PREFIX = "astralog-metrics-"

#: What dead workers counted is kept in the files of this process, which never is one.
DEAD = 0

#: An older directory that no process holds is left over; a younger one may not be held yet.
YOUNG_SECONDS = 60


def make(path: Path) -> int:
    """Make the directory and return the descriptor that holds it, also for the workers' sake.

    What a killed service left beside it is removed.
    """
    path.mkdir(mode=0o700)
    holder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(holder, fcntl.LOCK_SH)
    for other in path.parent.glob(PREFIX + "*"):
        if _is_left_over(other):
            shutil.rmtree(other, ignore_errors=True)
    return holder


def remove(path: Path) -> None:
    """Remove the directory, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


def _is_left_over(path: Path) -> bool:
    try:
        status = path.lstat()
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            return False
        if time.time() - status.st_ctime < YOUNG_SECONDS:
            return False
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def merge(path: Path, pid: int) -> None:
    """Add what a dead worker counted to what all dead ones did, and drop what it only showed.

    Otherwise there would be more and more files to read. Where a scrape is just reading them,
    they are left as they are, which is as right.
    """
    mark_process_dead(pid, str(path))
    with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_locked:
        for file in path.glob(f"*_{pid}.db") if is_locked else ():
            _absorb(file)


def _absorb(file: Path) -> None:
    kind = file.name.rpartition("_")[0]
    dead = MmapedDict(str(file.with_name(f"{kind}_{DEAD}.db")))
    for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file)):
        before, _ = dead.read_value(key)
        is_latest = kind == "gauge_max"
        dead.write_value(key, max(before, value) if is_latest else before + value, 0.0)
    dead.close()
    file.unlink()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Keep the files as they are while the block reads them all."""
    with _locked(path, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[bool]:
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        is_locked = False
        with suppress(BlockingIOError):
            fcntl.flock(fd, operation)
            is_locked = True
        yield is_locked
    finally:
        os.close(fd)
