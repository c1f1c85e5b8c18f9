"""Compress a directory's sealed segments one after another; one process of all does so."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Generator
from pathlib import Path

from astralog.errors import FULL_ERRNOS
from astralog.log import LogOnce
from astralog.store.compression import Saving, compress_segment, remove_draft
from astralog.store.lease import Lease
from astralog.store.names import SegmentName
from astralog.store.plain_segments import PlainSegments

log = logging.getLogger(__name__)

LOCK_NAME = "compression.lock"

#: Seconds between two looks at what is new, and at whether the process that compresses is there.
LOOK_SECONDS = 1.0

#: Seconds after a failure; doubled with each one in a row, up to the longest, for want of room.
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0


@dataclasses.dataclass
class CompressionCounts:
    """What one process compressed so far."""

    segments: int = 0
    plain_bytes: int = 0  #: of these segments, before
    compressed_bytes: int = 0  #: and after
    failures: int = 0
    cpu_seconds: float = 0.0
    waiting_segments: int | None = None  #: None where another process compresses


class Compressor:
    """Compresses the segments of a directory while this process holds the directory's lock.

    Every process that has one waits for the lock, which goes with its process.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._steps = self._wait_and_compress()
        self._retry_seconds = RETRY_SECONDS
        self._failure = LogOnce(log, logging.WARNING)  # of all segments, until one is compressed
        #: Segments that failed, with the time of the next try.
        self._postponed: dict[SegmentName, float] = {}
        self._logged: set[SegmentName] = set()  # segments whose failure was logged
        self.counts = CompressionCounts()

    def step(self) -> float:
        """Compress a segment, if one is there; return the seconds until the next step."""
        try:
            pause = next(self._steps)
            self.counts.cpu_seconds = time.process_time()
            return pause
        except (OSError, MemoryError) as error:
            self._steps = self._wait_and_compress()
            text = _words(error)
            self._failure.fail(text, "cannot compress in %s: %s", self._directory, text)
            return self._back_off()

    def close(self) -> None:
        """Leave the directory to another process."""
        self._steps.close()

    def _wait_and_compress(self) -> Generator[float, None, None]:
        while (lease := Lease.acquire(self._directory, LOCK_NAME)) is None:
            yield LOOK_SECONDS
        try:
            with contextlib.closing(lease):
                remove_draft(self._directory)
                with contextlib.closing(PlainSegments(self._directory)) as plain:
                    while True:
                        lease.check()
                        plain.look()
                        yield self._compress_next(plain)
        finally:
            self.counts.waiting_segments = None

    def _compress_next(self, plain: PlainSegments) -> float:
        """Compress the oldest segment; return the seconds until the next one."""
        if not len(plain):
            self._put_back(plain)
        self.counts.waiting_segments = waiting = len(plain) + len(self._postponed)
        name = plain.take()
        if name is None:
            return LOOK_SECONDS
        try:
            saving = compress_segment(self._directory, name)
        except (OSError, MemoryError) as error:
            return self._note_failure(plain, name, error)
        self.counts.waiting_segments = waiting - 1
        self._note_success(name, saving)
        return 0.0

    def _note_success(self, name: SegmentName, saving: Saving | None) -> None:
        self._retry_seconds = RETRY_SECONDS
        self._logged.discard(name)
        self._failure.end("segments are compressed again")
        if saving:
            self.counts.segments += 1
            self.counts.plain_bytes += saving.plain
            self.counts.compressed_bytes += saving.compressed

    def _note_failure(
        self, plain: PlainSegments, name: SegmentName, error: OSError | MemoryError
    ) -> float:
        """Try the same segment again once there may be room for it, else go on with the others."""
        self.counts.failures += 1
        if isinstance(error, MemoryError) or error.errno in FULL_ERRNOS:
            plain.put(name)
            text = _words(error)
            self._failure.fail(text, "segments stay uncompressed: %s; it is tried again", text)
            return self._back_off()
        if name not in self._logged:
            self._logged.add(name)
            log.error("cannot compress %s: %s; it is tried again every minute", name, _words(error))
        self._postponed[name] = time.monotonic() + LONGEST_RETRY_SECONDS
        return RETRY_SECONDS

    def _put_back(self, plain: PlainSegments) -> None:
        """Try those again that failed, when nothing else is left to do."""
        now = time.monotonic()
        for name, due_at in list(self._postponed.items()):
            if due_at <= now:
                del self._postponed[name]
                plain.put(name)

    def _back_off(self) -> float:
        pause = self._retry_seconds
        self._retry_seconds = min(2 * pause, LONGEST_RETRY_SECONDS)
        return pause


def _words(error: OSError | MemoryError) -> str:
    return (isinstance(error, OSError) and error.strerror) or "out of memory"
