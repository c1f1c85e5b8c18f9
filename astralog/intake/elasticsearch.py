"""Elasticsearch's bulk API: convert the documents of a request to stored lines.

Source: https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk; docs/api.md says
which member becomes which field.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from io import BytesIO
from itertools import chain, repeat
from typing import Any, NamedTuple

from astralog.deadlines import in_runs, in_turns
from astralog.errors import Rejection
from astralog.intake.columns import Columns, NotAlikeError, TextColumns
from astralog.intake.decoder import Context, Decoded
from astralog.intake.foreign import ForeignBatch, read_line, read_members, read_usual_lines
from astralog.intake.lines import RUN_BYTES
from astralog.intake.members import NULL, Members, as_text, decode_text, take_name
from astralog.intake.options import OnInvalid
from astralog.intake.schema import Log
from astralog.intake.timestamps import normalise_all, store_timestamps
from astralog.intake.unix_time import parse_time

#: Items of a bulk request: each has a result in the response. Beyond it: 413 `body_too_large`.
MAX_ITEMS = 50_000

#: Bytes of an index's name, as Elasticsearch limits them.
MAX_INDEX_BYTES = 255

#: Bytes that an item takes until its response is written.
ITEM_BYTES = 200

MESSAGES = ("message", "log", "msg")
SERVICES = ("service.name", "service", "fields.service", "agent.name")
LEVELS = ("log.level", "level", "severity")

_KNOWN = (("@timestamp",), MESSAGES, SERVICES, LEVELS)

STORED = ("index", "create")
ACTIONS = (*STORED, "update", "delete")

ONLY_CREATE = "only write ops with an op_type of create are allowed in data streams"
NO_INDEX = (
    "index is missing: name it in the action or in the path, or put ?project_id=… into the URL, or "
    "use a token bound to one project"
)


class Item(NamedTuple):
    """The result of one action; for a stored document, the error's type and reason are empty."""

    action: str
    index_name: str
    document_id: str
    status: int = HTTPStatus.CREATED
    type: str = ""
    reason: str = ""


