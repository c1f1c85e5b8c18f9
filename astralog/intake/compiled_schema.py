"""Compile a marshmallow schema into a msgspec decoder: the same contract, in one pass of C.

The schema stays the only list of fields. What the decoder takes, the schema takes with the same
values; what it does not take is no verdict, and goes the schema's own way.
"""

from collections.abc import Collection
from typing import Annotated, Any

import msgspec
from marshmallow import RAISE, Schema, fields, missing
from marshmallow.validate import Length


def compile_struct(
    schema: Schema, text_fields: Collection[type[fields.String]] = ()
) -> type[msgspec.Struct]:
    """Return the struct type that holds exactly what `schema` loads.

    `text_fields` are the kinds of string whose text the caller checks after decoding. Raises
    TypeError for a field, validator, hook or option that has no equal in msgspec, so that the two
    cannot drift apart unseen.
    """
    if schema.unknown != RAISE or any(schema._hooks.values()):
        raise TypeError(f"{type(schema).__name__}: takes unknown fields or has hooks")
    return msgspec.defstruct(
        type(schema).__name__.removesuffix("Schema"),
        [_struct_field(name, field, text_fields) for name, field in schema.fields.items()],
        forbid_unknown_fields=True,
        omit_defaults=True,
        gc=False,
    )


def _struct_field(
    name: str, field: fields.Field[Any], text_fields: Collection[type[fields.String]]
) -> tuple[Any, ...]:
    options = (field.data_key, field.attribute, field.dump_only or None)
    if any(option is not None for option in options) or field.load_default is not missing:
        raise TypeError(f"{name}: data_key, attribute, dump_only, load_default have no equal")
    kind = _kind(name, field, text_fields)
    if field.required and not field.allow_none:
        return name, kind
    if not field.required and field.allow_none:
        return name, kind | None, None  # null and absent are stored alike: left out
    raise TypeError(f"{name}: a field is either required or may be null")


def _kind(name: str, field: fields.Field[Any], text_fields: Collection[type[fields.String]]) -> Any:
    match field:
        case fields.List(validators=[], inner=fields.Nested(validators=[], many=None) as nested):
            return list[compile_struct(nested.schema, text_fields)]  # type: ignore[misc]
        case fields.Dict(validators=[], key_field=None, value_field=None):
            return dict[str, Any]
        case fields.String() if type(field) in (fields.String, *text_fields):
            return Annotated[str, msgspec.Meta(min_length=_min_length(name, field))]
    raise TypeError(f"{name}: {type(field).__name__} has no equal")


def _min_length(name: str, field: fields.String) -> int:
    match field.validators:
        case []:
            return 0
        case [Length(min=int() as least, max=None, equal=None)]:
            return least
    raise TypeError(f"{name}: its validators have no equal")


def item_type(struct: type[msgspec.Struct], name: str) -> Any:
    """Return the type of the items of the list field `name`."""
    (kind,) = (field.type for field in msgspec.structs.fields(struct) if field.name == name)
    return kind.__args__[0]
