"""The content of a data directory, and its changes.

`WatchedDirectory` scans once, and then follows each change by inotify(7): its cost grows with the
number of changes, not with that of the segments. The housekeeper and the compressor use it.
`Listing` is for readers: it needs no watch, whose number per user the system limits.
"""

import logging
import os
import struct
import time
from collections.abc import Collection, Generator, Iterable, Iterator
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

from astralog.clock import STEP_SECONDS, TrustedClock, boot_time
from astralog.store import files
from astralog.store.files import call_libc
from astralog.store.names import (
    SEALED_FORMS,
    Form,
    SegmentFile,
    SegmentName,
    is_ahead,
    last_change,
    parse_file_name,
    parse_file_names,
)

log = logging.getLogger(__name__)

#: Of linux/inotify.h.
_CREATE, _DELETE, _MOVED_FROM, _MOVED_TO = 0x100, 0x200, 0x40, 0x80
_ATTRIBUTES = 0x4  # as the time of modification, when somebody sets it
_ONLY_A_DIRECTORY = 0x01000000
_OVERFLOW = 0x4000

_MASK = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO | _ATTRIBUTES | _ONLY_A_DIRECTORY

#: An event without its name: the watch, the mask, a cookie, and the bytes of the name.
_EVENT = struct.Struct("iIII")

#: Bytes of events that are read at once, for some 200 names.
_READ_BYTES = 16 * 1024


class ChangesLost(Exception):
    """The kernel dropped events of a watch; some changes are unknown."""