class InvalidItem(ValueError):
    """A document cannot be stored; the error has one of Elasticsearch's types."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Bulk:
    """Decode one bulk request, and keep the result of each item."""

    def __init__(self, index: str) -> None:
        """Use `index`, the index in the path, for actions without one."""
        self._index = index
        self.items: list[Item] = []
        self._results: dict[bytes, Item] = {}  # of the last run, by the lines of actions
        #: Whether every item has its result.
        self.is_complete = False

    def decode(self, body: bytes, context: Context) -> Decoded:
        """Return the batch of the valid documents; raises Rejection as a Decoder does."""
        context = context._replace(options=replace(context.options, on_invalid=OnInvalid.LEAVE_OUT))
        with context.slot(len(body)):
            batch = ForeignBatch(body, body, context)
            source = BytesIO(body)
            while lines := source.readlines(RUN_BYTES):
                if len(lines) % 2 and (line := source.readline()):
                    lines.append(line)
                if not self._add_run(lines, batch):
                    run = in_turns(lines)
                    for line in run:
                        if line != b"\n" and line.strip():
                            self._add(line, chain(run, source), batch)
            if not self.items:
                raise Rejection("invalid_batch", "request body is required")
            self.is_complete = True
            return batch.finish()

    def _read_item(self, line: bytes, number: int, batch: ForeignBatch) -> Item:
        """Return the result of an action whose document is stored."""
        action, members = _read_action(line, number)
        index = as_text(members.get("_index", NULL)) or self._index
        return Item(action, index or batch.project, as_text(members.get("_id", NULL)))

    def _add_run(self, lines: list[bytes], batch: ForeignBatch) -> bool:
        """Append documents and return True if all are valid and have the usual form."""
        if len(lines) % 2 or max(map(len, lines[-2:])) > RUN_BYTES:
            return False
        actions, texts = lines[::2], lines[1::2]
        try:
            found = {
                line: self._results.get(line) or self._read_item(line, 0, batch)
                for line in dict.fromkeys(actions)
            }
            items = [found[line] for line in actions]
            logs = _make_logs(texts, items, batch)
        except (ValueError, Rejection):
            return False
        is_refused = any(item.action not in STORED for item in found.values())
        if is_refused or len(self.items) + len(items) > MAX_ITEMS:
            return False
        batch.hold(len(items) * ITEM_BYTES)
        batch.extend(logs, batch.repeated_bytes + 2 * len(self._index))
        self.items += items
        self._results = found
        return True

    def _add(self, line: bytes, source: Iterator[bytes], batch: ForeignBatch) -> None:
        number = len(self.items) + 1
        item = self._read_item(line, number, batch)
        action = item.action
        if number > MAX_ITEMS:
            message = f"The request has more than {MAX_ITEMS} items; send smaller ones."
            raise Rejection("body_too_large", message)
        if number % 1000 == 0:
            batch.hold(1000 * ITEM_BYTES)
        try:
            text = next(source, None) if action != "delete" else b""
            if text is None:
                raise Rejection(
                    "invalid_json", "The bulk request must be terminated by a newline [\\n]"
                )
            if action not in STORED:
                raise InvalidItem("illegal_argument_exception", ONLY_CREATE)
            log = _make_log(_read_document(text), text, item, batch)
            _store_timestamp(log)
        except InvalidItem as error:
            status = HTTPStatus.BAD_REQUEST
            item = item._replace(status=status, type=error.kind, reason=str(error))
            batch.reject("_schema", str(error))
        else:
            batch.expect(text)
            batch.add(log, len(text))
        self.items.append(item)


def _read_action(line: bytes, number: int) -> tuple[str, Members]:
    """Return the action of a line and its members; raises Rejection as Elasticsearch does.

    Members after the action are ignored, as in Elasticsearch 8: winston-elasticsearch sends one.
    """
    place = f"Malformed action/metadata line [{number}]"
    try:
        (action, raw), *others = read_line(line).items()
        if any(name in ACTIONS for name, _ in others):
            raise ValueError("two actions")
        members = read_members(bytes(raw))
    except ValueError:
        message = f"{place}, expected an object with one of {', '.join(ACTIONS)}"
        raise Rejection("invalid_json", message) from None
    if action not in ACTIONS:
        raise Rejection("invalid_json", f"{place}, found [{action[:100]}]")
    return action, members


def _make_logs(texts: list[bytes], items: list[Item], batch: ForeignBatch) -> list[Any]:
    """Return the logs of documents of usual length; raises ValueError if one is invalid."""
    project = _find_common_project(items, batch)
    if project:
        with suppress(NotAlikeError, ValueError):
            return _make_alike(TextColumns(b"".join(texts), _KNOWN), project, batch)
    documents = read_usual_lines(texts)
    if project:
        with suppress(NotAlikeError):
            return _make_alike(Columns(documents), project, batch)
    runs = in_runs(list(zip(documents, texts, items, strict=True)))
    return store_timestamps([_make_log(*each, batch) for run in runs for each in run])


def _find_common_project(items: list[Item], batch: ForeignBatch) -> str:
    """Return the project of documents with the same usual action, "" for others."""
    index = items[0].index_name
    project = batch.project or index
    is_alike = 1 < len(items) == items.count(items[0]) and not items[0].document_id
    is_usual = index in ("", project) and len(index) <= MAX_INDEX_BYTES // 4
    return project if is_alike and is_usual else ""


def _make_alike(documents: Columns, project: str, batch: ForeignBatch) -> list[Any]:
    """Return the logs of documents with the same members; as `_make_log`.

    Raises NotAlikeError, and changes no document, if they differ.
    """
    times = documents.find_names(("@timestamp",), batch.arrival)
    messages = documents.find_texts(MESSAGES)
    levels = documents.find_names(LEVELS, batch.level)
    services = documents.find_names(SERVICES, batch.service)
    if messages is None or any(map(str.isdecimal, times)):
        raise NotAlikeError
    times = normalise_all(times) or times
    columns = (times, levels, services, messages, documents.take_rest())
    return list(map(Log, repeat(project), *columns))


def _make_log(document: Members, text: bytes, item: Item, batch: ForeignBatch) -> Any:
    """Return the log of a document, its timestamp in any form; raises InvalidItem."""
    index, document_id = item.index_name, item.document_id
    project = batch.project or index
    if not project or (
        len(index) > MAX_INDEX_BYTES // 4 and len(index.encode(errors="replace")) > MAX_INDEX_BYTES
    ):
        raise InvalidItem("invalid_index_name_exception", NO_INDEX)
    timestamp = _take_timestamp(document)
    if timestamp is None:
        timestamp = batch.arrival
    message = _take_message(document)
    if message is None:
        message = text.strip().decode()
    level = _find_name(document, LEVELS) or batch.level
    service = _find_name(document, SERVICES) or batch.service
    metadata: dict[str, Any] = document
    if document_id:
        metadata["_id"] = document_id
    if index != project and index:
        metadata["_index"] = index
    return Log(project, timestamp, level, service, message, metadata or None)


def _read_document(text: bytes) -> Members:
    try:
        return read_line(text)
    except ValueError as error:
        raise InvalidItem("document_parsing_exception", f"failed to parse: {error}") from None


def _take_timestamp(document: Members) -> str | None:
    """Remove @timestamp, and return it, in the stored form if it is a Unix time."""
    raw = document.pop("@timestamp", NULL)
    text = as_text(raw)
    if text.isdecimal() or bytes(raw)[:1].isdigit():
        try:
            return parse_time(text)
        except ValueError:
            raise _reject_timestamp(text) from None
    return None if raw == NULL else text


def _store_timestamp(log: Any) -> None:
    """Convert a log's timestamp to its stored form; raises InvalidItem."""
    try:
        store_timestamps([log])
    except ValueError:
        raise _reject_timestamp(log.timestamp) from None


def _reject_timestamp(text: str) -> InvalidItem:
    reason = f"failed to parse field [@timestamp] of type [date]: {text[:100]!r}"
    return InvalidItem("document_parsing_exception", reason)


def _take_message(document: Members) -> str | None:
    """Remove and return the first member for a message that is a text."""
    for name in MESSAGES:
        if name in document:
            try:
                message = decode_text(document[name])
            except ValueError:
                continue
            del document[name]
            return message
    return None


def _find_name(document: Members, names: tuple[str, ...]) -> str:
    """Return the first name found; remove it at the top level, but not from an object."""
    for name in names:
        if name in document:
            if found := take_name(document, name):
                return found
            continue
        outer, dot, inner = name.partition(".")
        if dot and outer in document and bytes(document[outer])[:1] == b"{":
            members = read_members(bytes(document[outer]))
            if inner in members and (found := take_name(members, inner)):
                return found
    return ""
