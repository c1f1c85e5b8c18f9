"""A segment is delivered once the tables confirm it, or nothing more can be done."""

import time

import pytest

from astralog.forward import delivery as verifiers
from astralog.forward.clickhouse import Unavailable
from astralog.forward.delivery import Outcome, Verifier
from tests.unit.forward.fakes import FakeServer

A, B, C = (f"20261123T06250{number}.000000Z-1" for number in range(3))


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the verifier's clock."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def server() -> FakeServer:
    """Return a server without faults."""
    return FakeServer()


def store(server: FakeServer, name: str, *lines: int) -> None:
    """Store lines of a segment in the table."""
    server.logs.update((name, line) for line in lines)


def outcomes(verifier: Verifier) -> dict[str, Outcome]:
    """Return the outcomes of a check by segment name."""
    return {sent.name: sent.outcome for sent in verifier.check()}


def is_due(verifier: Verifier, clock: Clock, is_idle: bool = False) -> bool:
    """Return whether the tables are due to be queried."""
    return verifier.next_at(is_idle) <= clock.now


def test_segments_share_a_query(server: FakeServer, clock: Clock) -> None:
    """They are collected for some seconds, unless there is no other work."""
    verifier = Verifier(server)
    assert not is_due(verifier, clock, is_idle=True)
    for name in (A, B):
        verifier.add(name, 2, is_repeated=False)
        store(server, name, 1, 2)
    assert not is_due(verifier, clock)
    assert is_due(verifier, clock, is_idle=True)
    clock.now += verifiers.GATHER_SECONDS
    assert is_due(verifier, clock)
    assert outcomes(verifier) == {A: Outcome.COMPLETE, B: Outcome.COMPLETE}
    assert server.calls == ["count"]
    for name in (A, B):
        verifier.remove(name)
    assert not verifier


def test_many_segments_do_not_wait(
    server: FakeServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query covers a limited number of segments and lines, and at least one segment."""
    monkeypatch.setattr(verifiers, "QUERY_SEGMENTS", 2)
    monkeypatch.setattr(verifiers, "QUERY_LINES", 10)
    verifier = Verifier(server)
    for name, lines in ((A, 100), (B, 5), (C, 6)):
        verifier.add(name, lines, is_repeated=False)
        store(server, name, *range(1, lines + 1))
    for name in (A, B, C):
        assert is_due(verifier, clock, is_idle=name == C)
        assert list(outcomes(verifier)) == [name]
        verifier.remove(name)


def test_too_many_rows_are_doubled(server: FakeServer, clock: Clock) -> None:
    """A line twice, or one that the segment does not have."""
    verifier = Verifier(server)
    for name in (A, B):
        verifier.add(name, 2, is_repeated=False)
    store(server, A, 1, 2, 2)
    store(server, B, 1, 2, 3)
    assert outcomes(verifier) == {A: Outcome.DOUBLED, B: Outcome.DOUBLED}


def test_lines_after_the_last_do_not_replace_missing_ones(server: FakeServer, clock: Clock) -> None:
    """The right number of distinct lines may still be the wrong lines."""
    verifier = Verifier(server)
    verifier.add(A, 3, is_repeated=False)
    store(server, A, 1, 2, 4)
    assert outcomes(verifier) == {}
    clock.now += verifiers.REPLICA_SECONDS
    verifier.check()
    missing = verifier.missing()
    assert missing
    assert missing.name == A


def test_lagging_replica_is_waited_for(server: FakeServer, clock: Clock) -> None:
    """The pauses grow, and nothing is sent again while it may catch up."""
    verifier = Verifier(server)
    verifier.add(A, 2, is_repeated=False)
    store(server, A, 1)
    assert outcomes(verifier) == {}
    pauses = []
    for _ in range(7):
        assert not is_due(verifier, clock, is_idle=True)
        pauses.append(verifier.next_at(is_idle=True) - clock.now)
        clock.now = verifier.next_at(is_idle=True)
        assert outcomes(verifier) == {}
        assert verifier.missing() is None
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    store(server, A, 2)
    clock.now = verifier.next_at(is_idle=False)
    assert outcomes(verifier) == {A: Outcome.COMPLETE}


def wait_for_replicas(verifier: Verifier, clock: Clock) -> dict[str, Outcome]:
    """Check until the wait for replicas is over; return the last outcomes."""
    assert outcomes(verifier) == {}
    clock.now += verifiers.REPLICA_SECONDS
    return outcomes(verifier)


def test_missing_lines_are_sent_again_once(server: FakeServer, clock: Clock) -> None:
    """Neither a TTL nor a replica that never catches up causes a loop."""
    verifier = Verifier(server)
    verifier.add(A, 2, is_repeated=False)
    assert wait_for_replicas(verifier, clock) == {}
    missing = verifier.missing()
    assert missing
    assert (missing.name, missing.held.lines) == (A, 0)
    assert verifier.next_at(is_idle=True) == float("inf")
    verifier.remove(A)
    verifier.add(A, 2, is_repeated=True)
    assert verifier.missing() is None
    assert wait_for_replicas(verifier, clock) == {A: Outcome.INCOMPLETE}


def test_failure_changes_nothing(server: FakeServer, clock: Clock) -> None:
    """While the tables do not respond, nothing is decided; decisions stay until removed."""
    verifier = Verifier(server)
    verifier.add(A, 1, is_repeated=False)
    server.faults = ["before"]
    with pytest.raises(Unavailable):
        verifier.check()
    store(server, A, 1)
    for _ in range(2):  # noting it fails the first time
        assert is_due(verifier, clock, is_idle=True)
        assert outcomes(verifier) == {A: Outcome.COMPLETE}


def test_empty_segment_is_complete(server: FakeServer, clock: Clock) -> None:
    """The tables have nothing of a segment without lines."""
    verifier = Verifier(server)
    verifier.add(A, 0, is_repeated=False)
    assert outcomes(verifier) == {A: Outcome.COMPLETE}
