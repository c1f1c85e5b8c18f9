"""A fake system: on request, its calls fail, its disk fills up, and its time stands still."""

import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


class Fault:
    """A function that fails for its first `times` calls, and then works."""

    def __init__(self, function: Callable[..., Any], number: int, times: float) -> None:
        self._function = function
        self._number = number
        self.times = times
        #: The file of each call, as `name (inode)`, which no later file shares.
        self.calls: list[str] = []

    def __call__(self, target: Any, *args: Any) -> Any:
        self.calls.append(_identity(target))
        if len(self.calls) <= self.times:
            name = [] if isinstance(target, int) else [os.fspath(target)]  # as the system's errors
            raise OSError(self._number, os.strerror(self._number), *name)
        return self._function(target, *args)


def _identity(target: int | os.PathLike[str] | str) -> str:
    if not isinstance(target, int):
        return str(target)
    return f"{os.readlink(f'/proc/self/fd/{target}')} ({os.fstat(target).st_ino})"


class Disk:
    """A disk with the free bytes and inodes that a test sets; no inodes mean no limit."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.total = 1 << 50
        self.inodes = 0
        self.free_inodes = 0
        self.flags = 0

    def statvfs(self, path: object) -> SimpleNamespace:
        """Return the fields of `os.statvfs` that the service uses."""
        return SimpleNamespace(
            f_bavail=self.free,
            f_frsize=1,
            f_blocks=self.total,
            f_flag=self.flags,
            f_files=self.inodes,
            f_favail=self.free_inodes,
            f_ffree=1 << 60,
            f_bfree=1 << 60,
            f_bsize=4096,
        )


#: What the fixture `break_os` returns.
BreakOs = Callable[..., Fault]


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
