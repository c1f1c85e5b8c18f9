"""Which logs are shown."""

import re
from itertools import pairwise
from typing import Any

import pytest

from astralog.view.log_filter import LogFilter, sort_key
from tests.support.tail import make_line

LINE = make_line(
    "Straße gesperrt",
    project_id="shop",
    service="maps",
    level="Error",
    timestamp="2024-05-31T15:30:45.5Z",
    metadata={"user": "Ann", "n": 7},
).strip()

DEEP = LINE.replace(b'"Ann"', b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    ("wanted", "not_wanted"),
    [
        ({"projects": {"shop"}}, {"projects": {"Shop"}}),
        ({"projects": {"x", "shop"}}, {"projects": set()}),
        ({"services": ["maps"]}, {"services": ["map"]}),
        ({"level": "warn"}, {"level": "fatal"}),
        ({"level": "ERROR"}, {"level": "audit"}),
        ({"text": "STRASSE"}, {"text": "strasse offen"}),
        ({"text": "gesperrt"}, {"text": "shop"}),
        ({"text": '"USER":"ann"'}, {"text": "bob"}),
        ({"text": ""}, {"text": "2024"}),
        ({"since": "2024-05-31T15:30:45.5Z"}, {"since": "2024-05-31T15:30:45.500000001Z"}),
        ({"since": "2024-05-31T15:30:45.500Z"}, {"since": "2024-05-31T15:30:46Z"}),
        ({"since": "2024-05-31T15:30:45Z"}, {"since": "9999-12-31T23:59:59Z"}),
    ],
)
def test_log_must_match_each_filter(wanted: dict[str, Any], not_wanted: dict[str, Any]) -> None:
    """Each filter alone, and each with another one that matches."""
    assert LogFilter(**wanted).matches(LINE)
    assert not LogFilter(**not_wanted).matches(LINE)
    beside = {"level": "error", "text": "e", "since": "0001"} | not_wanted
    assert not LogFilter(**beside).matches(LINE)


def test_without_a_filter_every_line_is_shown() -> None:
    """Except blank ones; a line that is no log is shown only without filters."""
    assert LogFilter().matches(LINE)
    assert LogFilter().matches(b"no log")
    assert not LogFilter().matches(b"")
    assert not LogFilter(text="no").matches(b"no log")


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"\0\0", b'{"project_id":1}', b"\xff", LINE[:-1], DEEP],
)
def test_lines_that_are_no_logs_match_no_filter(line: bytes) -> None:
    """They have no fields."""
    assert not LogFilter(text="").matches(line)


@pytest.mark.parametrize("text", ["\u00c9/\n\U0001f600", r"\u00e9\/", '"a":"\u00e9'])
def test_metadata_is_searched_as_stored_and_without_escapes(text: str) -> None:
    line = LINE.replace(b'"Ann"', rb'{"a":"\u00e9\/\n\ud83d\ude00"}')
    assert LogFilter(text=text).matches(line)
    assert LogFilter(pattern=re.compile(re.escape(text), re.IGNORECASE)).matches(line)
    assert not LogFilter(text=text).matches(LINE)


def test_a_log_without_metadata_has_none_to_search() -> None:
    line = make_line("m", metadata=None).replace(b',"metadata":null', b"").strip()
    assert LogFilter(text="m").matches(line)
    assert not LogFilter(text="null").matches(line)


def test_timestamps_sort_by_time_at_any_precision() -> None:
    """Also without a fraction, or with zeros at its end."""
    stamps = ["0001-01-01T00:00:00Z", "2024-05-31T15:30:45Z", "2024-05-31T15:30:45.000000001Z"]
    stamps += ["2024-05-31T15:30:45.1Z", "2024-05-31T15:30:45.12Z", "2024-05-31T15:30:46Z"]
    assert all(sort_key(earlier) < sort_key(later) for earlier, later in pairwise(stamps))
    assert sort_key("2024-05-31T15:30:45Z") == sort_key("2024-05-31T15:30:45.000Z")
    assert sort_key("2024-05-31T15:30:40Z") != sort_key("2024-05-31T15:30:4Z")
