"""Files in a data directory that are not segments."""

import contextlib
import os
import stat
from pathlib import Path

#: A name that a segment could have.
NAME = "20261123T062500.123456Z-4711"

#: Names that look like those of segments, and are none.
NAMES = (
    "2024-05-extract.ndjson",
    "export.ndjson",
    "export.ndjson.open",
    "export.ndjson.zst",
    f"{NAME}.ndjson.zst.tmp",
    f"{NAME}.ndjson.gz",
    f"{NAME}.ndjson.open.open",
    f"{NAME}.json",
    f"{NAME}",
    f".{NAME}.ndjson",
    f"{NAME} .ndjson",
    f"{NAME}.ndjson\n",
    f"x{NAME}.ndjson",
    "20261323T062500.123456Z-4711.ndjson",  # month 13
    "20260230T062500.123456Z-4711.ndjson.open",  # 30 February
    "20250229T062500.123456Z-4711.ndjson",  # no leap year
    "00000101T000000.000000Z-4711.ndjson",  # year 0
    "20261123T240000.000000Z-4711.ndjson",
    "20261123T062560.000000Z-4711.ndjson",
    "20261123T062500.12345Z-4711.ndjson",  # no microseconds
    "20261123T062500.123456-4711.ndjson",  # no zone
    "20261123t062500.123456z-4711.ndjson",
    "٢٠261123T062500.123456Z-4711.ndjson",  # Arabic digits
    "20261123T062500.123456Z-٤٧١١.ndjson",
    "20261123T062500.123456Z-0.ndjson",  # no process has these
    "20261123T062500.123456Z-04711.ndjson.open",
    "20261123T062500.123456Z-99999999999.ndjson",
    "20261123T062500.123456Z--4711.ndjson",
    "20261123T062500.123456Z-.ndjson",
    f"{NAME}-0.ndjson",  # numbers begin with 1
    f"{NAME}-01.ndjson",
    f"{NAME}-100.ndjson",
    f"{NAME}-1-1.ndjson.open",
)

#: Each kind of file that may have a segment's own name, with a name that nothing else here has.
KINDS = ("directory", "link", "dangling", "fifo", "device")

CONTENT = b'{"an operator":"put this here"}\nhalf a li'


def make_all(directory: Path) -> dict[str, str]:
    """Create a file with each of the names, and entries that are not files; return `seen`."""
    for name in NAMES:
        (directory / name).write_bytes(CONTENT)
    for form in (".ndjson", ".ndjson.open", ".ndjson.zst"):
        for number, kind in enumerate(KINDS, 1):
            _make(directory / f"20240101T000000.000000Z-{number}{form}", kind)
    return seen(directory)


def _make(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
        (path / "file").write_bytes(CONTENT)
    elif kind == "link":
        target = path.with_name("linked")
        target.write_bytes(CONTENT)
        path.symlink_to(target.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with contextlib.suppress(PermissionError):  # only root may make devices
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def seen(directory: Path) -> dict[str, str]:
    """Return all entries of a directory that are not segments, with their types."""
    found = {}
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes().decode("latin-1") if stat.S_ISREG(mode) else ""
        found[str(path.relative_to(directory))] = f"{stat.S_IFMT(mode):o} {content}"
    return found
