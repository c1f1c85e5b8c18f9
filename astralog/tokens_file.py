"""The tokens file: one token per line, followed by its projects and its options."""

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from astralog.settings import InvalidSettings

#: The longest token: with the header's name, it fits into the longest header
#: that the server accepts (`limit_request_field_size` in server.gunicorn_settings).
MAX_TOKEN_BYTES = 4000

#: The largest tokens file; a larger one is a fault, before it takes more memory.
MAX_FILE_BYTES = 64 * 1024 * 1024

#: Seconds without a change after which a file counts as complete, and those if its last line has no
#: end: the rest of that line may restrict its grants.
REST_SECONDS = 0.5
UNFINISHED_REST_SECONDS = 3.0

#: Seconds that a reader waits for the file to be complete, and seconds between two checks.
WHOLE_SECONDS = 10.0
WHOLE_POLL_SECONDS = 0.05

#: Faulty lines that are named; the others are counted, since each reload logs them in one line.
SHOWN_PROBLEMS = 20

#: Bytes of the units that a rate may have.
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}

_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(KB|MB|GB)/s")

_NOT_IN_TOKENS = re.compile(rb"[\x00-\x20\x7f]")

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Scope(Enum):
    """A grant of a token; the values are those of the option `allow`."""

    READ = "read"  # the status page, searches and metrics
    WRITE = "write"  # sending logs, in any protocol


ALL_SCOPES = tuple(Scope)


@dataclass(frozen=True)
class Token:
    """A token as a digest, so that the time of a comparison does not depend on the token.

    `projects` are those that it is bound to, None for all. `place` names its line or setting.
    """

    digest: bytes
    projects: Collection[str] | None
    place: str
    scopes: Collection[Scope] = ALL_SCOPES
    rate: float | None = None  # decompressed bytes per second, None for any

    @cached_property
    def name(self) -> str:
        """The token's name in logs and metrics: the first 8 hex digits of its SHA-256."""
        return self.digest[:4].hex()


