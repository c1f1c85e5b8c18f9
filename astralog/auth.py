"""Tokens: where they come from, what they may write, and how a request shows one."""

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from astralog.errors import Rejection
from astralog.settings import InvalidSettings, Settings

log = logging.getLogger(__name__)

#: Name of the token that the first start makes, inside the data directory.
TOKEN_FILE_NAME = "token"  # nosec B105

#: The longest token: with the header's name, it fits into what the server reads of a header
#: (`limit_request_field_size` in gunicorn.conf.py).
MAX_TOKEN_BYTES = 4000

#: Seconds between two looks at whether the file of tokens has changed.
CHANGED_SECONDS = 1.0


class Token(NamedTuple):
    """A token as a digest, so that comparing takes as long for any token of any length.

    `projects` are those it may write, None for all.
    """

    digest: bytes
    projects: Collection[str] | None


class Tokens:
    """The tokens that may write, read again when their file changes."""

    def __init__(self, settings: Settings) -> None:
        """Read the tokens from the settings, their file, or the one that the first start made.

        Raises InvalidSettings where there are none, or one that no header can carry.
        """
        self._listed = settings.tokens
        self._path: Path | None = None
        if settings.tokens_file:
            self._path = Path(settings.tokens_file)
        elif not settings.tokens:
            self._path = settings.data_dir / TOKEN_FILE_NAME
        self._version = _version(self._path)
        self._looked_at = time.monotonic()
        self._tokens = self._read()

    def authenticate(self, authorization: str | None) -> Token:
        """Return the token in an Authorization header's value: as it is, or after `Bearer `.

        Raises Rejection `unauthorized`.
        """
        if authorization is None:
            raise Rejection("unauthorized", "The Authorization header is missing.")
        if time.monotonic() - self._looked_at >= CHANGED_SECONDS:
            self._read_if_changed()
        text = authorization.encode("latin-1").strip()  # WSGI hands header bytes on as latin-1
        if text[:7].lower() == b"bearer ":
            text = text[7:].strip()
        shown = _digest(text)
        known = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, shown):
                known = token
        if known is None:
            raise Rejection("unauthorized", "The token in the Authorization header is not known.")
        return known

    def _read_if_changed(self) -> None:
        """Read a changed file; one that is faulty leaves the tokens as they are."""
        self._looked_at = time.monotonic()
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._tokens = self._read()
        except InvalidSettings as error:
            log.error("tokens stay as they are: %s", "; ".join(error.problems))
        else:
            log.info("read %d tokens", len(self._tokens))

    def _read(self) -> list[Token]:
        """Return all tokens; raises InvalidSettings with a line for each fault."""
        texts = [
            (f"ASTRALOG_TOKENS, token {place}", os.fsencode(text.strip()))
            for place, text in enumerate(self._listed.split(","), 1)
            if text.strip()
        ]
        tokens = [_parse(text, place) for place, text in texts]
        if self._listed and not tokens:
            raise InvalidSettings(["ASTRALOG_TOKENS: Holds no token."])
        if self._path:
            tokens += _read_file(self._path)
        return tokens


def _read_file(path: Path) -> list[Token]:
    """Read a token a line, after it the projects it may write, none for all."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidSettings([f"{path}: {error.strerror}."]) from None
    tokens = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith(b"#"):
            text, *projects = line.split()
            tokens.append(_parse(text, f"{path}, line {number}", projects))
    if not tokens:
        raise InvalidSettings([f"{path}: Holds no token."])
    return tokens


def _parse(text: bytes, place: str, projects: Collection[bytes] = ()) -> Token:
    if any(byte <= 0x20 or byte == 0x7F for byte in text):
        raise InvalidSettings([f"{place}: A token holds no spaces or control characters."])
    if len(text) > MAX_TOKEN_BYTES:
        raise InvalidSettings([f"{place}: A token holds at most {MAX_TOKEN_BYTES} bytes."])
    try:
        names = frozenset(project.decode() for project in projects)
    except UnicodeDecodeError:
        raise InvalidSettings([f"{place}: A project's name is not valid UTF-8."]) from None
    return Token(_digest(text), names or None)


def _version(path: Path | None) -> tuple[int, ...] | None:
    """Return what changes when a file does, None where there is none."""
    try:
        stat = path.stat() if path else None
    except OSError:
        return None
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat else None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
