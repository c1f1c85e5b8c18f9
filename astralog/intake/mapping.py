"""Change logs by the query's options: rename fields, and fill in missing ones.

All values but the known fields stay as they were written.
"""

import re
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from operator import attrgetter
from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.deadlines import in_runs, in_turns, yield_if_due
from astralog.intake.columns import (
    ALIKE_LOGS,
    Columns,
    NotAlikeError,
    TextColumns,
    read_scalars,
    read_texts,
)
from astralog.intake.decoder import DESCRIBED_FIELDS
from astralog.intake.lines import encode_value
from astralog.intake.members import (
    NULL,
    Members,
    decode_members,
    decode_text,
    is_object,
    starts_with,
)
from astralog.intake.options import Options
from astralog.intake.schema import FIELDS, REQUIRED, Log
from astralog.intake.timestamps import normalise_all, store_timestamps
from astralog.intake.unix_time import EXPECTED, format_numbers, parse_time

#: How the values begin that become text in a known field: numbers and booleans, and lists and
#: objects as a message. A number is no timestamp, unless the query names the timestamp's field.
_NUMBERS = b"-0123456789"
_SCALARS = _NUMBERS + b"tf"
_TEXTS: Mapping[str, bytes] = {
    "project_id": _SCALARS,
    "level": _SCALARS,
    "service": _SCALARS,
    "message": _SCALARS + b"[{",
}

_TWICE = "metadata has a field of this name too."

#: A string that is a Unix time; a shorter one may be a date, such as 20240531.
_UNIX_TIME = re.compile(r"[0-9]{10,20}(?:\.[0-9]{1,40})?")

_FIELDS = frozenset(FIELDS)

#: All fields but metadata, in their order.
_STRINGS = tuple(name for name in FIELDS if name != "metadata")

#: The members on the way to a value: an object, and the name of its member.
_Path = Sequence[tuple[dict[str, Any], str]]


def fill_in(logs: list[Any], defaults: Mapping[str, str]) -> None:
    """Fill in missing fields of structs; raises ValueError for one without a default."""
    for run in in_runs(logs):
        for log in run:
            for name, value in defaults.items():
                if getattr(log, name) is None:
                    setattr(log, name, value)
    for name in REQUIRED - defaults.keys():
        if None in map(attrgetter(name), logs):
            raise ValueError(f"{name} is missing")


def move_fields(logs: list[Members], options: Options) -> list[Any]:
    """Return the structs of logs after the changes of the options, with stored timestamps.

    Raises ValueError or ValidationError if a log may be invalid.
    """
    moved: list[Any] = []
    for run in in_runs(logs, ALIKE_LOGS):
        try:
            moved += move_alike(Columns(run), options)
        except (NotAlikeError, ValueError):
            changed = [change_log(log, options) for log in in_turns(run)]
            structs = msgspec.convert(changed, list[Log])
            for log in structs:
                if isinstance(log.metadata, msgspec.Raw) and not is_object(log.metadata):
                    raise ValueError("metadata is no object") from None
            moved += store_timestamps(structs)
    return moved


