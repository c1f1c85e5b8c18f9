"""The process's resources: its CPU cores, the memory that it keeps, and its open files."""

import ctypes
import math
import os
import resource
from pathlib import Path

#: The mount point of cgroups of version 2, and the file with the cgroup of a process
#: (docs.kernel.org/admin-guide/cgroup-v2.html).
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

#: Freed bytes that stay with a process; otherwise they are returned and faulted in again with every
#: batch or block. Measured: -90 of 1,230 µs per request of 500 logs, and -0.2 of 0.35 s of CPU per
#: 548 MB that a search reads.
HEAP_BYTES = 32 * 1024 * 1024

#: A larger block is mapped by itself: it grows without a copy, and is returned when it is freed.
#: Otherwise glibc raises the limit to 32 MiB with the first such block, and a 42 MiB line that
#: grows in the heap took 78.
BLOCK_BYTES = 4 * 1024 * 1024

#: Source: malloc.h of glibc; see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_heap() -> None:
    """Let the process keep HEAP_BYTES of freed memory, in blocks of at most BLOCK_BYTES."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # musl has none
        mallopt(M_TRIM_THRESHOLD, HEAP_BYTES)
        mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)


def raise_open_files_limit() -> None:
    """Raise the limit of open files to the system's maximum; 1,024 is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def count_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the number of cores, or the CPU quota of the cgroup or a parent if that is less.

    A part of a core counts as one, so that the whole quota is used.
    """
    own = _own_cgroup(membership)
    quotas = (_quota(cgroups / parent / "cpu.max") for parent in (own, *own.parents))
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), *quotas)))


def _own_cgroup(membership: Path) -> Path:
    """Return the path of this process's cgroup, relative to the mount point."""
    for line in _read(membership).splitlines():
        if line.startswith("0::/"):
            return Path(line.removeprefix("0::/"))
    return Path()


def _quota(path: Path) -> float:
    """Return the quota of a cgroup in cores: microseconds of CPU time, and the period for them."""
    quota, _, period = _read(path).partition(" ")
    try:
        return int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
