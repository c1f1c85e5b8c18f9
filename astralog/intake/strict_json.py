"""Parse JSON as RFC 8259 has it, saying what is wrong where it is not."""

import json
import math
import re
from typing import Any, NoReturn

from astralog.time_slice import TimeSlice

#: Escapes between two looks at whether the time slice is over; they take 4 ms.
ESCAPES_PER_LOOK = 10_000

_HIGH = rb"u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
# Escaped backslashes and whole pairs are matched too, so that what follows is read in step.
_ESCAPE = re.compile(rb"\\(?:\\|%s\\%s|(%s|%s))" % (_HIGH, _LOW, _HIGH, _LOW))


def parse(body: bytes) -> Any:
    """Return the value of the one JSON text in `body`.

    Raises ValueError, worded for the client, for invalid UTF-8, a malformed text, NaN, Infinity,
    numbers beyond a double or 4,300 digits, and nesting too deep.
    """
    try:
        text = body.decode("utf-8")
        return json.loads(text, parse_constant=_reject_constant, parse_float=_parse_float)
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def replace_lone_surrogates(body: bytes) -> bytes:
    """Return the JSON text with U+FFFD for each half of a surrogate pair that stands alone.

    JavaScript writes such halves where it cuts a text inside an emoji.
    """
    mended = bytearray()
    end = 0
    time_slice = TimeSlice()
    for count, match in enumerate(_ESCAPE.finditer(body), 1):
        if match[1]:
            mended += body[end : match.start()] + b"\\ufffd"
            end = match.end()
        if count % ESCAPES_PER_LOOK == 0:
            time_slice.end_if_over()
    return bytes(mended + body[end:]) if end else body


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number out of range: {text[:20]}")
    return number
