"""What waits for its delivery in a data directory, and the removal of what had it."""

import logging
import time
from pathlib import Path

from astralog.clock import TrustedClock
from astralog.forward.cursor import Cursor
from astralog.log import LogOnce
from astralog.store import files, sealed
from astralog.store.names import is_ahead, last_change

log = logging.getLogger(__name__)

#: Seconds between two attempts at a segment that cannot be read.
UNREADABLE_SECONDS = 60.0


def find_sealed(directory: Path, known: set[str]) -> set[str]:
    """Return the sealed segments of a directory; raises OSError.

    A listing may miss a file that is being compressed: each of the `known` ones is looked for.
    """
    listed = sealed.list_segments(directory).sealed
    return listed | {name for name in known - listed if sealed.is_sealed(directory, name)}


class Backlog:
    """What waits for its delivery, oldest first, as of the last look; raises OSError throughout."""

    def __init__(self, directory: Path, cursor: Cursor) -> None:
        self._directory = directory
        self._cursor = cursor
        self._sizes: dict[str, int] = {}
        self._queue: list[str] = []  # the oldest last
        self._open: set[str] = set()
        self._plain: set[str] = set()
        self._unreadable: dict[str, float] = {}  # with the time of the next attempt
        self._clock = TrustedClock()
        self._removal = LogOnce(log)

    def look(self) -> None:
        """Take note of segments that were sealed, and of those that are gone."""
        found = sealed.list_segments(self._directory)
        self._open = found.open
        delivered = self._cursor.delivered
        compressed = (self._plain - found.plain) & self._sizes.keys()  # since the last look
        self._plain = found.plain
        for name in (found.sealed - self._sizes.keys() - delivered) | compressed:
            if (size := self._size(name)) is not None:
                self._sizes[name] = size
        missing = (self._sizes.keys() | delivered) - found.sealed
        self._forget({name for name in missing if not sealed.is_sealed(self._directory, name)})
        now = time.monotonic()
        waiting = (name for name in self._sizes if self._unreadable.get(name, now) <= now)
        self._queue = sorted(waiting, reverse=True)

    def _size(self, name: str) -> int | None:
        try:
            return sealed.stat_sealed(self._directory, name).st_size
        except FileNotFoundError:
            return None

    def _forget(self, names: set[str]) -> None:
        lost = sorted(names & self._sizes.keys())
        for name in lost:
            log.error("%s was removed before it was delivered", name)
            self.remove(name)
        if names:
            self._cursor.forget(names)

    def oldest(self, but: str | None = None) -> str | None:
        """Return the oldest segment that waits, other than `but`; None where none does."""
        while self._queue and self._queue[-1] not in self._sizes:
            self._queue.pop()
        waiting = (name for name in reversed(self._queue) if name in self._sizes and name != but)
        return next(waiting, None)

    def remove(self, name: str) -> None:
        """Take out a segment that is delivered, or gone."""
        self._sizes.pop(name, None)
        self._unreadable.pop(name, None)

    def postpone(self, name: str, error: BaseException) -> None:
        """Leave a segment that cannot be read for later, and go on with the others."""
        if name not in self._unreadable:
            log.error("cannot read %s: %s; it is tried again every minute", name, error)
        self._unreadable[name] = time.monotonic() + UNREADABLE_SECONDS
        self._queue.remove(name)

    @property
    def waiting_segments(self) -> int:
        """How many sealed segments wait."""
        return len(self._sizes)

    @property
    def waiting_bytes(self) -> int:
        """The bytes of their files."""
        return sum(self._sizes.values())

    @property
    def oldest_at(self) -> float:
        """When the oldest segment was started that is not delivered, sealed or open; 0 for none."""
        oldest = [self.oldest(), *self._unreadable, min(self._open, default=None)]
        return min((sealed.start_of(name) for name in oldest if name), default=0.0)

    def remove_delivered(self, keep_seconds: float) -> None:
        """Remove the files of delivered segments that last changed longer ago, as retention does.

        What cannot be removed is kept, and tried again the next time.
        """
        changed_before = self._clock.now() - keep_seconds
        removed = set()
        failure = None
        for name in sorted(self._cursor.delivered):
            try:
                if self._changed_at(name, changed_before) < changed_before:
                    files.remove_sealed(self._directory, name)
                    removed.add(name)
            except FileNotFoundError:
                removed.add(name)  # by another's retention
            except OSError as error:
                failure = failure or (name, error.strerror)
        if failure:
            self._removal.fail("removal", "cannot remove %s: %s; it is kept", *failure)
        else:
            self._removal.end("delivered segments can be removed again")
        if removed:
            log.info("removed %d delivered segments", len(removed))
            self._cursor.forget(removed)

    def _changed_at(self, name: str, changed_before: float) -> float:
        """Return when a segment last changed; of one that is too young by its name, its start."""
        now, start = self._clock.now(), sealed.start_of(name)
        if changed_before <= start and not is_ahead(start, now):
            return start
        return last_change(start, sealed.stat_sealed(self._directory, name).st_mtime, now)
