"""Heavy decodes go one after another: they take the memory of one, and others are served."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import gevent
from gevent.lock import Semaphore

from astralog.errors import Rejection
from astralog.time_slice import TIME_SLICE_SECONDS

#: The longest text that is decoded at once, without a turn: it takes 3 ms at worst.
UNQUEUED_BYTES = 4096

#: Seconds until a body has its last turn at most; with the commit's 8, what clients wait. After it:
#: 503 `queue_full`.
TURN_TIMEOUT_SECONDS = 2.0

#: The least pause in which gevent looks at its sockets; in one of 0 it does not.
PAUSE_SECONDS = 1e-6

_NO_TURN = nullcontext()


class Lane:
    """A way that one greenlet takes at a time, in the order in which they come.

    Requests decode in one thread, so that decoding several at once gains nothing, and costs the
    memory of all of them.
    """

    def __init__(self) -> None:
        self._semaphore = Semaphore()
        self._busy_seconds = 0.0  # since others were last served

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        if not self._semaphore.acquire(timeout=max(deadline - time.monotonic(), 0)):
            message = "Too many large bodies wait to be decoded already; try again."
            raise Rejection("queue_full", message)
        start = time.monotonic()
        try:
            yield
        finally:
            self._busy_seconds += time.monotonic() - start
            try:
                self._let_others_be_served()
            finally:
                self._semaphore.release()

    def _let_others_be_served(self) -> None:
        if self._busy_seconds > TIME_SLICE_SECONDS:
            self._busy_seconds = 0.0
            gevent.sleep(PAUSE_SECONDS)

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
