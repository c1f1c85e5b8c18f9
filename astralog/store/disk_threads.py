"""Threads for what may block on the disk, and the way there and back."""

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent.hub import Waiter
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

Result = TypeVar("Result")

#: The one that blocks a thread; gevent's takes its place in a patched process.
SimpleQueue = get_original("queue", "SimpleQueue")


class DiskThreads:
    """Run calls in threads, each for a greenlet that waits for it while others are served.

    For each call, gevent's own pool makes a watcher and an event, and takes three locks.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPool(count)
        self._calls = SimpleQueue()
        self._answers: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._answered = gevent.get_hub().loop.async_()

    def start(self) -> None:
        """Start all threads; they end with the process."""
        self._answered.start(self._hand_out)
        for _ in range(self._pool.maxsize):
            self._pool.spawn(self._run)

    def call(self, function: Callable[..., Result], *args: Any) -> Result:
        """Return what the function returns in a thread, or raise what it raises."""
        waiter: Waiter[Result] = Waiter()
        self._calls.put((waiter, function, args))
        result: Result = waiter.get()
        return result

    def _run(self) -> None:
        while True:
            self._run_call()  # nothing of it is held after it

    def _run_call(self) -> None:
        waiter, function, args = self._calls.get()
        try:
            result = function(*args)
        except BaseException as error:
            self._answers.append((waiter.throw, error))
        else:
            self._answers.append((waiter.switch, result))
        self._answered.send()

    def _hand_out(self) -> None:
        """Let the greenlets go on whose calls are done; the hub calls this."""
        while self._answers:
            go_on, answer = self._answers.popleft()
            go_on(answer)
