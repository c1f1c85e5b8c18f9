"""Heavy decodes go one after another: they take the memory of one, and others are served."""

import gc
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import gevent
from gevent.lock import Semaphore

from astralog.deadlines import yield_if_due
from astralog.errors import Rejection

#: The longest text that is decoded at once, without a turn: it takes 3 ms at worst.
UNQUEUED_BYTES = 4096

#: Seconds until a body has its last turn at most; with the commit's 8, what clients wait. After it:
#: 503 `queue_full`.
TURN_TIMEOUT_SECONDS = 2.0

_NO_TURN = nullcontext()


class Lane:
    """A way that one greenlet takes at a time, in the order in which they come.

    Requests decode in one thread, so that decoding several at once gains nothing, and costs the
    memory of all of them.

    No garbage is collected within a turn: a body makes none, and each collection would look at all
    of its objects. Measured, 1 MiB of lists in lists takes 350 ms with collections, and 56 without.
    """

    def __init__(self) -> None:
        self._semaphore = Semaphore()

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        if self._semaphore.linkcount() and not self._semaphore.locked():
            gevent.sleep(0)  # the turn that has just ended goes to whoever waits for it
        if not self._semaphore.acquire(timeout=max(deadline - time.monotonic(), 0)):
            message = "Too many large bodies wait to be decoded already; try again."
            raise Rejection("queue_full", message)
        is_collecting = gc.isenabled()  # not if a turn of the other lane pauses
        gc.disable()
        try:
            yield
        finally:
            if is_collecting:
                gc.enable()
            try:
                yield_if_due()  # before the next turn, which would begin ahead of the sockets
            finally:
                self._semaphore.release()

    def turn(self, size: int, deadline: float) -> AbstractContextManager[None]:
        """Return the context in which a text of `size` bytes is decoded; a short one has no turn.

        Raises Rejection `queue_full` where the turn does not come until the monotonic `deadline`.
        """
        return self._turn(deadline) if size > UNQUEUED_BYTES else _NO_TURN


class Lanes:
    """The lanes of a worker: `fast` for what takes milliseconds, `slow` for all that may pause."""

    def __init__(self) -> None:
        self.fast = Lane()
        self.slow = Lane()
