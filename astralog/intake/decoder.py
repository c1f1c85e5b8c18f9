"""The parts that the decoders of all protocols share: slots, context and lines."""

import gc
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import gevent
import msgspec
from gevent.lock import Semaphore

from astralog.deadlines import yield_if_due
from astralog.errors import SHOWN_CHARACTERS, Rejection, mebibytes
from astralog.intake.body import Reservation, Unbounded
from astralog.intake.invalid_logs import InvalidLogs, reject_invalid
from astralog.intake.options import OnInvalid, Options, find_project
from astralog.store.queue import Batch

#: The longest text that is decoded without a slot: it takes at most 3 ms.
UNQUEUED_BYTES = 4096

#: The longest body that is decoded beside the long ones, which go one after another.
FAST_BYTES = 256 * 1024

#: Bytes of logs that are decoded, changed and encoded at once. As objects, they take several times
#: as much, and should fit into a core's cache: on a busy machine, a decode in runs of 64 KiB takes
#: 1.03 to 1.17 times as long.
RUN_BYTES = 32 * 1024

#: Maximum seconds until a body gets its last slot; with the commit's 8, the longest wait of a
#: client. After it: 503 `queue_full`.
SLOT_TIMEOUT_SECONDS = 2.0

#: Maximum size of the lines as a multiple of the body, plus a constant; default values and
#: numbers like 1e15 increase it. Beyond it: 413 `body_too_large`.
MAX_GROWTH = 4

#: Bytes of lines, in addition to the logs' own, that are encoded before they are charged: values
#: that are repeated in each log may turn a few bytes of body into a gigabyte of lines.
STEP_BYTES = 1024 * 1024

#: Characters that JSON escapes: with one more character, or as \u00XX.
_QUOTED = b'"\\'
_CONTROLS = bytes(range(0x20))
_PLAIN = bytes(sorted(set(range(256)) - set(_QUOTED + _CONTROLS)))

_NO_SLOT = nullcontext()

_encoder = msgspec.json.Encoder()
encode_lines = _encoder.encode_lines
encode_value = _encoder.encode
encode_into = _encoder.encode_into


class Slot:
    """A semaphore for decoding: one greenlet at a time, in the order of arrival.

    Requests decode in one thread, so that decoding several at once gains nothing, and costs the
    memory of all of them.

    The garbage collector is off within a slot: a body makes no garbage, and each collection would
    scan all of its objects. Measured, 1 MiB of lists in lists takes 350 ms with collections, and 56
    without.
    """

    def __init__(self) -> None:
        self._semaphore = Semaphore()

    @contextmanager
    def _acquired(self, deadline: float) -> Iterator[None]:
        if self._semaphore.linkcount() and not self._semaphore.locked():
            gevent.sleep(0)  # the slot that has just become free goes to the first that waits
        if not self._semaphore.acquire(timeout=max(deadline - time.monotonic(), 0)):
            message = "Too many large bodies are waiting to be decoded; retry later."
            raise Rejection("queue_full", message)
        is_collecting = gc.isenabled()  # not if the user of the other slot pauses
        gc.disable()
        try:
            yield
        finally:
            if is_collecting:
                gc.enable()
            try:
                yield_if_due()  # before the next user, which would begin ahead of the sockets
            finally:
                self._semaphore.release()

    def use(self, size: int, deadline: float) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes; a short text needs no slot.

        Raises Rejection `queue_full` if the slot is not free by the monotonic `deadline`.
        """
        return self._acquired(deadline) if size > UNQUEUED_BYTES else _NO_SLOT


class Slots:
    """The slots of a worker: `fast` for decodes of milliseconds, `slow` for longer ones."""

    def __init__(self) -> None:
        self.fast = Slot()
        self.slow = Slot()


#: The name of a log's project.
project_of = attrgetter("project_id")


class Context(NamedTuple):
    """The parts of a request that a decoder uses in addition to its body.

    `projects` are those that the token may write, None for all. `reservation` holds the body; a
    decoder that holds more than that over a pause has it reserved, as `LineWriter` does.
    """

    projects: Collection[str] | None
    options: Options
    slots: Slots
    deadline: float
    reservation: Reservation = Unbounded()

    @property
    def project(self) -> str:
        """The project of logs without one: the query's, else the token's only one, else ""."""
        return find_project(self.options, self.projects)

    def fast_slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes without a pause, in at most 100 ms.

        Raises Rejection `queue_full` if others take too long.
        """
        return self.slots.fast.use(size, self.deadline)

    def slow_slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes with pauses in which others are served.

        A decode that holds many objects over a pause uses it. Raises Rejection `queue_full` if
        others take too long.
        """
        return self.slots.slow.use(size, self.deadline)

    def slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding a body of `size` bytes with `yield_if_due` in its loops.

        Raises Rejection `queue_full` if others take too long.
        """
        return self.fast_slot(size) if size <= FAST_BYTES else self.slow_slot(size)

    def check_project(self, name: str, logs: int) -> None:
        """Raise Rejection `forbidden_project` (for `logs` logs) unless the token may write it."""
        if self.projects is not None and name not in self.projects:
            shown = name[:SHOWN_CHARACTERS]
            message = f"The token may not write to the project {shown!r}; nothing was stored"
            raise Rejection("forbidden_project", message, logs=logs)

    def check_projects(self, names: Iterable[str], logs: int) -> None:
        """Check the projects of several logs, as `check_project`.

        Each name once: 22 µs for 500 logs, in place of 63, a tenth of their decode.
        """
        if self.projects is not None:
            for name in dict.fromkeys(names):
                self.check_project(name, logs)


