"""Deliver the sealed segments of a data directory, oldest first, chunk by chunk."""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from typing import TextIO

from astralog.errors import explain
from astralog.forward.backlog import Backlog, find_sealed
from astralog.forward.chunks import Chunk, ChunkReader
from astralog.forward.clickhouse import Tables, Unavailable
from astralog.forward.cursor import Cursor, NodeNameError, Position, resolve_node, save_node
from astralog.forward.delivery import Delivered, Delivery, Doubts, Miscounted, Sent, Verifier
from astralog.forward.progress import Failures, Progress
from astralog.log import ERASE_LINE, configure_logging
from astralog.settings import PREFIX, InvalidSettings, Settings
from astralog.standard_streams import print_errors
from astralog.store.files import Lease
from astralog.store.forward_state import LOCK_NAME
from astralog.store.reader import READ_ERRORS

log = logging.getLogger(__name__)

#: Seconds between two scans of the data directory, and between two removals.
SCAN_SECONDS = 0.5
REMOVE_SECONDS = 10.0

#: Scans take at most this share of the time, however many files there are.
SCAN_SHARE = 0.1

#: Failures in a row after which `--once` gives up.
ONCE_ATTEMPTS = 5

#: Consecutive reports of too few written rows after which a chunk is left to the segment's
#: verification.
MISCOUNTS = 4


class DirectoryReplaced(Exception):
    """The data directory's path leads to another directory."""


class Stop:
    """Signal handler that exits at once; the next start checks the last lines in the tables.

    Python drops an exception that is raised while it finalizes an object, such as a response: then
    `check` exits, before the next step.
    """

    def __init__(self) -> None:
        self._is_requested = False

    def __call__(self, number: int, frame: object) -> None:
        self._is_requested = True
        sys.exit(0)

    def check(self) -> None:
        """Exit if a signal has come."""
        if self._is_requested:
            sys.exit(0)


