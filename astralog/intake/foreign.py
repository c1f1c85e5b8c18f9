"""The steps that the decoders of other products' protocols share: HEC, Loki and Elasticsearch."""

import time
from collections.abc import Sequence
from typing import Any

from astralog.deadlines import yield_if_due
from astralog.intake.decoder import Context, Decoded
from astralog.intake.formats import PIECE_BYTES
from astralog.intake.lines import RUN_BYTES, LineWriter, escaped_size, project_of, repeated_bytes
from astralog.intake.members import Members, decode_members, decode_object
from astralog.intake.options import NO_LEVEL, NO_SERVICE
from astralog.intake.otlp import MAX_REPEATED_BYTES
from astralog.intake.strict_json import check_utf8, is_utf8, parse, replace_lone_surrogates, to_utf8
from astralog.intake.unix_time import format_time
from astralog.intake.value_limits import find_excess


def valid_utf8(body: bytes) -> bytes:
    """Return the body, with U+FFFD in place of invalid UTF-8."""
    return body if is_utf8(body) else to_utf8(body)


def read_line(line: bytes) -> Members:
    """Return the members of a line with its line end, in any encoding; as `read_members`.

    Raises ValueError, worded for the client.
    """
    if len(line) <= PIECE_BYTES and b"\r" not in line:  # a usual one, in one call
        try:
            check_utf8(line)
            return decode_members(line)
        except (ValueError, RecursionError):
            pass
    if not is_utf8(line):
        raise ValueError("Invalid UTF-8")
    return read_members(line.strip())


def read_usual_lines(lines: Sequence[bytes]) -> list[Members]:
    """Return the members of lines of usual length, as `read_line`; raises ValueError for others."""
    text = b"".join(lines)
    if b"\r" in text:
        raise ValueError("A line break within a line")
    check_utf8(text)
    try:
        return list(map(decode_members, lines))
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_members(text: bytes) -> Members:
    """Return the members of a JSON object in valid UTF-8, without line breaks in their values.

    Raises ValueError, worded for the client, if it is none, or has too much to be decoded at once.
    """
    if len(text) > PIECE_BYTES and (excess := find_excess(text)):
        raise ValueError(f"Longer than {PIECE_BYTES} bytes with {excess}.")
    try:
        return decode_object(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError:
        fixed = replace_lone_surrogates(text)
    try:
        return decode_object(fixed)
    except (ValueError, RecursionError):
        if len(fixed) <= PIECE_BYTES:
            parse(fixed)  # its error is clearer
        raise ValueError("Not a JSON object.") from None


class ForeignBatch:
    """The logs of one body, encoded one after another; invalid ones are counted."""

    def __init__(self, body: bytes, text: bytes, context: Context) -> None:
        """Charge a body and its text, which may be a longer copy."""
        defaults = context.options.defaults
        #: The project of every log, if the query or the token determines it.
        self.project = context.project
        self.service = defaults.get("service", NO_SERVICE)
        self.level = defaults.get("level", NO_LEVEL)
        self.arrival = format_time(time.time_ns())
        #: Bytes of each line that are not from the body, at most.
        self.repeated_bytes = repeated_bytes((self.project, self.service, self.level, self.arrival))
        self._context = context
        self._projects = context.projects
        held_bytes = len(text) if text is body else len(body) + len(text)
        self._lines = LineWriter(context, held_bytes, MAX_REPEATED_BYTES)
        self._invalid = self._lines.invalid
        self._run: list[Any] = []
        self._run_bytes = 0

    @property
    def number(self) -> int:
        """The number of the next log, from 0."""
        return self._invalid.seen + len(self._run)

    def hold(self, size: int) -> None:
        """Charge `size` more bytes that the decode holds until its end; raises Rejection."""
        self._lines.hold(size)

    def add(self, log: Any, size: int) -> None:
        """Append a log of about `size` bytes; raises Rejection."""
        if self._projects is not None and log.project_id not in self._projects:
            self._context.check_project(log.project_id, self.number + 1)
        self._run.append(log)
        self._run_bytes += size
        if self._run_bytes > RUN_BYTES:
            self._flush()

    def extend(self, logs: Sequence[Any], repeated_bytes: int) -> None:
        """Append logs, each with up to `repeated_bytes` that are not from the body."""
        if self._run:
            self._flush()
        self._context.check_projects(map(project_of, logs), self.number + len(logs))
        yield_if_due()
        self._invalid.seen += len(logs)
        self._lines.add(logs, repeated_bytes)

    def expect(self, text: bytes) -> None:
        """Raise Rejection if there is no memory for the next log, whose text is long."""
        if len(text) > RUN_BYTES:
            self._flush()
            self._lines.expect(escaped_size(text))

    def _flush(self) -> None:
        yield_if_due()
        run, self._run, self._run_bytes = self._run, [], 0
        self._invalid.seen += len(run)
        self._lines.add(run)

    def reject(self, field: str, message: str) -> None:
        """Count the next log as invalid."""
        self._flush()
        self._invalid.add(self._invalid.seen, {field: [message]})
        self._invalid.seen += 1

    def finish(self) -> Decoded:
        """Return the batch; raises Rejection if invalid logs reject it."""
        self._flush()
        return self._lines.finish()
