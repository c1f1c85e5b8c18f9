"""Read segments in several processes at once, ahead of the merge that asks for their lines.

A process takes one segment after the other, always the next one that the merge will ask for, and
writes the matches to its pipe. The merge reads a segment that no process has taken itself, so that
it never waits for a process that waits for the merge.
"""

import contextlib
import fcntl
import os
import signal
import struct
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple, NoReturn

from astralog.errors import explain
from astralog.memory_file import make_memory_file
from astralog.store.files import end_with_parent
from astralog.store.merge import Part
from astralog.store.reader import READ_ERRORS, ReadBudget, Select

#: Maximum number of processes, one per core; each needs some 10 MiB in addition to shared memory.
MAX_PROCESSES = 8

#: Bytes of a file below which reading it takes hardly more time than the messages about it.
MIN_FILE_BYTES = 256 * 1024

#: Seconds that a found line, or a progress, waits for others.
PIPE_SECONDS = 0.05

#: The numbers of the part and of the kind, a number, and the bytes of the text after it.
_HEADER = struct.Struct("<IBQI")
_LINE, _PROGRESS, _END, _FAILED, _REMOVED = range(5)

#: Who reads a part: nobody yet, this process, or else a process by its number.
_NOBODY, _HERE, _FIRST_PROCESS = range(3)


class _Message(NamedTuple):
    kind: int
    number: int
    text: bytes


