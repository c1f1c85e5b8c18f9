"""Attributes and values of OTLP/protobuf, converted to values of JSON.

Most attributes are read directly from the wire: that takes less than half of the time of protobuf's
objects, which are made for all others.

The usual form of an attribute, with a key of n bytes (Source: protobuf's encoding of KeyValue and
AnyValue). Its head is all that precedes the content:

    0        KEY_TAG
    1        n
    2        the key
    n + 2    VALUE_TAG
    n + 3    the length of the rest
    n + 4    the tag of the content: STRING_TAG, INT_TAG or DOUBLE_TAG
    n + 5    the content; that of a string begins with its length

Both lengths are below 128, so that each takes one byte.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from math import isfinite
from struct import Struct
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from astralog.deadlines import in_turns
from astralog.intake.otlp_log import bytes_value, number_value
from astralog.intake.protobuf import LEAST_FIELD_BYTES, check_size, parse, read_fields
from astralog.intake.value_limits import MAX_ATTRIBUTES, ValueBudget, check_depth

#: The longest list or map; as objects, a value costs far more memory. Beyond it, the log is
#: invalid.
MAX_NESTED_BYTES = 256 * 1024

#: Parts that a long value may be sent in. Beyond it, the log is invalid.
MAX_PARTS = 1000

#: Attributes of an export that are kept as they were read: many stand in every record. Most of a
#: longer list would stand in one record only; with 512 of them, a log takes 1 µs more. Once there
#: are so many, those of further records are not kept.
CACHED_ATTRIBUTES = 64

#: Heads of an export's attributes of which the reader is kept.
CACHED_HEADS = 512

#: The usual form of an attribute: see above.
KEY_TAG = KeyValue(key="x").SerializeToString()[0]
VALUE_TAG = KeyValue(value=AnyValue()).SerializeToString()[0]
STRING_TAG = AnyValue(string_value="x").SerializeToString()[0]
INT_TAG = AnyValue(int_value=1).SerializeToString()[0]
DOUBLE_TAG = AnyValue(double_value=1).SerializeToString()[0]
KEY_LENGTH_AT = 1
KEY_AT = 2
HEAD_BYTES = 5  # in addition to the key

#: Lengths below ONE_BYTE take one byte; values with such a string have less than
#: SHORT_STRING_BYTES: its tag, its length and its text.
ONE_BYTE = 128
SHORT_STRING_BYTES = 2 + ONE_BYTE

#: Bytes of the longest integer that is read from the wire; negative ones have more.
MAX_INT_BYTES = 8
DOUBLE_BYTES = 8

_ARRAY_TAG = AnyValue(array_value=ArrayValue()).SerializeToString()[0]
_MAP_TAG = AnyValue(kvlist_value=KeyValueList()).SerializeToString()[0]
_unpack_double = Struct("<d").unpack_from

#: A key and its value in JSON's form.
Attribute = tuple[str, Any]

#: Reads an attribute from the wire; returns None unless it has the usual form.
WireReader = Callable[[bytes], Attribute | None]


class ValueReader:
    """Read the attributes and values of one export; equal ones are read once."""

    def __init__(self, budget: ValueBudget) -> None:
        self._budget = budget
        self._known: dict[bytes, Attribute] = {}
        self._readers: dict[bytes, WireReader] = {}

    def read_attributes(self, texts: Any) -> dict[str, Any]:
        """Return attributes as an object; if several have the same key, the last one counts."""
        known, readers = self._known, self._readers
        is_cache_full = len(known) >= CACHED_ATTRIBUTES
        attributes = {}
        for text in self._budget.take(texts[:], MAX_ATTRIBUTES):
            attribute = known.get(text)
            if attribute is None:
                try:
                    head = text[: text[KEY_LENGTH_AT] + HEAD_BYTES]
                except IndexError:  # a check of the length would take 0.05 µs
                    head = b""
                read = readers.get(head) or self._add_reader(head)
                attribute = read(text) or self.read_attribute(text)
                if not is_cache_full:
                    known[text] = attribute
            key, value = attribute
            attributes[key] = value
        return attributes

    def _add_reader(self, head: bytes) -> WireReader:
        read = _make_reader(head)
        if len(self._readers) < CACHED_HEADS:
            self._readers[head] = read
        return read

    def read_attribute(self, text: bytes) -> Attribute:
        """Return any attribute, parsed by protobuf; raises ValueError and Rejection."""
        if len(text) > MAX_NESTED_BYTES:
            _check_nested(list(islice(_contents(text, (VALUE_TAG,)), MAX_PARTS + 1)))
        attribute = parse(KeyValue, text, "An attribute")
        return attribute.key, self._convert(attribute.value)

    def read_value(self, text: bytes) -> Any:
        """Return a value in JSON's form; raises ValueError and Rejection."""
        size = len(text)
        if 1 < size < SHORT_STRING_BYTES and text[0] == STRING_TAG and text[1] == size - 2:
            try:
                return text[2:].decode()
            except UnicodeDecodeError:
                pass  # `parse` repairs it
        if size > MAX_NESTED_BYTES:
            _check_nested([text])
        return self._convert(parse(AnyValue, text, "The body"))

    def _convert(self, value: AnyValue, depth: int = 0) -> Any:
        kind = value.WhichOneof("value")
        if kind == "int_value":
            return value.int_value
        if kind == "string_value":
            return value.string_value
        if kind == "bool_value":
            return value.bool_value
        if kind == "double_value":
            return number_value(value.double_value)
        if kind == "bytes_value":
            return bytes_value(value.bytes_value)
        return self._convert_nested(value, kind, depth + 1)

    def _convert_nested(self, value: AnyValue, kind: str | None, depth: int) -> Any:
        """Return a list or a map in JSON's form; None for a value without any content."""
        check_depth(depth)
        if kind == "array_value":
            items = self._budget.take(value.array_value.values)
            return [self._convert(item, depth) for item in items]
        if kind == "kvlist_value":
            members = self._budget.take(value.kvlist_value.values)
            return {item.key: self._convert(item.value, depth) for item in members}
        return None


