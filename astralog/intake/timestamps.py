"""Convert every accepted form of a timestamp to RFC 3339 in UTC.

Sources: RFC 3339 section 5.6, ISO 8601-1:2019 (calendar, ordinal and week dates, basic and
extended), and the `YYYY-MM-DD hh:mm[:ss[.f]]` of SQL databases. docs/api.md lists the forms.
"""

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any

import msgspec
from dateutil.parser import isoparser

from astralog.deadlines import in_runs, yield_if_due

EXPECTED = (
    "Not a timestamp. Use RFC 3339 (2024-05-31T15:30:45Z), ISO 8601 "
    "or SQL (2024-05-31 15:30:45+02:00)."
)

#: Characters of the longest timestamp that is cached; the limit bounds the cache's memory.
CACHED_LENGTH = 64

# Fractions match possessively: a fraction may have millions of digits, and is not searched again.
_OFFSET = r"[+-][0-9]{2}(?::?[0-9]{2})?"
_EXTENDED_TIME = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]++)?)?"
_BASIC_TIME = r"[0-9]{2}(?:[0-9]{2}(?:[0-9]{2}(?:[.,][0-9]++)?)?)?"
_EXTENDED_DATE = r"[0-9]{4}-(?:[0-9]{2}-[0-9]{2}|[0-9]{3}|W[0-9]{2}-[0-9])"
_BASIC_DATE = r"[0-9]{4}(?:[0-9]{4}|[0-9]{3}|W[0-9]{3})"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"({_EXTENDED_DATE})(?:[Tt]([0-9]{{2}}|{_EXTENDED_TIME})([Zz]|{_OFFSET})?)?",
        rf"({_BASIC_DATE})(?:[Tt]({_BASIC_TIME})([Zz]|{_OFFSET})?)?",
        rf"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}) ({_EXTENDED_TIME})(?: ?([Zz]|UTC|{_OFFSET}))?",
    )
)


#: The stored form, and its day, which many timestamps share.
_STORED = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,40})?Z"
)


# The stored form: msgspec checks digits and calendar of a whole batch in one call, and the other
# characters distinguish the stored form from the further forms that msgspec accepts.
class _Instants(msgspec.Struct, array_like=True):
    """A class is found at once; the hash of `list[...]` would take 0.5 of 28 µs a request."""

    texts: list[Annotated[datetime, msgspec.Meta(tz=True)]]


_STORED_SHAPES = (b"--T::.Z", b"--T::Z")

_timestamp_of = attrgetter("timestamp")


def normalise(text: str) -> str:
    """Return `text` as `YYYY-MM-DDThh:mm:ss[.f]Z`; the digits of its fraction are unchanged.

    No offset means UTC. Raises ValueError, worded for the client, for anything except a full date
    with an optional time, and for a time outside the years 1 to 9999 in UTC.
    """
    if len(text) <= CACHED_LENGTH:
        match = _STORED.fullmatch(text)
        if match and _is_day(match[1]):  # 0.5 µs; a miss of the cache takes 5 µs
            return text
        return _normalise_cached(text)
    yield_if_due()  # it may have millions of digits
    return _normalise(text)


def normalise_all(texts: Sequence[str]) -> list[str] | None:
    """Return the normalised texts, or None if all are in the stored form already."""
    if _all_stored_form(texts):
        return None
    stored: list[str] = []
    for run in in_runs(texts):
        stored += map(normalise, run)
    return stored


def store_timestamps(logs: list[Any]) -> list[Any]:
    """Normalise the timestamps of logs, and return these; raises ValueError for an invalid one."""
    stored = normalise_all(list(map(_timestamp_of, logs)))
    if stored is not None:
        for log, timestamp in zip(logs, stored, strict=True):
            log.timestamp = timestamp
    return logs


def _all_stored_form(texts: Sequence[str]) -> bool:
    try:
        msgspec.convert((texts,), _Instants)
        shapes = "\n".join(texts).encode("ascii").translate(None, b"0123456789")
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    for shape in _STORED_SHAPES:
        shapes = shapes.replace(shape, b"")
    return not shapes.strip(b"\n")


def _normalise(text: str) -> str:
    for form in _FORMS:
        match = form.fullmatch(text)
        if match:
            day, time, offset = match.groups()
            return _stored(_parse_date(day), time or "00", offset or "Z")
    raise ValueError(EXPECTED)


@lru_cache(maxsize=1024)
def _is_day(text: str) -> bool:
    """Return whether a text of the stored form's shape is a day of the calendar."""
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


_normalise_cached = lru_cache(maxsize=8192)(_normalise)


def _parse_date(text: str) -> date:
    try:
        day: date = isoparser().parse_isodate(text)
    except (ValueError, OverflowError):
        raise ValueError(f"No such date: {text}.") from None
    _, _, week = text.partition("W")
    if week and day.isocalendar().week != int(week[:2]):  # dateutil rolls week 53 over
        raise ValueError(f"No such date: {text}.")
    return day


def _stored(day: date, time: str, offset: str) -> str:
    """Join the parts in UTC; `time` is `hh[mm[ss[.f]]]` with or without colons."""
    clock, separator, fraction = time.replace(",", ".").replace(":", "").partition(".")
    hour, minute, second = (int(clock[i : i + 2] or 0) for i in (0, 2, 4))
    leap = second == 60
    if hour == 24 and not (minute or second or fraction.strip("0")):
        hour, midnight = 0, timedelta(days=1)
    else:
        midnight = timedelta()
    if hour > 23 or minute > 59 or second > 60:
        raise ValueError(f"No such time of day: {time}.")
    try:
        moment = datetime(day.year, day.month, day.day, hour, minute, 59 if leap else second)
        moment += midnight - _parse_offset(offset)
        if leap:
            if (moment.hour, moment.minute) != (23, 59):
                raise ValueError("A leap second can only be 23:59:60 in UTC.")
            moment += timedelta(seconds=1)
    except OverflowError:
        raise ValueError("In UTC, it is outside of the years 1 to 9999.") from None
    return f"{moment.isoformat()}{separator}{fraction}Z"


def _parse_offset(text: str) -> timedelta:
    if text[0] not in "+-":
        return timedelta()
    hours, minutes = int(text[1:3]), int(text[3:].lstrip(":") or 0)
    if hours > 23 or minutes > 59:
        raise ValueError(f"No such offset: {text}.")
    offset = timedelta(hours=hours, minutes=minutes)
    return -offset if text[0] == "-" else offset
