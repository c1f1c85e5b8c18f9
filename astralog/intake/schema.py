"""The schema of a batch and a log, declared once in marshmallow, and compiled for msgspec.

The marshmallow schema is the only list of fields; a test compares the OpenAPI document with it. The
compiled decoder, one pass in C, accepts no log that the schema rejects, and makes the same values;
if it rejects a log, the schema decides.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from marshmallow import RAISE, Schema, ValidationError, fields, missing
from marshmallow.validate import Length

from astralog.intake import timestamps

#: Metadata that is left out of a line: msgspec omits a field whose value is this very object.
NO_METADATA = msgspec.Raw(b"{}")

_NOT_EMPTY = Length(min=1, error="Must not be empty.")


class Timestamp(fields.String):
    """A string in any form that `timestamps.normalise` accepts, loaded as RFC 3339 in UTC."""

    default_error_messages = {"invalid": timestamps.EXPECTED}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text: str = super()._deserialize(value, *args, **kwargs)
        try:
            return timestamps.normalise(text)
        except ValueError as error:
            raise ValidationError(str(error)) from None


class LogSchema(Schema):
    """One log: these six fields and no other."""

    class Meta:
        unknown = RAISE

    error_messages = {
        "unknown": "Unknown field; put extra context under metadata.",
        "type": "Not an object.",
    }

    project_id = fields.String(required=True, validate=_NOT_EMPTY)
    timestamp = Timestamp(required=True)
    level = fields.String(required=True, validate=_NOT_EMPTY)
    service = fields.String(required=True, validate=_NOT_EMPTY)
    message = fields.String(required=True)
    metadata = fields.Dict(allow_none=True, error_messages={"invalid": "Not an object."})


class BatchSchema(Schema):
    """A batch: an object with a list of logs."""

    class Meta:
        unknown = RAISE

    error_messages = {
        "unknown": "Unknown field; a batch holds only logs.",
        "type": 'Not an object; a batch is {"logs": [...]}.',
    }

    logs = fields.List(
        fields.Nested(LogSchema), required=True, error_messages={"invalid": "Not a list."}
    )


def compile_struct(schema: Schema, dicts: Mapping[str, Any]) -> type[msgspec.Struct]:
    """Return a struct type that accepts exactly the values that `schema` loads.

    The caller checks two kinds of fields after decoding. A Timestamp may be any text. `dicts` has
    the types of dict fields that may be any value, by their names: Any, or msgspec.Raw for the JSON
    text, which may have line breaks and invalid UTF-8; without the field it is NO_METADATA. Raises
    TypeError for a field, validator, hook or option without an equivalent in msgspec, so that the
    two cannot diverge unnoticed.
    """
    if schema.unknown != RAISE or any(schema._hooks.values()):
        raise TypeError(f"{type(schema).__name__}: accepts unknown fields or has hooks")
    return _define(
        type(schema).__name__.removesuffix("Schema"),
        [_struct_field(name, field, dicts) for name, field in schema.fields.items()],
    )


def _struct_field(name: str, field: fields.Field[Any], dicts: Mapping[str, Any]) -> tuple[Any, ...]:
    options = (field.data_key, field.attribute, field.dump_only or None)
    if any(option is not None for option in options) or field.load_default is not missing:
        raise TypeError(f"{name}: data_key, attribute, dump_only, load_default have no equivalent")
    kind = _kind(name, field, dicts)
    if field.required and not field.allow_none:
        return name, kind
    if not field.required and field.allow_none:
        # null and absent are stored alike: left out
        return (name, kind, NO_METADATA) if kind is msgspec.Raw else (name, kind | None, None)
    raise TypeError(f"{name}: a field is either required or may be null")


def _kind(name: str, field: fields.Field[Any], dicts: Mapping[str, Any]) -> Any:
    match field:
        case fields.Dict(validators=[], key_field=None, value_field=None):
            return dicts.get(name, dict[str, Any])
        case fields.String() if type(field) in (fields.String, Timestamp):
            return Annotated[str, msgspec.Meta(min_length=_min_length(name, field))]
    raise TypeError(f"{name}: {type(field).__name__} has no equivalent")


def _min_length(name: str, field: fields.String) -> int:
    match field.validators:
        case []:
            return 0
        case [Length(min=int() as least, max=None, equal=None)]:
            return least
    raise TypeError(f"{name}: its validators have no equivalent")


def allow_missing(struct: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return a struct with the same fields; required ones may be missing or null."""
    return _define(
        f"Incomplete{struct.__name__}",
        [
            (field.name, field.type | None, None)
            if field.required
            else (field.name, field.type, field.default)
            for field in msgspec.structs.fields(struct)
        ],
    )


def _define(name: str, definitions: Sequence[tuple[Any, ...]]) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        name, definitions, forbid_unknown_fields=True, omit_defaults=True, gc=False
    )


#: The names of a log's fields.
FIELDS = tuple(LogSchema().fields)

#: Those of the required ones.
REQUIRED = frozenset(name for name, field in LogSchema().fields.items() if field.required)

# The structs of a log, with LogSchema's fields, in their order:
#
# struct          fields       metadata
# Log             all          anything; its maker checks that it is an object
# RawLog          all          the text that the client sent; `logs.load` checks it
# IncompleteLog   any of them  as that of RawLog

Log: Any = compile_struct(LogSchema(), {"metadata": Any})
RawLog: Any = compile_struct(LogSchema(), {"metadata": msgspec.Raw})
IncompleteLog: Any = allow_missing(RawLog)
