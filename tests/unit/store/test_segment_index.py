import random
from itertools import islice

import pytest

from astralog.store.directory import AHEAD_ERA, FIRST_ERA, Entry, SegmentIndex
from astralog.store.names import SegmentName
from tests.unit.store.segments import name_of

A, B = name_of("a"), name_of("b")


def entry(size: int, era: int = FIRST_ERA) -> Entry:
    return Entry(size, changed_at=0.0, era=era)


def first(index: SegmentIndex) -> SegmentName | None:
    order = index.oldest_first()
    name = next(order, None)
    order.close()
    return name


def test_the_oldest_segment_is_the_first_by_name() -> None:
    """Segments are sorted by name, in whatever order they are added."""
    index = SegmentIndex()
    for name in map(name_of, "dbeca"):
        index.put(name, entry(10))
    assert [*map(name_of, "abcde")] == list(index.oldest_first())
    for name in index.oldest_first():
        index.remove(name)
    assert 0 == len(index) == index.bytes
    assert [] == list(index.oldest_first())


def test_segments_of_an_earlier_era_are_older() -> None:
    """Within it they are sorted by name, as are those named ahead of the clock."""
    index = SegmentIndex()
    for name in map(name_of, "dbeca"):
        index.put(name, entry(10, era=AHEAD_ERA if name > name_of("c") else FIRST_ERA))
    assert [*map(name_of, "deabc")] == list(index.oldest_first())
    index.put(name_of("0"), entry(10, era=FIRST_ERA + 1))
    index.put(name_of("d"), entry(20, era=FIRST_ERA))  # as it turned out
    assert [*map(name_of, "eabcd0")] == list(index.oldest_first())
    assert 70 == index.bytes
    assert 20 == index.remove(name_of("d"))
    assert [*map(name_of, "eabc0")] == list(index.oldest_first())


@pytest.mark.parametrize("count", [5, 200])
def test_skipped_segments_stay_in_order(count: int) -> None:
    """After an early stop or some removals, the others are still in order."""
    index = SegmentIndex()
    for number in range(2 * count):
        index.put(name_of(number), entry(1, era=number % 2))
    order = index.oldest_first()
    for name in islice(order, count + count // 2):
        if name in (name_of(2), name_of(1)):
            index.remove(name)
    order.close()
    ahead = [n for n in range(0, 2 * count, 2) if n != 2]
    others = [n for n in range(1, 2 * count, 2) if n != 1]
    assert [name_of(n) for n in (*ahead, *others)] == list(index.oldest_first())


def test_a_segment_counts_once_with_all_its_bytes() -> None:
    """Another form adds to a segment, and a new check replaces its earlier state."""
    index = SegmentIndex()
    index.add(A, entry(100))
    index.add(A, entry(10))
    assert (1, 110) == (len(index), index.bytes)
    index.put(A, entry(10))
    assert (1, 10) == (len(index), index.bytes)
    assert 10 == index.remove(A)
    assert (0, 0) == (len(index), index.bytes)


def test_unknown_segment_can_be_removed() -> None:
    """It had no bytes."""
    index = SegmentIndex()
    index.put(A, entry(1))
    assert 0 == index.remove(B)
    assert (1, 1) == (len(index), index.bytes)


def test_reappearing_segment_is_there_once() -> None:
    """It is in its place again."""
    index = SegmentIndex()
    for name in map(name_of, "abc"):
        index.put(name, entry(1))
    index.remove(B)
    index.put(B, entry(5))
    index.remove(A)
    assert (B, 2, 6) == (first(index), len(index), index.bytes)
    index.remove(B)
    assert [name_of("c")] == list(index.oldest_first())


def test_removed_names_are_freed() -> None:
    """After the removal of the oldest segments, the index contains only existing ones."""
    index = SegmentIndex()
    for number in range(1000):
        index.put(name_of(number), entry(1))
        if number >= 10:
            index.remove(name_of(number - 10))
    assert 10 == len(index)
    assert 10 == sum(map(len, index._heaps.values()))


def test_an_index_is_right_after_any_changes() -> None:
    """It agrees with a plain dictionary."""
    chance = random.Random(0)
    index, plain = SegmentIndex(), dict[SegmentName, int]()
    for _ in range(5000):
        name = name_of(chance.randrange(100))
        if chance.random() < 0.5:
            plain[name] = chance.randrange(1000)
            index.put(name, entry(plain[name]))
        else:
            assert plain.pop(name, 0) == index.remove(name)
        assert (len(plain), sum(plain.values())) == (len(index), index.bytes)
        assert min(plain, default=None) == first(index)


@pytest.mark.parametrize(
    ("sealed_at", "age"), [(None, 86_500.0), (900.0, 100.0), (1000.0, 0.0), (-90_000.0, 86_500.0)]
)
def test_age_is_not_above_the_time_since_a_segment_was_seen_written(
    sealed_at: float | None, age: float
) -> None:
    """A clock set ahead by a day does not age a segment that was just sealed."""
    assert age == Entry(1, changed_at=500.0, sealed_at=sealed_at).age(87_000.0, 1000.0)
