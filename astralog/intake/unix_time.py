"""Convert Unix times, as numbers or as digits in a text, to the stored form."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter
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

#: The parts of a number of seconds with a fraction.
_find_second = itemgetter(slice(_SECOND_DIGITS))
_find_rest = itemgetter(slice(_SECOND_DIGITS, None))
_find_point = itemgetter(slice(_SECOND_DIGITS, _SECOND_DIGITS + 1))

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

    A usual one is an integer from 2001 to 2286, or seconds with a fraction. A trick for speed: all
    are formatted in 0.3 of the time of `parse_time` for each.
    """
    text = b"\n".join(values)
    shape = text.translate(None, _DIGITS)
    texts = text.decode().split("\n")
    lengths = set(map(len, texts))
    if len(shape) == len(texts) - 1 and len(lengths) == 1 and lengths <= _USUAL_DIGITS:
        return _format_all(texts, "." if lengths != {_SECOND_DIGITS} else "")
    if shape == b"\n".join([b"."] * len(texts)) and set(map(_find_point, texts)) == {"."}:
        return _format_all(texts, "")
    return None


def _format_all(texts: Sequence[str], point: str) -> list[str] | None:
    """Return the stored form of times that begin with ten digits, None if one is unusual.

    `point` separates these from the rest.
    """
    seconds = list(map(_find_second, texts))
    stored = {second: _format_usual(second) for second in set(seconds)}
    if "" in stored.values():
        return None
    return [
        f"{stored[second]}{point}{rest}Z"
        for second, rest in zip(seconds, map(_find_rest, texts), strict=True)
    ]


def format_nanoseconds(texts: Sequence[str]) -> list[str]:
    """Return the stored form of Unix times in nanoseconds in texts; raises ValueError.

    A trick for speed, as `format_numbers`.
    """
    digits = "".join(texts)
    is_usual = (
        digits.isascii() and digits.isdigit() and set(map(len, texts)) == {_NANOSECOND_DIGITS}
    )
    stored = _format_all(texts, ".") if is_usual else None
    return stored or list(map(parse_nanoseconds, texts))


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
