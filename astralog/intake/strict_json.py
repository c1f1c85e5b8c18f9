"""Parse JSON as RFC 8259 has it, saying what is wrong where it is not."""

import codecs
import json
import math
import re
from typing import Any, NoReturn

from astralog.deadlines import in_turns

SEVERAL_OBJECTS = (
    "; one log per line is sent as application/x-ndjson, by curl with --data-binary: "
    "its -d removes the ends of lines"
)

_HIGH = rb"u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Other escapes and whole pairs match too: the text behind each is read in step, and the search for
# the next one is short.
_ESCAPE = re.compile(rb"\\(?:%s\\%s|(%s|%s)|.)" % (_HIGH, _LOW, _HIGH, _LOW), re.DOTALL)


def parse(body: bytes) -> Any:
    """Return the value of the one JSON text in `body`.

    Raises ValueError, worded for the client, for invalid UTF-8, a malformed text, NaN, Infinity,
    numbers beyond a double or 4,300 digits, and nesting too deep.
    """
    try:
        text = body.decode("utf-8")
        return json.loads(text, parse_constant=_reject_constant, parse_float=_parse_float)
    except UnicodeDecodeError as error:
        problem = name_encoding(body) or f"invalid UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        problem = name_encoding(body) or f"{error}{_hint(error)}"
    except RecursionError:
        problem = "nested too deep"
    raise ValueError(problem)


def name_encoding(body: bytes) -> str:
    """Return what a text that is no JSON begins with, or is, instead of plain UTF-8; "" if neither.

    A JSON text begins with two ASCII characters (RFC 4627, 3), unless it is a single digit.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:2]:
        return "it is UTF-16 or UTF-32; send UTF-8"
    if body.startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark; send it without"
    return ""


def _hint(error: json.JSONDecodeError) -> str:
    """Return what to add to the error of a text in which objects follow one another in a line."""
    is_extra = error.msg == "Extra data" and error.doc[error.pos] == "{"
    return SEVERAL_OBJECTS if is_extra and "\n" not in error.doc[: error.pos] else ""


def replace_lone_surrogates(body: bytes) -> bytes:
    """Return the JSON text with U+FFFD for each half of a surrogate pair that stands alone.

    JavaScript writes such halves where it cuts a text inside an emoji.
    """
    if not _SURROGATE.search(body):
        return body
    mended = bytearray()
    end = 0
    for match in in_turns(_ESCAPE.finditer(body)):
        if match[1]:
            mended += body[end : match.start()] + b"\\ufffd"
            end = match.end()
    return bytes(mended + body[end:]) if end else body


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number out of range: {text[:20]}")
    return number
