"""What the system tells of a process: CPU time, memory and open files."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that the processes have used so far, to the nanosecond.

    Raises ProcessLookupError if one of them has ended. Source of the clock's number:
    clock_getcpuclockid(3), as glibc computes it on Linux.
    """
    try:
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)
    except OSError:
        raise ProcessLookupError("a process of the service ended") from None


def start_stopwatch(pid: int) -> Callable[[], float]:
    """Return a function that returns how long a process has taken since now, in seconds.

    That is its CPU time if less than the wall time: a machine that is busy with something else
    makes everyone wait for a process that does nothing wrong.
    """
    wall, cpu = time.monotonic(), cpu_seconds([pid])
    return lambda: min(time.monotonic() - wall, cpu_seconds([pid]) - cpu)


def resident_bytes(pid: int) -> int:
    """Return the memory that a process takes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has taken so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * KIB


def open_files(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
