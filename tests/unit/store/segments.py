"""What tests of the segment files share: a writer, a clock, and what lies in a directory."""

import contextlib
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from astralog.settings import SyncMode
from astralog.store import recovery
from astralog.store.segment_writer import SegmentWriter

A, B, C = b'{"m":"a"}\n', b'{"m":"b"}\n', b'{"m":"c"}\n'


def make_writer(
    path: Path, segment_bytes: int = 1000, segment_seconds: float = 1000, sync: SyncMode = "always"
) -> SegmentWriter:
    return SegmentWriter(
        path, segment_bytes=segment_bytes, segment_seconds=segment_seconds, sync=sync
    )


def sealed(path: Path) -> list[bytes]:
    """Return what the sealed segments hold, oldest first."""
    return [file.read_bytes() for file in sorted(path.glob("*.ndjson"))]


def still_open(path: Path) -> list[bytes]:
    """Return what the open segments hold, oldest first."""
    return [file.read_bytes() for file in sorted(path.glob("*.ndjson.open"))]


def recover(path: Path) -> None:
    """Recover what no process holds, as another process does at any time."""
    for file in sorted(path.glob("*.ndjson.open")):
        with contextlib.suppress(BlockingIOError):
            recovery.recover_file(file)


def descriptors() -> set[str]:
    """Return the files that this process holds open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return found


class Clock(datetime):
    """A clock that shows each of `moments` once."""

    moments: Any

    @classmethod
    def now(cls, tz: Any = None) -> "Clock":
        moment: Clock = next(cls.moments)
        return moment