def _make_reader(head: bytes) -> WireReader:
    """Return the reader of the attributes that begin with a head."""
    if len(head) < HEAD_BYTES or len(head) != head[KEY_LENGTH_AT] + HEAD_BYTES:
        return _read_none
    value_tag, length, tag = head[-3:]
    is_usual = head[0] == KEY_TAG and value_tag == VALUE_TAG and head[KEY_LENGTH_AT] < ONE_BYTE
    make = _READERS.get(tag)
    if not is_usual or make is None or not 2 <= length < ONE_BYTE:
        return _read_none
    try:
        key = head[KEY_AT:-3].decode()
    except UnicodeDecodeError:
        return _read_none
    return make(key, len(head), len(head) - 1 + length)


def _read_none(text: bytes) -> None:
    """Return None: no attribute with this head has the usual form."""


def _make_string_reader(key: str, begin: int, size: int) -> WireReader:
    """Return the reader of attributes of `size` bytes with a string from `begin` on."""
    text_begin = begin + 1
    length = size - text_begin

    def read(text: bytes) -> Attribute | None:
        if len(text) != size or text[begin] != length:
            return None
        try:
            return key, text[text_begin:].decode()
        except UnicodeDecodeError:
            return None

    return read


def _make_int_reader(key: str, begin: int, size: int) -> WireReader:
    """Return the reader of attributes of `size` bytes with an integer from `begin` on."""
    if size > begin + MAX_INT_BYTES:
        return _read_none
    bits = 7 * (size - begin)

    def read(text: bytes) -> Attribute | None:
        if len(text) != size:
            return None
        number = shift = 0
        for byte in text[begin:]:
            number |= (byte & 127) << shift
            shift += 7
            if byte < ONE_BYTE:
                return (key, number) if shift == bits else None
        return None

    return read


def _make_double_reader(key: str, begin: int, size: int) -> WireReader:
    """Return the reader of attributes of `size` bytes with a double from `begin` on."""
    if size != begin + DOUBLE_BYTES:
        return _read_none

    def read(text: bytes) -> Attribute | None:
        if len(text) != size:
            return None
        number = _unpack_double(text, begin)[0]
        return key, number if isfinite(number) else number_value(number)

    return read


_READERS = {
    STRING_TAG: _make_string_reader,
    INT_TAG: _make_int_reader,
    DOUBLE_TAG: _make_double_reader,
}


def _contents(text: bytes, tags: Collection[int]) -> Iterator[bytes]:
    """Return the contents of a message's fields with the given tags; raises as `parse`."""
    check_size(text)
    return (text[begin:end] for tag, begin, end in in_turns(read_fields(text)) if tag in tags)


def _check_nested(parts: Sequence[bytes]) -> None:
    """Raise ValueError for a value, sent in parts, whose lists and maps are too long."""
    if len(parts) > MAX_PARTS:
        raise ValueError(f"A value occurs more than {MAX_PARTS} times.")
    size = 0
    for value in parts:
        for content in _contents(value, (_ARRAY_TAG, _MAP_TAG)):
            size += len(content) + LEAST_FIELD_BYTES
            if size > MAX_NESTED_BYTES:
                raise ValueError(f"A list or map takes more than {MAX_NESTED_BYTES} bytes.")
