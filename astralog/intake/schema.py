"""The contract: what a batch and a log are, declared once, in marshmallow."""

from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields
from marshmallow.validate import Length

from astralog.intake import compiled_schema, timestamps

_NOT_EMPTY = Length(min=1, error="Must not be empty.")


class Timestamp(fields.String):
    """A string in any form that `timestamps.normalise` takes, loaded as RFC 3339 in UTC."""

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

    project_id = fields.String(
        required=True,
        validate=_NOT_EMPTY,
        metadata={"description": "The organisation or project."},
    )
    timestamp = Timestamp(
        required=True,
        metadata={
            "description": "When it happened: RFC 3339, ISO 8601 or SQL; without an offset, UTC."
        },
    )
    level = fields.String(
        required=True,
        validate=_NOT_EMPTY,
        metadata={"description": "How severe it is: info, error, debug, …"},
    )
    service = fields.String(
        required=True,
        validate=_NOT_EMPTY,
        metadata={"description": "The service or process that logged it."},
    )
    message = fields.String(required=True, metadata={"description": "What happened."})
    metadata = fields.Dict(
        allow_none=True,
        error_messages={"invalid": "Not an object."},
        metadata={"description": "Any extra context."},
    )


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


#: The names of a log's fields.
FIELDS = tuple(LogSchema().fields)

#: The struct of a batch, compiled from its schema.
BatchStruct: Any = compiled_schema.compile_struct(BatchSchema(), text_fields=[Timestamp])

#: The struct of one log, with LogSchema's fields, in their order.
Log: Any = compiled_schema.item_type(BatchStruct, "logs")