class ProcessPart(Part):
    """A part that another process may read; it is read once and completely."""

    __slots__ = ("processes",)

    def __init__(self, *place: Any) -> None:
        super().__init__(*place)
        self.processes: Processes | None = None

    def read_here(
        self, limit: int | None, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        """Read the part in this process, backwards if there is a limit."""
        return super()._lines(limit, select, budget)

    def _lines(
        self, limit: int | None, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        lines = self.processes and self.processes.lines(self, budget)
        yield from lines or self.read_here(limit, select, budget)


class Processes:
    """The processes that read parts for a merge; `close` ends them."""

    def __init__(
        self,
        parts: Iterable[Part],
        select: Select,
        limit: int | None,
        count: int,
        on_progress: Callable[[], None],
    ) -> None:
        """Read backwards if there is a limit; with a count of one, read all parts here."""
        self._select = select
        self._limit = limit
        self._on_progress = on_progress
        self._parts = sorted(
            (
                part
                for part in parts
                if isinstance(part, ProcessPart) and part.file_size() >= MIN_FILE_BYTES
            ),
            key=lambda part: part.name,
            reverse=limit is not None,
        )
        self._numbers = {part: number for number, part in enumerate(self._parts)}
        self._unstarted = min(count, MAX_PROCESSES, len(self._parts)) if count > 1 else 0
        self._processes: dict[int, _Process] = {}  # by their numbers as readers
        self._readers_fd = -1  # of a file with one byte per part: who reads it
        for part in self._parts:
            part.processes = self

    def lines(self, part: ProcessPart, budget: ReadBudget) -> Iterator[tuple[int, bytes]] | None:
        """Return the lines that a process finds in a part, None if the caller must read it."""
        number = self._numbers[part]
        if self._unstarted:
            self._start(number)
        reader = self._take(number, _HERE) if self._processes else _HERE
        return None if reader == _HERE else self._found(number, self._processes[reader], budget)

    def close(self) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()
        if self._readers_fd >= 0:
            os.close(self._readers_fd)
            self._readers_fd = -1

    def _start(self, number: int) -> None:
        """Start the processes; the first one begins with the part of this number."""
        count, self._unstarted = self._unstarted, 0
        with contextlib.suppress(OSError):  # too many processes or open files: those there go on
            self._readers_fd = make_memory_file("astralog-search")
            self._take(number, _FIRST_PROCESS)
            for reader in range(_FIRST_PROCESS, _FIRST_PROCESS + count):
                self._processes[reader] = _Process(partial(self._read_parts, reader, number))

    def _take(self, number: int, reader: int) -> int:
        """Let a reader take a part unless another one has; return who reads it."""
        fcntl.lockf(self._readers_fd, fcntl.LOCK_EX, 1, number)
        try:
            taken = os.pread(self._readers_fd, 1, number).strip(bytes([_NOBODY]))
            if taken:  # the file grows with each part that is taken
                return taken[0]
            os.pwrite(self._readers_fd, bytes([reader]), number)
            return reader
        finally:
            fcntl.lockf(self._readers_fd, fcntl.LOCK_UN, 1, number)

    def _found(
        self, number: int, process: "_Process", budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of a part, and count the bytes of its file.

        Raises the errors of reading, and ChildProcessError if the process ended.
        """
        for kind, value, text in process.messages(number):
            if kind == _LINE:
                yield value, text
            elif kind == _PROGRESS:
                budget.file_bytes += value
                self._on_progress()
            else:
                raise (FileNotFoundError if kind == _REMOVED else OSError)(text.decode())

    # --- In a process

    def _read_parts(self, reader: int, first: int, pipe: BinaryIO) -> None:
        """Read the parts that no other reader has taken, in the order of the merge."""
        for number in sorted(range(len(self._parts)), key=lambda number: number != first):
            if self._take(number, reader) == reader:
                self._read(self._parts[number], _Sender(pipe, number))
                pipe.flush()

    def _read(self, part: ProcessPart, sender: "_Sender") -> None:
        """Send the lines of a part, its progress, and how it ended."""
        budget = ReadBudget()
        sent_bytes = 0

        def send_progress() -> None:
            nonlocal sent_bytes
            sender.send(_PROGRESS, budget.file_bytes - sent_bytes)
            sent_bytes = budget.file_bytes

        def select_and_report(block: bytes) -> Iterable[tuple[int, bytes]]:
            if sender.is_due:
                send_progress()
            return self._select(block)

        try:
            for offset, line in part.read_here(self._limit, select_and_report, budget):
                sender.send(_LINE, offset, line)
            send_progress()
            sender.send(_END, 0)
        except FileNotFoundError as error:
            sender.send(_REMOVED, 0, str(error).encode())
        except READ_ERRORS as error:
            sender.send(_FAILED, 0, explain(error).encode())


class _Process:
    """The parent's view of a process, and the messages that it has sent."""

    def __init__(self, work: Callable[[BinaryIO], None]) -> None:
        """Fork, and let the process write to its pipe; raises OSError."""
        read_fd, write_fd = os.pipe()
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            self._pid = os.fork()
            if not self._pid:
                os.close(read_fd)
                _run_child(work, parent, write_fd)
        except OSError:
            os.close(read_fd)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
            os.close(write_fd)
        self._pipe = os.fdopen(read_fd, "rb")
        #: By the numbers of their parts. The process ends a part before it takes the next one, so
        #: that these are no more than a pipe holds.
        self._waiting: defaultdict[int, deque[_Message]] = defaultdict(deque)

    def messages(self, number: int) -> Iterator[_Message]:
        """Yield the messages about a part up to its end; raises ChildProcessError."""
        waiting = self._waiting[number]
        while True:
            while not waiting:
                self._receive()
            message = waiting.popleft()
            if message.kind == _END:
                del self._waiting[number]
                return
            yield message

    def _receive(self) -> None:
        header = self._pipe.read(_HEADER.size)
        if len(header) == _HEADER.size:
            part, kind, number, size = _HEADER.unpack(header)
            text = self._pipe.read(size)
            if len(text) == size:
                self._waiting[part].append(_Message(kind, number, text))
                return
        raise ChildProcessError("the process that read it ended early")

    def close(self) -> None:
        """End the process."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pipe.close()


def _run_child(work: Callable[[BinaryIO], None], parent: int, pipe_fd: int) -> NoReturn:
    """Work in this process, which was forked for it; the parent may end it."""
    try:
        end_with_parent(parent)
        # The terminal sends SIGINT to all processes; the parent ends them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
        with open(pipe_fd, "wb") as pipe:
            work(pipe)
    except ConnectionError:  # the parent ended
        pass
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)


class _Sender:
    """Writes the messages about a part to a pipe, and flushes it when that is due."""

    def __init__(self, pipe: BinaryIO, part: int) -> None:
        self._pipe = pipe
        self._part = part
        self._flushed_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the bytes written, or a progress, must be sent now."""
        return time.monotonic() - self._flushed_at > PIPE_SECONDS

    def send(self, kind: int, number: int, text: bytes = b"") -> None:
        self._pipe.write(_HEADER.pack(self._part, kind, number, len(text)))
        self._pipe.write(text)
        if self.is_due:
            self._flushed_at = time.monotonic()
            self._pipe.flush()
