"""One process per directory: the housekeeper, the compressor and forward each hold a lease.

A lease is an exclusive `flock` on the directory itself or on a lock file in it. The kernel releases
it when its process ends, so that another process can take over.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import Self

from astralog.store import files


class Lease:
    """An exclusive lock that no other process has; `close` releases it."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    @classmethod
    def acquire(cls, directory: Path, lock_name: str = "") -> Self | None:
        """Lock a directory, or a lock file in it, which is created if it is missing.

        Return None if another process holds the lock. Raises OSError as `check` does, and if there
        is no such directory.
        """
        flags = os.O_CREAT | os.O_RDWR if lock_name else os.O_RDONLY | os.O_DIRECTORY
        path = directory / lock_name
        lease = cls(path, os.open(path, flags, files.FILE_MODE))
        try:
            lease.check()
            fcntl.flock(lease._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lease.close()
            return None
        except BaseException:
            lease.close()
            raise
        return lease

    def check(self) -> None:
        """Raise OSError if the directory was replaced or is read-only.

        The holder closes the lease then, so that the disk can be unmounted.
        """
        if not os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
            raise OSError(errno.ESTALE, "the directory was replaced")
        if files.space(self._path).is_read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def close(self) -> None:
        """Release the directory to another process."""
        os.close(self._fd)
