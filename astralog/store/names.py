"""Segment names: make, parse and order the names of segment files.

    20261123T062500.123456Z-4711.ndjson.open   <UTC start>-<pid>: being written
    20261123T062500.123456Z-4711.ndjson        sealed
    20261123T062500.123456Z-4711-1.ndjson.zst  sealed and compressed; the name without -1 was taken

Lexical order is the order of the starts. A file with any other name is not a segment: it is never
removed, changed, counted or waited for. Nor is a directory, a link or a device with such a name;
`files.regular_files` and `files.status_of` exclude those.
"""

import enum
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

from astralog.clock import STEP_SECONDS


class Form(enum.Enum):
    """The forms of a segment's file in the order of its states; the values are the suffixes."""

    OPEN = ".ndjson.open"
    PLAIN = ".ndjson"
    COMPRESSED = ".ndjson.zst"


#: The forms of a sealed segment; both exist while it is being compressed.
SEALED_FORMS = (Form.PLAIN, Form.COMPRESSED)

#: Seconds ahead of the clock above which a time is of a wrong clock.
AHEAD_SECONDS = 86_400.0

#: The highest number that is appended to a taken name; the first is 1.
MAX_NUMBER = 99

_START_FORMAT = "%Y%m%dT%H%M%S.%fZ"

# Python takes 24:00 for the next day's midnight, and `\d` takes the digits of any script.
_FILE = re.compile(
    r"([0-9]{8}T(?:[01][0-9]|2[0-3])[0-9]{4}\.[0-9]{6}Z)"  # the start
    r"-[1-9][0-9]{0,9}(?:-[1-9][0-9]?)?"  # the process, and perhaps a number
    r"(\.ndjson(?:\.open|\.zst)?)"
)

_FORMS = {form.value: form for form in Form}


class SegmentName(str):
    """A segment's name: the name of its files without the suffix; it never changes.

    `make` and `parse` return one. `SegmentName(text)` converts a valid name without a check.
    """

    __slots__ = ()

    @classmethod
    def make(cls, start: datetime, pid: int) -> Self:
        """Return the name of a new segment of a process; `start` is an aware datetime in UTC."""
        return cls(f"{start:{_START_FORMAT}}-{pid}")

    @staticmethod
    def parse(text: str) -> "SegmentName | None":
        """Return the text as a name, None if it is not a name."""
        file = parse_file_name(text + Form.PLAIN.value)
        return file.segment if file else None

    @classmethod
    def of_open_file(cls, path: Path) -> Self:
        return cls(path.name.removesuffix(Form.OPEN.value))

    @property
    def start(self) -> float:
        """The time at which the segment was started, in seconds since 1970."""
        return datetime.fromisoformat(self.partition("-")[0]).timestamp()

    def numbered(self, number: int) -> "SegmentName":
        """Return another name with the same start and process."""
        start, pid, *_ = self.split("-")
        return SegmentName(f"{start}-{pid}-{number}")

    def file(self, form: Form) -> str:
        return self + form.value

    def path(self, directory: Path, form: Form) -> Path:
        return directory / self.file(form)


class SegmentFile(NamedTuple):
    """The name of a segment's file, parsed."""

    segment: SegmentName
    form: Form


def parse_file_name(text: str) -> SegmentFile | None:
    """Return the segment and the form of a file by its name, None for other files."""
    match = _FILE.fullmatch(text)
    if match and _is_moment(match[1]):
        return SegmentFile(SegmentName(text[: match.start(2)]), _FORMS[match[2]])
    return None


def parse_file_names(texts: Iterable[str]) -> Iterator[SegmentFile]:
    """Yield the segment and the form of each segment file, in the given order."""
    return filter(None, map(parse_file_name, texts))


def is_ahead(at: float, now: float) -> bool:
    """Return whether a time is of a wrong clock; both times are seconds since 1970."""
    return at > now + AHEAD_SECONDS


def last_change(start: float, modified_at: float, now: float) -> float:
    """Return the time from which a segment's age is measured; all times are seconds since 1970.

    That is the modification time of its file, or its start if that is later: a clock that was set
    back, a file server's wrong clock, or a copy without times makes no segment older. A start in
    the future is ignored.
    """
    return modified_at if start > now + STEP_SECONDS else max(modified_at, start)


def _is_moment(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
