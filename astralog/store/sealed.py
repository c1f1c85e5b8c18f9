"""Find sealed segments, each once, in plain or compressed form.

`<name>.ndjson` becomes `<name>.ndjson.zst` while readers run: the compressed file appears whole,
and then the plain one goes. Offsets are those of the uncompressed lines, in either form.
"""

import io
import os
from pathlib import Path
from typing import NamedTuple

from astralog.store.files import regular_files, status_of
from astralog.store.names import Form, SegmentName, parse_file_names
from astralog.zstd import zstd

#: The maximum size of a zstd frame's header (RFC 8878, 3.1.1).
_HEAD_BYTES = 18


class Segments(NamedTuple):
    """The names of the segments in a directory."""

    sealed: set[str]
    open: set[str]
    plain: set[str]  # of the sealed ones, those that have a file which is not compressed


def list_segments(directory: Path) -> Segments:
    """Return the segments of a directory; raises OSError."""
    names: dict[Form, set[str]] = {form: set() for form in Form}
    for segment, form in parse_file_names(regular_files(directory)):
        names[form].add(segment)
    plain = names[Form.PLAIN]
    sealed = plain | names[Form.COMPRESSED]
    return Segments(sealed, names[Form.OPEN] - sealed, plain)


def is_sealed(directory: Path, name: str) -> bool:
    """Return whether a sealed segment exists; raises OSError.

    A listing may miss a segment that is compressed meanwhile.
    """
    try:
        stat_sealed(directory, name)
    except FileNotFoundError:
        return False
    return True


def stat_sealed(directory: Path, name: str) -> os.stat_result:
    """Return the status of a sealed segment's file; raises OSError."""
    segment = SegmentName(name)
    try:
        return status_of(segment.path(directory, Form.PLAIN))
    except FileNotFoundError:
        return status_of(segment.path(directory, Form.COMPRESSED))


def size_of_lines(directory: Path, name: str) -> int:
    """Return the size of a sealed segment's lines in bytes, decompressed; raises READ_ERRORS.

    A compressed one of the service is one frame, whose head tells them; any other is inflated.
    """
    segment = SegmentName(name)
    try:
        return status_of(segment.path(directory, Form.PLAIN)).st_size
    except FileNotFoundError:
        path = segment.path(directory, Form.COMPRESSED)
    status_of(path)
    with path.open("rb") as raw:
        size = zstd.get_frame_info(raw.read(_HEAD_BYTES)).decompressed_size
        if size is None:
            raw.seek(0)
            with zstd.ZstdFile(raw) as file:
                size = file.seek(0, os.SEEK_END)
    return size


def open_sealed(directory: Path, name: str, offset: int = 0) -> io.FileIO | zstd.ZstdFile:
    """Open a sealed segment's lines from `offset` on, unbuffered; raises OSError.

    If they are compressed, all lines before `offset` are decompressed and dropped.
    """
    file: io.FileIO | zstd.ZstdFile
    segment = SegmentName(name)
    try:
        path = segment.path(directory, Form.PLAIN)
        status_of(path)
        file = io.FileIO(path)
    except FileNotFoundError:
        path = segment.path(directory, Form.COMPRESSED)
        status_of(path)
        file = zstd.ZstdFile(path)
    try:
        file.seek(offset)
    except BaseException:
        file.close()
        raise
    return file
