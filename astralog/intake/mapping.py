"""Change a log as the query demands: move fields to their names, and fill in missing ones."""

import re
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.intake.decoder import DESCRIBED_FIELDS
from astralog.intake.options import Options
from astralog.intake.schema import FIELDS
from astralog.intake.unix_time import EXPECTED, format_number, parse_time

_encode = msgspec.json.Encoder().encode

_SCALARS = (bool, int, float)

#: Values that become text in a known field. A number is no timestamp, unless the query names the
#: timestamp's field.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "project_id": _SCALARS,
    "level": _SCALARS,
    "service": _SCALARS,
    "message": (*_SCALARS, list, dict),
}

_TEXT_FIELDS = tuple(_KINDS)

_TWICE = "metadata has a field of this name too."

#: A string that is a Unix time; a shorter one may be a date, such as 20240531.
_UNIX_TIME = re.compile(r"[0-9]{10,20}(?:\.[0-9]{1,40})?")

#: The members on the way to a value: an object, and the name of its member.
_Path = Sequence[tuple[dict[str, Any], str]]


def change_log(log: Any, options: Options) -> Any:
    """Return the log after the changes of the options; a value that is no object stays as it is.

    A field that is null is missing. Raises ValidationError if metadata has an unknown field's name
    already, since neither may be lost, and for a number that is no Unix time.
    """
    if not isinstance(log, dict):
        return log
    sources, moves_unknown = options.sources, options.moves_unknown
    moved = _take_fields(log, sources) if sources else {}
    if moves_unknown:
        log = _move_unknown(log, moved)
    else:
        log.update(moved)
    if sources or moves_unknown:
        _write_as_text(log)
        if "timestamp" in sources:
            _read_unix_time(log)
    for name, value in options.defaults.items():
        if log.get(name) is None:
            log[name] = value
    return log


def _take_fields(log: dict[str, Any], sources: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Remove the first value that is there for each field, and return them by field.

    All are found before the first is removed. Objects that are empty then are removed too.
    """
    moved: dict[str, Any] = {}
    taken: list[str] = []  # of the log itself, as most are
    paths: list[_Path] = []  # into objects
    for field, names in sources.items():
        for name in names:
            value = log.get(name)
            if value is not None:
                taken.append(name)
            elif path := _find(log, name) if "." in name else ():
                holder, member = path[-1]
                value = holder[member]
                paths.append(path)
            if value is not None:
                moved[field] = value
                break
    for name in taken:
        log.pop(name, None)
    for path in paths:
        _remove(path)
    return moved


def _remove(path: _Path) -> None:
    """Remove a member, and the objects that are empty without it."""
    for holder, member in reversed(path):
        holder.pop(member, None)
        if holder:
            break


def _find(holder: dict[str, Any], name: str) -> _Path:
    """Return the path to the value of a name, empty if there is none but null.

    A dot in the name reaches into an object, unless a member has the name with the dot.
    """
    if holder.get(name) is not None:
        return ((holder, name),)
    end = len(name)
    while (end := name.rfind(".", 0, end)) > 0:
        inner = holder.get(name[:end])
        if isinstance(inner, dict) and (path := _find(inner, name[end + 1 :])):
            return ((holder, name[:end]), *path)
    return ()


def _move_unknown(log: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Return the `known` fields and those of a log, its unknown ones under metadata.

    They are dropped only if metadata is no object, which rejects the log.
    """
    for name in FIELDS:
        if name in log:
            known.setdefault(name, log.pop(name))
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
    for name in _TEXT_FIELDS:
        value = log.get(name)
        if value is None or type(value) is str:
            continue
        if isinstance(value, _KINDS[name]):
            log[name] = _encode(value).decode()


def _read_unix_time(log: dict[str, Any]) -> None:
    """Replace a timestamp that is a Unix time by its stored form."""
    value = log.get("timestamp")
    try:
        if type(value) is int:
            log["timestamp"] = format_number(value)
        elif type(value) is float:
            log["timestamp"] = parse_time(repr(value))
        elif isinstance(value, str) and _UNIX_TIME.fullmatch(value):
            log["timestamp"] = parse_time(value)
    except ValueError:
        raise ValidationError({"timestamp": [f"{EXPECTED}."]}) from None
