"""Compress the sealed segments of a directory; one form of each is whole at every instant.

The compressed lines are written to a draft, which is no segment by its name, synced, read back and
decompressed. Then the draft gets the segment's name, the directory is synced, and only after that
the plain file is removed. An interruption leaves the plain file, or both, for the next attempt.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import time
from collections.abc import Generator, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from astralog.errors import FULL_ERRNOS, explain
from astralog.log import LogOnce
from astralog.store import files
from astralog.store.directory import WatchedDirectory
from astralog.store.names import Form, SegmentFile, SegmentName, parse_file_names
from astralog.zstd import zstd

log = logging.getLogger(__name__)

#: The only draft of a directory; one process at a time compresses.
DRAFT_NAME = ".compressing"

#: Measured on logs of 365 bytes, with reading and checking: 7.4 times smaller for 1.0 µs of CPU per
#: log. Level 2 makes them 7.5 times smaller for 1.2 µs, level 3 7.4 times for 1.5 µs.
LEVEL = 1

#: Bytes read at once; zstd's own memory is some MiB.
BLOCK_BYTES = 256 * 1024


class Damaged(OSError):
    """The decompressed content of a compressed file differs from the original."""

    def __init__(self, reason: object) -> None:
        super().__init__(errno.EIO, f"its compressed form is damaged: {reason}")


class Saving(NamedTuple):
    """The bytes of a segment before and after."""

    plain: int
    compressed: int


def compress_segment(directory: Path, name: str) -> Saving | None:
    """Replace a plain segment by its compressed form; return None if it was removed meanwhile.

    Raises OSError if that fails; the plain file remains. If a crash left both forms, the plain one
    is removed if the compressed one is whole.
    """
    segment = SegmentName(name)
    plain = segment.path(directory, Form.PLAIN)
    compressed = segment.path(directory, Form.COMPRESSED)
    try:
        fd = files.open_regular(plain, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as source:
        # Sealed without a sync, in the mode `never`, it may not be on the disk as a whole.
        os.fsync(source.fileno())
        is_made = os.path.lexists(compressed)
        size = _check_same(source, compressed) if is_made else _make(source, plain, compressed)
        if size is None:
            return None
        files.sync_directory(directory)
        plain.unlink(missing_ok=True)
        plain_size = os.fstat(source.fileno()).st_size
        files.drop_from_page_cache(source.fileno(), plain_size)
    return Saving(plain_size, size)


def remove_draft(directory: Path) -> None:
    """Remove the draft of an interrupted compression; raises OSError."""
    (directory / DRAFT_NAME).unlink(missing_ok=True)


def _make(source: BufferedReader, plain: Path, compressed: Path) -> int | None:
    """Create the compressed file; return its size, None if the segment was removed meanwhile."""
    draft = plain.with_name(DRAFT_NAME)
    try:
        size = _write(source, draft)
        with files.removal_lock(source.fileno()):
            if not files.is_in_place(source.fileno(), plain):
                return None
            files.rename_new(draft, compressed)
        return size
    finally:
        remove_draft(plain.parent)


def _write(source: BufferedReader, draft: Path) -> int:
    """Compress a file to a draft, sync it and check its content's size; return the draft's size."""
    remove_draft(draft.parent)
    status = os.fstat(source.fileno())
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    fd = os.open(draft, flags, files.FILE_MODE)
    with open(fd, "w+b", BLOCK_BYTES) as target:
        os.fchmod(fd, files.FILE_MODE)
        _compress(source, target, status.st_size)
        target.flush()
        size = target.tell()
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(fd)
        files.drop_from_page_cache(fd, size)  # so that the disk itself is read below
        _check_whole(target, status.st_size)
    return size


def _compress(source: BufferedReader, target: BinaryIO, size: int) -> None:
    """Write one frame, with the size and a checksum of its content."""
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {parameter.compression_level: LEVEL, parameter.checksum_flag: 1}
    compressor = zstd.ZstdCompressor(options=options)
    compressor.set_pledged_input_size(size)
    for block in _blocks(source):
        target.write(compressor.compress(block))
    target.write(compressor.flush())


def _blocks(source: BufferedReader | zstd.ZstdFile) -> Iterator[memoryview]:
    """Yield a file in blocks, each valid until the next one is requested."""
    source.seek(0)
    buffer = memoryview(bytearray(BLOCK_BYTES))
    while count := source.readinto(buffer):
        yield buffer[:count]


def _decompressed(target: BinaryIO) -> Iterator[memoryview]:
    """Yield the decompressed blocks of a file; raises Damaged if it is incomplete.

    zstd compares the frame's checksum, which is that of the original.
    """
    target.seek(0)
    try:
        with zstd.ZstdFile(target) as file:
            yield from _blocks(file)
    except (EOFError, zstd.ZstdError) as error:
        raise Damaged(error) from error
    if not target.tell():
        raise Damaged("it is empty")


def _check_whole(target: BinaryIO, size: int) -> None:
    found = sum(map(len, _decompressed(target)))
    if found != size:
        raise Damaged(f"{found} bytes in place of {size}")


def _check_same(source: BufferedReader, compressed: Path) -> int:
    """Return the size of a compressed file, if its lines are those of the plain one.

    Raises OSError if it has others. A damaged one is removed, once the plain file was read to its
    end; one with other lines is kept.
    """
    try:
        fd = files.open_regular(compressed, os.O_RDONLY)
    except FileNotFoundError:
        raise OSError(errno.EEXIST, "its compressed form's name is taken") from None
    with open(fd, "rb") as target:
        os.fsync(target.fileno())
        try:
            is_same = _is_same(source, target)
        except Damaged:
            for _ in _blocks(source):
                pass
            compressed.unlink()
            raise
        size = os.fstat(target.fileno()).st_size
    if not is_same:
        raise OSError(errno.EEXIST, "its compressed form holds other lines; both are kept")
    return size


def _is_same(source: BufferedReader, target: BinaryIO) -> bool:
    """Return whether a file equals the decompressed lines of another, which is read completely."""
    source.seek(0)
    differing = sum(source.read(len(block)) != block for block in _decompressed(target))
    return not differing and not source.read(1)


LOCK_NAME = "compression.lock"

#: Seconds between two polls: for new segments, and for the lease if another process has it.
POLL_SECONDS = 1.0

#: Seconds after a failure; doubled with each failure in a row, up to the longest.
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0


@dataclasses.dataclass
class CompressionCounts:
    """The compression so far, by one process."""

    segments: int = 0
    plain_bytes: int = 0  #: of these segments, before compression
    compressed_bytes: int = 0  #: of these segments, after it
    failures: int = 0
    cpu_seconds: float = 0.0
    waiting_segments: int | None = None  #: None if another process compresses


class PlainSegments(WatchedDirectory):
    """The `names` of the sealed segments that are not compressed, oldest first.

    The caller removes a name; a scan of the directory adds it again if its file still exists.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.names: list[SegmentName] = []

    def poll(self) -> None:
        """Add the segments that were sealed since the last call."""
        for changed in self._changed_files():
            self._add(file for file in changed if self._exists(file))
        if self.is_scan_due:
            self._add(parse_file_names(files.regular_files(self._directory)))
            self._note_scan()

    def _add(self, found: Iterable[SegmentFile]) -> None:
        if new := {segment for segment, form in found if form is Form.PLAIN}:
            self.names = sorted(new.union(self.names))

    def _exists(self, file: SegmentFile) -> bool:
        """Return whether a file exists; the watch also reports removed files."""
        return files.find_status(file.segment.path(self._directory, file.form)) is not None


