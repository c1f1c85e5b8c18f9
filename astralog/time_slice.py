"""How long one greenlet may compute before others are served."""

import time

import gevent

#: Work that keeps its worker busy for longer than a slice pauses, so that others are served.
TIME_SLICE_SECONDS = 0.02
PAUSE_SECONDS = 0.001


class TimeSlice:
    """What a greenlet may compute at a stretch: work that is there already makes no one wait."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def end_if_over(self) -> None:
        """Let others be served, if this slice is over.

        A sleep of 0 would let gevent run 50 such slices before it looks at any socket.
        """
        if time.monotonic() - self._start > TIME_SLICE_SECONDS:
            gevent.sleep(PAUSE_SECONDS)
            self._start = time.monotonic()
