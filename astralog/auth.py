"""Tokens: where they come from and how a request shows one."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from astralog.directory import sync_directory
from astralog.errors import Refusal
from astralog.settings import InvalidSettings, Settings

#: Name of the token that the first start makes, inside the data directory.
TOKEN_FILE_NAME = "token"  # nosec B105


class Tokens:
    """The tokens that may write.

    Held and compared as digests, so that comparing takes as long for any token of any length.
    """

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._digests = [_digest(token) for token in tokens]

    def authenticate(self, authorization: str | None) -> None:
        """Check an Authorization header's value: a token as it is, or after `Bearer `.

        Raises Refusal `unauthorized`.
        """
        if authorization is None:
            raise Refusal("unauthorized", "The Authorization header is missing.")
        token = authorization.encode("latin-1").strip()  # WSGI hands header bytes on as latin-1
        if token[:7].lower() == b"bearer ":
            token = token[7:].strip()
        shown = _digest(token)
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(digest, shown)
        if not known:
            raise Refusal("unauthorized", "The token in the Authorization header is not known.")


def load_tokens(settings: Settings) -> Tokens:
    """Read the tokens from the settings, the tokens file, or the one the first start makes.

    Raises InvalidSettings where there are none, or one that no header can carry.
    """
    tokens = [
        (f"ASTRALOG_TOKENS, token {place}", os.fsencode(token.strip()))
        for place, token in enumerate(settings.tokens.split(","), 1)
        if token.strip()
    ]
    if settings.tokens_file:
        tokens += _read_tokens_file(Path(settings.tokens_file))
    if settings.tokens and not tokens:
        raise InvalidSettings(["ASTRALOG_TOKENS: Holds no token."])
    if not (settings.tokens or settings.tokens_file):
        tokens = _read_tokens_file(make_token_file(settings.data_dir))
    _check(tokens)
    return Tokens(token for _, token in tokens)


def make_token_file(data_dir: Path) -> Path:
    """Return the path of the data directory's token, after making a random one at first start.

    Several processes may do so at once: the first one's token is everyone's.
    """
    path = data_dir / TOKEN_FILE_NAME
    if not path.exists():
        draft = data_dir / f".{TOKEN_FILE_NAME}-{os.getpid()}"
        fd = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with open(fd, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(fd)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        sync_directory(data_dir)
    return path


def _read_tokens_file(path: Path) -> list[tuple[str, bytes]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidSettings([f"{path}: {error.strerror}."]) from None
    tokens = [
        (f"{path}, line {number}", line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith(b"#")
    ]
    if not tokens:
        raise InvalidSettings([f"{path}: Holds no token."])
    return tokens


def _check(tokens: list[tuple[str, bytes]]) -> None:
    problems = [
        f"{place}: A token holds no spaces or control characters."
        for place, token in tokens
        if any(byte <= 0x20 or byte == 0x7F for byte in token)
    ]
    if problems:
        raise InvalidSettings(problems)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
