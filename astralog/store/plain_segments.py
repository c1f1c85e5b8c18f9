"""The sealed segments of a directory that are not compressed, oldest first."""

import contextlib
import time
from collections.abc import Iterable
from heapq import heappop, heappush
from pathlib import Path

from astralog.store.directory import SCAN_SECONDS, UNWATCHED_SCAN_SECONDS, ChangesLost, open_watch
from astralog.store.files import regular_files, status_of
from astralog.store.names import Form, SegmentName, parse_file_name


class PlainSegments:
    """The sealed segments to compress; all methods raise OSError.

    A segment that is taken out comes back with the next scan, or when it is put back.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._watch = open_watch(directory)
        self._next_scan_at = time.monotonic()
        self._names: list[SegmentName] = []  # a heap
        self._known: set[SegmentName] = set()

    def __len__(self) -> int:
        return len(self._names)

    def look(self) -> None:
        """Add the segments that were sealed since the last scan."""
        now = time.monotonic()
        try:
            while self._watch and (names := self._watch.changes()):
                self._add(filter(self._is_there, names))
        except ChangesLost:
            self._next_scan_at = now
        if now >= self._next_scan_at:
            self._add(regular_files(self._directory))
            pause = SCAN_SECONDS if self._watch else UNWATCHED_SCAN_SECONDS
            self._next_scan_at = now + pause

    def _add(self, file_names: Iterable[str]) -> None:
        for file_name in file_names:
            file = parse_file_name(file_name)
            if file and file.form is Form.PLAIN:
                self.put(file.segment)

    def _is_there(self, file_name: str) -> bool:
        """Return whether a file is there; the watch also reports those that are gone."""
        with contextlib.suppress(FileNotFoundError):
            status_of(self._directory / file_name)
            return True
        return False

    def put(self, name: SegmentName) -> None:
        """Add a segment, unless it is there."""
        if name not in self._known:
            self._known.add(name)
            heappush(self._names, name)

    def take(self) -> SegmentName | None:
        """Remove and return the oldest segment, None if there is none."""
        if not self._names:
            return None
        name = heappop(self._names)
        self._known.remove(name)
        return name

    def close(self) -> None:
        """End the watch."""
        if self._watch:
            self._watch.close()
