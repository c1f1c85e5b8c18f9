"""The conditions that a stored line must fulfil to be shown."""

import dataclasses
import json
import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property

import msgspec

from astralog.store.reader import every_line
from astralog.view.prefilter import Prefilter, by_field, by_head, by_regex, by_text
from astralog.view.stored_log import StoredLog, decode, is_severe_enough

#: A JSON escape; several `\\u` in a row may be one character.
_ESCAPE = re.compile(r'(?:\\u[0-9a-fA-F]{4})+|\\["\\/bfnrt]')

#: Characters of a field's name, and the dots in it, which bound the work for each log.
MAX_NAME_CHARACTERS = 200
MAX_NAME_DOTS = 15

#: The units of a duration.
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)


@dataclasses.dataclass(frozen=True)
class LogFilter:
    """The conditions that a log must fulfil to be shown; None means no condition.

    `level` is the least severe one. `text` occurs in the message, or in the metadata as JSON text:
    as stored, or with its escapes replaced; in any case, unless `match_case`. `pattern` is searched
    for in the same texts. Each of `fields` is a name in the metadata, in which dots reach into
    objects, and its value: a string, or the JSON text of a number, a boolean or null. `since` and
    `until` are timestamps as they are stored: the earliest and the latest that a log's own may be.
    """

    projects: Collection[str] | None = None
    services: Collection[str] | None = None
    level: str | None = None
    text: str | None = None
    since: str | None = None
    until: str | None = None
    fields: tuple[tuple[str, str], ...] = ()
    pattern: re.Pattern[str] | None = None
    match_case: bool = False

    def matches(self, line: bytes) -> bool:
        """Return whether a stored line is shown; without conditions, any line that is not blank."""
        if not line or self._is_empty:
            return bool(line)
        log = decode(line)
        return log is not None and self._matches(log)

    def select(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        """Select the matching lines of a block; see `store.reader.Select`."""
        lines = self._prefilter.lines(block) if self._prefilter else every_line(block)
        for offset, line in lines:
            if self.matches(line):
                yield offset, line

    @cached_property
    def _is_empty(self) -> bool:
        return self == LogFilter()

    @cached_property
    def _prefilter(self) -> Prefilter | None:
        """The prefilter of the condition that the fewest lines probably fulfil."""
        found = [
            None if self.text is None else by_text(self.text, match_case=self.match_case),
            None if self.pattern is None else by_regex(self.pattern),
            *(by_field(name, value) for name, value in self.fields),
            by_head(self.projects, self.level, self.services),
        ]
        return next(filter(None, found), None)

    @cached_property
    def _wanted_text(self) -> str:
        return self._fold(self.text or "")

    @cached_property
    def _since_key(self) -> str:
        return sort_key(self.since or "")

    @cached_property
    def _until_key(self) -> str:
        return sort_key(self.until or "")

    def _matches(self, log: StoredLog) -> bool:
        return (
            (self.projects is None or log.project_id in self.projects)
            and (self.services is None or log.service in self.services)
            and (self.level is None or is_severe_enough(log.level, self.level))
            and (self.since is None or sort_key(log.timestamp) >= self._since_key)
            and (self.until is None or sort_key(log.timestamp) <= self._until_key)
            and (self.text is None or self._contains(log))
            and (self.pattern is None or any(map(self.pattern.search, _texts(log))))
            and all(_has(bytes(log.metadata), name, value) for name, value in self.fields)
        )

    def _contains(self, log: StoredLog) -> bool:
        return any(self._wanted_text in self._fold(text) for text in _texts(log))

    def _fold(self, text: str) -> str:
        return text if self.match_case else text.casefold()


def parse_field(text: str) -> tuple[str, str]:
    """Return the name and the value of a field in the form NAME=VALUE; raises ValueError."""
    name, sign, value = text.partition("=")
    if not name or not sign or len(name) > MAX_NAME_CHARACTERS or name.count(".") > MAX_NAME_DOTS:
        limits = f"{MAX_NAME_CHARACTERS} characters and {MAX_NAME_DOTS} dots"
        raise ValueError(f"must have the form NAME=VALUE, with at most {limits} in the name")
    return name, value


def is_empty_range(since: str | None, until: str | None) -> bool:
    """Return whether no time is between two stored timestamps; None is no limit."""
    return since is not None and until is not None and sort_key(since) > sort_key(until)


def sort_key(timestamp: str) -> str:
    """Return a sort key of a stored timestamp; equal times have equal keys."""
    second, _, fraction = timestamp.removesuffix("Z").partition(".")
    return f"{second}.{fraction.rstrip('0')}"


def _texts(log: StoredLog) -> Iterator[str]:
    yield log.message
    metadata = log.metadata_text
    yield metadata
    if "\\" in metadata:
        yield _ESCAPE.sub(_unescape, metadata)


def _unescape(escape: re.Match[str]) -> str:
    text: str = json.loads(f'"{escape[0]}"')
    return text


def _has(value: bytes, name: str, wanted: str) -> bool:
    """Return whether a JSON object, or one in an array, has a member of this name and value.

    Its name may have dots itself, or it is in inner objects.
    """
    if value[:1] == b"[":
        elements = map(bytes, _elements.decode(value))
        return any(_has(one, name, wanted) for one in elements if one[:1] == b"{")
    if value[:1] != b"{":
        return False
    members = _members.decode(value)
    if name in members and _is_value(bytes(members[name]), wanted):
        return True
    parts = name.split(".")
    heads = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(
        _has(bytes(members[head]), name[len(head) + 1 :], wanted)
        for head in heads
        if head in members
    )


def _is_value(value: bytes, wanted: str) -> bool:
    """Return whether a JSON value is `text`, or an array that contains it."""
    if value[:1] == b"[":
        return any(_is_scalar(bytes(element), wanted) for element in _elements.decode(value))
    return _is_scalar(value, wanted)


def _is_scalar(value: bytes, wanted: str) -> bool:
    if value[:1] == b'"':
        return _text.decode(value) == wanted
    return value[:1] not in b"[{" and value == wanted.encode(errors="replace")


def parse_moment(text: str) -> str:
    """Return a time that a user enters, a duration before now or a timestamp, in the stored form.

    Raises ValueError.
    """
    from astralog.intake import timestamps  # noqa: PLC0415  # it takes long to import

    try:
        if re.fullmatch(r"([0-9]+[smhdw])+", text):
            parts = re.findall(r"([0-9]+)([smhdw])", text)
            ago = sum((timedelta(**{_UNITS[unit]: int(n)}) for n, unit in parts), timedelta())
            return timestamps.normalise((datetime.now(UTC) - ago).isoformat())
        return timestamps.normalise(text)
    except OverflowError:
        raise ValueError("before the year 1.") from None
    except ValueError as error:
        raise ValueError(f"{error} A duration such as 10m or 1h30m is also accepted.") from None