def digest_of(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def read_file(path: Path, place: str) -> bytes:
    """Return the content of a tokens file, without waiting for another program.

    A pipe would block its reader until somebody writes, and a device such as /dev/zero has no end.
    Raises OSError, and InvalidSettings if it is no regular file or too large.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InvalidSettings([f"{place}: Is not a file, but a pipe or a device."])
        if status.st_size > MAX_FILE_BYTES:
            raise InvalidSettings([f"{place}: Is larger than {MAX_FILE_BYTES} bytes."])
        return file.read(MAX_FILE_BYTES)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


class WatchedFile:
    """A file that other programs write; it is read once it has stopped changing.

    `place` names it to the operator.
    """

    def __init__(self, path: Path, place: str) -> None:
        self.place = place
        self._path = path
        self._taken: tuple[int, ...] | None = None
        self._seen: tuple[int, ...] | None = None
        self._seen_at = 0.0

    def read_whole(self) -> bytes:
        """Return the content, after waiting while it is being written; raises InvalidSettings."""
        deadline = time.monotonic() + WHOLE_SECONDS
        while (content := self.read_changed()) is None:
            if time.monotonic() > deadline:
                raise InvalidSettings([f"{self.place}: Is still being written."])
            time.sleep(WHOLE_POLL_SECONDS)
        return content

    def read_changed(self) -> bytes | None:
        """Return the content if it has changed since the last call that returned it, else None.

        A file that is still being written counts as unchanged. Raises InvalidSettings if the file
        cannot be read.
        """
        try:
            version = self._version()
            if version == self._taken:
                return None
            if version != self._seen:
                self._seen, self._seen_at = version, time.monotonic()
            content = read_file(self._path, self.place)
            if not self._is_at_rest(content) or self._version() != version:
                return None
        except OSError as error:
            raise InvalidSettings([f"{self.place}: {error.strerror}."]) from None
        self._taken = version
        return content

    def _is_at_rest(self, content: bytes) -> bool:
        is_finished = content.endswith((b"\n", b"\r"))
        # By another machine's clock, a file may have changed at a time that is still to come.
        age = max(time.time() - self._path.stat().st_mtime, time.monotonic() - self._seen_at)
        return age >= (REST_SECONDS if is_finished else UNFINISHED_REST_SECONDS)

    def _version(self) -> tuple[int, ...]:
        """Return values that change with the file."""
        status = self._path.stat()
        times = status.st_mtime_ns, status.st_ctime_ns  # rsync and others set the first one back
        return status.st_dev, status.st_ino, status.st_size, *times


def parse(content: bytes, place: str) -> list[Token]:
    """Return the tokens of a file; raises InvalidSettings with a line per fault, without tokens."""
    if content.startswith(BYTE_ORDER_MARK):
        raise InvalidSettings([f"{place}: Begins with a byte order mark; remove it."])
    tokens: list[Token] = []
    problems: list[str] = []
    for number, line in enumerate(content.splitlines(), 1):
        # A comment begins with a word.
        if words := list(takewhile(lambda word: not word.startswith(b"#"), line.split())):
            try:
                tokens.append(make_token(words[0], f"{place}, line {number}", words[1:]))
            except InvalidSettings as error:
                problems += error.problems
    if not tokens and not problems:
        problems = [f"{place}: Holds no token."]
    _check(problems)
    return tokens


def by_digest(tokens: Sequence[Token]) -> dict[bytes, Token]:
    """Return the tokens by their digests.

    Raises InvalidSettings if a token occurs twice, since only one of its lines could count, and if
    two have the same name, since their batches would be counted together.
    """
    first: dict[str, Token] = {}
    _check(
        [
            f"{token.place}: {_repetition(first[token.name], token)}"
            for token in tokens
            if first.setdefault(token.name, token) is not token
        ]
    )
    return {token.digest: token for token in tokens}


def _repetition(first: Token, second: Token) -> str:
    if first.digest == second.digest:
        return f"The token of {first.place} again."
    return f"The token has the same name as that of {first.place}, {first.name}; use another one."


def _check(problems: list[str]) -> None:
    """Raise InvalidSettings for the first problems, if there are any."""
    if len(problems) > SHOWN_PROBLEMS:
        left_out = len(problems) - SHOWN_PROBLEMS
        problems = [*problems[:SHOWN_PROBLEMS], f"{left_out} more lines are faulty."]
    if problems:
        raise InvalidSettings(problems)


def make_token(text: bytes, place: str, words: Sequence[bytes] = ()) -> Token:
    """Return a token with the projects and options in `words`; raises InvalidSettings."""
    if _NOT_IN_TOKENS.search(text):
        raise InvalidSettings([f"{place}: The token has a space or a control character."])
    if len(text) > MAX_TOKEN_BYTES:
        raise InvalidSettings([f"{place}: A token has at most {MAX_TOKEN_BYTES} bytes."])
    if text.lower() == b"bearer":
        raise InvalidSettings([f"{place}: Write the token without `Bearer`."])
    try:
        projects = frozenset(word.decode() for word in words if b"=" not in word)
        return Token(digest_of(text), projects or None, place, **_parse_options(words))
    except UnicodeDecodeError:
        raise InvalidSettings([f"{place}: A project's name is not valid UTF-8."]) from None
    except ValueError as error:
        raise InvalidSettings([f"{place}: {error}"]) from None


def _parse_options(words: Sequence[bytes]) -> dict[str, Any]:
    """Return the fields of a token's options; raises ValueError, which repeats none of them."""
    fields: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.decode("latin-1").partition("=")
        if not equals:
            continue
        if name not in _OPTIONS:
            raise ValueError(f"Unknown option; there are {' and '.join(_OPTIONS)}.")
        field, parse = _OPTIONS[name]
        if field in fields:
            raise ValueError(f"Option {name} occurs twice.")
        fields[field] = parse(value)
    return fields


def _parse_scopes(text: str) -> tuple[Scope, ...]:
    if text not in (scope.value for scope in Scope):
        raise ValueError("Option allow is write or read; without it, both are allowed.")
    return (Scope(text),)


def _parse_rate(text: str) -> float:
    found = _RATE.fullmatch(text)
    rate = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not rate:
        raise ValueError("Option rate is a number with KB/s, MB/s or GB/s, such as 5MB/s.")
    return rate


def format_rate(rate: float | None) -> str:
    """Return a rate in the option's form, in the largest unit in which it is at least 1."""
    if rate is None:
        return "(any)"
    unit = next((unit for unit in ("GB", "MB") if rate >= UNITS[unit]), "KB")
    return f"{rate / UNITS[unit]:.9g}{unit}/s"


#: Each option with the field that it sets and its parser.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "allow": ("scopes", _parse_scopes),
    "rate": ("rate", _parse_rate),
}
