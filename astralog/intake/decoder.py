"""The decoder of a protocol: the slots and the context that it gets, and the batch it returns.

A worker decodes one body after another, as long as none takes too long: in a slot.
"""

import gc
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import gevent
from gevent.lock import Semaphore

from astralog.deadlines import yield_if_due
from astralog.errors import SHOWN_CHARACTERS, Rejection
from astralog.intake.options import Options, find_project
from astralog.store.memory_budget import MemoryReservation
from astralog.store.queue import Batch

#: The longest text that is decoded without a slot: it takes at most 3 ms.
UNQUEUED_BYTES = 4096

#: The longest body that is decoded beside the long ones, which go one after another.
FAST_BYTES = 256 * 1024

#: Maximum seconds until a body gets its last slot; with the commit's 8, the longest wait of a
#: client. After it: 503 `queue_full`.
SLOT_TIMEOUT_SECONDS = 2.0

#: Invalid logs per batch that are described; the rest are counted.
DESCRIBED_LOGS = 20

#: Fields per invalid log that are described.
DESCRIBED_FIELDS = 20

#: Invalid logs that are counted if they reject their batch; the rest of it is not checked.
COUNTED_LOGS = 1000

#: Characters of a message, which may repeat a client's text.
MESSAGE_CHARACTERS = 2 * SHOWN_CHARACTERS

_NO_SLOT = nullcontext()


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


class Context(NamedTuple):
    """The parts of a request that a decoder uses in addition to its body.

    `projects` are those that the token may write, None for all. `reservation` holds the body; a
    decoder that holds more than that over a pause has it reserved, as `LineWriter` does. Slots
    raise Rejection `queue_full` if others take too long.
    """

    projects: Collection[str] | None
    options: Options
    slots: Slots
    deadline: float
    reservation: MemoryReservation

    @property
    def project(self) -> str:
        """The project of logs without one: the query's, else the token's only one, else ""."""
        return find_project(self.options, self.projects)

    def fast_slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes in at most 100 ms."""
        return self.slots.fast.use(size, self.deadline)

    def slow_slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes in any time; others are served meanwhile."""
        return self.slots.slow.use(size, self.deadline)

    def slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding a whole body of `size` bytes."""
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


class InvalidLogs:
    """Invalid logs by their number; `seen` counts all logs that were checked.

    With `are_kept`, they are stored as text (`invalid=keep`).
    """

    def __init__(self, *, are_kept: bool = False) -> None:
        self.are_kept = are_kept
        self.errors: dict[int, Any] = {}
        self.count = 0
        self.seen = 0

    @property
    def is_full(self) -> bool:
        """Return whether COUNTED_LOGS were counted, the most before a batch is rejected."""
        return self.count >= COUNTED_LOGS

    @property
    def are_described(self) -> bool:
        """Return whether DESCRIBED_LOGS were counted, so that others need no messages."""
        return self.count >= DESCRIBED_LOGS

    def add(self, number: int, messages: Mapping[str, Any], count: int = 1) -> None:
        """Count logs from a number on, and describe the first by the messages for their fields."""
        described = min(count, DESCRIBED_LOGS - self.count)
        self.errors |= {number + place: describe(messages) for place in range(described)}
        self.count += count

    def reject(self, total: int) -> Rejection:
        """Return the rejection of a batch of `total` logs for its invalid ones."""
        least = "" if self.seen == total else "At least "
        message = f"{least}{self.count} of {total} logs are invalid; nothing was stored"
        return Rejection("invalid_batch", message, {"logs": self.errors}, total)


def describe(messages: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the messages of the first fields, shortened for a client."""
    return {
        name[:SHOWN_CHARACTERS]: [text[:MESSAGE_CHARACTERS] for text in texts]
        for name, texts in islice(messages.items(), DESCRIBED_FIELDS)
    }


class Decoded(NamedTuple):
    """The encoded logs of a body, and its invalid logs, if the batch is accepted without them."""

    batch: Batch
    invalid: InvalidLogs | None = None


#: Converts the body of a request to stored lines. Raises Rejection: `invalid_json`,
#: `invalid_batch`, `forbidden_project`, `queue_full`, or `body_too_large` for a body that is too
#: expensive to decode.
Decoder = Callable[[bytes, Context], Decoded]
