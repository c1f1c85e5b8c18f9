"""Splunk's HTTP Event Collector: convert events, or raw lines, to stored lines.

Source: https://help.splunk.com/en/splunk-enterprise/get-data-in/collect-http-event-data
("Format events for HTTP Event Collector"); docs/api.md says which member becomes which field.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple, cast

import msgspec

from astralog.deadlines import in_runs, in_turns
from astralog.errors import Rejection
from astralog.intake.columns import ALIKE_LOGS, Columns, NotAlikeError
from astralog.intake.decoder import Context, Decoded, describe
from astralog.intake.foreign import ForeignBatch, read_members, valid_utf8
from astralog.intake.formats import PIECE_BYTES, find_objects
from astralog.intake.lines import RUN_BYTES, encode_value
from astralog.intake.members import (
    LINE_BREAKS,
    NULL,
    RAW_BYTES,
    Members,
    as_text,
    decode_list,
    has_line_breaks,
    take_first,
)
from astralog.intake.options import OnInvalid
from astralog.intake.schema import Log
from astralog.intake.strict_json import replace_lone_surrogates
from astralog.intake.unix_time import format_numbers, parse_time
from astralog.intake.value_limits import check_values

#: Events of a body, valid or not: they are decoded within one slot, for which others wait. Beyond
#: it: 413 `body_too_large`.
MAX_EVENTS = 200_000

#: Members of an event that may hold its message, in this order.
MESSAGES = ("line", "message", "msg", "log")

#: Members of an event that may hold its service and its level.
SERVICES = ("service", "tag")
LEVELS = ("level", "severity")

#: The texts of an event, in addition to the event itself.
NAMES = ("host", "source", "sourcetype", "index")

_BLANKS = b" \t\r\n"
_LAST_END = re.compile(rb".*\}(?=[ \t\r\n]*\{)", re.DOTALL)


class Reply(NamedTuple):
    """A text of HEC, and its code."""

    text: str
    code: int


NO_DATA = Reply("No data", 5)
INVALID_FORMAT = Reply("Invalid data format", 6)
INCORRECT_INDEX = Reply("Incorrect index", 7)
NO_EVENT = Reply("Event field is required", 12)
BLANK_EVENT = Reply("Event field cannot be blank", 13)
INVALID_FIELDS = Reply("Error in handling indexed fields", 15)

NO_PROJECT = (
    "No project: set the event's index, or put ?project_id=… into the URL, or use a token bound "
    "to one project"
)


class InvalidEvent(ValueError):
    """An event cannot be stored; `reply` is HEC's error, and `message` the service's own."""

    def __init__(self, reply: Reply, field: str, message: str = "") -> None:
        super().__init__(message or reply.text)
        self.reply = reply
        self.field = field


class HecRejection(Rejection):
    """A rejection with HEC's reply, and the index of the event, if it has one."""

    def __init__(self, code: str, error: InvalidEvent, event: int | None = None) -> None:
        message, errors = str(error), None
        if event is not None:
            message = f"Event {event}: {message}"
            errors = {"logs": {event: describe({error.field: [str(error)]})}}
        super().__init__(code, f"{message}; nothing was stored", errors)
        self.reply = reply = error.reply
        self.event = event if reply != NO_DATA else None


class Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event of the usual form."""

    event: str | Members
    time: msgspec.Raw = NULL
    host: str | None = None
    source: str | None = None
    sourcetype: str | None = None
    index: str | None = None
    fields: Members | None = None


class _Metadata(msgspec.Struct, omit_defaults=True, gc=False):
    """The metadata of a log whose event is an object; empty members are omitted."""

    event: Members | None = None
    host: str | None = None
    source: str | None = None
    sourcetype: str | None = None
    index: str | None = None


_decode_event = msgspec.json.Decoder(Event).decode
_decode_events = msgspec.json.Decoder(Event).decode_lines


def decode_events(
    body: bytes, context: Context, defaults: Mapping[str, str] | None = None
) -> Decoded:
    """Return the batch in a body of events: objects one after another, or an array of them.

    `defaults` are the members that the query names, for events that lack them. Raises Rejection
    as a Decoder does.
    """
    with context.slot(len(body)):
        text = _strip(body)
        batch = ForeignBatch(body, text, context)
        _Events(batch, context, defaults).add(text)
        if not batch.number:
            raise HecRejection("invalid_json", InvalidEvent(NO_DATA, "_schema"))
        return batch.finish()


class _Events:
    """Append events to a batch; valid events of the usual form are appended in runs."""

    def __init__(
        self, batch: ForeignBatch, context: Context, defaults: Mapping[str, str] | None
    ) -> None:
        self._batch = batch
        self._on_invalid = context.options.on_invalid
        self._template = _make_event(defaults) if defaults else None
        self._repeated_bytes = len(encode_value(self._template)) if self._template else 0

    def add(self, text: bytes) -> None:
        """Append the events of a body; raises Rejection."""
        if text.startswith(b"["):
            for part in _read_list(text, self._batch):
                self._add(part)
            return
        end = 0
        while end < len(text):
            start, cut = end, _find_cut(text, end)
            if start < cut and self._add_run(text[start:cut].strip(_BLANKS)):
                end = cut
                continue
            for begin, end in find_objects(text, start):
                self._add(text[begin:end].strip(_BLANKS))
                if end >= cut:
                    break

    def _add_run(self, text: bytes) -> bool:
        """Append the events of a text and return True, or append none and return False."""
        if len(text) > 2 * RUN_BYTES:
            return False
        logs: list[Any] = []
        try:
            events = _decode_events(text)
            if b"\r" in text or (b"\n" in text and text.count(b"\n") != text.count(b"}\n{")):
                events = _decode_events(text.translate(None, LINE_BREAKS))  # some are within events
            for run in in_runs(events, ALIKE_LOGS):
                try:
                    logs += self._make_alike(run)
                except NotAlikeError:
                    logs += [self._make_log(event, None) for event in in_turns(run)]
        except (ValueError, RecursionError):
            return False
        if self._batch.number + len(logs) > MAX_EVENTS:
            return False
        self._batch.extend(logs, self._batch.repeated_bytes + self._repeated_bytes)
        return True

    def _add(self, part: bytes) -> None:
        """Append one event of any form; raises Rejection."""
        batch = self._batch
        if batch.number >= MAX_EVENTS:
            message = f"The body has more than {MAX_EVENTS} events; send smaller batches."
            raise Rejection("body_too_large", message)
        try:
            event = _read_fast(part)
            known, others = (event, None) if event else _read_slowly(part)
            log = self._make_log(known, others)
        except InvalidEvent as error:
            if self._on_invalid is OnInvalid.REJECT:
                raise _reject(error, batch) from None
            batch.reject(error.field, str(error))
        else:
            batch.expect(part)
            batch.add(log, len(part) + self._repeated_bytes)

    def _make_alike(self, events: Sequence[Event]) -> list[Any]:
        """Return the logs of events with the same members; as `_make_log`.

        Raises NotAlikeError, and changes no event, if they differ.
        """
        if len(events) == 1 or self._template:  # one takes 0.85 of the time by itself
            raise NotAlikeError
        rows = map(msgspec.structs.astuple, events)
        rests, times, hosts, sources, sourcetypes, indexes, fields = zip(*rows, strict=True)
        if any(fields) or set(map(type, rests)) != {dict}:
            raise NotAlikeError
        members = Columns(cast(list[Members], rests))
        messages = members.find_texts(MESSAGES)
        services: Sequence[str | None] | None = members.find_texts(SERVICES)
        levels = members.find_names(LEVELS, self._batch.level)
        if any("" in column for column in (hosts, sources, sourcetypes, indexes)):
            raise NotAlikeError
        nothing = (None,) * len(events)
        if services is None and None not in sourcetypes:
            services, sourcetypes = sourcetypes, nothing
        project = self._batch.project
        projects = [project] * len(events) if project else indexes
        if messages is None or not services or not all(services) or None in projects:
            raise NotAlikeError
        stored_times = format_numbers(times) or [
            _read_time(time) or self._batch.arrival for time in times
        ]
        objects = members.take_rest()
        columns = (objects, hosts, sources, sourcetypes, indexes if project else nothing)
        metadata: list[_Metadata | None] = list(map(_Metadata, *columns))
        if not all(objects):  # some may be empty
            metadata = [
                each if any(parts) else None
                for each, parts in zip(metadata, zip(*columns, strict=True), strict=True)
            ]
        return list(map(Log, projects, stored_times, levels, services, messages, metadata))

    def _make_log(self, event: Event, others: Members | None) -> Any:
        if self._template:
            _fill(event, self._template)
        return _make_log(event, others, self._batch)


def decode_raw(body: bytes, context: Context, defaults: Mapping[str, str]) -> Decoded:
    """Return the batch in a body whose lines are messages; blank lines are ignored.

    `defaults` are the host, source, sourcetype, index and time that the query names.
    """
    with context.slot(len(body)):
        text = _strip(body)
        batch = ForeignBatch(body, text, context)
        try:
            log = _make_log(_make_event(defaults), None, batch)
        except InvalidEvent as error:
            raise _reject(error, batch) from None
        repeated = len(encode_value(log))
        for line in in_turns(BytesIO(text)):
            if message := line.strip(b"\r\n"):
                copy = msgspec.structs.replace(log, message=message.decode())
                batch.expect(line)
                batch.add(copy, len(line) + repeated)
        return batch.finish()


def _make_event(defaults: Mapping[str, str]) -> Event:
    host, source, sourcetype, index = map(defaults.get, NAMES)
    time = msgspec.Raw(encode_value(defaults.get("time")))
    return Event("-", time, host, source, sourcetype, index)


def _fill(event: Event, template: Event) -> None:
    event.time = template.time if event.time == NULL else event.time
    for name in NAMES:
        setattr(event, name, getattr(event, name) or getattr(template, name))


def _strip(body: bytes) -> bytes:
    """Return the body in valid UTF-8, without blanks around it."""
    text = valid_utf8(body).strip(_BLANKS)
    if not text:
        raise HecRejection("invalid_json", InvalidEvent(NO_DATA, "_schema"))
    return text


def _reject(error: InvalidEvent, batch: ForeignBatch) -> Rejection:
    code = "invalid_json" if error.field == "_schema" else "invalid_batch"
    return HecRejection(code, error, batch.number)


def _find_cut(text: bytes, start: int) -> int:
    """Return the last apparent end of an event in the next RUN_BYTES, or `start` if it has none.

    It may be within a string.
    """
    if len(text) - start <= RUN_BYTES:
        return len(text)
    match = _LAST_END.match(text, start, start + RUN_BYTES)
    return match.end() if match else start


def _read_list(text: bytes, batch: ForeignBatch) -> Iterator[bytes]:
    check_values(text)
    try:
        parts = decode_list(text)
    except (ValueError, RecursionError):
        batch.hold(len(text))
        text = replace_lone_surrogates(text)
        try:
            parts = decode_list(text)
        except (ValueError, RecursionError):
            parts = [msgspec.Raw(text)]  # whose error is of the event
    batch.hold(RAW_BYTES * len(parts))
    return map(bytes, parts)


def _read_fast(part: bytes) -> Event | None:
    if has_line_breaks(part) or len(part) > PIECE_BYTES:
        return None
    try:
        return _decode_event(part)
    except (ValueError, RecursionError):
        return None


def _read_slowly(part: bytes) -> tuple[Event, Members]:
    """Return an event of any form, and its unknown members; raises InvalidEvent."""
    members = _read(part)
    event = members.pop("event", NULL)
    if event == NULL:
        raise InvalidEvent(NO_EVENT, "event")
    text = bytes(event)
    if bytes(members.get("index", NULL))[:1] not in (b'"', b"n"):
        raise InvalidEvent(INCORRECT_INDEX, "index")
    host, source, sourcetype, index = (as_text(members.pop(name, NULL)) for name in NAMES)
    return Event(
        _read(text) if text[:1] == b"{" else as_text(event),
        members.pop("time", NULL),
        host,
        source,
        sourcetype,
        index,
        _read_fields(members.pop("fields", NULL)),
    ), members


def _read(part: bytes) -> Members:
    try:
        return read_members(part)
    except ValueError as error:
        raise InvalidEvent(INVALID_FORMAT, "_schema", str(error)) from None


def _read_fields(fields: msgspec.Raw) -> Members | None:
    try:
        return None if fields == NULL else read_members(bytes(fields))
    except ValueError:
        raise InvalidEvent(INVALID_FIELDS, "fields") from None


def _make_log(event: Event, others: Members | None, batch: ForeignBatch) -> Any:
    """Return the log that is stored for an event; raises InvalidEvent."""
    fields, rest = event.fields, event.event
    service = take_first(fields or {}, ("service",))
    level = take_first(fields or {}, ("level",))
    metadata: dict[str, Any] = others or {}
    if isinstance(rest, str):
        message = rest
        if not message:
            raise InvalidEvent(BLANK_EVENT, "event")
    else:
        message, service, level = _read_object(rest, service, level)
        if rest:
            metadata["event"] = rest
    host, source, sourcetype, index = event.host, event.source, event.sourcetype, event.index
    project = batch.project or index
    if not project:
        raise InvalidEvent(INCORRECT_INDEX, "index", NO_PROJECT)
    if not service and sourcetype:
        service, sourcetype = sourcetype, None
    elif not service and source:
        service, source = source, None
    index = index if batch.project else None
    texts = zip(NAMES, (host, source, sourcetype, index), strict=True)
    metadata.update((name, text) for name, text in texts if text)
    if fields:
        metadata["fields"] = fields
    return Log(
        project,
        _read_time(event.time) or batch.arrival,
        level or batch.level,
        service or batch.service,
        message,
        metadata or None,
    )


def _read_object(members: Members, service: str, level: str) -> tuple[str, str, str]:
    """Return the message, the service and the level of an event, and remove them from it.

    Without a member for the message, the whole object is it, and nothing of it is left.
    """
    for name in MESSAGES:
        if members.get(name, NULL) != NULL:
            message = as_text(members.pop(name))
            is_whole = False
            break
    else:
        message = encode_value(members).decode()
        is_whole = True
    service = service or take_first(members, SERVICES)
    level = level or take_first(members, LEVELS)
    if is_whole:
        members.clear()
    return message, service, level


def _read_time(value: msgspec.Raw) -> str:
    """Return the time of an event, "" if it has none."""
    if value == NULL:
        return ""
    text = bytes(value).decode()
    try:
        return parse_time(text.strip('" ') if text[0] == '"' else text)
    except ValueError as error:
        raise InvalidEvent(INVALID_FORMAT, "time", str(error)) from None