class DirectoryWatch:
    """Watch the changes of a directory from now on; raises OSError if no watch is available."""

    def __init__(self, path: Path) -> None:
        self._fd = call_libc("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            call_libc("inotify_add_watch", self._fd, os.fsencode(path), _MASK)
        except OSError:
            self.close()
            raise

    def changes(self) -> set[str]:
        """Return names created, removed or changed since the last call, perhaps not all.

        An empty set means that there are no more. Raises ChangesLost.
        """
        try:
            events = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return set()
        names = set()
        position = 0
        while position < len(events):
            _, mask, _, length = _EVENT.unpack_from(events, position)
            if mask & _OVERFLOW:
                raise ChangesLost
            position += _EVENT.size + length
            names.add(os.fsdecode(events[position - length : position].rstrip(b"\0")))
        return names

    def close(self) -> None:
        os.close(self._fd)


#: Seconds between two scans of the whole directory. With a watch, scans are a safeguard; without it
#: (changes by another host on NFS, or no watch left), they alone find new segments.
SCAN_SECONDS = 3600.0
UNWATCHED_SCAN_SECONDS = 60.0


class WatchedDirectory:
    """Find new names by a watch, if available, and by scans; all methods may raise OSError."""

    def __init__(self, directory: Path) -> None:
        """Log a warning if no watch is available."""
        self._directory = directory
        self._watch: DirectoryWatch | None = None
        try:
            self._watch = DirectoryWatch(directory)
        except OSError as error:
            text = "cannot watch %s (%s): it is scanned for new segments every %g seconds"
            log.warning(text, directory, error.strerror, UNWATCHED_SCAN_SECONDS)
        self._next_scan_at = time.monotonic()

    @property
    def is_scan_due(self) -> bool:
        return time.monotonic() >= self._next_scan_at

    def _changed_files(self) -> Iterator[Iterable[SegmentFile]]:
        """Yield files of segments that were created, removed or changed since the last call.

        If some are unknown, a scan is due.
        """
        try:
            while self._watch and (names := self._watch.changes()):
                yield parse_file_names(sorted(names))
        except ChangesLost:
            self._next_scan_at = time.monotonic()

    def _note_scan(self, min_pause: float = 0.0) -> None:
        """Set the time of the next scan, at least `min_pause` seconds from now."""
        pause = SCAN_SECONDS if self._watch else UNWATCHED_SCAN_SECONDS
        self._next_scan_at = time.monotonic() + max(pause, min_pause)

    def close(self) -> None:
        if self._watch:
            self._watch.close()


#: Nanoseconds after a change in which another change may have the same time stamp: more than the
#: steps of any file system's clock.
SETTLED_NANOSECONDS = 2_500_000_000


class Listing:
    """The names of a directory's files; it is only listed again if it may have changed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._settled: tuple[int, int, int] | None = None  # of the directory, once it is settled

    def poll(self) -> set[str] | None:
        """Return the names, None if they have not changed since the last call; raises OSError."""
        now = time.time_ns()
        status = os.stat(self._directory)
        state = (status.st_dev, status.st_ino, status.st_mtime_ns)
        if state == self._settled:
            return None
        names = set(files.regular_files(self._directory))
        self._settled = state if abs(now - status.st_mtime_ns) > SETTLED_NANOSECONDS else None
        return names


#: The era of segments named ahead of the clock, which count as the oldest.
AHEAD_ERA = 0

#: The era of segments older than this process.
FOUND_ERA = 1

#: The era of segments started since, until the clock is set back.
FIRST_ERA = 2


class Eras:
    """The order of segments that appear while this process watches the directory.

    Names give the order of segments as long as the clock is not set back. A new segment is younger
    than all others, whatever the clock shows: an earlier name begins a new era.
    """

    def __init__(self) -> None:
        self._era = FIRST_ERA
        self._last = ""  # the last name of this era
        self._writing: dict[SegmentName, int] = {}  # open segments: era
        self._found: set[SegmentName] = set()  # open when this process started
        self._recovered: set[SegmentName] = set()  # of these, the ones of dead processes

    def note_found(self, segment: SegmentName, era: int) -> None:
        """Add a segment that was open before this process started; its writer may be dead."""
        self._found.add(segment)
        self._writing[segment] = era
        self.note_name(segment)

    def note_name(self, segment: SegmentName) -> None:
        self._last = max(self._last, segment)

    def note_open(self, segment: SegmentName) -> None:
        """Add a segment that is open, or was until this moment."""
        if segment in self._writing or segment in self._recovered:
            return
        if self._last and SegmentName(self._last).start - segment.start > STEP_SECONDS:
            self._era += 1
            self._last = ""
        self._writing[segment] = self._era
        self.note_name(segment)

    def note_recovered(self, segment: SegmentName) -> None:
        """Record that a dead process's segment was sealed.

        If it was open before this process started, the time of its last write is unknown.
        """
        if segment in self._found:
            self._recovered.add(segment)
            self._writing.pop(segment, None)

    def seal(self, segment: SegmentName) -> tuple[float, int] | None:
        """Record that an open segment is sealed; return the time (CLOCK_BOOTTIME) and its era.

        Return None if the segment is not open.
        """
        era = self._writing.pop(segment, None)
        return None if era is None else (boot_time(), era)

    def forget_all_but(self, segments: Collection[SegmentName]) -> None:
        """Forget all other open segments: they were removed before they were sealed."""
        self._writing = {name: era for name, era in self._writing.items() if name in segments}


class Entry(NamedTuple):
    """A sealed segment in the index.

    Segments of an earlier era are older; within an era, names give the order.
    """

    size: int
    changed_at: float  #: its last change, in seconds since 1970
    sealed_at: float | None = None  #: by CLOCK_BOOTTIME; None unless this process saw it written
    era: int = FOUND_ERA

    def age(self, now: float, elapsed: float) -> float:
        """Return the seconds since the last change; `now` is wall time, `elapsed` CLOCK_BOOTTIME.

        A segment that was sealed while this process watched is no older than that.
        """
        age = now - self.changed_at
        return age if self.sealed_at is None else min(age, elapsed - self.sealed_at)


class SegmentIndex:
    """Sealed segments by name, in the order of their age.

    A change costs the logarithm of their number, and a hundred thousand segments take 30 MB.
    """

    def __init__(self) -> None:
        self._entries: dict[SegmentName, Entry] = {}
        # One heap per era; removed names stay until they are the oldest. In sorted lists, 400,000
        # segments take 12 s in place of 1, and to remove half of them 18 s in place of 1.5.
        self._heaps: dict[int, list[SegmentName]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: SegmentName) -> Entry | None:
        return self._entries.get(name)

    def items(self) -> list[tuple[SegmentName, Entry]]:
        return list(self._entries.items())

    def add(self, name: SegmentName, entry: Entry) -> None:
        """Add one form of a segment to the entry of its other form, if any."""
        if known := self._entries.get(name):
            size, changed_at = known.size + entry.size, max(known.changed_at, entry.changed_at)
            entry = known._replace(size=size, changed_at=changed_at)
        self.put(name, entry)

    def put(self, name: SegmentName, entry: Entry) -> None:
        """Insert or replace the entry of a segment."""
        known = self._entries.get(name)
        if known is None or known.era != entry.era:
            heappush(self._heaps.setdefault(entry.era, []), name)
        self.bytes += entry.size - (known.size if known else 0)
        self._entries[name] = entry

    def remove(self, name: SegmentName) -> int:
        """Remove a segment; return its size in bytes, 0 if it is unknown."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return 0
        self.bytes -= entry.size
        heap = self._heaps[entry.era]
        while heap and not self._is_of(heap[0], entry.era):
            heappop(heap)
        return entry.size

    def _is_of(self, name: SegmentName, era: int) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.era == era

    def oldest_first(self) -> Generator[SegmentName, None, None]:
        """Yield the segments, oldest first.

        The caller may remove each yielded segment, and closes the iterator if it stops early.
        """
        for era in sorted(self._heaps):
            heap = self._heaps[era]
            passed: list[SegmentName] = []
            try:
                while heap:
                    name = heappop(heap)
                    if self._is_of(name, era) and name not in passed[-1:]:
                        passed.append(name)
                        yield name
            finally:
                for name in passed:
                    if self._is_of(name, era):
                        heappush(heap, name)
                if not heap:
                    del self._heaps[era]


#: Maximum share of a core for scans: the larger the directory, the longer the time between them.
SCAN_SHARE = 0.002


class Inventory(WatchedDirectory):
    """The open and the sealed segments of a directory.

    Long operations are iterators that yield after each small step.
    """

    def __init__(self, directory: Path, clock: TrustedClock, started_at: float) -> None:
        """Measure ages by the clock; `started_at` is the wall time of the process's start."""
        super().__init__(directory)
        self._clock = clock
        self._started_at = started_at
        self._files: list[SegmentFile] = []  # sealed ones, listed and not measured yet
        self._changed: set[SegmentName] = set()  # sealed ones that appeared, vanished or changed
        self._scanned_at = 0.0  # CPU seconds of this thread when the scan began
        self._is_first = True  # whether the next scan is the first one
        self.eras = Eras()
        self.open: set[SegmentName] = set()
        self.sealed = SegmentIndex()

    def list_names(self) -> Iterator[None]:
        """Begin a scan: list the open and the sealed segments."""
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
        """End a scan: build a new index with the sizes of all sealed segments."""
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
        self._note_scan(cost / SCAN_SHARE)

    def follow(self) -> Iterator[None]:
        """Apply the changes since the last call."""
        for changed in self._changed_files():
            for file in changed:
                self._note(file)
            yield
        while self._changed:
            self._refresh(self._changed.pop())
            yield

    def open_bytes(self) -> int:
        """Return the bytes of the open segments; forget those that are gone."""
        found = {segment: self._status(segment, Form.OPEN) for segment in self.open}
        sizes = {segment: status.st_size for segment, status in found.items() if status}
        self.open = set(sizes)
        return sum(sizes.values())

    def _note(self, changed: SegmentFile) -> None:
        """Record that a file appeared, vanished or changed."""
        if changed.form is Form.OPEN:
            self.eras.note_open(changed.segment)
            self.open.add(changed.segment)
        else:
            self._changed.add(changed.segment)

    def _refresh(self, segment: SegmentName) -> None:
        found = [self._status(segment, form) for form in SEALED_FORMS]
        statuses = [status for status in found if status]
        if not statuses:
            self.sealed.remove(segment)
            return
        size = sum(status.st_size for status in statuses)
        modified_at = max(status.st_mtime for status in statuses)
        if self.sealed.get(segment) is None:
            self.eras.note_name(segment)
        self.sealed.put(segment, self._entry(segment, size, modified_at, self._clock.now()))

    def _entry(self, segment: SegmentName, size: int, modified_at: float, now: float) -> Entry:
        """Return the entry of a sealed segment, known or new."""
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
        """Return the era of a segment found by a scan: whether it is older than this process."""
        return FIRST_ERA if min(start, modified_at) >= self._started_at else FOUND_ERA

    def _status(self, segment: SegmentName, form: Form) -> os.stat_result | None:
        return files.find_status(f"{self._directory}/{segment.file(form)}")
