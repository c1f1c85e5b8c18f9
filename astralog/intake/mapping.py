"""Change a log as the query asks: move unknown fields, and fill in missing ones."""

from collections.abc import Mapping
from heapq import nsmallest
from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.intake.decoder import DESCRIBED_FIELDS
from astralog.intake.options import Options
from astralog.intake.schema import FIELDS

_SCALARS = (bool, int, float)

#: What becomes text in a known field if unknown fields move. A number is no timestamp, since its
#: unit is not known.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "project_id": _SCALARS,
    "level": _SCALARS,
    "service": _SCALARS,
    "message": (*_SCALARS, list, dict),
}

_TWICE = "metadata has a field of this name too."


def change_log(log: Any, options: Options) -> Any:
    """Return the log as the options have it: unknown fields moved, and what it lacks filled in.

    If unknown fields move, numbers and booleans in known ones become text, and so does any message.
    A field that is null is lacking. What is no object stays as it is. Raises ValidationError where
    metadata has a field of an unknown field's name already: neither may be lost.
    """
    if not isinstance(log, dict):
        return log
    if options.moves_unknown:
        log = _move_unknown(log)
        _write_as_text(log)
    for name, value in options.defaults.items():
        if log.get(name) is None:
            log[name] = value
    return log


def _move_unknown(log: dict[str, Any]) -> dict[str, Any]:
    """Return the log with its unknown fields under metadata, unless that is no object."""
    known = {name: log.pop(name) for name in FIELDS if name in log}
    if log:
        metadata = known.get("metadata")
        if metadata is None:
            known["metadata"] = log
        elif isinstance(metadata, dict):
            if twice := metadata.keys() & log:
                shown = nsmallest(DESCRIBED_FIELDS, twice)
                raise ValidationError({name: [_TWICE] for name in shown})
            metadata.update(log)
    return known


def _write_as_text(log: dict[str, Any]) -> None:
    """Replace numbers and booleans in known fields, and any message, by their JSON."""
    for name, kinds in _KINDS.items():
        value = log.get(name)
        if isinstance(value, kinds):
            log[name] = msgspec.json.encode(value).decode()
