"""Greenlets of a test."""

from collections.abc import Callable

import gevent

from tests.support.service import TIMEOUT_SECONDS


def wait_until(condition: Callable[[], object]) -> None:
    """Let other greenlets run until a condition holds.

    A sleep would not be enough: if the process stood still meanwhile, the sleep ends before what
    arrived at its sockets is handled.
    """
    with gevent.Timeout(TIMEOUT_SECONDS):
        while not condition():
            gevent.sleep(0.001)