class Forwarder:
    """Delivers from a data directory that no other forwarder uses; may raise OSError."""

    def __init__(
        self, settings: Settings, tables: Tables, stream: TextIO, stop: Stop | None = None
    ) -> None:
        self._stop = stop or Stop()
        self._directory = settings.data_dir
        self._inode = os.stat(self._directory).st_ino
        self._tables = tables
        self._node = settings.node
        self._is_node_saved = False
        self._chunk_bytes = settings.forward_chunk_bytes
        self._keep_seconds = settings.forward_keep_seconds
        self._cursor = Cursor(self._directory, settings.node, tables.name)
        self._cursor.open(find_sealed(self._directory, self._cursor.known()))
        self._backlog = Backlog(self._directory, self._cursor)
        self._progress = Progress(self._directory, self._backlog, stream)
        self._doubts = Doubts(tables, self._cursor, self._backlog)
        self._verifier = Verifier(tables)
        self._failures = Failures()
        self._miscounts = 0
        self._reader: ChunkReader | None = None
        self._scan_at = self._remove_at = self._attempt_at = 0.0

    def run(self) -> None:
        """Deliver sealed segments forever; raises DirectoryReplaced."""
        while True:
            time.sleep(self.tick())

    def run_once(self) -> bool:
        """Deliver the segments that are sealed now; return whether all were delivered."""
        self._scan()
        self._scan_at = float("inf")
        pause = 0.0
        while self._backlog.oldest() or self._verifier:
            time.sleep(pause)
            pause = self.tick()
            if self._failures.attempts >= ONCE_ATTEMPTS:
                return False
        return not self._backlog.waiting_segments  # unreadable ones still do

    def tick(self) -> float:
        """Run the steps that are due; return the seconds until the next one."""
        self._stop.check()
        try:
            if time.monotonic() >= self._scan_at:
                self._scan()
            if time.monotonic() >= self._attempt_at:
                if not self._step():
                    self._tables.disconnect()  # before the server closes idle connections
                    self._attempt_at = min(self._scan_at, self._verifier.next_at(is_idle=True))
                self._failures.end()
        except (Unavailable, *READ_ERRORS) as error:
            self._attempt_at = time.monotonic() + self._failures.add(error)
        self._progress.status.failing_since = self._failures.since
        self._progress.show()
        next_at = min(max(self._attempt_at, 0.0), self._scan_at)
        return max(next_at - time.monotonic(), 0.0)

    def close(self) -> None:
        """Report the final status, and close the files."""
        self._progress.show(is_due=True)
        self._progress.close()
        self._drop_reader()
        self._cursor.close()

    def _scan(self) -> None:
        started = time.monotonic()
        self._scan_at = started + SCAN_SECONDS  # also after a failure
        if os.stat(self._directory).st_ino != self._inode:
            raise DirectoryReplaced(f"{self._directory}: the directory was replaced")
        self._refresh()
        if self._keep_seconds and started >= self._remove_at:
            self._remove_at = started + REMOVE_SECONDS
            self._backlog.remove_delivered(self._keep_seconds)
        ended = time.monotonic()
        self._scan_at = max(self._scan_at, ended + (ended - started) / SCAN_SHARE)

    def _refresh(self) -> None:
        self._backlog.scan()
        self._doubts.prune()

    def _step(self) -> bool:
        """Run the next step; return whether there was one."""
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
        """Return the segment to deliver from: the one in progress, or the oldest."""
        if self._reader and self._reader.name in self._backlog:
            return self._reader.name
        return self._backlog.oldest()

    def _deliver_chunk(self, name: str) -> None:
        """Deliver the chunk at the cursor's position in a segment.

        After any failure, the next attempt begins at that position again.
        """
        if not self._is_node_saved:
            save_node(self._directory, self._node)
            self._is_node_saved = True
        self._doubts.ask_about(name)
        self._cursor.begin(name)
        try:
            chunk = self._read(name)
        except FileNotFoundError:
            self._drop_reader()
            self._refresh()  # drops the removed segment
        except READ_ERRORS as error:
            self._drop_reader()
            self._backlog.postpone(name, error)
        else:
            if chunk:
                self._send(chunk)
            else:
                self._set_aside(name)

    def _read(self, name: str) -> Chunk | None:
        """Return the chunk at the cursor's position, or None at the segment's end."""
        at = self._cursor.position(name)
        reader = self._reader
        if reader is None or (reader.name, reader.next_offset) != (name, at.offset):
            self._drop_reader()
            reader = self._reader = self._open(name, at.offset)
        return reader.read(at.lines + 1)

    def _send(self, chunk: Chunk) -> None:
        """Send a chunk unless the tables hold it, and advance the cursor."""
        try:
            if self._doubts.holds(chunk):
                delivered = Delivered(chunk.lines, 0)
            else:
                delivered = self._insert(chunk, self._doubts.may_hold(chunk))
            self._advance(chunk, delivered.lines)
        except BaseException:
            self._cursor.doubt(chunk.segment)
            raise
        self._progress.count(delivered)

    def _insert(self, chunk: Chunk, in_doubt: bool, again: bool = False) -> Delivered:
        try:
            delivered = Delivery(self._tables, self._node, again).deliver(chunk, in_doubt)
        except Miscounted:
            self._miscounts += 1
            if self._miscounts < MISCOUNTS:
                raise
            delivered = Delivered(chunk.lines, 0)
        self._miscounts = 0
        return delivered

    def _advance(self, chunk: Chunk, lines: int) -> None:
        """Advance the cursor past a chunk, and set the segment aside after its last one."""
        name = chunk.segment
        is_last = self._reader is not None and self._reader.is_at_end
        end = Position(chunk.offset + chunk.size, chunk.first_line - 1 + lines)
        self._cursor.advance(name, end, self._backlog.oldest(but=name) if is_last else None)
        if is_last:
            self._set_aside(name)

    def _set_aside(self, name: str) -> None:
        """Hand a fully sent segment to the verifier."""
        lines = self._cursor.position(name).lines
        self._verifier.add(name, lines, name in self._cursor.repeated)
        self._backlog.set_aside(name)
        self._drop_reader()

    def _verify(self) -> None:
        """Query the tables about sent segments, and record the delivered ones."""
        if delivered := self._verifier.check():
            self._cursor.finish([sent.name for sent in delivered])
            for sent in delivered:
                self._verifier.remove(sent.name)
                self._backlog.remove(sent.name)
            self._progress.count_segments(delivered)

    def _send_again(self, sent: Sent) -> None:
        """Send a segment's missing lines under a second token."""
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
            log.warning("the tables held %d of the %d lines of %s; resent the others", *counts)
        self._cursor.repeat(sent.name)
        self._verifier.remove(sent.name)
        self._verifier.add(sent.name, sent.lines, is_repeated=True)

    def _open(self, name: str, offset: int = 0) -> ChunkReader:
        return ChunkReader(self._directory, name, offset, self._chunk_bytes)

    def _drop_reader(self) -> None:
        if self._reader:
            self._reader.close()
            self._reader = None


# --- The command: settings, signals, one process per directory, exit status

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(once: bool) -> int:
    """Deliver until a signal, or `once` the segments sealed now; return the exit status."""
    try:
        settings = Settings.from_environ()
        if not settings.clickhouse_url:
            raise InvalidSettings(
                [f"{PREFIX}CLICKHOUSE_URL: Needed to forward; see docs/scaling.md."]
            )
    except InvalidSettings as error:
        print_errors(error.problems)
        return 1
    configure_logging(settings.log_level, ERASE_LINE if sys.stderr.isatty() else "")
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # its errors are logged here
    stop = Stop()
    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        return _run_alone(settings, once, stop)
    except OSError as error:
        log.error("%s: %s", settings.data_dir, explain(error))
    except (DirectoryReplaced, NodeNameError) as error:
        log.error("%s", error)
    return 1


def _run_alone(settings: Settings, once: bool, stop: Stop) -> int:
    """Deliver, unless another process delivers from the same directory."""
    lease = Lease.acquire(settings.data_dir, LOCK_NAME)
    if lease is None:
        log.error("%s: another forward delivers from here", settings.data_dir.absolute())
        return 1
    with contextlib.closing(lease):
        node = resolve_node(settings.data_dir, settings.node)
        settings = dataclasses.replace(settings, node=node)
        tables = Tables(settings)
        place = settings.data_dir.absolute()
        log.info("delivering from %s to %s as node %s", place, tables.name, node)
        forwarder = Forwarder(settings, tables, sys.stderr, stop)
        try:
            if once:
                return 0 if forwarder.run_once() else 1
            forwarder.run()
        finally:
            forwarder.close()
    return 0
