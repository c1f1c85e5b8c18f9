"""Locks on bytes of a file that belong to an open file, not to a process (fcntl(2), F_OFD_SETLK).

They go with the last descriptor of the open file, and are independent of `flock`.
"""

import fcntl
import os
import struct

#: struct flock of fcntl(2): type, whence, start, length, process.
_LOCK = struct.Struct("hhqqi0q")


def lock(fd: int, start: int, length: int = 1) -> None:
    """Lock bytes; raises OSError, BlockingIOError where another open file has locked any."""
    _set(fd, fcntl.F_WRLCK, start, length)


def unlock(fd: int, start: int, length: int = 1) -> None:
    """Unlock bytes; raises OSError."""
    _set(fd, fcntl.F_UNLCK, start, length)


def _set(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, start, length, 0))
