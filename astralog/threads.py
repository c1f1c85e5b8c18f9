"""Calls in threads while other greenlets run: exceptions reach the caller and are not printed."""

import errno
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import gevent
from gevent.event import AsyncResult, Event
from gevent.hub import Waiter
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from astralog.deadlines import hub_time
from astralog.errors import NO_THREAD, Rejection

Result = TypeVar("Result")


class CallOutcome(NamedTuple, Generic[Result]):
    """The result of a call, or its exception."""

    result: Result | None
    error: Exception | None = None

    def get(self) -> Result:
        if self.error is None:
            return self.result  # type: ignore[return-value]  # None if that is the result
        try:
            raise self.error
        finally:
            del self  # or the exception holds this frame, which holds the exception


def spawn_in_thread(
    pool: ThreadPool, function: Callable[..., Result], *args: Any
) -> "AsyncResult[CallOutcome[Result]]":
    """Start the function in a thread of the pool, and return an event for its outcome.

    gevent prints the traceback of each exception that leaves a function in its pool, also if the
    caller handles it. Raises OSError if no thread can be started, before the call is queued.
    """
    if not pool.size:
        try:
            pool.size = 1
        except RuntimeError:
            raise OSError(errno.ENOMEM, NO_THREAD) from None
    return pool.spawn(_call, function, *args)


def _call(function: Callable[..., Result], *args: Any) -> CallOutcome[Result]:
    try:
        return CallOutcome(function(*args))
    except Exception as error:
        return CallOutcome(None, error)


def call_in_thread(pool: ThreadPool, function: Callable[..., Result], *args: Any) -> Result:
    """Return the result of a function that runs in a thread of the pool, or raise its error."""
    result: Result = spawn_in_thread(pool, function, *args).get().get()
    return result


#: Maximum number of waiting calls, and maximum seconds of a wait. Beyond it: 503.
MAX_WAITING = 50
WAIT_SECONDS = 2.0

#: Seconds that a call may take, for a disk that hangs. After it: 503.
CALL_SECONDS = 8.0


class OneAtATime:
    """Run functions that read the disk one at a time, in one thread, in their order.

    The others wait briefly, in a line: a client that calls again at once is the last one.
    """

    def __init__(self, busy: str) -> None:
        """Reject a function that waits too long with the code `busy`."""
        self._busy = busy
        self._thread = ThreadPool(1)
        self._line: deque[Event] = deque()  # of the call that runs, and of those that wait

    def run_later(self, function: Callable[[], object]) -> None:
        """Queue a call of the function, and return at once."""
        gevent.spawn(spawn_in_thread, self._thread, function)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return the function's result; its errors propagate. Raises Rejection."""
        if len(self._line) > MAX_WAITING:
            raise Rejection(self._busy)
        turn = Event()
        self._line.append(turn)
        try:
            if self._line[0] is not turn:
                turn.wait(WAIT_SECONDS)
            if self._line[0] is not turn:
                raise Rejection(self._busy)
            try:
                result = spawn_in_thread(self._thread, function, *arguments)
            except OSError as error:
                raise Rejection(self._busy, f"{error.strerror}; retry later.") from error
        except BaseException:
            self._leave(turn)
            raise
        result.rawlink(lambda _: self._leave(turn))  # also if nobody waits for it any more
        try:
            outcome = result.get(timeout=CALL_SECONDS)
        except gevent.Timeout:
            raise Rejection(self._busy, "The disk takes too long; retry later.") from None
        returned: Result = outcome.get()
        return returned

    def _leave(self, turn: Event) -> None:
        """Leave the line; after the first one, the next one runs."""
        is_first = self._line[0] is turn
        self._line.remove(turn)
        if is_first and self._line:
            self._line[0].set()


#: The original, which blocks a thread; a patched process has gevent's in its place.
SimpleQueue = get_original("queue", "SimpleQueue")


class DiskThreads:
    """Run calls in threads; a greenlet waits for its call while other greenlets run.

    gevent's own pool creates a watcher and an event per call, and acquires three locks: measured,
    that takes 4 to 12% of the CPU of a request.
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
        """Call the function in a thread; return its result or raise its exception."""
        waiter: Waiter[Result] = Waiter()
        self._calls.put((waiter, function, args))
        result: Result = waiter.get()
        return result

    def _run(self) -> None:
        while True:
            self._run_call()  # its locals, and so the batches, are freed after each call

    def _run_call(self) -> None:
        waiter, function, args = self._calls.get()
        try:
            result = function(*args)
        except BaseException as error:
            self._answers.append((waiter.throw, error))
        else:
            self._answers.append((waiter.switch, result))
        self._answered.send()
        hub_time.end()  # or clients whose batches are stored wait for the rest of the slice

    def _hand_out(self) -> None:
        """Resume the greenlets whose calls are done; the hub calls this."""
        while self._answers:
            go_on, answer = self._answers.popleft()
            go_on(answer)
