"""Convert Unix times, as numbers or as digits in a text, to the stored form."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

_NANOSECONDS = 1_000_000_000

#: The first second after the year 9999.
END_SECONDS = 253_402_300_800

#: Minimum digits of an integer in milliseconds, microseconds or nanoseconds, and the number of
#: these digits that are a fraction of a second.
_UNITS = ((18, 9), (15, 6), (12, 3))

#: Digits of a time from 2001 to 2286 in seconds, ms, µs or ns; ten of them are the seconds.
_SECOND_DIGITS = 10
_USUAL_DIGITS = frozenset((10, 13, 16, 19))

#: The most digits of a time in nanoseconds: it reaches to 2286.
_NANOSECOND_DIGITS = 19

#: The most seconds whose times are formatted together; for more, `parse_time` takes less.
MOST_SECONDS = 32

_DIGITS = b"0123456789"

_PLAIN = re.compile(r"([0-9]{1,19})(?:\.([0-9]+))?")
_SCIENTIFIC = re.compile(r"[0-9]{1,19}(?:\.[0-9]{0,40})?[eE][+-]?[0-9]{1,2}")

EXPECTED = "Not a Unix time from 1970 to 9999"


def format_time(nanoseconds: int) -> str:
    """Return a Unix time in nanoseconds in the stored form; 64 bits reach from 1970 to 2554."""
    if nanoseconds < _NANOSECONDS:
        return f"{_format_seconds(0)}.{nanoseconds:09}Z"
    return f"{_format_seconds(nanoseconds // _NANOSECONDS)}.{str(nanoseconds)[-9:]}Z"


def parse_time(text: str) -> str:
    """Return the stored form of a Unix time in a text; the digits of its fraction are unchanged.

    Below 10¹¹ it counts seconds, below 10¹⁴ milliseconds, below 10¹⁷ microseconds, else
    nanoseconds. Raises ValueError, worded for the client.
    """
    whole, dot, fraction = text.partition(".")
    if len(whole) in _USUAL_DIGITS and (fraction.isdecimal() or not dot) and text.isascii():
        second, rest = _format_usual(whole[:_SECOND_DIGITS]), whole[_SECOND_DIGITS:]
        if second and not rest:
            return f"{second}{dot}{fraction}Z"
        if second and rest.isdecimal():
            return f"{second}.{rest}{fraction}Z"
    return _parse_time(text)


def format_numbers(values: Sequence[Any]) -> list[str] | None:
    """Return the stored form of Unix times that are numbers in JSON, or None if one is unusual.

    A usual one is an integer from 2001 to 2286, or seconds with a fraction. A trick for speed: in a
    few seconds, all are formatted in 0.2 of the time of `parse_time` for each. Raises ValueError.
    """
    text = b"\n".join(values)
    points = text.translate(None, _DIGITS)
    if points == b"\n".join([b"."] * len(values)):
        return _format_all(text.decode(), ".", ".")
    return _format_integers(text.decode()) if not points.strip(b"\n") else None


def format_nanoseconds(texts: Sequence[str]) -> list[str]:
    """Return the stored form of Unix times in nanoseconds in texts; raises ValueError.

    A trick for speed, as `format_numbers`.
    """
    digits = "".join(texts)
    is_usual = (
        digits.isascii() and digits.isdigit() and set(map(len, texts)) == {_NANOSECOND_DIGITS}
    )
    stored = _format_all("\n".join(texts), "", ".") if is_usual else None
    return stored or list(map(parse_nanoseconds, texts))


def _format_integers(text: str) -> list[str] | None:
    lengths = set(map(len, text.split("\n")))
    if len(lengths) > 1 or not lengths <= _USUAL_DIGITS:
        return None
    return _format_all(text, "", "" if lengths == {_SECOND_DIGITS} else ".")


def _format_all(texts: str, point: str, stored_point: str) -> list[str] | None:
    """Return the stored form of times that begin with ten digits, None if one is unusual.

    The times are separated by LF. `point` separates their seconds from the rest, and
    `stored_point` does so in the stored form. Each second is replaced wherever it occurs.
    """
    text, start = f"\n{texts}", 0
    end = 1 + _SECOND_DIGITS
    for _ in range(MOST_SECONDS):
        digits = text[start + 1 : start + end]
        second = _format_usual(digits)
        if not second or not text.startswith(point, start + end):
            return None
        text = text.replace(f"\n{digits}{point}", f"Z\t{second}{stored_point}")
        start = text.find("\n", start)  # of a time in another second
        if start < 0:
            return f"{text[2:]}Z".split("\t")
    return list(map(parse_time, texts.split("\n")))


def parse_nanoseconds(text: str) -> str:
    """Return the stored form of a Unix time in nanoseconds in a text; raises ValueError."""
    if len(text) > _NANOSECOND_DIGITS or not (text.isascii() and text.isdigit()):
        raise ValueError("Not a Unix time in nanoseconds")
    if len(text) == _NANOSECOND_DIGITS:
        second = _format_usual(text[:_SECOND_DIGITS]) or _format_seconds(int(text[:_SECOND_DIGITS]))
        return f"{second}.{text[_SECOND_DIGITS:]}Z"
    return format_time(int(text))


def _parse_time(text: str) -> str:
    match = _PLAIN.fullmatch(text)
    if match is None:
        if not _SCIENTIFIC.fullmatch(text):
            raise ValueError(EXPECTED)
        match = _PLAIN.fullmatch(format(Decimal(text), "f"))
    if match is None:
        raise ValueError(EXPECTED)
    whole, fraction = match[1].lstrip("0"), match[2] or ""
    for digits, places in _UNITS:
        if len(whole) >= digits:
            whole, fraction = whole[:-places], whole[-places:] + fraction
            break
    seconds = int(whole or "0")
    if seconds >= END_SECONDS:
        raise ValueError(EXPECTED)
    return f"{_format_seconds(seconds)}{'.' if fraction else ''}{fraction}Z"


@lru_cache(maxsize=1024)
def _format_usual(digits: str) -> str:
    """Return the stored form, up to the seconds, of ten ASCII digits; "" for others."""
    return _format_seconds(int(digits)) if digits.isdecimal() and digits[0] != "0" else ""


@lru_cache(maxsize=1024)
def _format_seconds(seconds: int) -> str:
    minute, second = divmod(seconds, 60)
    return f"{_format_minute(minute)}:{second:02}"


@lru_cache(maxsize=1024)
def _format_minute(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%dT%H:%M")
