"""The members of JSON objects, whose values stay as they were written until they are needed."""

from collections.abc import Iterable
from typing import Any

import msgspec

#: The members of a JSON object: their names, and their values as they were written.
Members = dict[str, msgspec.Raw]

NULL = msgspec.Raw(b"null")

#: Bytes that a value of a list takes until it is decoded, in addition to its text.
RAW_BYTES = 64

decode_members = msgspec.json.Decoder(Members).decode
decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
decode_text = msgspec.json.Decoder(str).decode

#: Bytes that are white space in JSON, and an error within a string.
LINE_BREAKS = b"\r\n"


def decode_object(text: bytes) -> Members:
    """Return the members of a JSON object in valid UTF-8, without line breaks in their values.

    Raises ValueError or RecursionError.
    """
    members = decode_members(text)
    if has_line_breaks(text):
        members = without_line_breaks(members)
    return members


def has_line_breaks(text: bytes) -> bool:
    return b"\n" in text or b"\r" in text


def without_line_breaks(members: Members) -> Members:
    """Return the members of a valid object with no line breaks in their values.

    They are between tokens alone: strings have none.
    """
    return {
        name: msgspec.Raw(bytes(value).translate(None, LINE_BREAKS))
        for name, value in members.items()
    }


def starts_with(value: msgspec.Raw, characters: bytes) -> bool:
    """Return whether a value's first character is one of those in ASCII."""
    return memoryview(value)[0] in characters


def is_object(value: Any) -> bool:
    """Return whether a value is an object as it was written."""
    return isinstance(value, msgspec.Raw) and starts_with(value, b"{")


def as_text(raw: Any) -> str:
    """Return a string unchanged, "" for null, and any other value as its JSON."""
    try:
        return decode_text(raw)
    except ValueError:
        text = bytes(raw)
        return "" if text == b"null" else text.decode()


def take_name(members: Members, name: str) -> str:
    """Remove a member that is a string, number or boolean, and return it as text; else ""."""
    raw = members[name]
    try:
        text = decode_text(raw)
    except ValueError:
        text = bytes(raw).decode()
        if text == "null" or text[0] in "{[":
            return ""
    if text:
        del members[name]
    return text


def take_first(members: Members, names: Iterable[str]) -> str:
    """Remove the first of some members that `take_name` removes, and return it; else ""."""
    return next(filter(None, (take_name(members, name) for name in names if name in members)), "")
