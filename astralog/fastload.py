"""Compile a marshmallow schema into a msgspec decoder: the same contract, in one pass of C.

The schema stays the only list of fields. What the decoder takes, the schema takes with the same
values; what it does not take is no verdict, and goes the schema's own way.
"""

from typing import Annotated, Any

import msgspec
from marshmallow import RAISE, Schema, fields, missing
from marshmallow.validate import Length


def compile_struct(schema: Schema) -> type[msgspec.Struct]:
    """Return the struct type that holds exactly what `schema` loads.

    Raises TypeError for a field, validator or option that has no equal in msgspec, so that the
    two cannot drift apart unseen.
    """
    if schema.unknown != RAISE:
        raise TypeError(f"{type(schema).__name__} does not refuse unknown fields")
    return msgspec.defstruct(
        type(schema).__name__.removesuffix("Schema"),
        [_struct_field(name, field) for name, field in schema.fields.items()],
        forbid_unknown_fields=True,
        omit_defaults=True,
        gc=False,
    )


def _struct_field(name: str, field: fields.Field[Any]) -> tuple[Any, ...]:
    if field.data_key is not None or field.load_default is not missing:
        raise TypeError(f"{name}: data_key and load_default have no equal")
    kind = _kind(name, field)
    if field.required and not field.allow_none:
        return name, kind
    if not field.required and field.allow_none:
        return name, kind | None, None  # null and absent are stored alike: left out
    raise TypeError(f"{name}: a field is either required or may be null")


def _kind(name: str, field: fields.Field[Any]) -> Any:
    match field:
        case fields.List(inner=fields.Nested() as nested) if not field.validators:
            return list[compile_struct(nested.schema)]  # type: ignore[misc]
        case fields.Dict(key_field=None, value_field=None) if not field.validators:
            return dict[str, Any]
        case fields.String():
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
