"""Change logs by the query's options: rename fields, and fill in missing ones."""

import re
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.intake.decoder import DESCRIBED_FIELDS
from astralog.intake.options import Options
from astralog.intake.schema import FIELDS, MovedLog
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

#: All fields but metadata, in their order.
_STRINGS = tuple(name for name in FIELDS if name != "metadata")

#: The members on the way to a value: an object, and the name of its member.
_Path = Sequence[tuple[dict[str, Any], str]]


class NotAlikeError(Exception):
    """Logs have different members, or some may be invalid."""


def change_log(log: Any, options: Options) -> Any:
    """Return the log after the changes of the options; a value that is not an object is unchanged.

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
        if "timestamp" in sources and "timestamp" in log:
            log["timestamp"] = _read_unix_time(log["timestamp"])
    for name, value in options.defaults.items():
        if log.get(name) is None:
            log[name] = value
    return log


def move_alike(logs: Sequence[dict[str, Any]], options: Options) -> list[Any]:
    """Return the structs of changed logs, if `change_log` changes all of them in the same way.

    Raises NotAlikeError, and changes no log, if they differ, or one may be invalid. A trick for
    speed: each step is done to one member of all logs, in place of all steps to one log.
    """
    if not options.moves_unknown or any("metadata" in log for log in logs):
        raise NotAlikeError
    moved = set(FIELDS)
    columns = [_take_column(logs, field, options, moved) for field in _STRINGS]
    for name in moved:
        for log in logs:
            log.pop(name, None)
    return list(map(MovedLog, *columns, [log or None for log in logs]))


def _take_column(
    logs: Sequence[dict[str, Any]], field: str, options: Options, moved: set[str]
) -> list[str]:
    """Return the value of a field in each log, and add the name of its member to `moved`."""
    column: list[Any]
    for name in (*options.sources.get(field, ()), field):
        column = [log.get(name) for log in logs]
        is_known = name in FIELDS and name != field  # it is missing where it belongs then
        if is_known or ("." in name and None in column):
            raise NotAlikeError
        if None not in column:
            moved.add(name)
            break
        if any(value is not None for value in column):
            raise NotAlikeError
    else:
        column = [options.defaults.get(field)] * len(logs)
    if field == "timestamp":
        if field in options.sources:
            are_integers = set(map(type, column)) == {int}
            column = list(map(format_number if are_integers else _read_unix_time, column))
    elif int in map(type, column):
        column = [str(value) if type(value) is int else value for value in column]
    if set(map(type, column)) != {str} or ("" in column and field != "message"):
        raise NotAlikeError
    return column


def _take_fields(log: dict[str, Any], sources: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Remove the first existing value for each field, and return the values by field.

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
    """Remove a member, and the objects that become empty."""
    for holder, member in reversed(path):
        holder.pop(member, None)
        if holder:
            break


def _find(holder: dict[str, Any], name: str) -> _Path:
    """Return the path to the value of a name, empty if it is missing or null.

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
    """Return the fields of a log and the `known` ones, with unknown fields moved to metadata.

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


def _read_unix_time(value: Any) -> Any:
    """Return the stored form of a timestamp that is a Unix time, and others unchanged."""
    try:
        if type(value) is int:
            return format_number(value)
        if type(value) is float:
            return parse_time(repr(value))
        if isinstance(value, str) and _UNIX_TIME.fullmatch(value):
            return parse_time(value)
    except ValueError:
        raise ValidationError({"timestamp": [f"{EXPECTED}."]}) from None
    return value
