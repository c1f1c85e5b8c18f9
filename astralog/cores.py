"""Count the cores available to the service."""

import math
import os
from pathlib import Path

#: The mount point of cgroups of version 2, and the file with the cgroup of a process
#: (docs.kernel.org/admin-guide/cgroup-v2.html).
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def count_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the number of cores, or the CPU quota of the cgroup if that is less.

    A part of a core counts as one, so that the whole quota is used.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _lowest_quota(cgroups, _own_cgroup(membership))
    return max(1, math.ceil(min(cores, quota)))


def _own_cgroup(membership: Path) -> Path:
    """Return the path of this process's cgroup, relative to the mount point."""
    for line in _read(membership).splitlines():
        if line.startswith("0::/"):
            return Path(line.removeprefix("0::/"))
    return Path()


def _lowest_quota(cgroups: Path, own: Path) -> float:
    """Return the lowest quota of the cgroup and its parents in cores, infinity without one."""
    return min(_quota(cgroups / parent / "cpu.max") for parent in (own, *own.parents))


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
