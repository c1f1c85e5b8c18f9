"""A trusted clock for ages: a jump of the wall clock removes no segment and forgets no key.

A bad NTP server, a resumed VM or a real-time clock that was wrong at boot can move the wall clock
by days for a few seconds. Ages of segments and of idempotency keys follow this clock instead.
"""

import time
from collections.abc import Callable

#: The largest change of the wall clock that is adopted immediately.
STEP_SECONDS = 60.0

#: Seconds that a larger change must last before it is adopted.
ADOPT_SECONDS = 3600.0


def boot_time() -> float:
    """Return the seconds since boot, including suspension; this clock cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TrustedClock:
    """Seconds since 1970: the wall time at the start, carried on by CLOCK_BOOTTIME.

    `now` must be called at least every few minutes, since a change of the wall clock is noticed
    only then. Any thread may call it.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = boot_time,
        *,
        adopt_seconds: float = ADOPT_SECONDS,
    ) -> None:
        """Adopt a change of the wall clock once it has lasted for `adopt_seconds`."""
        self._adopt_seconds = adopt_seconds
        self._wall = wall
        self._elapsed = elapsed
        self._offset = wall() - elapsed()  # of the trusted time from CLOCK_BOOTTIME
        self._changed_offset = self._offset  # of the wall clock, if it was changed
        self._changed_at = 0.0  # when that change was noticed, by CLOCK_BOOTTIME

    def now(self) -> float:
        elapsed = self._elapsed()
        offset = self._wall() - elapsed
        if abs(offset - self._offset) <= STEP_SECONDS:
            self._offset = self._changed_offset = offset
        elif abs(offset - self._changed_offset) > STEP_SECONDS:
            self._changed_offset = offset
            self._changed_at = elapsed
        elif elapsed - self._changed_at >= self._adopt_seconds:
            self._offset = offset
        return elapsed + self._offset
