"""How OpenAPI describes what a drain may ask for in its query, and the key it may have."""

from typing import Any

from astralog.intake.idempotency import MAX_KEY_CHARACTERS
from astralog.intake.options import DEFAULTS, MAX_DEFAULT_CHARACTERS, TO_METADATA

_FLAGS = {
    "partial": "Store the valid logs, and answer 200 with how many are rejected and why.",
    "dry_run": "Check the batch, and store nothing.",
}


_TIMES = f"{{1,{MAX_KEY_CHARACTERS}}}"

#: The header that gives a batch its key, but for a key with quotes or backslashes in its quotes.
KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A name that no other batch of this token has, such as a UUID, quoted or not. "
    "A batch that is sent again with its key is stored once. A dry run ignores it.",
    "schema": {
        "type": "string",
        "pattern": rf'^("[!#-\[\]-~]{_TIMES}"|[!#-+\--~]{_TIMES})$',
    },
}

#: What a response says where a batch was stored before.
REPLAYED = {
    "Idempotency-Replayed": {
        "description": "Set where an earlier try with this Idempotency-Key stored the batch.",
        "schema": {"type": "string", "const": "true"},
    }
}


def describe_options() -> list[dict[str, Any]]:
    """Return the parameters of the query."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_DEFAULT_CHARACTERS}
    return [
        *(_parameter(name, f"Fills in `{name}` where a log lacks it.", text) for name in DEFAULTS),
        _parameter(
            "unknown",
            "Moves the unknown fields of a log under `metadata` instead of rejecting it. A log is "
            "invalid where `metadata` has a field of that name too, or is no object. A number or a "
            "boolean in a known field other than `timestamp` becomes text, and a list or an object "
            "as `message` its JSON.",
            {"type": "string", "enum": [TO_METADATA]},
        ),
        *(
            _parameter(name, words, {"type": "boolean", "default": False})
            for name, words in _FLAGS.items()
        ),
    ]


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}
