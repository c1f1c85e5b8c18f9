import gevent
import pytest

from astralog.errors import STATUS_OF_CODE, Rejection
from astralog.telemetry.counters import (
    ACCEPTED_BY_TOKEN,
    BOUNDS_SECONDS,
    EMPTY,
    MAX_TOKENS,
    OTHER_TOKENS,
    REJECTED_BY_TOKEN,
    UNKNOWN_TOKEN,
    Counters,
    Durations,
    Snapshot,
    Values,
    decode_snapshot,
    encode_snapshot,
    merge,
)


def test_counters_are_settled_once_stored_batches_are_answered() -> None:
    """Between a commit and its responses a worker's counters do not balance yet."""
    counters = Counters()
    assert counters.is_settled()
    counters.store(1, 100, 3, 0)
    counters.store(1, 100, 2, 2)
    assert not counters.is_settled()
    counters.accept(100, 3, 0.0, 0.0, "1f0e9a3c")
    assert counters.is_settled()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Rejection("queue_full", ""), "queue_full"),
        (gevent.GreenletExit(), "stopping"),
        (ValueError(), "internal"),
    ],
)
def test_every_way_out_has_a_code(error: BaseException, code: str) -> None:
    """A request that ends with the stop is rejected too."""
    counters = Counters()
    counters.reject(error, 10, 0, 0.0, None)
    assert [code] == [name for name, volume in counters.rejected.items() if volume.batches]
    assert 1 == counters.received.batches


def test_rejections_are_counted_per_token() -> None:
    """Those without a known token count together, as do those of tokens without a name."""
    counters = Counters(lambda name: name == "1f0e9a3c")
    error = Rejection("bad_request", "")
    for token in (None, None, "1f0e9a3c", "00000001", "00000002"):
        counters.reject(error, 0, 0, 0.0, token)
    assert counters.rejected_by_token == {
        (UNKNOWN_TOKEN, "bad_request"): 2,
        ("1f0e9a3c", "bad_request"): 1,
        (OTHER_TOKENS, "bad_request"): 2,
    }


def test_codes_of_one_token_do_not_hide_another_token() -> None:
    """A tenant may have provoked any number of codes, with any number of tokens, before."""
    counters = Counters()
    for token in range(MAX_TOKENS - 1):
        for code in STATUS_OF_CODE:
            counters.reject(Rejection(code), 0, 0, 0.0, f"{token:08x}")
    counters.reject(Rejection("bad_request"), 0, 0, 0.0, "quiet")
    counters.reject(Rejection("bad_request"), 0, 0, 0.0, "one too many")
    assert counters.rejected_by_token["quiet", "bad_request"] == 1
    counts: Values = {
        (REJECTED_BY_TOKEN, *labels): n for labels, n in counters.rejected_by_token.items()
    }
    assert Snapshot(counts, {}, {}).bounded().counts == counts


def test_accepted_batches_are_counted_per_token() -> None:
    """The batches of tokens that have no name are counted together."""
    counters = Counters(lambda name: name in "abc")
    for token in ("a", "b", "a", "x", "y", "c"):
        counters.accept(10, 2, 0.0, 0.0, token)
    assert (6, 12, 60) == (
        counters.accepted.batches,
        counters.accepted.logs,
        counters.accepted.bytes,
    )
    assert 6 == sum(counters.commits.counts) == sum(counters.requests.counts)
    counts = {
        label: (n.batches, n.logs, n.bytes) for label, n in counters.accepted_by_token.items()
    }
    assert counts == {"a": (2, 4, 20), "b": (1, 2, 10), "c": (1, 2, 10), OTHER_TOKENS: (2, 4, 20)}


def test_tokens_that_replace_others_take_bounded_space() -> None:
    """A token keeps its name until its worker ends, and then as many as there may be have one."""
    counters = Counters()
    for number in range(MAX_TOKENS + 50):
        counters.reject(Rejection("bad_request"), 0, 0, 0.0, f"{number:08x}")
    counts = counters.rejected_by_token
    assert len(counts) == MAX_TOKENS + 1
    assert counts[OTHER_TOKENS, "bad_request"] == 50


