"""The content of a data directory, read and written without the service."""

from pathlib import Path

from astralog.store.names import SegmentName

#: A segment's name.
NAME = SegmentName("20261123T062500.123456Z-4711")


def stored(directory: Path, pattern: str = "*.ndjson*") -> bytes:
    """Return the content of all plain segments, oldest first."""
    return b"".join(file.read_bytes() for file in sorted(directory.glob(pattern)))


def contents(directory: Path) -> dict[str, bytes]:
    """Return the content of each file of a directory."""
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def write_open(directory: Path, content: bytes, name: str = NAME) -> Path:
    """Create an open segment, and return its path."""
    file = directory / f"{name}.ndjson.open"
    file.write_bytes(content)
    return file