def change_log(log: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return the log, whose values are as they were written, after the changes of the options.

    The values of known fields are decoded if they are texts. A field that is null is missing.
    Raises ValidationError if metadata has an unknown field's name already, since neither may be
    lost, and for a number that is no Unix time.
    """
    sources, moves_unknown = options.sources, options.moves_unknown
    moved = _take_fields(log, sources) if sources else {}
    if moves_unknown:
        log = _move_unknown(log, moved)
    else:
        log.update(moved)
    for name in _STRINGS:
        if name in log:
            log[name] = _read_field(
                log[name], _TEXTS.get(name, b"") if options.moves_fields else b""
            )
    if "timestamp" in sources and "timestamp" in log:
        log["timestamp"] = _read_unix_time(log["timestamp"])
    if log.get("metadata") == NULL:
        del log["metadata"]
    for name, value in options.defaults.items():
        if log.get(name, NULL) == NULL:
            log[name] = value
    return log


def move_alike(logs: Columns, options: Options) -> list[Any]:
    """Return the structs of changed logs, if `change_log` changes all of them in the same way.

    Their timestamps are in the stored form. Raises NotAlikeError or ValueError, and changes no log,
    if they differ, or one may be invalid.
    """
    if not options.moves_unknown or logs.is_in_any("metadata"):
        raise NotAlikeError
    columns = [_find_column(logs, field, options) for field in _STRINGS]
    return list(map(Log, *columns, logs.take_rest()))


def move_lines(text: bytes, options: Options) -> list[Any]:
    """Return the same as `move_alike` for logs in lines, whose other members stay text."""
    groups = (*map(tuple, options.sources.values()), *((field,) for field in FIELDS))
    return move_alike(TextColumns(text, groups), options)


def _find_column(logs: Columns, field: str, options: Options) -> list[str]:
    """Return the value of a field in each log."""
    names = options.sources.get(field, ())
    if not _FIELDS.isdisjoint(names):
        raise NotAlikeError
    values = logs.find((*names, field))
    if values is None:
        default = options.defaults.get(field)
        if not default:
            raise NotAlikeError
        return [default] * len(logs)
    if names and logs.found[-1] != field and logs.is_in_any(field):
        raise NotAlikeError
    if field == "timestamp":
        return _read_times(values, is_unix=bool(names))
    column = read_scalars(values)
    if "" in column and field != "message":
        raise NotAlikeError
    return column


def _read_times(values: Sequence[msgspec.Raw], *, is_unix: bool) -> list[str]:
    """Return the stored form of timestamps; raises NotAlikeError or ValueError."""
    if is_unix and (stored := format_numbers(values)):
        return stored
    texts = read_texts(values)
    if is_unix:
        texts = list(map(_read_unix_time, texts))
    return normalise_all(texts) or texts


def _take_fields(log: dict[str, Any], sources: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Remove the first existing value for each field, and return the values by field.

    All are found before the first is removed. Objects that are empty then are removed too.
    """
    paths: dict[str, _Path] = {}
    for field, names in sources.items():
        for name in names:
            if path := _find(log, name):
                paths[field] = path
                break
    moved = {field: path[-1][0][path[-1][1]] for field, path in paths.items()}
    for path in paths.values():
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

    A dot in the name reaches into an object, unless a member has the name with the dot. The object
    is decoded in its place.
    """
    if holder.get(name, NULL) != NULL:
        return ((holder, name),)
    end = len(name)
    while (end := name.rfind(".", 0, end)) > 0:
        inner = holder.get(name[:end], NULL)
        if is_object(inner):
            inner = holder[name[:end]] = decode_members(inner)
            yield_if_due()
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
        metadata = known.get("metadata", NULL)
        if metadata == NULL:
            known["metadata"] = log
            return known
        if is_object(metadata):
            metadata = known["metadata"] = decode_members(metadata)
        if isinstance(metadata, dict):
            if twice := metadata.keys() & log:
                shown = nsmallest(DESCRIBED_FIELDS, twice)
                raise ValidationError({name: [_TWICE] for name in shown})
            metadata.update(log)
    return known


def _read_field(value: Any, starts: bytes) -> Any:
    """Return a string decoded, a value that begins with one of `starts` as its JSON, or others."""
    if isinstance(value, dict):
        return encode_value(value).decode() if b"{"[0] in starts else value
    if starts_with(value, b'"'):
        return decode_text(value)
    return bytes(value).decode() if starts_with(value, starts) else value


def _read_unix_time(value: Any) -> Any:
    """Return the stored form of a timestamp that is a Unix time, and others unchanged."""
    try:
        if isinstance(value, msgspec.Raw):
            return parse_time(bytes(value).decode()) if starts_with(value, _NUMBERS) else value
        if isinstance(value, str) and _UNIX_TIME.fullmatch(value):
            return parse_time(value)
    except ValueError:
        raise ValidationError({"timestamp": [f"{EXPECTED}."]}) from None
    return value
