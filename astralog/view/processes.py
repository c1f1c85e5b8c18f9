"""Read segments in several processes at once, ahead of the merge that asks for their lines.

A process gets one segment at a time, with a pipe to which it writes the matches: always the next
one that the merge will ask for. It gets another one when it is done, even if its matches are not
read yet. The merge reads a segment that no process has itself, so that it never waits for a process
that waits for the merge.
"""

import os
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from select import POLLIN, poll
from typing import Any, BinaryIO, NoReturn

from astralog.errors import explain
from astralog.store.files import end_with_parent
from astralog.store.merge import Part
from astralog.store.reader import READ_ERRORS, ReadBudget, Select

#: Maximum number of processes, one per core; each needs some 10 MiB in addition to shared memory.
MAX_PROCESSES = 8

#: Bytes of a file below which reading it takes hardly more time than giving it to a process.
MIN_FILE_BYTES = 256 * 1024

#: Segments that processes have begun to read, and the merge has not read completely. Each has a
#: pipe of 64 KiB.
MAX_AHEAD = 64

#: Bytes that are read at once of a pipe.
PIPE_BYTES = 64 * 1024

#: Seconds that a found line, or a progress, waits for others.
PIPE_SECONDS = 0.05

_MESSAGE = struct.Struct("<BQI")  # its kind, a number, and the bytes of the text after it
_LINE, _PROGRESS, _END, _FAILED, _REMOVED = range(5)

_NUMBER = struct.Struct("<I")  # of the segment that a process reads next
_DONE = b"."

#: Reads a part by its number, and writes the results.
Work = Callable[[int, BinaryIO], None]


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
        results = self.processes and self.processes.take(self)
        if not results:
            yield from self.read_here(limit, select, budget)
        else:
            yield from results.lines(budget)


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
        self.on_progress = on_progress
        self._parts = sorted(
            (
                part
                for part in parts
                if isinstance(part, ProcessPart) and part.file_size() >= MIN_FILE_BYTES
            ),
            key=lambda part: part.name,
            reverse=limit is not None,
        )
        self._waiting = {part: number for number, part in enumerate(self._parts)}
        self._begun: dict[ProcessPart, _Results] = {}
        self._idle: list[_Process] = []
        self._busy: dict[int, _Process] = {}  # by the descriptors of their sockets
        self._poll = poll()  # for the ends of their work
        for part in self._parts:
            part.processes = self

    def take(self, part: ProcessPart) -> "_Results | None":
        """Return the results of the process that reads a part, None if the caller must read it."""
        if part in self._waiting:
            self._begin(part)
            self._waiting.pop(part, None)
        self._begin_next()
        return self._begun.get(part)

    def wait_for(self, pipe_fd: int) -> None:
        """Wait for data in a pipe, and assign the next parts to idle processes."""
        self._poll.register(pipe_fd, POLLIN)
        ready = {fd for fd, _ in self._poll.poll()}
        self._poll.unregister(pipe_fd)
        self._free(ready - {pipe_fd})
        self._begin_next()

    def end(self, part: ProcessPart) -> None:
        """Forget the results of a part, which were read."""
        del self._begun[part]
        self._begin_next()

    def close(self) -> None:
        self._waiting.clear()
        for process in (*self._idle, *self._busy.values()):
            process.close()
        for results in self._begun.values():
            results.close()
        self._idle.clear()
        self._busy.clear()
        self._begun.clear()

    def _begin_next(self) -> None:
        self._free({fd for fd, _ in self._poll.poll(0)})
        while self._waiting and self._begin(next(iter(self._waiting))):
            pass

    def _free(self, sockets: Iterable[int]) -> None:
        """Record processes that are done, or dead."""
        for fd in sockets:
            process = self._busy.pop(fd)
            self._poll.unregister(fd)
            if process.is_alive():
                self._idle.append(process)
            else:
                process.close()

    def _begin(self, part: ProcessPart) -> bool:
        """Assign a part to an idle or a new process; return False if there is none."""
        if len(self._begun) >= MAX_AHEAD:
            return False
        if not self._idle and len(self._busy) >= self._count:
            return False
        try:
            if not self._idle:
                self._idle.append(_Process(self._search))
            pipe_fd = self._idle[-1].read(self._waiting[part])
        except OSError:  # too many processes or open files: those that there are go on
            return False
        process = self._idle.pop()
        del self._waiting[part]
        self._begun[part] = _Results(self, part, pipe_fd)
        self._busy[process.fd] = process
        self._poll.register(process.fd, POLLIN)
        return True

    def _search(self, number: int, pipe: BinaryIO) -> None:
        """Write the lines of a part, its progress, and how it ended."""
        part = self._parts[number]
        budget = ReadBudget()
        sender = _Sender(pipe)
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
    """The parent's view of a process that reads parts by their numbers."""

    def __init__(self, work: Work) -> None:
        """Fork; raises OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = self._socket.fileno()
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            self._pid = os.fork()
            if not self._pid:
                self._socket.close()
                _run_child(work, parent, theirs)
        except OSError:
            self._socket.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
            theirs.close()

    def read(self, number: int) -> int:
        """Return the pipe with the results of a part that the process reads. Raises OSError."""
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        try:
            socket.send_fds(self._socket, [_NUMBER.pack(number)], [write_fd])
        except OSError:  # it is dead: nothing comes
            pass
        finally:
            os.close(write_fd)
        return read_fd

    def is_alive(self) -> bool:
        """Receive the message that the process is done; return False if it ended instead."""
        try:
            return self._socket.recv(1) == _DONE
        except OSError:
            return False

    def close(self) -> None:
        """End the process, before its socket is closed."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._socket.close()


