"""Unnamed files in memory, for what must neither wait for a disk nor fail when one is full."""

import os

#: Says that the file is never run, which hardened systems ask for (vm.memfd_noexec=2).
MFD_NOEXEC_SEAL = 0x8


def make_memory_file(name: str) -> int:
    """Return the descriptor of a new, empty file in memory; raises OSError.

    It lies on no mounted file system, so that a full /dev/shm or /tmp does not matter, and it is
    gone when no process has it open. `name` is shown in /proc alone.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    except OSError:  # Linux before 6.3 does not know the flag
        return os.memfd_create(name, os.MFD_CLOEXEC)
