import random

from astralog.store.names import SegmentName
from astralog.store.segment_index import SegmentIndex
from tests.unit.store.segments import name_of

A, B = name_of("a"), name_of("b")


def test_the_oldest_segment_is_the_first_by_name() -> None:
    """However they are added, they come in the order of their names."""
    index = SegmentIndex()
    for name in map(name_of, "dbeca"):
        index.put(name, 10)
    order = []
    while oldest := index.oldest():
        order.append(oldest)
        index.remove(oldest)
    assert [*map(name_of, "abcde")] == order
    assert 0 == len(index) == index.bytes


def test_a_segment_counts_once_with_all_its_bytes() -> None:
    """Another form adds to a segment, and a new look replaces what was known of it."""
    index = SegmentIndex()
    index.add(A, 100)
    index.add(A, 10)
    assert (1, 110) == (len(index), index.bytes)
    index.put(A, 10)
    assert (1, 10) == (len(index), index.bytes)
    assert 10 == index.remove(A)
    assert (0, 0) == (len(index), index.bytes)


def test_a_segment_that_is_not_known_can_be_removed() -> None:
    """It had no bytes."""
    index = SegmentIndex()
    index.put(A, 1)
    assert 0 == index.remove(B)
    assert (1, 1) == (len(index), index.bytes)


def test_a_segment_that_comes_back_is_there_once() -> None:
    """A name that went and came is in its place again."""
    index = SegmentIndex()
    for name in map(name_of, "abc"):
        index.put(name, 1)
    index.remove(B)
    index.put(B, 5)
    index.remove(A)
    assert (B, 2, 6) == (index.oldest(), len(index), index.bytes)
    index.remove(B)
    assert name_of("c") == index.oldest()


def test_names_that_are_gone_are_let_go_of() -> None:
    """An index whose oldest segments go holds no more than what is there."""
    index = SegmentIndex()
    for number in range(1000):
        index.put(name_of(number), 1)
        if number >= 10:
            index.remove(name_of(number - 10))
    assert 10 == len(index)
    assert 10 == len(index._names)


def test_an_index_is_right_after_any_changes() -> None:
    """It agrees with a plain dictionary."""
    chance = random.Random(0)
    index, plain = SegmentIndex(), dict[SegmentName, int]()
    for _ in range(5000):
        name = name_of(chance.randrange(100))
        if chance.random() < 0.5:
            plain[name] = chance.randrange(1000)
            index.put(name, plain[name])
        else:
            assert plain.pop(name, 0) == index.remove(name)
        assert (len(plain), sum(plain.values())) == (len(index), index.bytes)
        assert min(plain, default=None) == index.oldest()
