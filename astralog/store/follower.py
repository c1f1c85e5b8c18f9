"""Follow a data directory: return every new line, across workers, rotation and restarts."""

import contextlib
import enum
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from astralog.errors import explain
from astralog.store.directory import Listing
from astralog.store.merge import Part, make_parts, oldest_first
from astralog.store.names import Form, SegmentName, parse_file_names
from astralog.store.reader import ReadBudget, SegmentReader, Select, not_blank

log = logging.getLogger(__name__)

#: Segments that are remembered although they are gone, in case their disk comes back: so many more
#: than the directory ever had.
REMEMBERED_SEGMENTS = 10_000


class State(enum.Enum):
    """The state of a segment at the last poll of the directory."""

    OPEN = enum.auto()
    SEALED = enum.auto()
    GONE = enum.auto()


class FollowedPart(Part):
    """The new lines of a segment; its file stays open, so it is read to its end even if removed."""

    def __init__(self, directory: Path, segment: SegmentName, form: Form, begin: int = 0) -> None:
        """Keep the file open if its segment is; raises OSError."""
        super().__init__(directory, segment, form, None)
        self.begin = begin
        self.state = State.OPEN if self.is_open else State.SEALED
        self._until = float("inf")
        self._held = SegmentReader(directory, segment) if self.is_open else None

    @property
    def until(self) -> float:
        """The last poll."""
        return self._until

    @contextlib.contextmanager
    def _reader(self) -> Iterator[SegmentReader]:
        if self._held:
            yield self._held
        else:
            with super()._reader() as reader:
                yield reader

    def skip(self) -> int | None:
        """Skip the stored lines; return the offset after them, None for the end; raises OSError."""
        if self._held is None or self._held.is_compressed:
            self.is_read = True
            return None
        self.begin = self._held.end_of_lines()
        return self.begin

    def extend(self, until: float) -> bool:
        """Include the lines up to a moment; return whether lines are left to read."""
        self._until = until
        if self._held and not self._held.is_compressed:
            self.end = self._held.size()
            self.begin = min(self.begin, self.end)  # it was cut back after a failed write
            self.is_read = self.begin == self.end
        return not self.is_read

    @property
    def is_finished(self) -> bool:
        """Whether all lines were read and no more can follow."""
        return self.is_failed or (self.is_read and self.state is not State.OPEN)

    def close(self) -> None:
        if self._held:
            self._held.close()


class Follower:
    """Follow a directory; `error` is the error of reading it, None if it is readable.

    Once it can be read again, only segments that were removed meanwhile are missed.
    """

    def __init__(self, directory: Path) -> None:
        self.error: OSError | None = None
        self._directory = directory
        self._listing = Listing(directory)
        self._names: set[str] = set()
        self._most_names = 0  # so far
        self._followed: dict[SegmentName, FollowedPart] = {}
        self._done: set[SegmentName] = set()  # segments of which nothing more is to be read
        self._left: dict[SegmentName, int] = {}  # how far those were read that are gone

    def start(self) -> list[Part]:
        """Follow from now on, and return the stored parts; `oldest_first` reads them.

        If the directory is missing, there are none, and all its later segments are new.
        """
        self._names = self._list() or set()
        stored = make_parts(self._directory, parse_file_names(self._names))
        for part in stored:
            if not part.is_open:
                self._done.add(part.segment)
            elif followed := self._follow(part.segment, Form.OPEN):
                part.end = followed.skip()
        return stored

    def poll(self, select: Select = not_blank, budget: ReadBudget | None = None) -> Iterator[bytes]:
        """Yield the lines added since the last poll, until the budget is spent.

        Lines that are left, as the caller stops or the budget is spent, come with the next poll.
        """
        self._scan()
        now = time.time()
        parts = [part for part in self._followed.values() if part.extend(now)]
        yield from oldest_first(parts, select, budget)
        for part in list(self._followed.values()):
            if part.is_finished:
                self._finish(part)

    def close(self) -> None:
        for part in self._followed.values():
            part.close()
        self._followed.clear()

    def _list(self) -> set[str] | None:
        """Return the names of the files; None if they have not changed, or on an error."""
        try:
            names = self._listing.poll()
        except OSError as error:
            self.error = error
            return None
        self.error = None
        self._most_names = max(self._most_names, len(names or ()))
        return names

    def _scan(self) -> None:
        names = self._list()
        if names is None:
            return
        for segment, form in parse_file_names(sorted(names - self._names)):
            self._note_new(segment, form)
        for segment, form in parse_file_names(self._names - names):
            part = self._followed.get(segment)
            if part and form is Form.OPEN and part.state is State.OPEN:
                part.state = State.GONE
        self._names = names
        self._forget()

    def _note_new(self, segment: SegmentName, form: Form) -> None:
        part = self._followed.get(segment)
        if part:
            part.state = State.OPEN if form is Form.OPEN else State.SEALED
        elif segment not in self._done:
            self._follow(segment, form, self._left.pop(segment, 0))

    def _follow(self, segment: SegmentName, form: Form, begin: int = 0) -> FollowedPart | None:
        try:
            part = FollowedPart(self._directory, segment, form, begin)
        except FileNotFoundError:
            log.warning("%s was removed before it was read", segment)
        except OSError as error:
            log.warning("cannot read %s: %s", segment, explain(error))
        else:
            self._followed[segment] = part
            return part
        return None

    def _finish(self, part: FollowedPart) -> None:
        part.close()
        del self._followed[part.segment]
        if part.state is State.GONE:
            self._left[part.segment] = part.begin
        else:
            self._done.add(part.segment)

    def _forget(self) -> None:
        """Limit the number of removed segments that are remembered."""
        if len(self._done) > self._most_names + REMEMBERED_SEGMENTS:
            self._done.intersection_update(segment for segment, _ in parse_file_names(self._names))
        while len(self._left) > REMEMBERED_SEGMENTS:
            del self._left[next(iter(self._left))]
