"""How OpenAPI describes what the query of a drain may ask for."""

from typing import Any

from astralog.intake.options import DEFAULTS, MAX_DEFAULT_CHARACTERS, TO_METADATA

_FLAGS = {
    "partial": "Store the valid logs, and answer 200 with how many are rejected and why.",
    "dry_run": "Check the batch, and store nothing.",
}


def describe_options() -> list[dict[str, Any]]:
    """Return the parameters of the query."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_DEFAULT_CHARACTERS}
    return [
        *(_parameter(name, f"Fills in `{name}` where a log lacks it.", text) for name in DEFAULTS),
        _parameter(
            "unknown",
            "Moves the unknown fields of a log under `metadata` instead of rejecting it. A log is "
            "invalid where `metadata` has a field of that name too, or is no object.",
            {"type": "string", "enum": [TO_METADATA]},
        ),
        *(
            _parameter(name, words, {"type": "boolean", "default": False})
            for name, words in _FLAGS.items()
        ),
    ]


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}
