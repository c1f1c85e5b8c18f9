"""Count the cores that the service may use."""

import math
import os
from pathlib import Path

#: Where the cgroups of version 2 are mounted, and the file that says which one a process is in
#: (docs.kernel.org/admin-guide/cgroup-v2.html).
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def count_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return how many cores there are, or what the cgroup's CPU quota grants, if that is less.

    A part of a core counts as one, so that nothing of the quota is left unused.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _lowest_quota(cgroups, _own_cgroup(membership))
    return max(1, math.ceil(min(cores, quota)))


def _own_cgroup(membership: Path) -> Path:
    """Return the path of this process's cgroup below where they are mounted."""
    for line in _read(membership).splitlines():
        if line.startswith("0::/"):
            return Path(line.removeprefix("0::/"))
    return Path()


def _lowest_quota(cgroups: Path, own: Path) -> float:
    """Return the cores that the cgroup and those above it grant, infinity without a quota."""
    return min(_quota(cgroups / parent / "cpu.max") for parent in (own, *own.parents))


def _quota(path: Path) -> float:
    """Return the quota of a cgroup in cores: microseconds of CPU time, and the period for them."""
    quota, _, period = _read(path).partition(" ")
    try:
        return int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or a file that is not there
        return math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
