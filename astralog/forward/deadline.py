"""One deadline for a call as a whole, however slowly it goes on."""

import signal
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

#: Seconds until the signal is repeated: an exception that it raises in a finalizer is lost.
REPEAT_SECONDS = 1.0


class _Expired(BaseException):
    """The deadline passed; no `except Exception` on the way mistakes it for a failure."""


class _Alarm:
    """Raises _Expired in the main thread, as long as it is armed."""

    is_armed = True

    def __call__(self, number: int, frame: object) -> None:
        if self.is_armed:
            raise _Expired


def call_within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return the result of a call; raises TimeoutError if it takes longer than `seconds`.

    A socket's timeout starts anew with every byte, so that an answer which drips never reaches it.
    Only the main thread may call this. A name server's answer is waited for beyond the deadline.
    """
    alarm = _Alarm()
    handler = signal.signal(signal.SIGALRM, alarm)
    started = time.monotonic()
    delay, interval = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
    try:
        try:
            return call()
        finally:
            alarm.is_armed = False
    except _Expired:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        if delay:  # of whoever set a timer before, as a test's own deadline
            left = max(delay - (time.monotonic() - started), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, interval)
    raise TimeoutError(f"no complete answer within {seconds:g} s")
