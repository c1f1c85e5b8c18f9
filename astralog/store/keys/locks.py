"""Which process may store the batch of a key: a lock on the key's byte of `keys.lock`.

The kernel releases it when the process has ended, and so not before its last write. On a local file
system it takes no disk.
"""

import contextlib
import errno
import os
from pathlib import Path

from astralog.store import range_lock

LOCK_NAME = "keys.lock"
FILE_MODE = 0o640

#: Hex digits of a key that say which byte is its own; an offset has 63 bits.
_OFFSET_DIGITS = 15


class KeyLocks:
    """The locks that this process holds; raises OSError throughout."""

    def __init__(self, directory: Path) -> None:
        self._path = os.fspath(directory / LOCK_NAME)
        self._fd = -1
        self._inode = 0
        self.opened = 0  # how often; what was locked before the last time is locked no longer

    def open(self) -> None:
        """Open the file, or make it, unless it is open and in its place."""
        if self.is_in_place():
            return
        self.close()
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        self._inode = os.fstat(self._fd).st_ino
        self.opened += 1

    def exists(self) -> bool:
        """Return whether any process ever opened the file here."""
        return os.access(self._path, os.F_OK)

    def is_in_place(self) -> bool:
        """Return whether the file that is open is the one that other processes open."""
        try:
            return self._fd >= 0 and os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def take(self, digest: str) -> bool:
        """Lock a key, and return whether nobody else has."""
        try:
            range_lock.lock(self._checked_fd(), _offset(digest))
        except BlockingIOError:
            return False
        return True

    def release(self, digest: str) -> None:
        """Unlock a key; one that was locked in a file that is closed is unlocked already."""
        with contextlib.suppress(OSError):
            range_lock.unlock(self._checked_fd(), _offset(digest))

    def _checked_fd(self) -> int:
        if self._fd < 0:  # it could not be opened anew, after it was deleted
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd

    def close(self) -> None:
        """Close the file, and so unlock all keys."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _offset(digest: str) -> int:
    return int(digest[:_OFFSET_DIGITS], 16)
