"""The system's data on a process: CPU time, memory and open files."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time of the processes so far, to the nanosecond.

    Raises ProcessLookupError if one of them has ended. Source of the clock's number:
    clock_getcpuclockid(3), as glibc computes it on Linux.
    """
    try:
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)
    except OSError:
        raise ProcessLookupError("a process of the service ended") from None


def start_stopwatch(pid: int) -> Callable[[], float]:
    """Return a function that returns the seconds a process has taken since now.

    This is its CPU time if that is less than the wall time, since a busy machine delays every
    process.
    """
    wall, cpu = time.monotonic(), cpu_seconds([pid])
    return lambda: min(time.monotonic() - wall, cpu_seconds([pid]) - cpu)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int:
    """Return the peak memory of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * KIB


def open_paths(pid: int) -> set[str]:
    """Return the paths of the files that a process has open."""
    paths = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            paths.add(str(descriptor.readlink()))
    return paths


def open_files(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))
