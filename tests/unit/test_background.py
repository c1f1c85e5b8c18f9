"""Background loops continue after a failed step."""

import logging

import pytest
from gevent import GreenletExit

from astralog.background import FAILED_SECONDS, run_forever


def test_failed_step_is_logged_and_the_loop_continues(caplog: pytest.LogCaptureFixture) -> None:
    """After a failed step the loop pauses and continues until it is stopped."""
    outcomes: list[float | BaseException] = [2.0, ValueError("odd"), 3.0, GreenletExit()]
    pauses: list[float] = []

    def step() -> float:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(GreenletExit):
        run_forever(step, logging.getLogger("astralog.test"), "a test's loop", pauses.append)
    assert pauses == [2.0, FAILED_SECONDS, 3.0]
    assert [record.getMessage() for record in caplog.records] == ["a test's loop"]
