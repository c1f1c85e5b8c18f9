"""Deliver the sealed segments of a data directory, oldest first, chunk by chunk."""

import contextlib
import logging
import os
import time
from typing import Protocol, TextIO

from astralog.forward.backlog import Backlog, find_sealed
from astralog.forward.chunks import Chunk, SegmentReader
from astralog.forward.client import Unavailable
from astralog.forward.cursor import Cursor, Position
from astralog.forward.delivery import Delivered, Delivery, LogTables, Miscounted
from astralog.forward.doubts import Doubts
from astralog.forward.failures import Failures
from astralog.forward.node import fix_node
from astralog.forward.progress import Progress
from astralog.forward.verifier import Sent, Verifier
from astralog.settings import Settings
from astralog.store.reader import READ_ERRORS

log = logging.getLogger(__name__)

#: Seconds between two looks at the data directory, and at what is to be removed of it.
LOOK_SECONDS = 0.5
REMOVE_SECONDS = 10.0

#: A look may take this share of the time, however many files there are.
LOOK_SHARE = 0.1

#: Failures in a row after which `--once` gives up.
ONCE_ATTEMPTS = 5

#: Answers in a row that say that fewer rows of a chunk were written than sent, after which it is
#: left to the segment's verification.
MISCOUNTS = 4


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
        self._is_node_fixed = False
        self._chunk_bytes = settings.forward_chunk_bytes
        self._keep_seconds = settings.forward_keep_seconds
        self._cursor = Cursor(self._directory, settings.node, server.name)
        self._cursor.open(find_sealed(self._directory, self._cursor.known()))
        self._backlog = Backlog(self._directory, self._cursor)
        self._progress = Progress(self._directory, self._backlog, stream)
        self._doubts = Doubts(server, self._cursor, self._backlog)
        self._verifier = Verifier(server)
        self._failures = Failures()
        self._miscounts = 0
        self._reader: SegmentReader | None = None
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
        while self._backlog.oldest() or self._verifier:
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
                if not self._step():
                    self._server.disconnect()  # the server would, when idle for long
                    self._attempt_at = min(self._look_at, self._verifier.next_at(is_idle=True))
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
        self._scan()
        if self._keep_seconds and started >= self._remove_at:
            self._remove_at = started + REMOVE_SECONDS
            self._backlog.remove_delivered(self._keep_seconds)
        ended = time.monotonic()
        self._look_at = max(self._look_at, ended + (ended - started) / LOOK_SHARE)

    def _scan(self) -> None:
        self._backlog.look()
        self._doubts.prune()

    def _step(self) -> bool:
        """Do the next thing that is to be done; return whether there was any."""
        name = self._next()
        if time.monotonic() >= self._verifier.next_at(is_idle=name is None):
            self._verify()
        elif missing := self._verifier.missing():
            self._send_again(missing)
        elif name:
            self._deliver_chunk(name)
        else:
            return False
        return True

    def _next(self) -> str | None:
        """Return the segment to deliver from: one that is begun, or else the oldest."""
        if self._reader and self._reader.name in self._backlog:
            return self._reader.name
        return self._backlog.oldest()

    def _deliver_chunk(self, name: str) -> None:
        """Deliver what follows the cursor's position in a segment.

        Whatever fails, that position is where the next attempt begins.
        """
        if not self._is_node_fixed:
            fix_node(self._directory, self._node)
            self._is_node_fixed = True
        self._doubts.ask_about(name)
        self._cursor.begin(name)
        try:
            chunk = self._read(name)
        except FileNotFoundError:
            self._drop_reader()
            self._scan()  # which notes that the segment is gone
        except READ_ERRORS as error:
            self._drop_reader()
            self._backlog.postpone(name, error)
        else:
            if chunk:
                self._send(chunk)
            else:
                self._set_aside(name)

    def _read(self, name: str) -> Chunk | None:
        """Return the chunk at the cursor's position, None at the segment's end."""
        at = self._cursor.position(name)
        reader = self._reader
        if reader is None or (reader.name, reader.next_offset) != (name, at.offset):
            self._drop_reader()
            reader = self._reader = self._open(name, at.offset)
        return reader.read(at.lines + 1)

    def _send(self, chunk: Chunk) -> None:
        """Send a chunk that is not in the tables, and move the cursor behind it."""
        try:
            if self._doubts.is_held(chunk):
                delivered = Delivered(chunk.lines, 0)
            else:
                delivered = self._insert(chunk, self._doubts.has(chunk))
            self._advance(chunk, delivered.lines)
        except BaseException:
            self._cursor.doubt(chunk.segment)
            raise
        self._progress.count(delivered)

    def _insert(self, chunk: Chunk, in_doubt: bool, again: bool = False) -> Delivered:
        try:
            delivered = Delivery(self._server, self._node, chunk, in_doubt, again).deliver()
        except Miscounted:
            self._miscounts += 1
            if self._miscounts < MISCOUNTS:
                raise
            delivered = Delivered(chunk.lines, 0)
        self._miscounts = 0
        return delivered

    def _advance(self, chunk: Chunk, lines: int) -> None:
        """Note in the cursor that a chunk is sent, and set aside a segment that has no more."""
        name = chunk.segment
        is_last = self._reader is not None and self._reader.is_at_end
        end = Position(chunk.offset + chunk.size, chunk.first_line - 1 + lines)
        self._cursor.advance(name, end, self._backlog.oldest(but=name) if is_last else None)
        if is_last:
            self._set_aside(name)

    def _set_aside(self, name: str) -> None:
        """Go on to the next segment; this one is delivered once the tables were asked."""
        lines = self._cursor.position(name).lines
        self._verifier.add(name, lines, name in self._cursor.repeated)
        self._backlog.set_aside(name)
        self._drop_reader()

    def _verify(self) -> None:
        """Ask the tables for segments that were sent, and note those that are delivered."""
        if delivered := self._verifier.check():
            self._cursor.finish([sent.name for sent in delivered])
            for sent in delivered:
                self._verifier.remove(sent.name)
                self._backlog.remove(sent.name)
            self._progress.count_segments(delivered)

    def _send_again(self, sent: Sent) -> None:
        """Send what the tables lack of a segment, under another token than the first time."""
        try:
            with contextlib.closing(self._open(sent.name)) as reader:
                line = 1
                while chunk := reader.read(line):
                    self._insert(chunk, in_doubt=True, again=True)
                    line += chunk.lines
        except FileNotFoundError:
            log.error("%s was removed before it was delivered", sent.name)
        except READ_ERRORS as error:
            self._verifier.remove(sent.name)
            self._backlog.postpone(sent.name, error)
            return
        else:
            counts = (sent.held.lines, sent.lines, sent.name)
            log.warning("the tables held %d of the %d lines of %s; sent the others again", *counts)
        self._cursor.repeat(sent.name)
        self._verifier.remove(sent.name)
        self._verifier.add(sent.name, sent.lines, is_repeated=True)

    def _open(self, name: str, offset: int = 0) -> SegmentReader:
        return SegmentReader(self._directory, name, offset, self._chunk_bytes)

    def _drop_reader(self) -> None:
        if self._reader:
            self._reader.close()
            self._reader = None
