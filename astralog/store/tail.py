"""The newest lines of a data directory, right across workers, rotation and compression."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from astralog.store.arrival import newest_first
from astralog.store.files import regular_files
from astralog.store.names import Form, SegmentFile, SegmentName, parse_file_name
from astralog.store.part import Matches, Part
from astralog.store.segment_reader import ReadBudget

#: A sealed segment had its last line before this many others began after it did. Where its file's
#: time of change tells nothing, as in a copy of the directory, this bounds what a search opens.
CONCURRENT_SEGMENTS = 128


def find_parts(directory: Path) -> list[Part]:
    """Return all there is of each segment, in the order of their names; raises OSError."""
    return make_parts(directory, filter(None, map(parse_file_name, regular_files(directory))))


def newest_lines(
    parts: Sequence[Part], limit: int, matches: Matches = bool, budget: ReadBudget | None = None
) -> list[bytes]:
    """Return the newest `limit` lines that match, in the order of their arrival.

    Where the budget is spent, these are fewer, and older ones were not looked for.
    """
    return list(newest_first(parts, limit, matches, budget))[::-1]


def parts_since(parts: Iterable[Part], moment: float) -> list[Part]:
    """Return the parts whose last line arrived at a moment, in seconds since 1970, or later."""
    return [part for part in parts if part.latest >= moment and part.until >= moment]


def make_parts(directory: Path, files: Iterable[SegmentFile]) -> list[Part]:
    """Return all there is of each segment that has one of the files, in the order of the names."""
    # While a segment gets another name, it may be listed with both; a sealed one is not open.
    forms: dict[SegmentName, Form] = {}
    for segment, form in files:
        if form is not Form.OPEN or segment not in forms:
            forms[segment] = form
    segments = sorted(forms)
    successors = dict(zip(segments, segments[CONCURRENT_SEGMENTS:], strict=False))
    return [
        Part(directory, segment, form, None if form is Form.OPEN else successors.get(segment))
        for segment in segments
        for form in [forms[segment]]
    ]