class Compressor:
    """Compress the segments of a directory while this process holds the directory's lease."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._steps = self._compress_all()
        self._retry_seconds = RETRY_SECONDS
        self._failure = LogOnce(log, logging.WARNING)  # of any segment, until one is compressed
        #: Segments whose failure was logged, with the time of the next try.
        self._failed: dict[SegmentName, float] = {}
        self.counts = CompressionCounts()

    def step(self) -> float:
        """Compress a segment, if one waits; return the seconds until the next step."""
        try:
            pause = next(self._steps)
            self.counts.cpu_seconds = time.process_time()
            return pause
        except (OSError, MemoryError) as error:
            self._steps = self._compress_all()
            text = explain(error)
            self._failure.fail(text, "cannot compress in %s: %s", self._directory, text)
            return self._back_off()

    def close(self) -> None:
        self._steps.close()

    def _compress_all(self) -> Generator[float, None, None]:
        while (lease := files.Lease.acquire(self._directory, LOCK_NAME)) is None:
            yield POLL_SECONDS
        try:
            with contextlib.closing(lease):
                remove_draft(self._directory)
                with contextlib.closing(PlainSegments(self._directory)) as plain:
                    while True:
                        lease.check()
                        plain.poll()
                        self._count_waiting(plain)
                        pause = self._compress_next(plain)
                        self._count_waiting(plain)
                        yield pause
        finally:
            self.counts.waiting_segments = None

    def _count_waiting(self, plain: PlainSegments) -> None:
        self.counts.waiting_segments = len(plain.names) + len(self._failed)

    def _compress_next(self, plain: PlainSegments) -> float:
        """Compress the oldest segment, or else one that failed; return the seconds until the next.

        One that failed because of a full disk is retried first, any other one last.
        """
        now = time.monotonic()
        due = sorted(name for name, due_at in self._failed.items() if due_at <= now)
        names = plain.names or due
        if not names:
            return POLL_SECONDS
        try:
            saving = compress_segment(self._directory, names[0])
        except (OSError, MemoryError) as error:
            return self._note_failure(names, error)
        self._failed.pop(names.pop(0), None)
        self._retry_seconds = RETRY_SECONDS
        self._failure.end("segments are compressed again")
        if saving:
            self.counts.segments += 1
            self.counts.plain_bytes += saving.plain
            self.counts.compressed_bytes += saving.compressed
        return 0.0

    def _note_failure(self, names: list[SegmentName], error: OSError | MemoryError) -> float:
        """Postpone the first of the names, unless the disk is full."""
        self.counts.failures += 1
        text = explain(error)
        if isinstance(error, MemoryError) or error.errno in FULL_ERRNOS:
            self._failure.fail(text, "segments stay uncompressed: %s; compression is retried", text)
            return self._back_off()
        name = names.pop(0)
        if name not in self._failed:
            log.error("cannot compress %s: %s; it is retried every minute", name, text)
        self._failed[name] = time.monotonic() + LONGEST_RETRY_SECONDS
        return RETRY_SECONDS

    def _back_off(self) -> float:
        pause = self._retry_seconds
        self._retry_seconds = min(2 * pause, LONGEST_RETRY_SECONDS)
        return pause
