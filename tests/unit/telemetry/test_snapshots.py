from astralog.telemetry.snapshots import (
    EMPTY,
    MAX_TOKEN_SERIES,
    OTHER_TOKENS,
    TOKEN_FAMILY,
    Snapshot,
    decode,
    encode,
    merge,
)

FIRST = Snapshot({("a",): 1, ("b", "x"): 5}, {("t",): 7.5}, {("g",): 3})
SECOND = Snapshot({("b", "x"): 2, ("b", "y"): 4}, {("t",): 2.5, ("u",): 0.5}, {("g",): 4})


def test_counts_and_gauges_add_up_and_the_latest_time_counts() -> None:
    """A series that only one has is as that one has it; nothing of the two is changed."""
    merged = Snapshot(
        {("a",): 1, ("b", "x"): 7, ("b", "y"): 4}, {("t",): 7.5, ("u",): 0.5}, {("g",): 7}
    )
    assert merged == merge([FIRST, SECOND]) == merge([SECOND, FIRST])
    assert 5 == FIRST.counts["b", "x"]
    assert EMPTY == merge([])


def test_a_dead_worker_leaves_no_gauges() -> None:
    """Its counts and times outlive it."""
    assert Snapshot(FIRST.counts, FIRST.times, {}) == FIRST.without_gauges()
    assert {("g",): 3} == FIRST.gauges


def test_what_is_decoded_is_what_was_encoded() -> None:
    """Numbers are exact, whole ones stay whole, and label values are any text."""
    snapshot = Snapshot({("a", 'ü",[\n', ""): 2**60, ("s",): 0.1}, {("t",): 1e9 + 0.1}, {})
    decoded = decode(encode(snapshot))
    assert snapshot == decoded
    assert isinstance(decoded.counts["a", 'ü",[\n', ""], int)


def test_zeros_are_left_out() -> None:
    """What never happened takes no space; a gauge that is zero is not one that is unknown."""
    zeros = Snapshot({("a",): 0}, {("t",): 0.0}, {("g",): 0})
    assert Snapshot({}, {}, {("g",): 0}) == decode(encode(zeros))


def test_tokens_without_end_take_bounded_space() -> None:
    """The most rejected ones stay; the others are added up, each code for itself."""
    counts = {
        (TOKEN_FAMILY, f"{number:08x}", code): number
        for number in range(1, 61)
        for code in ("unauthorized", "invalid_batch")
    }
    snapshot = Snapshot(counts | {("a",): 1}, {("t",): 1}, {})
    bounded = snapshot.bounded()
    tokens = {series for series in bounded.counts if series[0] == TOKEN_FAMILY}
    others = {series for series in tokens if series[1] == OTHER_TOKENS}
    assert MAX_TOKEN_SERIES == len(tokens - others)
    assert (TOKEN_FAMILY, f"{60:08x}", "invalid_batch") in tokens
    assert sum(range(1, 36)) == bounded.counts[TOKEN_FAMILY, OTHER_TOKENS, "unauthorized"]
    assert sum(snapshot.counts.values()) == sum(bounded.counts.values())
    assert bounded == bounded.bounded()
    assert 1 == bounded.counts["a",]
