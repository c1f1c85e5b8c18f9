"""Read segments in several processes at once, ahead of the merge that asks for their lines.

Each process reads one segment and writes its matches to a pipe. A few run at a time: those of the
segments that the merge asks for next. The merge reads any other segment itself, so that it never
waits for a process that waits for the merge.
"""

import os
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NoReturn

from astralog.store.files import end_with_parent
from astralog.store.merge import Part
from astralog.store.reader import READ_ERRORS, ReadBudget, Select
from astralog.view.context import ContextPart

#: Processes at most, one per core; each takes some 10 MiB in addition to shared memory.
MAX_PROCESSES = 8

#: Bytes of a file below which reading it takes less time than starting a process.
MIN_FILE_BYTES = 1024 * 1024

#: Seconds that a found line, or a progress, waits for others.
PIPE_SECONDS = 0.05

_MESSAGE = struct.Struct("<BQI")  # its kind, a number, and the bytes of the text after it
_LINE, _PROGRESS, _END, _FAILED, _REMOVED = range(5)

#: Reads a part: `_read` or `_read_backwards`, all arguments but the last two set.
Read = Callable[[Select, ReadBudget], Iterator[tuple[int, bytes]]]


class ProcessPart(Part):
    """A part that another process may read, once and to its end."""

    processes: "Processes | None" = None

    def read_here(self, limit: int | None) -> Read:
        """Return a reader of the part in this process, backwards if there is a limit."""
        forwards, backwards = super()._read, super()._read_backwards
        if limit is None:
            return forwards
        return lambda select, budget: backwards(limit, select, budget)

    def _read(self, select: Select, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        return self._read_anywhere(None, select, budget)

    def _read_backwards(
        self, limit: int, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        return self._read_anywhere(limit, select, budget)

    def _read_anywhere(
        self, limit: int | None, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        process = self.processes and self.processes.take(self)
        if not process:
            yield from self.read_here(limit)(select, budget)
        else:
            yield from process.lines(budget)


class ProcessContextPart(ProcessPart, ContextPart):
    """The same with lines around those that match."""


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
        self._count = min(count, MAX_PROCESSES) if count > 1 else 0
        self._running: dict[ProcessPart, _Process] = {}
        self.on_progress = on_progress
        in_order = sorted(
            (part for part in parts if isinstance(part, ProcessPart)),
            key=lambda part: (part.since, part.segment),
            reverse=limit is not None,
        )
        self._waiting = {part: None for part in in_order if part.file_size() >= MIN_FILE_BYTES}
        for part in in_order:
            part.processes = self

    def take(self, part: ProcessPart) -> "_Process | None":
        """Return the process that reads a part, None if the caller should; start the next ones."""
        if part in self._waiting:
            del self._waiting[part]
            self._start_if_free(part)
        self._start_next()
        return self._running.get(part)

    def end(self, process: "_Process") -> None:
        """End a process, and start the next one."""
        del self._running[process.part]
        process.close()
        self._start_next()

    def close(self) -> None:
        """End all processes."""
        self._waiting.clear()
        for process in list(self._running.values()):
            self.end(process)

    def _start_next(self) -> None:
        while self._waiting and len(self._running) < self._count:
            part = next(iter(self._waiting))
            del self._waiting[part]
            self._start_if_free(part)

    def _start_if_free(self, part: ProcessPart) -> None:
        if len(self._running) >= self._count:
            return
        read_fd, write_fd = os.pipe()
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        pid = os.fork()
        if not pid:
            self._run_child(part, parent, write_fd)
        self._running[part] = _Process(self, part, pid, open(read_fd, "rb"))  # noqa: SIM115
        os.close(write_fd)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))

    def _run_child(self, part: ProcessPart, parent: int, write_fd: int) -> NoReturn:
        """Read a part in this process, which was forked for it, and exit."""
        status = 1
        try:
            end_with_parent(parent)
            # The terminal sends SIGINT to all processes; the parent ends them.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
            with open(write_fd, "wb") as pipe:
                _search(part.read_here(self._limit), self._select, _Sender(pipe))
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)


class _Process:
    """A process that reads a part, as its parent sees it."""

    def __init__(self, processes: Processes, part: ProcessPart, pid: int, pipe: BinaryIO) -> None:
        self.part = part
        self.pipe = pipe
        self._processes = processes
        self._pid = pid

    def lines(self, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        """Yield the lines as they come; raises the errors of reading, and ChildProcessError.

        The budget counts the bytes of the file.
        """
        while (message := self._receive()) and message[0] != _END:
            kind, number, text = message
            if kind == _LINE:
                yield number, text
            elif kind == _PROGRESS:
                budget.file_bytes += number
                self._processes.on_progress()
            else:
                self._processes.end(self)
                raise (FileNotFoundError if kind == _REMOVED else OSError)(text.decode())
        self._processes.end(self)
        if not message:
            raise ChildProcessError("the process that read it ended early")

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _receive(self) -> tuple[int, int, bytes] | None:
        head = self.pipe.read(_MESSAGE.size)
        if len(head) < _MESSAGE.size:
            return None
        kind, number, length = _MESSAGE.unpack(head)
        text = self.pipe.read(length)
        return (kind, number, text) if len(text) == length else None


class _Sender:
    """The end of a pipe to which a process writes; flushes it when it is due."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._flushed_at = time.monotonic()

    def send(self, kind: int, number: int, text: bytes = b"") -> None:
        self._pipe.write(_MESSAGE.pack(kind, number, len(text)))
        self._pipe.write(text)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        now = time.monotonic()
        if now - self._flushed_at > PIPE_SECONDS:
            self._flushed_at = now
            self._pipe.flush()


def _search(read: Read, select: Select, sender: _Sender) -> None:
    """Write the lines of a part, its progress, and how it ended."""
    budget = ReadBudget()
    sent_bytes = 0

    def select_and_report(block: bytes) -> Iterable[tuple[int, bytes]]:
        nonlocal sent_bytes
        sender.send(_PROGRESS, budget.file_bytes - sent_bytes)
        sent_bytes = budget.file_bytes
        return select(block)

    try:
        for offset, line in read(select_and_report, budget):
            sender.send(_LINE, offset, line)
        sender.send(_PROGRESS, budget.file_bytes - sent_bytes)
        sender.send(_END, 0)
    except FileNotFoundError as error:
        sender.send(_REMOVED, 0, str(error).encode())
    except READ_ERRORS as error:
        sender.send(_FAILED, 0, str(error).encode())
