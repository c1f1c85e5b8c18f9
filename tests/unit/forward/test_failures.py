"""Failures are logged once per episode, and attempts become rarer."""

import logging

import pytest

from astralog.forward.clickhouse import Unavailable
from astralog.forward.progress import LONGEST_PAUSE_SECONDS, Failures


def test_pauses_grow_to_the_longest() -> None:
    """Each pause is random between half and all of a limit, which doubles."""
    failures = Failures()
    pauses = [failures.add(OSError("x")) for _ in range(12)]
    for number, pause in enumerate(pauses):
        longest = min(0.5 * 2**number, LONGEST_PAUSE_SECONDS)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses)
    failures.end()
    assert failures.add(OSError("x")) <= 0.5


def test_many_failures_do_not_overflow() -> None:
    """After a night without a server, the pause is still the longest."""
    failures = Failures()
    failures.attempts = 10**6
    assert failures.add(OSError("x")) <= LONGEST_PAUSE_SECONDS


def test_an_episode_has_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    """One at its start and one at its end; none for repeated success."""
    caplog.set_level(logging.INFO, "astralog")
    failures = Failures()
    failures.end()
    assert caplog.messages == []
    for _ in range(5):
        failures.add(Unavailable(ConnectionRefusedError("refused"), None))
    assert ["cannot deliver: refused; retrying"] == caplog.messages
    assert failures.since > 0
    failures.end()
    failures.end()
    assert "delivering again after" in caplog.messages[1]
    assert "5 attempts" in caplog.messages[1]
    assert (len(caplog.messages), failures.since) == (2, 0.0)


def test_another_kind_of_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A server that was down and is now full is a new failure."""
    failures = Failures()
    failures.add(Unavailable(ConnectionRefusedError("refused"), None))
    failures.add(Unavailable(ValueError("full"), 243))
    failures.add(Unavailable(ValueError("still full"), 243))
    failures.add(OSError("the disk"))
    assert [message.split(";")[0] for message in caplog.messages] == [
        "cannot deliver: refused",
        "cannot deliver: full",
        "cannot deliver: the disk",
    ]
