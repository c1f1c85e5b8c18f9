"""The parts that the decoders of all protocols share: context, lines and limits."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import msgspec

from astralog.errors import SHOWN_CHARACTERS, Rejection, mebibytes
from astralog.intake.body import Reservation, Unbounded
from astralog.intake.invalid_logs import InvalidLogs, reject_invalid
from astralog.intake.options import OnInvalid, Options, find_project
from astralog.intake.slots import FAST_BYTES, Slots
from astralog.store.queue import Batch

#: Bytes of logs that are decoded, changed and encoded at once. As objects, they take several times
#: as much, and should fit into a core's cache: on a busy machine, a decode in runs of 64 KiB takes
#: 1.03 to 1.17 times as long.
RUN_BYTES = 32 * 1024

#: Maximum size of the lines as a multiple of the body, plus a constant; default values and
#: numbers like 1e15 increase it. Beyond it: 413 `body_too_large`.
MAX_GROWTH = 4

#: Bytes of lines, in addition to the logs' own, that are encoded before they are charged: values
#: that are repeated in each log may turn a few bytes of body into a gigabyte of lines.
STEP_BYTES = 1024 * 1024

#: Commas that a body longer than a piece may hold, and a log longer than a piece: they limit the
#: values, and with them the cost of the body as objects.
LONG_BODY_COMMAS = 750_000
LONG_LOG_COMMAS = 100_000

#: Integers of so many digits that a log longer than a piece may hold; each takes up to 0.5 ms.
LONG_INTEGER_DIGITS = 1000
LONG_LOG_INTEGERS = 200

_LONG_INTEGER = re.compile(rb"[-,:\[\s][0-9]{%d}" % LONG_INTEGER_DIGITS)

#: Characters that JSON escapes: with one more character, or as \u00XX.
_QUOTED = b'"\\'
_CONTROLS = bytes(range(0x20))
_PLAIN = bytes(sorted(set(range(256)) - set(_QUOTED + _CONTROLS)))

_encoder = msgspec.json.Encoder()
encode_lines = _encoder.encode_lines
encode_value = _encoder.encode
encode_into = _encoder.encode_into


#: The name of a log's project.
project_of = attrgetter("project_id")


class Context(NamedTuple):
    """The parts of a request that a decoder uses in addition to its body.

    `projects` are those that the token may write, None for all. `reservation` holds the body; a
    decoder that holds more than that over a pause has it reserved, as `LineWriter` does.
    """

    projects: Collection[str] | None
    options: Options
    slots: Slots
    deadline: float
    reservation: Reservation = Unbounded()

    @property
    def project(self) -> str:
        """The project of logs without one: the query's, else the token's only one, else ""."""
        return find_project(self.options, self.projects)

    def fast_slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes in at most 100 ms.

        Raises Rejection `queue_full` if others take too long.
        """
        return self.slots.fast.use(size, self.deadline)

    def slow_slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding `size` bytes in any time; others are served meanwhile.

        Raises Rejection `queue_full` if others take too long.
        """
        return self.slots.slow.use(size, self.deadline)

    def slot(self, size: int) -> AbstractContextManager[None]:
        """Return the context for decoding a whole body of `size` bytes.

        Raises Rejection `queue_full` if others take too long.
        """
        return self.fast_slot(size) if size <= FAST_BYTES else self.slow_slot(size)

    def check_project(self, name: str, logs: int) -> None:
        """Raise Rejection `forbidden_project` (for `logs` logs) unless the token may write it."""
        if self.projects is not None and name not in self.projects:
            shown = name[:SHOWN_CHARACTERS]
            message = f"The token may not write to the project {shown!r}; nothing was stored"
            raise Rejection("forbidden_project", message, logs=logs)

    def check_projects(self, names: Iterable[str], logs: int) -> None:
        """Check the projects of several logs, as `check_project`.

        Each name once: 22 µs for 500 logs, in place of 63, a tenth of their decode.
        """
        if self.projects is not None:
            for name in dict.fromkeys(names):
                self.check_project(name, logs)


class Decoded(NamedTuple):
    """The encoded logs of a body, and its invalid logs, if the batch is accepted without them."""

    batch: Batch
    invalid: InvalidLogs | None = None


class Decoder(Protocol):
    """Convert the body of a request to stored lines."""

    def __call__(self, body: bytes, context: Context, /) -> Decoded:
        """Return the batch in a body.

        Raises Rejection: `invalid_json`, `invalid_batch`, `forbidden_project`, `queue_full`, or
        `body_too_large` for a body that is too expensive to decode.
        """


class LineWriter:
    """Encode the logs of one body, and reserve the memory of the body and of the lines."""

    def __init__(self, reservation: Reservation, body_bytes: int, spare_bytes: int) -> None:
        """Limit the lines to MAX_GROWTH times the body plus `spare_bytes`."""
        self._reservation = reservation
        self._held_bytes = body_bytes
        self._body_bytes = body_bytes
        self._spare_bytes = spare_bytes
        self._buffer = bytearray()
        self.logs = 0  # so far

    def hold(self, size: int) -> None:
        """Charge `size` more bytes until the end of the decode; raises Rejection."""
        self._held_bytes += size
        self.expect(0)

    def expect(self, size: int) -> None:
        """Charge `size` bytes for the next lines, in place of the last such charge.

        Raises Rejection if there is no memory for them.
        """
        self._reservation.resize(self._held_bytes + len(self._buffer) + size)

    def add(self, logs: Sequence[Any], repeated_bytes: int = 0) -> None:
        """Append logs; each has at most `repeated_bytes` that are not from the body.

        Raises Rejection: `queue_full`, or `body_too_large` if the lines take too much.
        """
        step = max(STEP_BYTES // repeated_bytes, 1) if repeated_bytes else len(logs)
        for start in range(0, len(logs), step or 1):
            self._append(logs[start : start + step])
        self.logs += len(logs)

    def _append(self, logs: Sequence[Any]) -> None:
        """Encode at least one log.

        The last one, which alone may be long, is encoded into the buffer, so that it is held once.
        """
        self._buffer += encode_lines(logs[:-1])
        encode_into(logs[-1], self._buffer, -1)
        self._buffer += b"\n"
        check_growth(len(self._buffer), self._body_bytes, self._spare_bytes)
        self.expect(0)

    def finish(self) -> Batch:
        """Return the batch."""
        return Batch(self._buffer, self.logs)


def finish_batch(lines: LineWriter, invalid: InvalidLogs, options: Options) -> Decoded:
    """Return the batch of the valid logs; raises Rejection if the invalid ones reject it."""
    if invalid.count and (options.on_invalid is OnInvalid.REJECT or not lines.logs):
        raise reject_invalid(invalid, invalid.seen)
    return Decoded(lines.finish(), invalid if invalid.count else None)


def check_growth(size: int, body_bytes: int, spare_bytes: int) -> None:
    """Raise Rejection for lines that exceed MAX_GROWTH times the body plus `spare_bytes`."""
    most = MAX_GROWTH * body_bytes + spare_bytes
    if size > most:
        message = (
            f"The stored lines would take more than {most} bytes: {MAX_GROWTH} times the body of "
            f"{body_bytes} bytes, plus {mebibytes(spare_bytes)}. Send smaller batches."
        )
        raise Rejection("body_too_large", message)


def repeated_bytes(defaults: Mapping[str, str]) -> int:
    """Return the bytes of default values in each log."""
    return sum(len(encode_value(value)) for value in defaults.values())


def escaped_size(text: bytes) -> int:
    """Return an upper bound of a text's bytes in JSON."""
    escaped = text.translate(None, _PLAIN)
    controls = len(escaped.translate(None, _QUOTED))
    return len(text) + (len(escaped) - controls) + 5 * controls


def reject_values() -> Rejection:
    """Return the rejection of a body that holds more than LONG_BODY_COMMAS values."""
    message = f"The body holds more than {LONG_BODY_COMMAS} values; send smaller batches."
    return Rejection("body_too_large", message)


def find_excess(text: bytes) -> str:
    """Return a description of the limit that a log exceeds for a decode in one call, or ""."""
    if text.count(b",") > LONG_LOG_COMMAS:
        return f"over {LONG_LOG_COMMAS} values"
    sample = text[:: LONG_INTEGER_DIGITS // 2]  # it has two digits at least of such an integer
    digits = len(sample) - len(sample.translate(None, b"0123456789"))
    if digits > 2 * LONG_LOG_INTEGERS and len(_LONG_INTEGER.findall(text)) > LONG_LOG_INTEGERS:
        return f"over {LONG_LOG_INTEGERS} integers of {LONG_INTEGER_DIGITS} digits"
    return ""
