"""What lies in the data directory, known at a cost that grows with what is new there."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from astralog.store import files
from astralog.store.directory_watch import ChangesLost, DirectoryWatch
from astralog.store.names import SEALED_FORMS, Form, SegmentFile, SegmentName, parse_file_name
from astralog.store.segment_index import SegmentIndex

log = logging.getLogger(__name__)

#: Seconds between two scans of the whole directory. With a watch they only make sure; without one
#: (another host's changes on NFS, or no watch left) they alone tell what is new.
SCAN_SECONDS = 3600.0
UNWATCHED_SCAN_SECONDS = 60.0

#: Share of a core that scans take at most: the more there is, the longer the time between them.
SCAN_SHARE = 0.002


class Inventory:
    """The open and the sealed segments of a directory.

    What takes long is an iterator, which yields after each small step; raises OSError throughout.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = os.fspath(directory)
        self._watch = open_watch(directory)
        self._files: list[SegmentFile] = []  # sealed ones that are listed, and not measured yet
        self._changed: set[str] = set()
        self._scanned_at = 0.0  # CPU seconds of this thread when the scan began
        self._next_scan_at = time.monotonic()
        self.open: set[SegmentName] = set()
        self.sealed = SegmentIndex()

    @property
    def is_scan_due(self) -> bool:
        """Return whether the directory is to be listed and measured."""
        return time.monotonic() >= self._next_scan_at

    def list_names(self) -> Iterator[None]:
        """Begin a scan: find the open segments anew, which are few, and list the sealed ones."""
        self._scanned_at = time.thread_time()
        self._files = []
        opened = set()
        for name in files.regular_files(self._directory):
            file = parse_file_name(name)
            if file and file.form is Form.OPEN:
                opened.add(file.segment)
            elif file:
                self._files.append(file)
            yield
        self.open = opened

    def measure(self) -> Iterator[None]:
        """End a scan: learn the sizes of all sealed segments, for an index of their own."""
        index = SegmentIndex()
        for segment, form in self._files:
            size = self._size(segment, form)
            if size is not None:
                index.add(segment, size)
            yield
        self._files = []
        self.sealed = index
        cost = time.thread_time() - self._scanned_at
        pause = SCAN_SECONDS if self._watch else UNWATCHED_SCAN_SECONDS
        self._next_scan_at = time.monotonic() + max(pause, cost / SCAN_SHARE)

    def follow(self) -> Iterator[None]:
        """Learn what came and went since the scan."""
        try:
            while self._watch and (names := self._watch.changes()):
                self._changed |= names
                yield
        except ChangesLost:
            self._next_scan_at = time.monotonic()
        while self._changed:
            self._refresh(self._changed.pop())
            yield

    def open_bytes(self) -> int:
        """Return the bytes of the open segments; those that are gone are forgotten."""
        sizes = {segment: self._size(segment, Form.OPEN) for segment in self.open}
        self.open = {segment for segment, size in sizes.items() if size is not None}
        return sum(size for size in sizes.values() if size)

    def close(self) -> None:
        """End the watch."""
        if self._watch:
            self._watch.close()

    def _refresh(self, name: str) -> None:
        """Look at one name, whatever became of it."""
        file = parse_file_name(name)
        if file is None:
            return
        if file.form is Form.OPEN:
            self.open.add(file.segment)  # until `open_bytes` finds it gone
            return
        sizes = [self._size(file.segment, form) for form in SEALED_FORMS]
        if sizes == [None, None]:
            self.sealed.remove(file.segment)
        else:
            self.sealed.put(file.segment, sum(size for size in sizes if size))

    def _size(self, segment: SegmentName, form: Form) -> int | None:
        """Return the bytes of a file, None where it is gone."""
        with contextlib.suppress(FileNotFoundError):
            return files.status_of(f"{self._directory}/{segment.file(form)}").st_size
        return None


def open_watch(directory: Path) -> DirectoryWatch | None:
    """Return what tells of changes, None where the system has no watch left, which is logged."""
    try:
        return DirectoryWatch(directory)
    except OSError as error:
        log.warning(
            "cannot watch %s (%s): new segments are found every %g seconds",
            directory,
            error.strerror,
            UNWATCHED_SCAN_SECONDS,
        )
        return None
