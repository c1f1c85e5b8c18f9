"""The contract: what a batch and a log are, declared once, in marshmallow."""

import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec
from marshmallow import RAISE, Schema, ValidationError, fields
from marshmallow.validate import Length

from astralog.intake import compiled_schema, timestamps
from astralog.intake.strict_json import parse, replace_lone_surrogates

#: Invalid logs of a batch that are described; the rest is counted.
DESCRIBED_LOGS = 20

#: Fields of a invalid log that are described.
DESCRIBED_FIELDS = 20

#: Invalid logs of a batch that are counted; the rest is not looked at.
COUNTED_LOGS = 1000

#: Logs that are checked one by one between two chances for other requests to run.
LOGS_PER_TIME_SLICE = 50

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


class InvalidBatch(ValidationError):
    """`malformed` of `total` logs do not keep the contract; `messages` describes the first few.

    `complete` is false where the counting stopped early.
    """

    def __init__(self, errors: dict[int, Any], malformed: int, total: int, complete: bool) -> None:
        super().__init__({"logs": errors})
        self.errors = errors
        self.malformed = malformed
        self.total = total
        self.complete = complete

    def shifted(self, offset: int, total: int) -> "InvalidBatch":
        """Return this fault as seen from the batch of `total` logs that the logs were cut from."""
        errors = {offset + index: messages for index, messages in self.errors.items()}
        complete = self.complete and self.total == total
        return InvalidBatch(errors, self.malformed, total, complete)

    def __str__(self) -> str:
        least = "" if self.complete else "At least "
        return f"{least}{self.malformed} of {self.total} logs are invalid"


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

    def loads(self, json_data: bytes, **kwargs: Any) -> dict[str, list["Log"]]:  # type: ignore[override]
        """Load the JSON text of a batch.

        The compiled decoder takes what it recognises; all else goes marshmallow's way, which
        alone words the errors. Raises ValidationError, as InvalidBatch where single logs are at
        fault, and ValueError for what is no JSON.
        """
        logs = _decode(json_data)
        return {"logs": self._load_slowly(json_data) if logs is None else logs}

    def _load_slowly(self, body: bytes) -> list["Log"]:
        data = parse(replace_lone_surrogates(body))
        if not (isinstance(data, dict) and isinstance(data.get("logs"), list)):
            self.load(data)
            raise AssertionError("marshmallow took a batch without a list of logs")
        self.load(data | {"logs": []})
        return _load_logs(enumerate(data["logs"]), len(data["logs"]))


_log_schema = LogSchema()
_Batch: Any = compiled_schema.compile_struct(BatchSchema(), text_fields=[Timestamp])
#: The struct of one log, made from LogSchema's fields, in their order.
Log: Any = compiled_schema.item_type(_Batch, "logs")

_decoder = msgspec.json.Decoder(_Batch)
_line_decoder = msgspec.json.Decoder(Log)


def load_lines(body: bytes, first: int = 0) -> list["Log"]:
    """Load NDJSON: one log a line, blank lines aside.

    As `BatchSchema.loads`, with the number of a line for the index of a log; `first` is the
    number of the body's first line.
    """
    logs = _decode_lines(body)
    return _load_lines_slowly(body, first) if logs is None else logs


def _decode(body: bytes) -> list[Any] | None:
    """Return the logs of a batch that the compiled decoder recognises, else None."""
    try:
        return _store_timestamps(_decoder.decode(body).logs)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _decode_lines(body: bytes) -> list[Any] | None:
    """Return the logs of the lines that the compiled decoder recognises, else None.

    Line by line: the decoder's own `decode_lines` takes values wherever lines begin and end.
    """
    lines = body.split(b"\n")
    if not lines[-1]:
        lines.pop()
    try:
        return _store_timestamps(list(map(_line_decoder.decode, lines)))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _store_timestamps(logs: list[Any]) -> list[Any]:
    """Bring the timestamps into their stored form; raises ValueError where one has none."""
    stored = timestamps.normalise_all([log.timestamp for log in logs])
    if stored is not None:
        for log, timestamp in zip(logs, stored, strict=True):
            log.timestamp = timestamp
    return logs


def _load_lines_slowly(body: bytes, first: int) -> list[Any]:
    lines = replace_lone_surrogates(body).split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, first) if line.strip()]
    items = ((number, _parse_line(number, line)) for number, line in numbered)
    return _load_logs(items, len(numbered))


def _parse_line(number: int, line: bytes) -> Any:
    try:
        return parse(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def _load_logs(items: Iterable[tuple[int, Any]], total: int) -> list[Any]:
    """Load `total` logs one by one; `items` are their numbers and values."""
    logs: list[Any] = []
    errors: dict[int, Any] = {}
    malformed = seen = 0
    for seen, (number, item) in enumerate(items, 1):
        if seen % LOGS_PER_TIME_SLICE == 0:
            time.sleep(0)  # under gevent, other requests run now
        try:
            logs.append(Log(**_log_schema.load(item)))
        except ValidationError as error:
            malformed += 1
            if malformed <= DESCRIBED_LOGS:
                errors[number] = dict(islice(error.messages_dict.items(), DESCRIBED_FIELDS))
            if malformed == COUNTED_LOGS:
                break
    if malformed:
        raise InvalidBatch(errors, malformed, total, complete=seen == total)
    return logs
