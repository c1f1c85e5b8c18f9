"""Shared parts of the segment tests: a writer, a clock, and the content of a directory."""

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

from astralog.clock import TrustedClock
from astralog.errors import Cause
from astralog.settings import Settings, SyncMode
from astralog.store import segment
from astralog.store.names import Form, SegmentName
from astralog.store.writer import SegmentWriter, Starts

#: When the segment with the number 0 starts, in seconds since 1970.
START = 1_780_000_000.0

A, B, C = b'{"m":"a"}\n', b'{"m":"b"}\n', b'{"m":"c"}\n'


def name_of(key: str | int) -> SegmentName:
    """Return the name of a segment for each letter or number, in their order."""
    number = ord(key) if isinstance(key, str) else key
    return SegmentName.make(datetime.fromtimestamp(START + number, UTC), 1)


def plain(key: str | int) -> str:
    """Return the name of that segment's file once it is sealed."""
    return name_of(key).file(Form.PLAIN)


def opened(key: str | int) -> str:
    """Return the name of that segment's file while it is written."""
    return name_of(key).file(Form.OPEN)


def packed(key: str | int) -> str:
    """Return the name of that segment's file once it is compressed."""
    return name_of(key).file(Form.COMPRESSED)


def make_writer(
    path: Path,
    segment_bytes: int = 1000,
    segment_seconds: float = 1000,
    sync: SyncMode = "always",
    clock: TrustedClock | None = None,
    starts: Starts | None = None,
) -> SegmentWriter:
    settings = Settings(
        data_dir=path, segment_bytes=segment_bytes, segment_seconds=segment_seconds, sync=sync
    )
    return SegmentWriter(settings, starts or Starts(clock or TrustedClock()))


def sealed(path: Path) -> list[bytes]:
    """Return the content of the sealed segments, oldest first."""
    return [file.read_bytes() for file in sorted(path.glob("*.ndjson"))]


def still_open(path: Path) -> list[bytes]:
    """Return the content of the open segments, oldest first."""
    return [file.read_bytes() for file in sorted(path.glob("*.ndjson.open"))]


def recover(path: Path) -> None:
    """Recover the segments without a writer, as another process does at any time."""
    for file in sorted(path.glob("*.ndjson.open")):
        with contextlib.suppress(BlockingIOError):
            segment.recover_file(file)


def descriptors() -> set[str]:
    """Return the open files of this process."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return found


class Clock(TrustedClock):
    """A clock that shows each of some times once, and then the last one forever."""

    def __init__(self, *moments: float) -> None:
        super().__init__()
        self._moments = list(moments)

    def now(self) -> float:
        return self._moments.pop(0) if len(self._moments) > 1 else self._moments[0]


def code_of(cause: Cause | None) -> str | None:
    """Return the code with which batches are rejected, or None."""
    return cause.code if cause else None
