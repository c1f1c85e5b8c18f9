"""Check the segment files: every acknowledged log is there exactly once, and whole."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench import bodies
from bench.load import Outcome

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Bytes that are read and decoded at once.
BLOCK_BYTES = 4 * 1024 * 1024


class _Attributes(msgspec.Struct):
    log_id: str


class _Metadata(msgspec.Struct):
    """Metadata with the log's id, or with an object that has it.

    An export of OpenTelemetry, an event of HEC and an entry of Loki each have such an object.
    """

    log_id: str = ""
    attributes: _Attributes | None = None
    event: _Attributes | None = None
    structured_metadata: _Attributes | None = None


class _Log(msgspec.Struct, forbid_unknown_fields=True):
    project_id: str
    timestamp: str
    level: str
    service: str
    message: str
    metadata: _Metadata


_decoder = msgspec.json.Decoder(_Log)


@dataclass
class Check:
    """The errors on the disk, counted; all zero except `stored` without errors."""

    stored: int = 0  # well-formed lines
    malformed: int = 0  # lines that are no whole log
    unknown: int = 0  # logs that were never sent
    doubled: int = 0  # logs that are there once more than they should
    missing: int = 0  # logs that were acknowledged and are not there
    halved: int = 0  # rejected batches of which a part is there

    @property
    def is_sound(self) -> bool:
        """Return whether nothing was lost, doubled or spoilt."""
        wrong = (self.malformed, self.unknown, self.doubled, self.missing, self.halved)
        return not any(wrong)


def check(paths: Iterable[Path], batch: int, outcome: Outcome) -> Check:
    """Compare the files with the sent batches of `batch` logs.

    A rejected batch is there whole or not at all; one without a response may be there in part.
    """
    result = Check()
    sent = outcome.sent
    seen = bytearray(sent * batch)
    for path in paths:
        for log_id in _read_ids(path, result):
            sequence, index = bodies.place(log_id)
            if not (sequence < sent and index < batch):
                result.unknown += 1
            elif seen[sequence * batch + index]:
                result.doubled += 1
            else:
                seen[sequence * batch + index] = 1
    result.missing = seen.count(0)
    for sequence in outcome.rejected | outcome.unanswered:
        absent = seen.count(0, sequence * batch, (sequence + 1) * batch)
        result.missing -= absent
        result.halved += 0 < absent < batch and sequence in outcome.rejected
    return result


def _read_ids(path: Path, result: Check) -> Iterator[str]:
    """Yield the `log_id` of each line, and count the lines."""
    rest = b""
    with zstd.open(path) if path.suffix == ".zst" else path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            complete, newline, rest = (rest + block).rpartition(b"\n")
            for log in _decode(complete + newline, result):
                result.stored += 1
                yield _id(log.metadata)
    result.malformed += bool(rest)


def _decode(lines: bytes, result: Check) -> list[_Log]:
    try:
        return _decoder.decode_lines(lines)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return list(_decode_one_by_one(lines, result))


def _decode_one_by_one(lines: bytes, result: Check) -> Iterator[_Log]:
    for line in lines.splitlines():
        try:
            yield _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            result.malformed += 1


def _id(metadata: _Metadata) -> str:
    holder = metadata.attributes or metadata.event or metadata.structured_metadata or metadata
    return holder.log_id
