"""Unnamed files in memory, for data that must neither wait for a disk nor fail if one is full."""

import os

#: The file is never executed; hardened systems require this flag (vm.memfd_noexec=2).
MFD_NOEXEC_SEAL = 0x8


def make_memory_file(name: str) -> int:
    """Return the descriptor of a new, empty file in memory; raises OSError.

    It is on no mounted file system, so that a full /dev/shm or /tmp does not matter, and is removed
    when no process has it open. `name` is shown in /proc only.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
    except OSError:  # Linux before 6.3 does not know the flag
        return os.memfd_create(name, os.MFD_CLOEXEC)