class _Results:
    """The lines of a part that a process reads, and its progress."""

    def __init__(self, processes: Processes, part: ProcessPart, pipe_fd: int) -> None:
        self._processes = processes
        self._part = part
        self._fd = pipe_fd
        self._data = bytearray()

    def lines(self, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        """Yield the lines, and count the bytes of the file; raises the READ_ERRORS."""
        while (message := self._receive()) and message[0] != _END:
            kind, number, text = message
            if kind == _LINE:
                yield number, text
            elif kind == _PROGRESS:
                budget.file_bytes += number
                self._processes.on_progress()
            else:
                self._end()
                raise (FileNotFoundError if kind == _REMOVED else OSError)(text.decode())
        self._end()
        if not message:
            raise ChildProcessError("the process that read it ended early")

    def close(self) -> None:
        os.close(self._fd)

    def _end(self) -> None:
        self.close()
        self._processes.end(self._part)

    def _receive(self) -> tuple[int, int, bytes] | None:
        """Return the next message, None if the process ended."""
        if not self._read(_MESSAGE.size):
            return None
        kind, number, length = _MESSAGE.unpack_from(self._data)
        if not self._read(_MESSAGE.size + length):
            return None
        with memoryview(self._data) as data:
            text = bytes(data[_MESSAGE.size : _MESSAGE.size + length])
        del self._data[: _MESSAGE.size + length]
        return kind, number, text

    def _read(self, count: int) -> bool:
        """Read until `count` bytes are there; return False if the process ended."""
        while len(self._data) < count:
            try:
                data = os.read(self._fd, PIPE_BYTES)
            except BlockingIOError:
                self._processes.wait_for(self._fd)
                continue
            if not data:
                return False
            self._data += data
        return True


def _run_child(work: Work, parent: int, parent_socket: socket.socket) -> NoReturn:
    """Read parts in this process, which was forked for it, until the parent ends it."""
    try:
        end_with_parent(parent)
        # The terminal sends SIGINT to all processes; the parent ends them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
        while True:
            data, fds, _, _ = socket.recv_fds(parent_socket, _NUMBER.size, 1)
            if not data:
                break
            (number,) = _NUMBER.unpack(data)
            with open(fds[0], "wb") as pipe:
                work(number, pipe)
            parent_socket.send(_DONE)
    except ConnectionError:  # the parent ended
        pass
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)


class _Sender:
    """The write end of a pipe; it is flushed when that is due."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._flushed_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the bytes written, or a progress, must be sent now."""
        return time.monotonic() - self._flushed_at > PIPE_SECONDS

    def send(self, kind: int, number: int, text: bytes = b"") -> None:
        self._pipe.write(_MESSAGE.pack(kind, number, len(text)))
        self._pipe.write(text)
        if self.is_due:
            self._flushed_at = time.monotonic()
            self._pipe.flush()