class Decoded(NamedTuple):
    """The encoded logs of a body, and its invalid logs, if the batch is accepted without them."""

    batch: Batch
    invalid: InvalidLogs | None = None


class Decoder(Protocol):
    """Convert the body of a request to stored lines."""

    def __call__(self, body: bytes, context: Context, /) -> Decoded:
        """Return the batch in a body.

        Raises Rejection: `invalid_json`, `invalid_batch`, `forbidden_project`, `queue_full`, or
        `body_too_large` for a body that is too expensive to decode.
        """


class LineWriter:
    """Encode the logs of one body, and reserve the memory of the body and of the lines."""

    def __init__(self, reservation: Reservation, body_bytes: int, spare_bytes: int) -> None:
        """Limit the lines to MAX_GROWTH times the body plus `spare_bytes`."""
        self._reservation = reservation
        self._held_bytes = body_bytes
        self._body_bytes = body_bytes
        self._spare_bytes = spare_bytes
        self._buffer = bytearray()
        self.logs = 0  # so far

    def hold(self, size: int) -> None:
        """Charge `size` more bytes until the end of the decode; raises Rejection."""
        self._held_bytes += size
        self.expect(0)

    def expect(self, size: int) -> None:
        """Charge `size` bytes for the next lines, in place of the last such charge.

        Raises Rejection if there is no memory for them.
        """
        self._reservation.resize(self._held_bytes + len(self._buffer) + size)

    def add(self, logs: Sequence[Any], repeated_bytes: int = 0) -> None:
        """Append logs; each has at most `repeated_bytes` that are not from the body.

        Raises Rejection: `queue_full`, or `body_too_large` if the lines take too much.
        """
        step = max(STEP_BYTES // repeated_bytes, 1) if repeated_bytes else len(logs)
        for start in range(0, len(logs), step or 1):
            self._append(logs[start : start + step])
        self.logs += len(logs)

    def _append(self, logs: Sequence[Any]) -> None:
        """Encode at least one log.

        The last one, which alone may be long, is encoded into the buffer, so that it is held once.
        """
        self._buffer += encode_lines(logs[:-1])
        encode_into(logs[-1], self._buffer, -1)
        self._buffer += b"\n"
        check_growth(len(self._buffer), self._body_bytes, self._spare_bytes)
        self.expect(0)

    def finish(self) -> Batch:
        """Return the batch."""
        return Batch(self._buffer, self.logs)


def finish(lines: LineWriter, invalid: InvalidLogs, options: Options) -> Decoded:
    """Return the batch of the valid logs; raises Rejection if the invalid ones reject it."""
    if invalid.count and (options.on_invalid is OnInvalid.REJECT or not lines.logs):
        raise reject_invalid(invalid, invalid.seen)
    return Decoded(lines.finish(), invalid if invalid.count else None)


def check_growth(size: int, body_bytes: int, spare_bytes: int) -> None:
    """Raise Rejection for lines that exceed MAX_GROWTH times the body plus `spare_bytes`."""
    most = MAX_GROWTH * body_bytes + spare_bytes
    if size > most:
        message = (
            f"The stored lines would take more than {most} bytes: {MAX_GROWTH} times the body of "
            f"{body_bytes} bytes, plus {mebibytes(spare_bytes)}. Send smaller batches."
        )
        raise Rejection("body_too_large", message)


def escaped_size(text: bytes) -> int:
    """Return an upper bound of a text's bytes in JSON."""
    escaped = text.translate(None, _PLAIN)
    controls = len(escaped.translate(None, _QUOTED))
    return len(text) + (len(escaped) - controls) + 5 * controls
