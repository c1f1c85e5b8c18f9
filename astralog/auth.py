"""Tokens: find the token of a request, and check its grants."""

import logging
import os
import secrets
from base64 import b64decode
from contextlib import suppress
from itertools import islice
from pathlib import Path

import gevent
from gevent.event import Event

from astralog import tokens_file
from astralog.browsers import QUERY_TOKEN, Environ, Origins
from astralog.errors import QUERY_TOKEN_FORBIDDEN, READING_FORBIDDEN, WRITING_FORBIDDEN, Rejection
from astralog.log import LogOnce
from astralog.rates import Rates
from astralog.settings import InvalidSettings, Settings, parse_origins
from astralog.threads import call_in_thread
from astralog.tokens_file import Scope, Token, WatchedFile

log = logging.getLogger(__name__)


#: Name of the token file that the first start creates in the data directory.
TOKEN_FILE_NAME = "token"  # nosec B105  # not a token

#: Seconds between two checks whether the file of tokens has changed.
CHECK_SECONDS = 0.5

#: Maximum seconds that a worker waits for its first check before it serves.
FIRST_CHECK_SECONDS = 1.0

#: The first tokens, which have separate counters; all others are counted together. Their position
#: decides, not their batches, so that no tenant's numbers depend on those of another.
NAMED_TOKENS = 50

#: Headers with a known token that are kept; one may have 8 KiB.
KEPT_HEADERS = 500

FORBIDDEN = {Scope.READ: READING_FORBIDDEN, Scope.WRITE: WRITING_FORBIDDEN}

MISSING = "The Authorization header is missing."
OTHER_SCHEME = (
    "Unsupported scheme in the Authorization header. Send one of: TOKEN; Bearer TOKEN; Splunk "
    "TOKEN; Basic with TOKEN as the password; ApiKey with TOKEN after the colon."
)
UNKNOWN = "The token in the Authorization header is not known."
UNKNOWN_IN_QUERY = "The token in the query is not known."
ESCAPED_BLANK = (
    "It begins with Bearer%20: the sender does not decode %20 to a blank. Send the token alone, "
    "without Bearer."
)
QUOTED = "It is in quotes; remove them."
ESCAPED_LINE_END = "It ends with an escaped line break; remove it."
COMMA = "It has a comma: perhaps the header was sent twice."


