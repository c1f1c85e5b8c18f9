"""A chunk's lines are in the tables once, whatever happens to an insert."""

import random
from collections import Counter

import pytest

from astralog.forward import delivery as deliveries
from astralog.forward.clickhouse import Unavailable
from astralog.forward.delivery import Delivered, Delivery, Miscounted
from tests.support.clickhouse import make_line
from tests.unit.forward.fakes import NODE, FakeServer, make_chunk

NAME = "20261123T062500.123456Z-4711"
GOOD, OLD = make_line(1), make_line(2, timestamp="0001-01-01T00:00:00Z")
POISON = make_line(3, message="poison")


def deliver(server: FakeServer, *lines: bytes, in_doubt: bool = False) -> Delivered:
    """Deliver a chunk of these lines, with as many attempts as needed."""
    while True:
        try:
            return Delivery(server, NODE).deliver(make_chunk(NAME, *lines), in_doubt)
        except Unavailable:
            in_doubt = True


def lines_once(count: int) -> Counter[tuple[str, int]]:
    """Return the first lines of the segment, each with the count 1."""
    return Counter((NAME, number) for number in range(1, count + 1))


def test_a_chunk_is_one_insert() -> None:
    """Without doubt the table is not queried, and without dead letters theirs gets no insert."""
    server = FakeServer()
    assert deliver(server, GOOD, GOOD) == Delivered(2, 0)
    assert server.calls == ["insert"]
    assert server.lines() == lines_once(2)


def test_dead_letters_go_to_their_table() -> None:
    """Each line is in one of the tables; a table without lines gets no insert."""
    server = FakeServer()
    assert deliver(server, GOOD, OLD, GOOD) == Delivered(3, 1)
    assert server.calls == ["insert", "insert_dead_letters"]
    assert server.dead_letters.keys() == {(NAME, 2)}
    server = FakeServer()
    assert deliver(server, OLD) == Delivered(1, 1)
    assert server.calls == ["insert_dead_letters"]


def test_table_is_queried_first_in_doubt() -> None:
    """Only missing lines are sent."""
    server = FakeServer()
    server.remembers_tokens = False
    assert deliver(server, GOOD, GOOD, in_doubt=True).lines == 2
    assert server.calls == ["held", "insert"]
    server.calls.clear()
    assert deliver(server, GOOD, GOOD, in_doubt=True).lines == 2
    assert server.calls == ["held"]
    server.calls.clear()
    assert deliver(server, GOOD, GOOD, OLD, GOOD, in_doubt=True).lines == 4
    assert server.calls == ["held", "insert", "insert_dead_letters"]
    assert server.lines() == lines_once(4)


@pytest.mark.parametrize("fault", ["before", "after"])
def test_table_is_queried_after_a_failure(fault: str) -> None:
    """A failed insert may be stored or not; no line is lost or doubled."""
    server = FakeServer()
    server.remembers_tokens = False
    server.faults = [fault]
    deliver(server, GOOD, OLD, GOOD)
    assert server.calls[:2] == ["insert", "held"]
    assert server.lines() == lines_once(3)


@pytest.mark.parametrize("fault", ["fewer", "miscount"])
def test_insert_of_fewer_rows_is_a_failure(fault: str) -> None:
    """The table is queried, and missing lines are sent again."""
    server = FakeServer()
    server.remembers_tokens = False
    server.faults = [fault]
    with pytest.raises(Miscounted, match=r"^2 rows were sent, [01] were written$"):
        Delivery(server, NODE).deliver(make_chunk(NAME, GOOD, OLD, GOOD), in_doubt=False)
    assert deliver(server, GOOD, OLD, GOOD, in_doubt=True).lines == 3
    assert server.lines() == lines_once(3)
    server.faults = ["", "fewer"]  # of the dead letter that is new
    with pytest.raises(Miscounted):
        Delivery(server, NODE).deliver(make_chunk(NAME, GOOD, OLD, GOOD, OLD), in_doubt=True)


def test_missing_lines_have_another_token() -> None:
    """The table may remember the first token, and drop the lines."""
    server = FakeServer()
    deliver(server, GOOD, OLD, GOOD)
    server.logs.clear()
    server.dead_letters.clear()
    deliver(server, GOOD, OLD, GOOD, in_doubt=True)
    assert server.lines() == lines_once(0)
    chunk = make_chunk(NAME, GOOD, OLD, GOOD)
    Delivery(server, NODE, again=True).deliver(chunk, in_doubt=True)
    assert server.lines() == lines_once(3)


def test_failed_query_is_a_failure_too() -> None:
    """Nothing is sent while the table does not respond."""
    server = FakeServer()
    server.faults = ["before", "before"]
    deliver(server, GOOD, in_doubt=True)
    assert server.calls == ["held", "held", "held", "insert"]


def test_rejected_rows_are_found_by_bisection() -> None:
    """The rejected lines are found among many, and their reason is kept."""
    server = FakeServer()
    lines = [GOOD] * 40
    lines[6] = lines[7] = lines[33] = POISON
    assert deliver(server, *lines) == Delivered(40, 3)
    assert server.dead_letters == dict.fromkeys([(NAME, 7), (NAME, 8), (NAME, 34)], "it is poison")
    assert server.lines() == lines_once(40)
    assert server.calls.count("rejected") < 25


def test_stored_rows_are_not_searched() -> None:
    """A table may reject rows because of a materialized view, and have stored them."""
    server = FakeServer()
    server.remembers_tokens = False
    server.faults = ["view"]
    assert deliver(server, GOOD, GOOD, GOOD) == Delivered(3, 0)
    assert server.lines() == lines_once(3)


def test_a_search_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a table rejects nearly everything, the rest becomes dead letters unchecked."""
    monkeypatch.setattr(deliveries, "SEARCH_INSERTS", 10)
    server = FakeServer()
    assert deliver(server, *[GOOD, POISON] * 100).lines == 200
    assert server.calls.count("rejected") <= 10 + 10
    assert server.lines() == lines_once(200)


@pytest.mark.parametrize("remembers_tokens", [True, False])
@pytest.mark.parametrize("seed", range(50))
def test_any_sequence_of_failures_delivers_each_line_once(
    seed: int, remembers_tokens: bool
) -> None:
    """Any calls fail, in any order."""
    source = random.Random(seed)
    server = FakeServer()
    server.remembers_tokens = remembers_tokens
    lines = source.choices([GOOD, OLD, POISON, b"no log"], [20, 2, 1, 1], k=30)
    for _ in range(3):  # forward is killed and started again
        server.faults = source.choices(["", "before", "after"], k=source.randrange(12))
        for _ in range(source.randrange(3)):
            try:
                Delivery(server, NODE).deliver(make_chunk(NAME, *lines), in_doubt=True)
            except Unavailable:
                continue
            break
    server.faults = []
    deliver(server, *lines, in_doubt=True)
    assert server.lines() == lines_once(30)
