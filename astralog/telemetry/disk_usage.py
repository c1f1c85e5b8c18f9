"""What lies in the data directory, counted without holding up anyone when the disk stalls."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from gevent.threadpool import ThreadPool

from astralog.store import files

#: A scrape waits this long for the disk.
TIMEOUT_SECONDS = 1.0


class DiskUsage(NamedTuple):
    """The segments, open and sealed, their bytes, and those of the disk."""

    open_segments: int
    open_bytes: int
    sealed_segments: int
    sealed_bytes: int
    free_bytes: int
    total_bytes: int


class DiskUsageReader:
    """Counts what is in a data directory, in a thread of its own."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._threads = ThreadPool(1)
        self._running: Any = None
        self._sealed: dict[str, int] = {}  # sizes, which never change

    def take(self) -> DiskUsage | None:
        """Count now; None where the disk fails, or does not answer within TIMEOUT_SECONDS."""
        if self._running is None:
            self._running = self._threads.spawn(self.count)
        running = self._running
        running.wait(TIMEOUT_SECONDS)
        if not running.ready():
            return None
        self._running = None
        usage: DiskUsage | None = running.get()
        return usage

    def count(self) -> DiskUsage | None:
        """Count now, however long it takes; None where the disk fails."""
        try:
            sealed: dict[str, int] = {}
            opened: list[int] = []
            with os.scandir(self._data_dir) as entries:
                for entry in entries:
                    if entry.name.endswith(files.SEALED_SUFFIX):
                        known = self._sealed.get(entry.name)
                        sealed[entry.name] = _size(entry) if known is None else known
                    elif entry.name.endswith(files.OPEN_SUFFIX):
                        opened.append(_size(entry))
            self._sealed = sealed
            disk = files.free_bytes(self._data_dir), files.total_bytes(self._data_dir)
        except OSError:
            return None
        return DiskUsage(len(opened), sum(opened), len(sealed), sum(sealed.values()), *disk)


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # sealed or removed meanwhile
        return 0
