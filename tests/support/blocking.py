"""The CPU time that a thread's greenlets use before its hub may serve others."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import greenlet

#: Seconds of CPU that may pass between two switches.
MOST_SECONDS = 0.3


class Stretches:
    """The CPU time of this thread between two switches of its greenlets."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._since = time.thread_time()

    def end(self) -> None:
        """End a stretch, and start another."""
        now = time.thread_time()
        self.longest = max(self.longest, now - self._since)
        self._since = now


@contextmanager
def cpu_stretches() -> Iterator[Stretches]:
    """Measure the block in CPU time, which does not depend on other load of the machine."""
    stretches = Stretches()

    def trace(event: str, greenlets: Any) -> None:
        stretches.end()

    before: Callable[[str, Any], Any] | None = greenlet.gettrace()
    greenlet.settrace(trace)
    try:
        yield stretches
    finally:
        greenlet.settrace(before)
        stretches.end()
