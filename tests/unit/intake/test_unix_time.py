"""Unix times are stored as RFC 3339; the number of digits determines the unit."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.intake.unix_time import (
    MOST_SECONDS,
    format_nanoseconds,
    format_numbers,
    format_time,
    parse_nanoseconds,
    parse_time,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "1970-01-01T00:00:00Z"),
        ("1717169445", "2024-05-31T15:30:45Z"),
        ("1717169445.120", "2024-05-31T15:30:45.120Z"),
        ("1717169445.123456789", "2024-05-31T15:30:45.123456789Z"),
        ("1.717169445123E9", "2024-05-31T15:30:45.123Z"),
        ("1.7e9", "2023-11-14T22:13:20Z"),
        ("99999999999", "5138-11-16T09:46:39Z"),
        ("100000000000", "1973-03-03T09:46:40.000Z"),
        ("1717169445123", "2024-05-31T15:30:45.123Z"),
        ("1717169445123.5", "2024-05-31T15:30:45.1235Z"),
        ("99999999999999", "5138-11-16T09:46:39.999Z"),
        ("1717169445123456", "2024-05-31T15:30:45.123456Z"),
        ("1717169445123456789", "2024-05-31T15:30:45.123456789Z"),
        ("0001717169445", "2024-05-31T15:30:45Z"),
        ("0000000445123", "1970-01-06T03:38:43Z"),
        ("253402300799999", "1978-01-11T21:31:40.799999Z"),
    ],
)
def test_the_digits_of_a_unix_time_name_its_unit(text: str, expected: str) -> None:
    """Seconds, milliseconds, microseconds or nanoseconds, the fraction digit for digit."""
    assert expected == parse_time(text)


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", "now", "1e99", "1e999999999", "1_000", "٣", "1717169445,5", "0x10", "9" * 20]
    + ["1717169445123.", "1.2.3", "NaN", "Infinity", " 1", "1" * 10_000, "1.", "99999999999.5e9"],
)
def test_any_other_text_is_no_unix_time(text: str) -> None:
    """No text takes long, or becomes a number of thousands of digits."""
    with pytest.raises(ValueError, match="Not a Unix time"):
        parse_time(text)


def test_nanoseconds_have_nine_digits() -> None:
    """Lines then sort by time."""
    assert "1970-01-01T00:00:01.000000001Z" == format_time(1_000_000_001)


NANOSECOND_TEXTS = [
    *("1717169445123456789", "1717169445000000000", "1795392000999999999", "0717169445123456789"),
    *(
        "1717169445.12345678",
        "1717169445123",
        "1",
        "",
        "-717169445123456789",
        "9999999999999999999",
    ),
    *("9999999999999999999", "171716944512345678\n"),
    *("1717169445123456789\n1717169445123456789", "١717169445123456789"),
]


@given(
    st.lists(st.sampled_from(NANOSECOND_TEXTS[:3]), min_size=1)
    | st.lists(st.sampled_from(NANOSECOND_TEXTS), max_size=3)
    | st.sampled_from(NANOSECOND_TEXTS).map(lambda text: [text] * 2)
)
def test_nanoseconds_of_many_are_those_of_each(texts: list[str]) -> None:
    """Both ways return the same, or raise the same error."""

    def outcome(convert: Callable[[], list[str]]) -> list[str] | str:
        try:
            return convert()
        except ValueError as error:
            return str(error)

    expected = outcome(lambda: [parse_nanoseconds(text) for text in texts])
    assert expected == outcome(lambda: format_nanoseconds(texts))


#: Numbers of the usual forms, and numbers that are not: each may be in one second with others.
NUMBERS = [
    *("1717169445.1", "1717169445.123456789", "1717169446.0", "9999999999.9"),
    *("1717169445", "1717169446", "1717169445123", "1717169445123456", "1717169445123456789"),
    *("0", "-1", "0.5", "171716944.5", "17171694450.5", "1.7e9", "1717169445.5E0", "1e99"),
]
MANY_SECONDS = [f"{1717169445 + number}.25" for number in range(MOST_SECONDS + 1)]


@given(
    st.lists(st.sampled_from(NUMBERS[:4]), min_size=1)
    | st.lists(st.sampled_from(NUMBERS[4:6]), min_size=1)
    | st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=3)
    | st.sampled_from([2, len(MANY_SECONDS)]).map(lambda count: MANY_SECONDS[:count] * 2)
)
def test_numbers_of_many_are_those_of_each(texts: list[str]) -> None:
    """Unusual ones are left to the caller."""
    stored = format_numbers([msgspec.Raw(text.encode()) for text in texts])
    if stored is None:
        assert not set(texts) <= set(NUMBERS[:4] + MANY_SECONDS)
        assert not set(texts) <= set(NUMBERS[4:6])
    else:
        assert list(map(parse_time, texts)) == stored
