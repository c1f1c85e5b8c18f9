"""The service's own log: episodes of failures, and repeated tracebacks."""

import logging
import time

import pytest

from astralog import log as log_module
from astralog.log import LineFormatter, LogOnce, log_exception

logger = logging.getLogger("astralog.test")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged messages so far."""
    return [record.getMessage() for record in caplog.records]


def test_repeated_failure_is_logged_once_with_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """An episode is one line at its start and one at its end."""
    once = LogOnce(logger)
    for _ in range(3):
        once.fail("full", "the disk is %s", "full")
    once.end("the disk has space again")
    once.end("the disk has space again")
    assert messages(caplog) == ["the disk is full", "the disk has space again"]
    assert not once


def test_failure_of_another_kind_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A second cause within an episode is a second line."""
    once = LogOnce(logger)
    once.fail("full", "full")
    once.fail("broken", "broken")
    assert once
    assert messages(caplog) == ["full", "broken"]


def test_tracebacks_of_one_place_are_limited(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is logged; the next ones are counted until a minute has passed."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(log_module, "_tracebacks", {})
    for seconds in (0, 1, 58, 1):
        now[0] += seconds
        try:
            raise ValueError("odd")
        except ValueError:
            log_exception(logger, "step failed")
    assert messages(caplog) == ["step failed", "step failed (2 more since the last traceback)"]
    assert all(record.exc_info for record in caplog.records)


def test_event_is_one_line() -> None:
    """Text from servers, clients or file names neither ends a line nor controls a terminal."""
    formatter = LineFormatter("%(levelname)s %(message)s", prefix="\r\x1b[K")
    hostile = "<html>\r\n2026-11-29 ERROR forged \x1b[2J \u202e\u2028\x9b"
    record = logging.makeLogRecord({"levelname": "ERROR", "msg": "it said %s", "args": (hostile,)})
    line = "\r\x1b[KERROR it said <html>"
    assert formatter.format(record) == (
        line + r"\r\n2026-11-29 ERROR forged \u001b[2J \u202e\u2028\u009b"
    )


def test_traceback_has_no_control_characters() -> None:
    """It keeps its line breaks and no other control character of an error's text."""
    try:
        raise ValueError("\x1b[2J\u2028")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (ValueError, error, None)})
    assert LineFormatter("%(message)s").format(record) == r"failed" + "\n" + (
        r"ValueError: \u001b[2J\u2028"
    )
