"""Slots for decoding: a worker decodes one body after another, as long as none takes too long."""

import gc
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import gevent
from gevent.lock import Semaphore

from astralog.deadlines import yield_if_due
from astralog.errors import Rejection

#: The longest text that is decoded without a slot: it takes at most 3 ms.
UNQUEUED_BYTES = 4096

#: The longest body that is decoded beside the long ones, which go one after another.
FAST_BYTES = 256 * 1024

#: Maximum seconds until a body gets its last slot; with the commit's 8, the longest wait of a
#: client. After it: 503 `queue_full`.
SLOT_TIMEOUT_SECONDS = 2.0

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
