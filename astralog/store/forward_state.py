"""What a data directory says of its own forwarding: which segments are delivered, and the lag.

`astralog forward` writes three files there, and the service reads the first two:

`forward.cursor`: a line for each fact, appended and synced, in the order in which they came true:

    cursor 1 <inodes> <node> <table>   what the facts hold for
    at <segment> <offset> <lines>   so many bytes and lines are delivered, more is under way
    again <segment>                 lines that the tables lacked at its end were sent again
    done <segment>                  all of it is delivered, and the tables were asked for it

Each line ends in the CRC-32 of what stands before it, as 8 hex digits, so that a torn or damaged
line is known. A line that is lost costs forward a question to the table and nothing else.

`forward.status`: a line `<name> <value>` for each field of `ForwardStatus`, replaced as a whole.

`node`: the node's name in the tables, from the first delivery on; a line with its CRC-32, too.
"""

import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from astralog.store.files import FILE_MODE

CURSOR_NAME = "forward.cursor"
LOCK_NAME = "forward.lock"
STATUS_NAME = "forward.status"
NODE_NAME = "node"

_CRC_DIGITS = 8

#: What a word keeps as it is: all printable ASCII but the percent sign, which begins an escape.
_PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


def encode_fact(fact: str) -> bytes:
    """Return the cursor's line for a fact."""
    text = fact.encode()
    return b"%b %08x\n" % (text, zlib.crc32(text))


def decode_fact(line: bytes) -> str | None:
    """Return the fact that a line, without its end, holds; None where it is damaged."""
    text, _, check = line.rpartition(b" ")
    if len(check) != _CRC_DIGITS or check != b"%08x" % zlib.crc32(text):
        return None
    return text.decode()


def encode_word(text: str) -> str:
    """Return a text as one word of ASCII: of a fact, or of an HTTP header."""
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
    """Return the node's name by a cursor that has facts; None without any. Raises OSError."""
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
    """The segments of a directory that are delivered as a whole: `name in delivered`.

    None is, where nothing is known. A look costs a stat, and the reading of what is new in the
    cursor; 100,000 segments take some 10 MB.
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
    """What forward did and has yet to do; times are in seconds since 1970, 0 for none."""

    pid: int = 0
    updated_at: float = 0.0  #: forward writes its status every few seconds while it runs
    waiting_segments: int = 0  #: sealed, and not delivered as a whole
    waiting_bytes: int = 0  #: of their files, compressed or not
    oldest_at: float = 0.0  #: start of the oldest segment, sealed or open, that is not delivered
    delivered_segments: int = 0  #: since forward started, as are the next four
    delivered_logs: int = 0
    dead_letter_logs: int = 0  #: of the delivered ones, those that went to the dead-letter table
    incomplete_segments: int = 0  #: delivered, but the tables hold fewer lines
    doubled_segments: int = 0  #: delivered, but the tables hold more lines
    failing_since: float = 0.0

    def lag_seconds(self, now: float) -> float:
        """Return the age of the oldest log that is not delivered; 0 where all are."""
        return max(now - self.oldest_at, 0.0) if self.oldest_at else 0.0


def read_status(directory: Path) -> ForwardStatus | None:
    """Return what forward last said of itself; None where it never did, or nothing of use."""
    try:
        lines = (directory / STATUS_NAME).read_text().splitlines()
        words = dict(line.split(" ") for line in lines)
        kinds = {name: type(value) for name, value in dataclasses.asdict(ForwardStatus()).items()}
        return ForwardStatus(**{name: kind(words[name]) for name, kind in kinds.items()})
    except (OSError, ValueError, KeyError):
        return None


def write_status(directory: Path, status: ForwardStatus) -> None:
    """Replace what forward says of itself; raises OSError.

    It is not synced: after a power cut there may be none.
    """
    lines = [f"{name} {value}\n" for name, value in dataclasses.asdict(status).items()]
    draft = directory / (STATUS_NAME + ".new")
    fd = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, FILE_MODE)
    with open(fd, "w") as file:
        file.writelines(lines)
    draft.rename(directory / STATUS_NAME)
