"""Deliver the sealed segments of a data directory, oldest first, chunk by chunk."""

import os
import time
from typing import Protocol, TextIO

from astralog.forward.backlog import Backlog, find_sealed
from astralog.forward.chunks import Chunk, SegmentReader
from astralog.forward.client import Unavailable
from astralog.forward.cursor import Cursor, Position
from astralog.forward.delivery import Delivery, LogTables
from astralog.forward.failures import Failures
from astralog.forward.progress import Progress
from astralog.settings import Settings
from astralog.store.segment_reader import READ_ERRORS

#: Seconds between two looks at the data directory, and at what is to be removed of it.
LOOK_SECONDS = 0.5
REMOVE_SECONDS = 10.0

#: A look may take this share of the time, however many files there are.
LOOK_SHARE = 0.1

#: Failures in a row after which `--once` gives up.
ONCE_ATTEMPTS = 5


class Server(LogTables, Protocol):
    """The tables, with what the loop needs besides: `client.Tables`."""

    @property
    def name(self) -> str:
        """Where the tables are."""

    def disconnect(self) -> None:
        """Close idle connections."""


class DirectoryReplaced(Exception):
    """Another directory is where the data directory was."""


class Forwarder:
    """Delivers from a data directory that no other forwarder uses; raises OSError at its start."""

    def __init__(self, settings: Settings, server: Server, stream: TextIO) -> None:
        self._directory = settings.data_dir
        self._inode = os.stat(self._directory).st_ino
        self._server = server
        self._node = settings.node
        self._chunk_bytes = settings.forward_chunk_bytes
        self._keep_seconds = settings.forward_keep_seconds
        self._cursor = Cursor(self._directory, settings.node, server.name)
        self._cursor.open(find_sealed(self._directory, self._cursor.known()))
        self._backlog = Backlog(self._directory, self._cursor)
        self._progress = Progress(self._directory, self._backlog, stream)
        self._failures = Failures()
        self._reader: SegmentReader | None = None
        self._delivery: Delivery | None = None
        self._look_at = self._remove_at = self._attempt_at = 0.0

    def run(self) -> None:
        """Deliver for ever what is sealed; raises DirectoryReplaced."""
        while True:
            time.sleep(self.tick())

    def run_once(self) -> bool:
        """Deliver what is sealed now; return whether that was possible."""
        self._look()
        self._look_at = float("inf")
        pause = 0.0
        while self._backlog.oldest():
            time.sleep(pause)
            pause = self.tick()
            if self._failures.attempts >= ONCE_ATTEMPTS:
                return False
        return not self._backlog.waiting_segments  # as those that cannot be read do

    def tick(self) -> float:
        """Do what is due, and return the seconds until something is due again."""
        try:
            if time.monotonic() >= self._look_at:
                self._look()
            if time.monotonic() >= self._attempt_at:
                if not self.deliver_chunk():
                    self._server.disconnect()  # the server would, when idle for long
                    self._attempt_at = self._look_at
                self._failures.end()
        except (Unavailable, *READ_ERRORS) as error:
            self._attempt_at = time.monotonic() + self._failures.add(error)
        self._progress.status.failing_since = self._failures.since
        self._progress.show()
        next_at = min(max(self._attempt_at, 0.0), self._look_at)
        return max(next_at - time.monotonic(), 0.0)

    def close(self) -> None:
        """Say for the last time where things stand, and close the files."""
        self._progress.show(is_due=True)
        self._progress.close()
        self._drop_reader()
        self._cursor.close()

    def _look(self) -> None:
        started = time.monotonic()
        self._look_at = started + LOOK_SECONDS  # also after a failure
        if os.stat(self._directory).st_ino != self._inode:
            raise DirectoryReplaced(f"{self._directory}: another directory is there now")
        self._backlog.look()
        if self._keep_seconds and started >= self._remove_at:
            self._remove_at = started + REMOVE_SECONDS
            self._backlog.remove_delivered(self._keep_seconds)
        ended = time.monotonic()
        self._look_at = max(self._look_at, ended + (ended - started) / LOOK_SHARE)

    def deliver_chunk(self) -> bool:
        """Deliver one chunk, or note that a segment has no more; return whether there was any."""
        if self._delivery is None:
            chunk = self._next_chunk()
            if chunk is None:
                return False
            in_doubt = chunk.segment in self._cursor.in_doubt
            self._delivery = Delivery(self._server, self._node, chunk, in_doubt)
        delivered = self._delivery.deliver()
        self._note(self._delivery.chunk, delivered.lines)
        self._delivery = None
        self._progress.count(delivered)
        return True

    def _next_chunk(self) -> Chunk | None:
        while name := self._reader.name if self._reader else self._backlog.oldest():
            try:
                chunk = self._read(name)
            except FileNotFoundError:
                self._backlog.look()  # which notes that the segment is gone
            except READ_ERRORS as error:
                self._drop_reader()
                self._backlog.postpone(name, error)
            else:
                if chunk:
                    self._cursor.begin(name)
                    return chunk
                self._finish(name)
        return None

    def _read(self, name: str) -> Chunk | None:
        at = self._cursor.position(name)
        if self._reader is None:
            self._reader = SegmentReader(self._directory, name, at.offset, self._chunk_bytes)
        return self._reader.read(at.lines + 1)

    def _note(self, chunk: Chunk, lines: int) -> None:
        """Note in the cursor that a chunk is delivered."""
        if self._reader and self._reader.is_at_end:
            self._finish(chunk.segment)
        else:
            end = Position(chunk.offset + chunk.size, chunk.first_line - 1 + lines)
            self._cursor.advance(chunk.segment, end)

    def _finish(self, name: str) -> None:
        """Note that all of a segment is delivered, and go on to the next."""
        self._cursor.finish(name, self._backlog.oldest(but=name))
        self._backlog.remove(name)
        self._drop_reader()
        self._progress.status.delivered_segments += 1

    def _drop_reader(self) -> None:
        if self._reader:
            self._reader.close()
            self._reader = None
