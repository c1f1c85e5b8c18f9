"""Loops in the background: none of them ends because a step failed."""

import logging
from collections.abc import Callable
from typing import NoReturn

import gevent

from astralog.log import log_exception

#: Seconds until the next step after one that failed.
FAILED_SECONDS = 1.0


def run_forever(
    step: Callable[[], float],
    logger: logging.Logger,
    message: str,
    sleep: Callable[[float], None] = gevent.sleep,
) -> NoReturn:
    """Call `step` again and again, each time after the seconds that it returned.

    An exception is logged with `message`, which is constant and names the loop, and the loop goes
    on after FAILED_SECONDS. Only GreenletExit and other exceptions that are no Exception end it.
    A loop in a thread passes `time.sleep`.
    """
    while True:
        try:
            pause = step()
        except Exception:
            log_exception(logger, message)
            pause = FAILED_SECONDS
        sleep(pause)
