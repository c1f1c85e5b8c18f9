"""A segment's name: the one place that makes, parses and orders the names of segment files.

    20261123T062500.123456Z-4711.ndjson.open   <UTC start>-<pid>: being written
    20261123T062500.123456Z-4711.ndjson        sealed
    20261123T062500.123456Z-4711-1.ndjson.zst  sealed and compressed; the name without -1 was taken

Lexical order is the order of the starts. A file with any other name is not a segment: nothing
removes, changes, counts or waits for it. Nor is a directory, a link or a device with such a name;
`files.regular_files` and `files.status_of` keep those out.
"""

import enum
import re
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

from astralog.clock import STEP_SECONDS


class Form(enum.Enum):
    """What a segment's file is, in the order of its life; the values are the suffixes."""

    OPEN = ".ndjson.open"
    PLAIN = ".ndjson"
    COMPRESSED = ".ndjson.zst"


#: The forms of a sealed segment; both are there while it is being compressed.
SEALED_FORMS = (Form.PLAIN, Form.COMPRESSED)

#: A segment that is named further ahead of the clock has its name from a clock that was wrong.
AHEAD_SECONDS = 86_400.0

#: Numbers that may follow a name which is taken, from 1 on.
MAX_NUMBER = 99

_START_FORMAT = "%Y%m%dT%H%M%S.%fZ"

# Python takes 24:00 for the next day's midnight, and `\d` takes the digits of any script.
_NAME = (
    r"([0-9]{8}T(?:[01][0-9]|2[0-3])[0-9]{4}\.[0-9]{6}Z)"  # the start
    r"-[1-9][0-9]{0,9}(?:-[1-9][0-9]?)?"  # the process, and perhaps a number
)
_SEGMENT = re.compile(_NAME)
_FILE = re.compile(rf"{_NAME}(\.ndjson(?:\.open|\.zst)?)")

_FORMS = {form.value: form for form in Form}


class SegmentName(str):
    """A segment's name, which is that of its files without a suffix and never changes.

    `make` and `parse` return one; a text that is known to be one needs no check:
    `SegmentName(text)`.
    """

    __slots__ = ()

    @classmethod
    def make(cls, start: datetime, pid: int) -> Self:
        """Return the name of the segment that a process starts; `start` is aware, in UTC."""
        return cls(f"{start:{_START_FORMAT}}-{pid}")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the name that a text is, None if it is not one."""
        match = _SEGMENT.fullmatch(text)
        return cls(text) if match and _is_moment(match[1]) else None

    @classmethod
    def of_open_file(cls, path: Path) -> Self:
        """Return the name of the segment with this open file."""
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
        """Return the name of the segment's file in a form."""
        return self + form.value

    def path(self, directory: Path, form: Form) -> Path:
        """Return the path of the segment's file in a form."""
        return directory / self.file(form)


class SegmentFile(NamedTuple):
    """The name of a segment's file, parsed."""

    segment: SegmentName
    form: Form


def parse_file_name(text: str) -> SegmentFile | None:
    """Return the segment and the form that a file's name tells, None for other files."""
    match = _FILE.fullmatch(text)
    if match and _is_moment(match[1]):
        return SegmentFile(SegmentName(text[: match.start(2)]), _FORMS[match[2]])
    return None


def is_ahead(start: float, now: float) -> bool:
    """Return whether a segment has its start from a clock that was wrong; both since 1970."""
    return start > now + AHEAD_SECONDS


def last_change(start: float, modified_at: float, now: float) -> float:
    """Return when a segment last changed, by which its age is measured; all in seconds since 1970.

    That is its file's time of modification, or its start if that is later: a clock that was set
    back, a file server's wrong clock, or a copy without times makes no segment older. A start that
    is still to come tells nothing.
    """
    return modified_at if start > now + STEP_SECONDS else max(modified_at, start)


def _is_moment(text: str) -> bool:
    """Return whether there is such a date and time."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