def test_durations_fall_into_their_buckets() -> None:
    """A bound is inside its bucket, as in Prometheus, and one bucket has no bound."""
    durations = Durations()
    for seconds in (0.0, 0.0005, 0.00051, 10.0, 11.0, 0.03):
        durations.add(seconds)
    counts = dict(zip((*BOUNDS_SECONDS, None), durations.counts, strict=True))
    expected = {0.0005: 2, 0.001: 1, 0.05: 1, 10.0: 1, None: 1}
    assert expected == {bound: count for bound, count in counts.items() if count}
    assert pytest.approx(21.03101) == durations.seconds


FIRST = Snapshot({("a",): 1, ("b", "x"): 5}, {("t",): 7.5}, {("g",): 3})
SECOND = Snapshot({("b", "x"): 2, ("b", "y"): 4}, {("t",): 2.5, ("u",): 0.5}, {("g",): 4})


def test_counts_and_gauges_add_up_and_the_latest_time_counts() -> None:
    """A series of only one is kept as it is; neither of the two is changed."""
    merged = Snapshot(
        {("a",): 1, ("b", "x"): 7, ("b", "y"): 4}, {("t",): 7.5, ("u",): 0.5}, {("g",): 7}
    )
    assert merged == merge([FIRST, SECOND]) == merge([SECOND, FIRST])
    assert 5 == FIRST.counts["b", "x"]
    assert EMPTY == merge([])


def test_a_dead_worker_leaves_no_gauges() -> None:
    """Its counts and times stay."""
    assert Snapshot(FIRST.counts, FIRST.times, {}) == FIRST.without_gauges()
    assert {("g",): 3} == FIRST.gauges


def test_decoding_restores_the_encoded_values() -> None:
    """Numbers are exact, integers stay integers, and label values are any text."""
    snapshot = Snapshot({("a", 'ü",[\n', ""): 2**60, ("s",): 0.1}, {("t",): 1e9 + 0.1}, {})
    decoded = decode_snapshot(encode_snapshot(snapshot))
    assert snapshot == decoded
    assert isinstance(decoded.counts["a", 'ü",[\n', ""], int)


def test_zeros_are_left_out() -> None:
    """A zero count takes no space; a gauge of zero differs from an unknown one."""
    zeros = Snapshot({("a",): 0}, {("t",): 0.0}, {("g",): 0})
    assert Snapshot({}, {}, {("g",): 0}) == decode_snapshot(encode_snapshot(zeros))


def test_accepted_volumes_of_many_tokens_are_bounded() -> None:
    """Each family keeps its largest series."""
    counts: Values = {
        (family, f"{number:08x}"): number
        for family in ACCEPTED_BY_TOKEN.values()
        for number in range(1, MAX_TOKENS + 11)
    }
    bounded = Snapshot(counts, {}, {}).bounded().counts
    assert len(ACCEPTED_BY_TOKEN) * (MAX_TOKENS + 1) == len(bounded)
    for family in ACCEPTED_BY_TOKEN.values():
        assert sum(range(1, 11)) == bounded[family, OTHER_TOKENS]
        assert bounded[family, f"{11:08x}"] == 11


def test_tokens_without_end_take_bounded_space() -> None:
    """The most rejected ones stay; the others are added up, per code."""
    counts: Values = {
        (REJECTED_BY_TOKEN, f"{number:08x}", code): number
        for number in range(1, MAX_TOKENS + 11)
        for code in ("unauthorized", "invalid_batch")
    }
    counts[REJECTED_BY_TOKEN, UNKNOWN_TOKEN, "unauthorized"] = 1
    snapshot = Snapshot(counts | {("a",): 1}, {("t",): 1}, {})
    bounded = snapshot.bounded()
    tokens = {series[1] for series in bounded.counts if series[0] == REJECTED_BY_TOKEN}
    assert tokens == {
        *(f"{number:08x}" for number in range(11, MAX_TOKENS + 11)),
        *(OTHER_TOKENS, UNKNOWN_TOKEN),
    }
    assert sum(range(1, 11)) == bounded.counts[REJECTED_BY_TOKEN, OTHER_TOKENS, "unauthorized"]
    assert sum(snapshot.counts.values()) == sum(bounded.counts.values())
    assert bounded == bounded.bounded()
    assert 1 == bounded.counts["a",]
