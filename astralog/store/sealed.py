"""Sealed segments, for whoever reads them: each is found once, whether it is compressed or not.

`<name>.ndjson` becomes `<name>.ndjson.zst` while readers run: the compressed file appears whole,
and then the plain one goes. Offsets are those of the uncompressed lines, in either form.
"""

import io
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from astralog.store.files import COMPRESSED_SUFFIX, SEALED_SUFFIX

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_FILE_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z-\d+(?:-\d+)?)\.ndjson(\.zst|\.open)?")

#: The longest beginning of a zstd frame that tells of it (RFC 8878, 3.1.1).
_HEAD_BYTES = 18

_START_FORMAT = "%Y%m%dT%H%M%S.%fZ"


class Segments(NamedTuple):
    """The names of the segments in a directory, without their suffixes."""

    sealed: set[str]
    open: set[str]
    plain: set[str]  # of the sealed ones, those that have a file which is not compressed


def list_segments(directory: Path) -> Segments:
    """Return the segments of a directory; raises OSError.

    What is named otherwise than the service names its segments is none.
    """
    sealed: set[str] = set()
    opened: set[str] = set()
    plain: set[str] = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            match = _FILE_NAME.fullmatch(entry.name)
            if match:
                (opened if match[2] == ".open" else sealed).add(match[1])
                if not match[2]:
                    plain.add(match[1])
    return Segments(sealed, opened - sealed, plain)


def plain_name(file_name: str) -> str | None:
    """Return the name of the sealed segment whose plain file is called so, None for other files."""
    match = _FILE_NAME.fullmatch(file_name)
    return match[1] if match and not match[2] else None


def start_of(name: str) -> float:
    """Return when a segment was started, in seconds since 1970."""
    start = datetime.strptime(name.partition("-")[0], _START_FORMAT)
    return start.replace(tzinfo=UTC).timestamp()


def is_sealed(directory: Path, name: str) -> bool:
    """Return whether a sealed segment is there; raises OSError.

    A listing may miss a segment that is compressed meanwhile.
    """
    try:
        stat_sealed(directory, name)
    except FileNotFoundError:
        return False
    return True


def stat_sealed(directory: Path, name: str) -> os.stat_result:
    """Return the status of a sealed segment's file; raises OSError."""
    try:
        return os.stat(directory / (name + SEALED_SUFFIX))
    except FileNotFoundError:
        return os.stat(directory / (name + COMPRESSED_SUFFIX))


def size_of_lines(directory: Path, name: str) -> int:
    """Return the bytes of a sealed segment's lines, in whichever form; raises READ_ERRORS.

    A compressed one of the service is one frame, whose head tells them; any other is inflated.
    """
    try:
        return os.stat(directory / (name + SEALED_SUFFIX)).st_size
    except FileNotFoundError:
        path = directory / (name + COMPRESSED_SUFFIX)
    with path.open("rb") as raw:
        size = zstd.get_frame_info(raw.read(_HEAD_BYTES)).decompressed_size
        if size is None:
            raw.seek(0)
            with zstd.ZstdFile(raw) as file:
                size = file.seek(0, os.SEEK_END)
    return size


def open_sealed(directory: Path, name: str, offset: int = 0) -> io.FileIO | zstd.ZstdFile:
    """Open a sealed segment's lines from `offset` on, unbuffered; raises OSError.

    Where they are compressed, all before `offset` is inflated and dropped.
    """
    file: io.FileIO | zstd.ZstdFile
    try:
        file = io.FileIO(directory / (name + SEALED_SUFFIX))
    except FileNotFoundError:
        file = zstd.ZstdFile(directory / (name + COMPRESSED_SUFFIX))
    try:
        file.seek(offset)
    except BaseException:
        file.close()
        raise
    return file
