"""The segments of a data directory that wait for delivery, and the removal of delivered ones."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from astralog.clock import TrustedClock
from astralog.errors import explain
from astralog.forward.cursor import Cursor
from astralog.log import LogOnce
from astralog.store import files, reader
from astralog.store.names import SegmentName, last_change

log = logging.getLogger(__name__)

#: Seconds between two attempts at a segment that cannot be read.
UNREADABLE_SECONDS = 60.0


def find_sealed(directory: Path, known: set[str]) -> set[str]:
    """Return the sealed segments of a directory; raises OSError.

    A listing may miss a file that is being compressed, so each `known` one is checked by name.
    """
    listed = reader.list_segments(directory).sealed
    return listed | {name for name in known - listed if reader.sealed_status(directory, name)}


class Backlog:
    """Segments that wait for delivery, oldest first, as of the last scan.

    Every method may raise OSError.
    """

    def __init__(self, directory: Path, cursor: Cursor) -> None:
        self._directory = directory
        self._cursor = cursor
        self._clock = TrustedClock()
        self._removals = LogOnce(log)
        self._sizes: dict[str, int] = {}
        self._queue: list[str] = []  # the oldest last
        self._sent: set[str] = set()  # sent, and not verified yet
        self._open: set[str] = set()
        self._plain: set[str] = set()
        self._unreadable: dict[str, float] = {}  # with the time of the next attempt

    def scan(self) -> None:
        """Add segments that were sealed since the last scan, and drop those that are gone."""
        found = reader.list_segments(self._directory)
        self._open = found.open
        delivered = self._cursor.delivered
        compressed = (self._plain - found.plain) & self._sizes.keys()  # since the last scan
        self._plain = found.plain
        for name in (found.sealed - self._sizes.keys() - delivered) | compressed:
            if status := reader.sealed_status(self._directory, name):
                self._sizes[name] = status.st_size
        missing = (self._sizes.keys() | delivered) - found.sealed - self._sent
        self._forget({name for name in missing if not reader.sealed_status(self._directory, name)})
        self._queue = sorted(filter(self._is_ready, self._sizes), reverse=True)

    def _is_ready(self, name: str) -> bool:
        if name not in self._sizes or name in self._sent:
            return False
        tried_again_at = self._unreadable.get(name)
        return tried_again_at is None or tried_again_at <= time.monotonic()

    def _forget(self, names: set[str]) -> None:
        lost = sorted(names & self._sizes.keys())
        for name in lost:
            log.error("%s was removed before it was delivered", name)
            self.remove(name)
        if names:
            self._cursor.forget(names)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def oldest(self, but: str | None = None) -> str | None:
        """Return the oldest deliverable segment except `but`, or None."""
        while self._queue and not self._is_ready(self._queue[-1]):
            self._queue.pop()
        return next((name for name in self._ready() if name != but), None)

    def oldest_within(self, size: int) -> Iterator[str]:
        """Yield deliverable segments, oldest first, until their files exceed `size` bytes."""
        for name in self._ready():
            size -= self._sizes[name]
            if size < 0:
                break
            yield name

    def _ready(self) -> Iterator[str]:
        return filter(self._is_ready, reversed(self._queue))

    def set_aside(self, name: str) -> None:
        """Mark a segment as sent; it waits until it is verified and removed."""
        self._sent.add(name)

    def remove(self, name: str) -> None:
        """Remove a segment that is delivered or gone."""
        self._sizes.pop(name, None)
        self._sent.discard(name)
        self._unreadable.pop(name, None)

    def postpone(self, name: str, error: BaseException) -> None:
        """Retry an unreadable segment later, and continue with the others."""
        if name not in self._unreadable:
            log.error("cannot read %s: %s; retrying every minute", name, explain(error))
        self._unreadable[name] = time.monotonic() + UNREADABLE_SECONDS
        self._sent.discard(name)

    @property
    def waiting_segments(self) -> int:
        return len(self._sizes)

    @property
    def waiting_bytes(self) -> int:
        """Size of their files, in bytes."""
        return sum(self._sizes.values())

    @property
    def oldest_at(self) -> float:
        """Start of the oldest undelivered segment, sealed or open, in Unix seconds; 0 if none."""
        others = (min(names, default=None) for names in (self._sent, self._unreadable, self._open))
        return min(
            (SegmentName(name).start for name in (self.oldest(), *others) if name), default=0.0
        )

    def remove_delivered(self, keep_seconds: float) -> None:
        """Remove files of delivered segments unchanged for longer than `keep_seconds`.

        Age is measured as by retention. A segment that cannot be removed is skipped and retried
        at the next call.
        """
        now = min(self._clock.now(), time.time())
        removed = set()
        has_failed = False
        for name in sorted(self._cursor.delivered):
            try:
                if self._is_older(name, keep_seconds, now):
                    files.remove_sealed(self._directory, name)
                    removed.add(name)
            except OSError as error:
                has_failed = True
                self._removals.fail("removal", "cannot remove %s: %s", name, error.strerror)
        if not has_failed:
            self._removals.end("delivered segments are removed again")
        if removed:
            log.info("removed %d delivered segments", len(removed))
            self._cursor.forget(removed)

    def _is_older(self, name: str, seconds: float, now: float) -> bool:
        """Return whether a segment last changed more than `seconds` ago, or is gone."""
        start = SegmentName(name).start
        # A young start settles it without a stat.
        if 0 <= now - start <= seconds:
            return False
        status = reader.sealed_status(self._directory, name)
        return status is None or now - last_change(start, status.st_mtime, now) > seconds
