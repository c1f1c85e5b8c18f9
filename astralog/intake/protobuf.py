"""Protobuf: messages of the service's own, and the wire format, field by field.

The wire format is read to check messages before they are parsed, and for those that protobuf's own
parser rejects. Source: https://protobuf.dev/programming-guides/encoding/.
"""

import sys
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from astralog.deadlines import in_turns
from astralog.errors import Rejection
from astralog.intake.strict_json import to_utf8
from astralog.intake.value_limits import MAX_VALUES

#: Types of fields, the last three bits of a tag, and the bytes of those whose content has a size.
VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)
_BYTES_OF_TYPE = {FIXED64: 8, FIXED32: 4, START_GROUP: 0, END_GROUP: 0}

#: Bytes of the shortest field that may stand in a message again and again.
LEAST_FIELD_BYTES = 2

#: The longest message that is parsed unchecked: two million fields, in 150 ms at most.
LONG_BYTES = 2_000_000 * LEAST_FIELD_BYTES

PACKAGE = "astralog"
_pool = descriptor_pool.DescriptorPool()

#: The tag of a field, and the start and end of its content; the next field's tag begins there.
Field = tuple[int, int, int]


def read_fields(text: bytes) -> Iterator[Field]:
    """Yield the fields of a message; those within a group have the tag 0. Raises ValueError."""
    position = depth = 0
    try:
        while position < len(text):
            tag, begin = read_varint(text, position)
            kind = tag & 7
            begin, position = _find_content(text, begin, kind)
            if position > len(text):
                break
            yield 0 if depth else tag, begin, position
            depth += (kind == START_GROUP) - (kind == END_GROUP)
    except IndexError:
        position = sys.maxsize
    if position > len(text) or depth:
        raise ValueError("The message ends within a field.")


def read_varint(text: bytes, position: int) -> tuple[int, int]:
    """Return a number and its end; raises IndexError, and ValueError beyond 64 bits."""
    number = shift = 0
    while True:
        byte = text[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("A number has more than 64 bits.")


def _find_content(text: bytes, position: int, kind: int) -> tuple[int, int]:
    """Return the start and end of the content behind a tag; raises as `read_varint`."""
    if kind == LENGTH:
        length, position = read_varint(text, position)
        return position, position + length
    if kind == VARINT:
        return position, read_varint(text, position)[1]
    if kind in _BYTES_OF_TYPE:
        return position, position + _BYTES_OF_TYPE[kind]
    raise ValueError("A field has an invalid wire type.")


def _write_varint(number: int) -> bytes:
    """Return a number on the wire: 7 bits per byte, the lowest first."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def check_size(text: bytes) -> None:
    """Raise Rejection `body_too_large` for a long message of more than MAX_VALUES fields.

    A message is read until its rest is too short to hold too many fields.
    """
    enough = len(text) - LONG_BYTES
    for count, (_, _, end) in enumerate(in_turns(read_fields(text))):
        if count > MAX_VALUES:
            message = (
                f"A protobuf message in the body has more than {MAX_VALUES} fields; "
                "send smaller batches."
            )
            raise Rejection("body_too_large", message)
        if end > enough:
            return


def parse(kind: Any, text: bytes, what: str) -> Any:
    """Return a message, with U+FFFD in place of invalid UTF-8; raises ValueError and Rejection.

    `what` names the message in the error.
    """
    if len(text) > LONG_BYTES:
        check_size(text)
    try:
        return kind.FromString(text)
    except DecodeError:
        pass
    try:
        return kind.FromString(replace_invalid_utf8(kind.DESCRIPTOR, text))
    except (DecodeError, ValueError):
        message = f"{what} is no such protobuf message, or nested too deep."
        raise ValueError(message) from None


def find_unknown(text: bytes, known: Collection[int]) -> int | None:
    """Return the number of the first field that is not `known`, or None."""
    for tag, _, _ in in_turns(read_fields(text)):
        if tag >> 3 not in known:
            return tag >> 3  # a group's start precedes its fields
    return None


def replace_invalid_utf8(message: Descriptor, text: bytes) -> bytes:
    """Return a message with U+FFFD in place of invalid UTF-8 in strings; raises ValueError."""
    kinds = _find_texts(message)
    pieces: list[bytes] = []
    start = 0
    for tag, begin, end in in_turns(read_fields(text)):
        if tag in kinds:
            content, kind = text[begin:end], kinds[tag]
            content = replace_invalid_utf8(kind, content) if kind else to_utf8(content)
            pieces += _write_varint(tag), _write_varint(len(content)), content
        else:
            pieces.append(text[start:end])
        start = end
    return b"".join(pieces)


@lru_cache
def _find_texts(message: Descriptor) -> dict[int, Descriptor | None]:
    """Return the tags of a message's strings, and of its submessages with their descriptors."""
    return {
        field.number << 3 | LENGTH: field.message_type
        for field in message.fields
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
    }


def define(name: str, fields: str) -> Any:
    """Register a message under a unique name, and return its class.

    The fields are written as in a .proto file; a type in upper case is a message defined before.
    """
    message = descriptor_pb2.DescriptorProto(name=name)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package=PACKAGE, syntax="proto3"
    )
    for field in filter(str.strip, fields.split(";")):
        *repeated, kind, field_name, _, number = field.split()
        added = message.field.add(name=field_name, number=int(number))
        added.label = added.LABEL_REPEATED if repeated else added.LABEL_OPTIONAL
        if kind[0].isupper():
            added.type, added.type_name = added.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            file.dependency.append(f"{kind}.proto")
        else:
            added.type = added.Type.Value(f"TYPE_{kind.upper()}")
    file.message_type.append(message)
    _pool.AddSerializedFile(file.SerializeToString())
    found = _pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
    return message_factory.GetMessageClass(found)
