"""Log rejections: the first per client and code, then one line per minute for the others."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from time import perf_counter
from typing import Any, NamedTuple

import gevent

from astralog.browsers import QUERY_TOKEN
from astralog.errors import Rejection
from astralog.telemetry.counters import Counters

log = logging.getLogger(__name__)

#: Seconds between two lines for a client and a code; the first line is logged at once.
LINE_SECONDS = 60.0

#: Clients per code with separate lines within that time; the others share one.
MAX_CLIENTS = 10

#: Characters of the message in a line.
MESSAGE_CHARACTERS = 200

OTHERS = "other clients"

READING_METHODS = ("GET", "HEAD", "OPTIONS")


class Rejected(NamedTuple):
    """A code of a rejection, and its client; `token` describes the client's token."""

    code: str
    peer: str
    token: str


@dataclass
class Silence:
    """The rejections of a client since its last line."""

    count: int = 0
    last_words: str = ""


class RejectionLog:
    """Logs the first rejection per client and code, and counts the others."""

    def __init__(
        self,
        name_of: Callable[[Mapping[str, Any]], str | None],
        counters: Counters,
        trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = (),
    ) -> None:
        """`name_of` returns the name of a request's token if the token is known.

        An unknown token is not named: it may be a password in the wrong place, which a digest in
        the log would help to guess.
        """
        self._name_of = name_of
        self._counters = counters
        self._trusted_proxies = trusted_proxies
        self._silences: dict[Rejected, Silence] = {}
        self._flusher: gevent.Greenlet | None = None  # false once it has ended

    def note(self, rejection: Rejection, environ: Mapping[str, Any]) -> None:
        """Log a rejected request; `environ` is WSGI's.

        A request to store something at a path that accepts nothing is counted as a batch.
        """
        if rejection.code in ("not_found", "method_not_allowed"):
            if environ["REQUEST_METHOD"] in READING_METHODS:
                return
            name = self._name_of(environ)
            self._counters.reject(rejection, 0, 0, perf_counter(), name)
        address = client_address(environ, self._trusted_proxies)
        token = self._token(rejection, environ)
        rejected = Rejected(rejection.code, address or "a local socket", token)
        is_peer = address == (environ.get("REMOTE_ADDR") or "")
        self.add(rejected, _words(rejection, environ if is_peer else {}))

    def _token(self, rejection: Rejection, environ: Mapping[str, Any]) -> str:
        if "HTTP_AUTHORIZATION" not in environ and QUERY_TOKEN not in environ:
            return "no token"
        name = None if rejection.code == "unauthorized" else self._name_of(environ)
        return f"token {name}" if name else "an unknown token"

    def add(self, rejected: Rejected, words: str) -> None:
        """Log or count a rejection; `words` may contain text of the client."""
        if rejected not in self._silences and self._is_crowded(rejected.code):
            words = f"{words} ({rejected.peer}, {rejected.token})"
            rejected = Rejected(rejected.code, OTHERS, "any token")
        silence = self._silences.get(rejected)
        if silence:
            silence.count += 1
            silence.last_words = words
        else:
            self._silences[rejected] = Silence()
            log.warning("rejected %s from %s, %s: %s", *rejected, _escape(words))
            if not self._flusher:
                self._flusher = gevent.spawn(self._flush_until_idle)

    def _is_crowded(self, code: str) -> bool:
        return sum(rejected.code == code for rejected in self._silences) >= MAX_CLIENTS

    def _flush_until_idle(self) -> None:
        while self._silences:
            gevent.sleep(LINE_SECONDS)
            self.flush()

    def flush(self) -> None:
        """Log the rejections of each client since its last line; forget idle clients."""
        silences, self._silences = self._silences, {}
        for rejected, silence in silences.items():
            if silence.count:
                words = _escape(silence.last_words)
                message = "rejected %s from %s, %s: %d more, the last: %s"
                log.warning(message, *rejected, silence.count, words)
                self._silences[rejected] = Silence()


def _words(rejection: Rejection, environ: Mapping[str, Any]) -> str:
    """Return the text for the first error, and the client address that a proxy reports.

    Anything else in place of the address is omitted, since it may be a token.
    """
    words = rejection.message
    if rejection.errors:
        words += f"; {_first_error(rejection.errors)}"
    words = words[:MESSAGE_CHARACTERS]
    address = environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
    return f"{words} (X-Forwarded-For: {address})" if is_address(address) else words


def _first_error(errors: Any) -> str:
    """Return the first error in marshmallow's structure, with its path."""
    names = []
    while isinstance(errors, Mapping) and errors:
        name, errors = next(iter(errors.items()))
        names.append(str(name))
    text = errors[0] if isinstance(errors, list) and errors else errors
    return f"{'.'.join(names)}: {text}"


def _escape(words: str) -> str:
    """Return the words with control characters and line ends escaped."""
    return repr(words)[1:-1]


#: Addresses of X-Forwarded-For that are checked, beginning with the last.
MAX_HOPS = 10


def client_address(
    environ: Mapping[str, Any], trusted: tuple[IPv4Network | IPv6Network, ...]
) -> str:
    """Return the nearest address that is no trusted proxy's; "" for a unix socket.

    Each proxy appends the address of its client to X-Forwarded-For. Text that a client sent in that
    header precedes the client's own address and is ignored.
    """
    address: str = environ.get("REMOTE_ADDR") or ""
    hops = environ.get("HTTP_X_FORWARDED_FOR", "").rsplit(",", MAX_HOPS)
    for hop in reversed(hops[-MAX_HOPS:]):
        if not _is_in(address, trusted) or not is_address(hop.strip()):
            break
        address = hop.strip()
    return address


def _is_in(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    """Return whether an address is in one of the networks, also as an IPv4-mapped IPv6 address."""
    parsed = parse_address(address) if networks else None
    return parsed is not None and any(parsed in network for network in networks)


def is_address(text: str) -> bool:
    return parse_address(text) is not None


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address in a text, the IPv4 address if it is mapped to IPv6, else None."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if "%" in text:  # a zone may be any text
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
