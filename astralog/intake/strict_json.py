"""JSON as RFC 8259 defines it, and UTF-8: what Python's own parser and decoder do not check."""

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from astralog.deadlines import in_turns, yield_if_due

SEVERAL_OBJECTS = (
    "; send one log per line as application/x-ndjson; with curl, use --data-binary, "
    "since -d removes line breaks"
)

_HIGH = rb"u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Other escapes and whole pairs match too, so that the search for the next match is short.
_ESCAPE = re.compile(rb"\\(?:%s\\%s|(%s|%s)|.)" % (_HIGH, _LOW, _HIGH, _LOW), re.DOTALL)

#: Bytes of UTF-8 that are decoded without a pause: 4 ms if all of them are invalid.
UTF8_STEP_BYTES = 256 * 1024

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


def parse(body: bytes) -> Any:
    """Return the value of the JSON text in `body`.

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
    """Return the reason why a text is not plain UTF-8: a byte order mark or UTF-16; else "".

    A JSON text begins with two ASCII characters (RFC 4627, 3), unless it is a single digit.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:2]:
        return "it is UTF-16 or UTF-32; send UTF-8"
    if body.startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark; send it without"
    return ""


def _hint(error: json.JSONDecodeError) -> str:
    """Return a hint for the error of a text with several objects in one line, "" for others."""
    is_extra = error.msg == "Extra data" and error.doc[error.pos] == "{"
    return SEVERAL_OBJECTS if is_extra and "\n" not in error.doc[: error.pos] else ""


def replace_lone_surrogates(body: bytes) -> bytes:
    """Return the JSON text with U+FFFD for each lone half of a surrogate pair.

    JavaScript writes such halves when it cuts a text inside an emoji.
    """
    if not _SURROGATE.search(body):
        return body
    replaced = bytearray()
    end = 0
    for match in in_turns(_ESCAPE.finditer(body)):
        if match[1]:
            replaced += body[end : match.start()] + b"\\ufffd"
            end = match.end()
    return bytes(replaced + body[end:]) if end else body


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number out of range: {text[:20]}")
    return number


def check_utf8(text: bytes) -> None:
    """Raise UnicodeDecodeError, a ValueError, for invalid UTF-8."""
    if not text.isascii():
        text.decode()


def is_utf8(text: bytes) -> bool:
    """Return whether a text of any length is valid UTF-8."""
    if text.isascii():
        return True
    try:
        for _ in _decode_in_steps(text, "strict"):
            pass
    except UnicodeDecodeError:
        return False
    return True


def to_utf8(text: bytes) -> bytes:
    """Return the text with U+FFFD for invalid UTF-8; it may need three times the bytes."""
    return b"".join([piece.encode() for piece in _decode_in_steps(text, "replace")])


def _decode_in_steps(text: bytes, errors: str) -> Iterator[str]:
    decoder = _new_utf8_decoder(errors)
    for start in range(0, len(text), UTF8_STEP_BYTES):
        yield decoder.decode(text[start : start + UTF8_STEP_BYTES])
        yield_if_due()
    yield decoder.decode(b"", final=True)