class Tokens:
    """The known tokens; after `start`, they are reloaded when their file changes."""

    def __init__(self, settings: Settings, rates: Rates | None = None) -> None:
        """Read the tokens from the settings, their file, or the one that the first start made.

        `rates` are those of the tokens before a reload. Raises InvalidSettings if there are none,
        or if any is faulty or ambiguous.
        """
        self.rates = rates or Rates()
        self.origins = Origins(parse_origins(settings.cors_origins))
        #: A secret that only the workers that inherit these tokens know.
        self.secret = secrets.token_bytes(32)
        self._listed = _parse_list(settings.tokens)
        # Found by digest, so that the time of a look-up reveals nothing of a token to a guesser.
        # The time of a look-up by header does not either: Python compares only headers of equal
        # hashes, which are keyed.
        self._by_digest: dict[bytes, Token] = {}
        #: The tokens that headers have shown: one lookup for a client that sends many batches.
        #: Measured: 0.97 of the CPU of a batch of one log.
        self._by_header: dict[str | None, Token] = {}
        self._named: frozenset[str] = frozenset()
        self._use({token.digest: token for token in self._listed})
        self._file = _file_of(settings)
        self._problems: list[str] = []  # of the file as it was last read
        self._failures = LogOnce(log)
        if self._file:
            self._use(self._parse(self._file.read_whole()))

    def _use(self, by_digest: dict[bytes, Token]) -> None:
        self._by_digest = by_digest
        self._by_header.clear()
        self._named = frozenset(token.name for token in islice(by_digest.values(), NAMED_TOKENS))

    @property
    def are_several(self) -> bool:
        return len(self._by_digest) > 1

    def authorize(self, environ: Environ, scope: Scope) -> Token:
        """Return the token of a request that needs a scope.

        Every path that needs a token calls this. Raises Rejection `unauthorized` and
        `forbidden_scope`.
        """
        header = None if QUERY_TOKEN in environ else environ.get("HTTP_AUTHORIZATION")
        token = self._by_header.get(header) or self._identify(environ)
        if scope not in token.scopes:
            raise Rejection(*FORBIDDEN[scope])
        if QUERY_TOKEN in environ and Scope.READ in token.scopes:
            raise Rejection(*QUERY_TOKEN_FORBIDDEN)
        if "HTTP_ORIGIN" in environ:
            self.origins.check(environ, token)
        return token

    def _identify(self, environ: Environ) -> Token:
        """Return the token of a request; raises Rejection `unauthorized`."""
        text = _shown_by(environ)
        if text is None:
            raise Rejection("unauthorized", MISSING)
        token = self._find(text)
        if token is None:
            in_query = QUERY_TOKEN in environ
            raise Rejection("unauthorized", UNKNOWN_IN_QUERY if in_query else _explain(text))
        if QUERY_TOKEN not in environ and len(self._by_header) < KEPT_HEADERS:
            self._by_header[environ["HTTP_AUTHORIZATION"]] = token
        return token

    def name_of(self, environ: Environ) -> str | None:
        """Return the name of a request's token, None if it has none or an unknown one."""
        known = self._find(_shown_by(environ) or b"")
        return known.name if known else None

    def is_named(self, name: str) -> bool:
        """Return whether the token with this name is counted separately."""
        return name in self._named

    def start(self) -> None:
        """Follow the file from now on; if its disk answers, this returns after the first check."""
        if self._file:
            checked = Event()
            gevent.spawn(self._follow, checked)
            checked.wait(FIRST_CHECK_SECONDS)

    def _follow(self, checked: Event) -> None:
        while True:
            self.check()
            checked.set()
            gevent.sleep(CHECK_SECONDS)

    def check(self) -> None:
        """Read the file again if it has changed; a faulty file does not change the tokens."""
        try:
            # Its disk may stall, and a long file takes time to parse: nobody else waits for it.
            changed = call_in_thread(gevent.get_hub().threadpool, self._read_changed)
        except Exception as error:  # of any kind: the next check may succeed
            problem = repr(error)
            if isinstance(error, InvalidSettings):
                problem = "; ".join(error.problems)
            self._failures.fail(problem, "tokens not reloaded: %s", problem)
        else:
            self._failures.end("tokens are reloaded again")
            if changed is not None:
                self._use(changed)
                log.info("read %d tokens", len(changed))

    def _read_changed(self) -> dict[bytes, Token] | None:
        """Return all tokens if the file has changed, else None; raises InvalidSettings.

        A file that is read but faulty is a failure until it changes, and is not parsed again.
        """
        content = self._file.read_changed() if self._file else None
        tokens = None
        if content is not None:
            self._problems = []
            try:
                tokens = self._parse(content)
            except InvalidSettings as error:
                self._problems = error.problems
        if self._problems:
            raise InvalidSettings(self._problems)
        return tokens

    def _parse(self, content: bytes) -> dict[bytes, Token]:
        """Return the tokens by their digests, with those of the file; raises InvalidSettings."""
        place = self._file.place if self._file else ""
        return tokens_file.by_digest(self._listed + tokens_file.parse(content, place))

    def _find(self, text: bytes) -> Token | None:
        return self._by_digest.get(tokens_file.digest_of(text))


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


def _explain(text: bytes) -> str:
    """Return a likely reason for an unknown token, by its form; the text contains no part of it."""
    if text[:9].lower() == b"bearer%20":
        return f"{UNKNOWN} {ESCAPED_BLANK}"
    first, comma, _ = text.partition(b",")
    if comma and b" " not in first:  # WSGI joins the values of a repeated header
        return f"{UNKNOWN} {COMMA}"
    if b" " in text:
        return OTHER_SCHEME
    if text[:1] in (b'"', b"'") or text[-1:] in (b'"', b"'"):
        return f"{UNKNOWN} {QUOTED}"
    if text.lower().endswith((b"\\n", b"%0a", b"\\r", b"%0d")):
        return f"{UNKNOWN} {ESCAPED_LINE_END}"
    return UNKNOWN


def _shown_by(environ: Environ) -> bytes | None:
    """Return the token in a request's header or query, None if there is none."""
    if QUERY_TOKEN in environ:
        return str(environ[QUERY_TOKEN]).encode("latin-1")
    authorization = environ.get("HTTP_AUTHORIZATION")
    return None if authorization is None else _shown_in(authorization)


def _shown_in(authorization: str) -> bytes:
    """Return the token in a header's value, or the whole value if it has none.

    It is the whole value, or follows `Bearer` or `Splunk`, or is the part after the colon in the
    base64 of `Basic` (RFC 7617, with any user name) or of Elasticsearch's `ApiKey`.
    """
    text = authorization.encode("latin-1").strip()  # WSGI hands header bytes on as latin-1
    scheme, _, rest = text.partition(b" ")
    scheme, rest = scheme.lower(), rest.strip()
    if scheme in (b"bearer", b"splunk") and rest:
        return rest
    if scheme in (b"basic", b"apikey"):
        with suppress(ValueError):
            _, colon, token = b64decode(rest, validate=True).partition(b":")
            return token if colon else text
    return text
