"""What lies in the data directory, known at a cost that grows with what is new there."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from astralog.clock import TrustedClock
from astralog.store import files
from astralog.store.directory_watch import ChangesLost, DirectoryWatch
from astralog.store.eras import AHEAD_ERA, FIRST_ERA, FOUND_ERA, Eras
from astralog.store.names import (
    SEALED_FORMS,
    Form,
    SegmentFile,
    SegmentName,
    is_ahead,
    last_change,
    parse_file_name,
)
from astralog.store.segment_index import Entry, SegmentIndex

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

    def __init__(self, directory: Path, clock: TrustedClock, started_at: float) -> None:
        """Measure ages by the clock; the process started at a time of the wall clock."""
        self._directory = os.fspath(directory)
        self._clock = clock
        self._started_at = started_at
        self._watch = open_watch(directory)
        self._files: list[SegmentFile] = []  # sealed ones that are listed, and not measured yet
        self._changed: set[SegmentName] = set()  # sealed ones that came, went or changed
        self._scanned_at = 0.0  # CPU seconds of this thread when the scan began
        self._next_scan_at = time.monotonic()
        self._is_first = True  # whether the next scan is the first one
        self.eras = Eras()
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
        for segment in sorted(opened - self.open):
            if self._is_first:
                self.eras.note_found(segment, self._era(segment.start, segment.start))
            else:
                self.eras.note_open(segment)
        self.open = opened
        self._is_first = False

    def measure(self) -> Iterator[None]:
        """End a scan: learn the sizes of all sealed segments, for an index of their own."""
        index = SegmentIndex()
        now = self._clock.now()
        for segment, form in self._files:
            self.eras.note_name(segment)
            if status := self._status(segment, form):
                size, modified_at = status.st_size, status.st_mtime
                index.add(segment, self._entry(segment, size, modified_at, now))
            yield
        self._files = []
        self.sealed = index
        self.eras.forget_all_but(self.open)
        cost = time.thread_time() - self._scanned_at
        pause = SCAN_SECONDS if self._watch else UNWATCHED_SCAN_SECONDS
        self._next_scan_at = time.monotonic() + max(pause, cost / SCAN_SHARE)

    def follow(self) -> Iterator[None]:
        """Learn what came and went since the scan."""
        try:
            while self._watch and (names := self._watch.changes()):
                for file in filter(None, map(parse_file_name, sorted(names))):
                    self._note(file)
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

    def _note(self, changed: SegmentFile) -> None:
        """Note that a file came, went or changed; `open_bytes` finds out which of these."""
        if changed.form is Form.OPEN:
            self.eras.note_open(changed.segment)
            self.open.add(changed.segment)
        else:
            self._changed.add(changed.segment)

    def _refresh(self, segment: SegmentName) -> None:
        """Learn what is there of a sealed segment, whatever became of it."""
        found = [self._status(segment, form) for form in SEALED_FORMS]
        statuses = [status for status in found if status]
        if statuses:
            size = sum(status.st_size for status in statuses)
            modified_at = max(status.st_mtime for status in statuses)
            if self.sealed.get(segment) is None:
                self.eras.note_name(segment)
            self.sealed.put(segment, self._entry(segment, size, modified_at, self._clock.now()))
        else:
            self.sealed.remove(segment)

    def _entry(self, segment: SegmentName, size: int, modified_at: float, now: float) -> Entry:
        """Return the entry of a sealed segment, which may be known, or new."""
        start = segment.start
        changed_at = last_change(start, modified_at, now)
        known = self.sealed.get(segment)
        if known and known.sealed_at is not None:
            return known._replace(size=size, changed_at=changed_at)
        if sealed := self.eras.seal(segment):
            return Entry(size, changed_at, *sealed)
        era = AHEAD_ERA if is_ahead(start, now) else self._era(start, modified_at)
        return Entry(size, changed_at, era=era)

    def _era(self, start: float, modified_at: float) -> int:
        """Return the era of a segment that nobody saw come: whether this process was there."""
        return FIRST_ERA if min(start, modified_at) >= self._started_at else FOUND_ERA

    def _size(self, segment: SegmentName, form: Form) -> int | None:
        """Return the bytes of a file, None where it is gone."""
        status = self._status(segment, form)
        return status.st_size if status else None

    def _status(self, segment: SegmentName, form: Form) -> os.stat_result | None:
        """Return the status of a file, None where it is gone."""
        with contextlib.suppress(FileNotFoundError):
            return files.status_of(f"{self._directory}/{segment.file(form)}")
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
