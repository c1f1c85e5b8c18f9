"""Segment names, and other names."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.store.names import MAX_NUMBER, Form, SegmentFile, SegmentName, parse_file_name
from tests.support import foreign

NAME = SegmentName("20261123T062500.123456Z-4711")


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("text", [NAME, f"{NAME}-1", f"{NAME}-99", "20240229T235959.999999Z-1"])
def test_file_names_are_parsed(text: str, form: Form) -> None:
    """A leap day, a number after the process, and each form."""
    assert parse_file_name(text + form.value) == SegmentFile(SegmentName(text), form)
    assert SegmentName.parse(text) == text


@pytest.mark.parametrize("text", foreign.NAMES)
def test_other_names_are_not_parsed(text: str) -> None:
    """Only names in the exact form of the service are segments."""
    assert parse_file_name(text) is None
    assert SegmentName.parse(text.partition(".ndjson")[0]) in (None, NAME)


@given(
    start=st.datetimes(datetime(1900, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),
    pid=st.integers(1, 2**31 - 1),
    number=st.integers(0, MAX_NUMBER),
)
def test_created_names_are_valid(start: datetime, pid: int, number: int) -> None:
    """Their start is exact to the microsecond, also with a number."""
    name = SegmentName.make(start, pid)
    if number:
        name = name.numbered(number)
    assert SegmentName.parse(name) == name
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=name.start) - start < timedelta(
        microseconds=50
    )


def test_names_are_in_the_order_of_their_starts() -> None:
    """For any processes."""
    start = datetime(2026, 12, 31, 23, 59, 59, 999_998, tzinfo=UTC)
    pids = [5, 30, 4, 200]
    names = [SegmentName.make(start + timedelta(microseconds=n), p) for n, p in enumerate(pids)]
    assert sorted(names) == names


def test_start_is_in_utc() -> None:
    """In seconds since 1970, with the fraction."""
    assert SegmentName("19700101T000001.250000Z-1").start == 1.25


def test_number_replaces_another() -> None:
    """A name has at most one number."""
    assert NAME.numbered(1) == f"{NAME}-1"
    assert NAME.numbered(1).numbered(2) == f"{NAME}-2"
