"""A thread that reads the disk for one request after another, in their order."""

from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent.lock import Semaphore
from gevent.threadpool import ThreadPool

from astralog.errors import Rejection
from astralog.threads import spawn_in_thread

#: Maximum number of waiting calls, and maximum seconds of a wait. Beyond it: 503.
MAX_WAITING = 50
WAIT_SECONDS = 2.0

#: Seconds that a call may take, for a disk that hangs. After it: 503.
CALL_SECONDS = 8.0

T = TypeVar("T")


class OneAtATime:
    """Run functions that read the disk one at a time, in one thread; the others wait briefly."""

    def __init__(self, busy: str) -> None:
        """Reject a function that waits too long with the code `busy`."""
        self._busy = busy
        self._thread = ThreadPool(1)
        self._free = Semaphore()
        self._waiting = 0

    def run_later(self, function: Callable[[], object]) -> None:
        """Queue a call of the function, and return at once."""
        gevent.spawn(spawn_in_thread, self._thread, function)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return the function's result; its errors propagate. Raises Rejection."""
        if self._waiting >= MAX_WAITING:
            raise Rejection(self._busy)
        self._waiting += 1
        try:
            if not self._free.acquire(timeout=WAIT_SECONDS):
                raise Rejection(self._busy)
        finally:
            self._waiting -= 1
        result = spawn_in_thread(self._thread, function, *arguments)
        result.rawlink(lambda _: self._free.release())  # also if nobody waits for it any more
        try:
            outcome = result.get(timeout=CALL_SECONDS)
        except gevent.Timeout:
            raise Rejection(self._busy, "The disk takes too long; retry later.") from None
        returned: T = outcome.get()
        return returned
