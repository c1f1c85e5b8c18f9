"""Tokens: which are known, and how a request shows one."""

import hmac
import logging
import os
from pathlib import Path

import gevent
from gevent.event import Event

from astralog import tokens_file
from astralog.errors import Rejection
from astralog.settings import InvalidSettings, Settings
from astralog.tokens_file import Token, WatchedFile

log = logging.getLogger(__name__)

#: Name of the token that the first start makes, inside the data directory.
TOKEN_FILE_NAME = "token"  # nosec B105

#: Seconds between two looks at whether the file of tokens has changed.
LOOK_SECONDS = 0.5

#: Seconds that a worker, before it serves, waits for its first look at the most.
FIRST_LOOK_SECONDS = 1.0

MISSING = "The Authorization header is missing."
OTHER_SCHEME = (
    "The Authorization header takes a token as it is, or after Bearer; "
    "no other scheme, such as Basic."
)
UNKNOWN = "The token in the Authorization header is not known."


class Tokens:
    """The tokens that may write; they follow their file once `start` was called."""

    def __init__(self, settings: Settings) -> None:
        """Read the tokens from the settings, their file, or the one that the first start made.

        Raises InvalidSettings where there are none, or where any is faulty or ambiguous.
        """
        self._listed = _parse_list(settings.tokens)
        self._tokens = self._listed
        self._file = _file_of(settings)
        self._logged_problem = ""
        if self._file:
            self._take(self._file.read_whole())

    def authenticate(self, authorization: str | None) -> Token:
        """Return the token in an Authorization header's value: as it is, or after `Bearer `.

        Raises Rejection `unauthorized`.
        """
        if authorization is None:
            raise Rejection("unauthorized", MISSING)
        text = _shown_in(authorization)
        known = self._find(text)
        if known is None:
            raise Rejection("unauthorized", OTHER_SCHEME if b" " in text else UNKNOWN)
        return known

    def name_of(self, authorization: str | None) -> str | None:
        """Return what stands for the token in a header's value, None where it is not known."""
        known = self._find(_shown_in(authorization or ""))
        return known.name if known else None

    def start(self) -> None:
        """Follow the file from now on; if its disk answers, this returns after the first look."""
        if self._file:
            looked = Event()
            gevent.spawn(self._follow, looked)
            looked.wait(FIRST_LOOK_SECONDS)

    def _follow(self, looked: Event) -> None:
        while True:
            self.look()
            looked.set()
            gevent.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Take the file where it has changed; one that is faulty leaves the tokens as they are."""
        problem = ""
        try:
            # Its disk may stall, which nobody else shall wait for.
            content = gevent.get_hub().threadpool.apply(self._read_changed)
            if content is not None:
                self._take(content)
                log.info("read %d tokens", len(self._tokens))
        except InvalidSettings as error:
            problem = "; ".join(error.problems)
        except Exception as error:  # whatever it is, the next look may do better
            problem = repr(error)
        if problem not in ("", self._logged_problem):
            log.error("tokens stay as they are: %s", problem)
        self._logged_problem = problem

    def _read_changed(self) -> bytes | None:
        return self._file.read_changed() if self._file else None

    def _take(self, content: bytes) -> None:
        """Know the tokens of the file's content; raises InvalidSettings."""
        place = self._file.place if self._file else ""
        tokens = self._listed + tokens_file.parse(content, place)
        tokens_file.check_distinct(tokens)
        self._tokens = tokens

    def _find(self, text: bytes) -> Token | None:
        shown = tokens_file.digest_of(text)
        known = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, shown):
                known = token
        return known


def _parse_list(listed: str) -> list[Token]:
    """Return the tokens of ASTRALOG_TOKENS, each once; raises InvalidSettings."""
    tokens: dict[bytes, Token] = {}
    problems: list[str] = []
    for number, text in enumerate(listed.split(","), 1):
        if text.strip():
            try:
                place = f"ASTRALOG_TOKENS, token {number}"
                token = tokens_file.make_token(os.fsencode(text.strip()), place)
                tokens.setdefault(token.digest, token)
            except InvalidSettings as error:
                problems += error.problems
    if listed and not tokens and not problems:
        problems = ["ASTRALOG_TOKENS: Holds no token."]
    if problems:
        raise InvalidSettings(problems)
    return list(tokens.values())


def _file_of(settings: Settings) -> WatchedFile | None:
    if settings.tokens_file:
        path = Path(settings.tokens_file)
        return WatchedFile(path, f"ASTRALOG_TOKENS_FILE: {path}")
    if settings.tokens:
        return None
    path = settings.data_dir / TOKEN_FILE_NAME
    return WatchedFile(path, f"ASTRALOG_DATA_DIR: {path}")


def _shown_in(authorization: str) -> bytes:
    """Return the token that a header's value shows."""
    text = authorization.encode("latin-1").strip()  # WSGI hands header bytes on as latin-1
    return text[7:].strip() if text[:7].lower() == b"bearer " else text
