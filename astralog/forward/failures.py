"""One episode of failures: a line when it begins and one when it is over, and pauses between."""

import logging
import random
import time

from astralog.log import LogOnce

log = logging.getLogger(__name__)

#: The pause after a failed attempt doubles from the first to the longest.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


class Failures:
    """Failed attempts in a row; `since` is when they began, in seconds since 1970, 0 for none."""

    def __init__(self) -> None:
        self.attempts = 0
        self.since = 0.0
        self._log = LogOnce(log)

    def add(self, error: Exception) -> float:
        """Note a failed attempt, and return the seconds to wait before the next.

        Only the first of its kind is logged. By chance, not all of the many nodes that deliver to
        one table come back to it at the same moment.
        """
        kind = (type(error), getattr(error, "code", None))
        self._log.fail(kind, "cannot deliver: %s; trying again", error)
        self.since = self.since or time.time()
        longest = min(FIRST_PAUSE_SECONDS * 2 ** min(self.attempts, 32), LONGEST_PAUSE_SECONDS)
        self.attempts += 1
        return random.uniform(longest / 2, longest)  # nosec B311

    def end(self) -> None:
        """Note that an attempt succeeded."""
        seconds = time.time() - self.since
        self._log.end("delivering again after %.0f s, %d attempts", seconds, self.attempts)
        self.attempts = 0
        self.since = 0.0
