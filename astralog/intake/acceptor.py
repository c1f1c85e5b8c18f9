"""The steps of a request up to its commit, the same for every protocol."""

import time
from collections.abc import Callable
from http import HTTPStatus
from time import perf_counter
from typing import NamedTuple, Protocol

from astralog.auth import Tokens
from astralog.errors import KEY_IN_USE, Rejection
from astralog.intake.body import BodyReader, Environ
from astralog.intake.decoder import SLOT_TIMEOUT_SECONDS, Context, Decoded, Decoder, Slots
from astralog.intake.options import (
    KEY_HEADER,
    NO_OPTIONS,
    PARAMETERS,
    OnInvalid,
    Options,
    digest,
    find_project,
    parse_key,
    parse_options,
)
from astralog.store.commit_queue import CommitQueue
from astralog.store.memory_budget import HEAD_BYTES_KEY, MemoryReservation
from astralog.tokens_file import Scope, Token


class BatchCounters(Protocol):
    """Count batches when they are answered; times are those of perf_counter.

    A `size` is that of a decompressed body; it and `logs` are 0 if unknown. `token` is the name of
    the client's token, None if it is unknown.
    """

    def accept(
        self, size: int, logs: int, started_at: float, committing_at: float, token: str
    ) -> None:
        """Count a stored batch."""

    def replay(self, size: int, started_at: float) -> None:
        """Count a batch that an earlier try with the same key has stored."""

    def reject(
        self, error: BaseException, size: int, logs: int, started_at: float, token: str | None
    ) -> None:
        """Count a batch that is rejected with an error."""

    def reject_logs(self, code: str, logs: int) -> None:
        """Count logs that were left out of a stored batch."""


class Accepted(NamedTuple):
    """An accepted request: stored now or by an earlier try, or valid in a dry run."""

    decoded: Decoded
    is_dry_run: bool = False
    is_replayed: bool = False


#: Decompresses a body that is compressed by its protocol rather than by a Content-Encoding, and has
#: the memory reserved for both; raises Rejection.
Inflate = Callable[[bytes, MemoryReservation], bytes]


class Acceptor:
    """Accept requests: authenticate, admit, read, decode, commit and count each."""

    def __init__(
        self, tokens: Tokens, bodies: BodyReader, queue: CommitQueue, counters: BatchCounters
    ) -> None:
        self.tokens = tokens
        self.bodies = bodies
        self.queue = queue
        self.counters = counters
        self.slots = Slots()

    def accept(
        self,
        environ: Environ,
        decode: Decoder,
        parameters: tuple[str, ...] = PARAMETERS,
        inflate: Inflate | None = None,
    ) -> Accepted:
        """Return once every log of a WSGI request is stored, or checked in a dry run.

        `decode` turns the protocol's body into lines, after `inflate` if there is one, and
        `parameters` are those of `options` that its query may use. Raises Rejection if nothing is
        stored; after `commit_timeout` the batch may be stored later. A dry run is not counted.
        """
        request = _Request(self, environ)
        try:
            accepted = request.store(decode, parameters, inflate)
        except BaseException as error:
            request.reject(error)
            raise
        request.count(accepted)
        return accepted


class _Request:
    """The steps of one request, and what its counters need: unknown before its step is taken."""

    def __init__(self, acceptor: Acceptor, environ: Environ) -> None:
        self._acceptor = acceptor
        self._environ = environ
        self._started_at = perf_counter()
        self._committing_at = 0.0
        self._token: Token | None = None
        self._options = NO_OPTIONS
        self._size = 0  # of the decompressed body
        self._logs = 0

    def store(
        self, decode: Decoder, parameters: tuple[str, ...], inflate: Inflate | None
    ) -> Accepted:
        """Take all steps, in their order, up to the commit."""
        acceptor, environ = self._acceptor, self._environ
        token = self._token = acceptor.tokens.authorize(environ, Scope.WRITE)
        rate = token.rate
        if rate is not None:
            acceptor.tokens.rates.check(token.digest, rate)
        options = self._options = _read_options(environ, parameters, token)
        key = parse_key(environ[KEY_HEADER]) if KEY_HEADER in environ else None
        claim = None
        reservation = acceptor.queue.admit(token.digest, environ.get(HEAD_BYTES_KEY, 0))
        try:
            body = acceptor.bodies.read(environ, reservation)
            if inflate:
                body = inflate(body, reservation)
            self._size = len(body)
            if rate is not None:
                acceptor.tokens.rates.charge(token.digest, rate, self._size)
            if (key is not None or options.keys_body) and not options.is_dry_run:
                claim = acceptor.queue.claim(digest(key, token, body, environ))
            deadline = time.monotonic() + SLOT_TIMEOUT_SECONDS
            context = Context(token.projects, options, acceptor.slots, deadline, reservation)
            decoded = decode(body, context)
            batch, invalid = decoded
            del body
            reservation.resize(len(batch.lines))  # the lines are held in place of the body
            if invalid and not batch.logs:
                raise invalid.reject(invalid.count)
            if options.is_dry_run:
                return Accepted(decoded, is_dry_run=True)
            self._logs = batch.logs
            self._committing_at = perf_counter()
            acceptor.queue.commit(batch, reservation, claim)
            return Accepted(decoded, is_replayed=claim is not None and claim.is_replayed)
        except Rejection as rejection:
            if options.keys_body and rejection.code == KEY_IN_USE.code:
                # Shippers drop a batch after a 409, and retry it after a 503.
                raise Rejection(*KEY_IN_USE, status=HTTPStatus.SERVICE_UNAVAILABLE) from None
            raise
        finally:
            if claim:
                claim.release()
            reservation.close()

    def count(self, accepted: Accepted) -> None:
        """Count the accepted request, unless it was a dry run."""
        counters, token = self._acceptor.counters, self._token
        if accepted.is_dry_run:
            return
        if accepted.is_replayed:
            counters.replay(self._size, self._started_at)
            return
        name = token.name if token else ""
        counters.accept(self._size, self._logs, self._started_at, self._committing_at, name)
        invalid = accepted.decoded.invalid
        if invalid and not invalid.are_kept:
            counters.reject_logs("invalid_batch", invalid.count)

    def reject(self, error: BaseException) -> None:
        """Refund the token's rate if the service could not store the batch; count the rejection.

        The rate was charged if the size is known, unless it was the rate that rejected the batch
        with 429. A dry run is not counted.
        """
        token = self._token
        is_ours = getattr(error, "status", None) is HTTPStatus.SERVICE_UNAVAILABLE
        if is_ours and token and token.rate is not None and self._size:
            self._acceptor.tokens.rates.refund(token.digest, token.rate, self._size)
        if not self._options.is_dry_run:
            name = token.name if token else None
            self._acceptor.counters.reject(error, self._size, self._logs, self._started_at, name)


def _read_options(environ: Environ, parameters: tuple[str, ...], token: Token) -> Options:
    """Return the options of the request's query; raises Rejection `bad_request`."""
    query = environ.get("QUERY_STRING")
    if not query:
        return NO_OPTIONS
    options = parse_options(query, parameters)
    if options.on_invalid is OnInvalid.KEEP and not find_project(options, token.projects):
        message = "invalid=keep needs project_id=, or a token that is bound to one project."
        raise Rejection("bad_request", message)
    return options
