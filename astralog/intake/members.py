"""The members of JSON objects, whose values stay as they were written until they are needed."""

from collections.abc import Sequence
from itertools import repeat
from operator import contains, itemgetter
from typing import Any

import msgspec

#: The members of a JSON object: their names, and their values as they were written.
Members = dict[str, msgspec.Raw]

NULL = msgspec.Raw(b"null")

decode_members = msgspec.json.Decoder(Members).decode
decode_text = msgspec.json.Decoder(str).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode

#: Bytes that are white space in JSON, and an error within a string.
LINE_BREAKS = b"\r\n"

#: Logs that are changed together if they are alike, which takes a millisecond: in runs of 64, it
#: takes a tenth more.
ALIKE_LOGS = 256

#: Characters of numbers, and the comma between two of them.
_NUMBERS = b"0123456789-+.eE,"


class NotAlikeError(Exception):
    """Logs have different members, or some may be invalid."""


def decode_object(text: bytes) -> Members:
    """Return the members of a JSON object in valid UTF-8, without line breaks in their values.

    Raises ValueError or RecursionError.
    """
    members = decode_members(text)
    if b"\n" in text or b"\r" in text:  # between tokens alone: strings have none
        members = decode_members(text.translate(None, LINE_BREAKS))
    return members


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


def is_in_any(name: str, logs: Sequence[Members]) -> bool:
    """Return whether a log has a member; in two thirds of the time of a loop."""
    return any(map(contains, logs, repeat(name)))


def find_column(
    logs: Sequence[Members], names: Sequence[str], found: list[str]
) -> list[msgspec.Raw] | None:
    """Return each log's value of the first member that is there; add its name to `found`.

    Returns None if no log has one of the members, or an object on the path of a dotted name.
    Raises NotAlikeError if only some logs have it.
    """
    for name in names:
        if name in logs[0]:
            found.append(name)
            try:
                return list(map(itemgetter(name), logs))
            except KeyError:
                raise NotAlikeError from None
        places = (name, *_outer_names(name)) if "." in name else (name,)
        if any(is_in_any(place, logs) for place in places):
            raise NotAlikeError
    return None


def _outer_names(name: str) -> list[str]:
    """Return the names of the objects that a dotted name may reach into."""
    return [name[:end] for end, character in enumerate(name) if character == "."]


def read_texts(values: Sequence[msgspec.Raw]) -> list[str]:
    """Return values that are strings, decoded in one call; raises NotAlikeError for any other."""
    try:
        return _decode_texts(b"[%b]" % b",".join(values))
    except ValueError:
        raise NotAlikeError from None


def read_scalars(values: Sequence[msgspec.Raw]) -> list[str]:
    """Return values that are strings, or all of them numbers, which stay as they were written."""
    text = b",".join(values)
    if not text.translate(None, _NUMBERS):
        return text.decode().split(",")
    return read_texts(values)


def find_texts(logs: Sequence[Members], names: Sequence[str], found: list[str]) -> list[str] | None:
    """Return each log's text in the first member that is there, as `find_column` does.

    Raises NotAlikeError also if a value is not a string. A trick for speed: the strings of all
    logs are decoded in one call.
    """
    values = find_column(logs, names, found)
    return None if values is None else read_texts(values)


def find_names(
    logs: Sequence[Members], names: Sequence[str], found: list[str], default: str
) -> list[str]:
    """Return the same as `find_texts`, with the default for None; raises for an empty text too."""
    texts = find_texts(logs, names, found)
    if texts is None:
        return [default] * len(logs)
    if "" in texts:
        raise NotAlikeError
    return texts
