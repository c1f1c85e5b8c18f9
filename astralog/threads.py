"""Calls in threads of gevent's pools: exceptions reach the caller and are not printed."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

Result = TypeVar("Result")


class CallOutcome(NamedTuple, Generic[Result]):
    """The result of a call, or its exception."""

    result: Result | None
    error: Exception | None = None

    def get(self) -> Result:
        """Return the result, or raise the exception."""
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
    caller handles it.
    """
    return pool.spawn(_call, function, *args)


def _call(function: Callable[..., Result], *args: Any) -> CallOutcome[Result]:
    try:
        return CallOutcome(function(*args))
    except Exception as error:
        return CallOutcome(None, error)


def call_in_thread(pool: ThreadPool, function: Callable[..., Result], *args: Any) -> Result:
    """Call the function in a thread of the pool, and return its result or raise its error.

    Other greenlets run meanwhile.
    """
    result: Result = spawn_in_thread(pool, function, *args).get().get()
    return result
