"""The files that `astralog forward` keeps in the data directory: cursor, status and node name.

The service reads the first two: which segments are delivered, and the lag.

`forward.cursor`: one line per fact, appended and synced:

    cursor 1 <inodes> <node> <table>   the header: the directory, node and table of the facts
    at <segment> <offset> <lines>      delivered up to this offset; the next chunk is under way
    again <segment>                    lines that the tables lacked at its end were sent again
    done <segment>                     all of it is delivered and verified in the tables

Each line ends in the CRC-32 of the text before it, as 8 hex digits, so that torn and damaged lines
are detected. A lost line costs forward one query.

`forward.status`: one line `<name> <value>` per field of `ForwardStatus`, replaced as a whole.

`node`: the node's name in the tables, from the first delivery on: one line with its CRC-32.
"""

import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from astralog.store.files import replace_file

CURSOR_NAME = "forward.cursor"
LOCK_NAME = "forward.lock"
STATUS_NAME = "forward.status"
NODE_NAME = "node"

_CRC_DIGITS = 8

#: Characters that a word keeps: printable ASCII except the percent sign, which begins an escape.
_PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


def encode_fact(fact: str) -> bytes:
    """Return the cursor's line for a fact."""
    text = fact.encode()
    return b"%b %08x\n" % (text, zlib.crc32(text))


def decode_fact(line: bytes) -> str | None:
    """Return the fact of a line (without its line end), None if it is damaged."""
    text, _, check = line.rpartition(b" ")
    if len(check) != _CRC_DIGITS or check != b"%08x" % zlib.crc32(text):
        return None
    return text.decode()


def encode_word(text: str) -> str:
    """Return a text as one word of ASCII, for a fact or an HTTP header."""
    return quote(text, safe=_PLAIN)


def read_node(directory: Path) -> str | None:
    """Return the node's name, None before the first delivery.

    Raises ValueError if the file is damaged, and OSError.
    """
    try:
        content = (directory / NODE_NAME).read_bytes()
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        content = b""
    name = decode_fact(content.removesuffix(b"\n"))
    if not name:
        raise ValueError("the node's name is damaged")
    return name


def read_node_of_cursor(directory: Path) -> str | None:
    """Return the node's name in a cursor with facts, None without facts; raises OSError."""
    try:
        with (directory / CURSOR_NAME).open("rb") as file:
            head, fact = file.readline(), file.readline()
    except FileNotFoundError:
        return None
    match (decode_fact(head.removesuffix(b"\n")) or "").split(" "):
        case ["cursor", "1", _, node, _] if fact:
            return unquote(node)
    return None


def read_facts(directory: Path) -> Iterator[str | None]:
    """Yield the facts of a directory's cursor, None for each damaged line; raises OSError."""
    *lines, rest = (directory / CURSOR_NAME).read_bytes().split(b"\n")
    yield from map(decode_fact, lines)
    if rest:
        yield None


class DeliveredSegments:
    """The completely delivered segments of a directory: `name in delivered`.

    If the cursor is missing, no segment counts as delivered. Each check costs a stat, and reading
    the new lines of the cursor; 100,000 segments take some 10 MB.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / CURSOR_NAME
        self._inode = 0
        self._offset = 0
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        try:
            self._read_on()
        except OSError:
            return False
        return name in self._names

    def _read_on(self) -> None:
        status = os.stat(self._path)
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset = status.st_ino, 0
            self._names = set()
        if status.st_size == self._offset:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(lines + newline)
        for fact in map(decode_fact, lines.split(b"\n")):
            match fact.split(" ") if fact else ():
                case ["done", name]:
                    self._names.add(name)


@dataclasses.dataclass
class ForwardStatus:
    """The progress of forward; times are in seconds since 1970, 0 for none."""

    pid: int = 0
    updated_at: float = 0.0  #: forward writes its status every few seconds while it runs
    waiting_segments: int = 0  #: sealed and not completely delivered
    waiting_bytes: int = 0  #: of their files, compressed or not
    oldest_at: float = 0.0  #: start of the oldest segment, sealed or open, that is not delivered
    delivered_segments: int = 0  #: since forward started, as are the next four
    delivered_logs: int = 0
    dead_letter_logs: int = 0  #: of these, the logs in the dead-letter table
    incomplete_segments: int = 0  #: delivered, but the tables hold fewer lines
    doubled_segments: int = 0  #: delivered, but the tables hold more lines
    failing_since: float = 0.0

    def lag_seconds(self, now: float) -> float:
        """Return the age of the oldest undelivered log, 0 if all are delivered."""
        return max(now - self.oldest_at, 0.0) if self.oldest_at else 0.0


def read_status(directory: Path) -> ForwardStatus | None:
    """Return the last status that forward wrote, None if there is no valid one."""
    try:
        lines = (directory / STATUS_NAME).read_text().splitlines()
        words = dict(line.split(" ") for line in lines)
        kinds = {name: type(value) for name, value in dataclasses.asdict(ForwardStatus()).items()}
        return ForwardStatus(**{name: kind(words[name]) for name, kind in kinds.items()})
    except (OSError, ValueError, KeyError):
        return None


def write_status(directory: Path, status: ForwardStatus) -> None:
    """Replace the status file; raises OSError.

    It is not synced: after a power cut there may be none.
    """
    lines = [f"{name} {value}\n" for name, value in dataclasses.asdict(status).items()]
    replace_file(directory / STATUS_NAME, "".join(lines).encode(), is_synced=False)
