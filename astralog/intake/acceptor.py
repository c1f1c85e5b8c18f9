"""The steps of a request up to its commit, the same for every protocol."""

import time
from collections.abc import Callable
from http import HTTPStatus
from time import perf_counter
from typing import NamedTuple, Protocol

from astralog.auth import Tokens
from astralog.errors import Rejection
from astralog.intake.body import BodyReader, Environ, Reservation
from astralog.intake.decoder import Context, Decoded, Decoder
from astralog.intake.invalid_logs import reject_all
from astralog.intake.options import (
    KEY_HEADER,
    NO_OPTIONS,
    PARAMETERS,
    OnInvalid,
    Options,
    digest,
    parse_key,
    parse_options,
    require_project,
)
from astralog.intake.slots import SLOT_TIMEOUT_SECONDS, Slots
from astralog.store.commit_queue import CommitQueue
from astralog.store.keys.claims import Claim, Key
from astralog.store.memory_budget import HEAD_BYTES_KEY
from astralog.tokens_file import Scope, Token


class BatchCounters(Protocol):
    """Count batches when they are answered; times are those of perf_counter."""

    def accept(
        self, size: int, logs: int, started_at: float, committing_at: float, token: str
    ) -> None:
        """Count a stored batch of `logs` from the token with this name.

        `size` is that of its decompressed body.
        """

    def replay(self, size: int, started_at: float) -> None:
        """Count a batch that an earlier try with the same key has stored."""

    def reject(
        self, error: BaseException, size: int, logs: int, started_at: float, token: str | None
    ) -> None:
        """Count a batch that is rejected with an error; `size` and `logs` are 0 if unknown.

        `token` is the name of the client's token, None if it is unknown.
        """

    def reject_logs(self, code: str, logs: int) -> None:
        """Count logs that were left out of a stored batch."""


class Accepted(NamedTuple):
    """An accepted request: stored now or by an earlier try, or valid in a dry run."""

    decoded: Decoded
    is_dry_run: bool = False
    is_replayed: bool = False


#: Decompresses a body that is compressed by its protocol rather than by a Content-Encoding, and has
#: the memory reserved for both; raises Rejection.
Inflate = Callable[[bytes, Reservation], bytes]


class Acceptor:
    """Authenticate, admit, read, decode, commit and count requests."""

    def __init__(
        self, tokens: Tokens, bodies: BodyReader, queue: CommitQueue, counters: BatchCounters
    ) -> None:
        self._tokens = tokens
        self._rates = tokens.rates
        self._bodies = bodies
        self._queue = queue
        self._counters = counters
        self._slots = Slots()

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
        started_at = perf_counter()
        known = _Known()
        try:
            accepted = self._store(environ, decode, parameters, inflate, known)
        except BaseException as error:
            self._refund(error, known)
            if not known.options.is_dry_run:
                token = known.token.name if known.token else None
                self._counters.reject(error, known.size, known.logs, started_at, token)
            raise
        self._count(accepted, known, started_at)
        return accepted

    def _store(
        self,
        environ: Environ,
        decode: Decoder,
        parameters: tuple[str, ...],
        inflate: Inflate | None,
        known: "_Known",
    ) -> Accepted:
        """Take the steps of a request, and note in `known` what its counters need."""
        token = known.token = self._tokens.authorize(environ, Scope.WRITE)
        self._rates.check(token)
        options = known.options = _read_options(environ, parameters, token)
        key = parse_key(environ[KEY_HEADER]) if KEY_HEADER in environ else None
        claim = None
        reservation = self._queue.admit(token.digest, environ.get(HEAD_BYTES_KEY, 0))
        try:
            body = self._bodies.read(environ, reservation)
            if inflate:
                body = inflate(body, reservation)
            known.size = len(body)
            self._rates.charge(token, known.size)
            if (key is not None or options.keys_body) and not options.is_dry_run:
                claim = self._claim(digest(key, token, body, environ), options)
            deadline = time.monotonic() + SLOT_TIMEOUT_SECONDS
            context = Context(token.projects, options, self._slots, deadline, reservation)
            decoded = decode(body, context)
            batch, invalid = decoded
            del body
            reservation.resize(len(batch.lines))  # the lines are held in place of the body
            if invalid and not batch.logs:
                raise reject_all(invalid)
            if options.is_dry_run:
                return Accepted(decoded, is_dry_run=True)
            known.logs = batch.logs
            known.committing_at = perf_counter()
            self._queue.commit(batch, reservation, claim)
            return Accepted(decoded, is_replayed=claim is not None and claim.is_replayed)
        finally:
            if claim:
                claim.release()
            reservation.close()

    def _count(self, accepted: Accepted, known: "_Known", started_at: float) -> None:
        """Count an accepted request, unless it was a dry run."""
        if accepted.is_dry_run:
            return
        if accepted.is_replayed:
            self._counters.replay(known.size, started_at)
            return
        token = known.token.name if known.token else ""
        self._counters.accept(known.size, known.logs, started_at, known.committing_at, token)
        invalid = accepted.decoded.invalid
        if invalid and not invalid.are_kept:
            self._counters.reject_logs("invalid_batch", invalid.count)

    def _refund(self, error: BaseException, known: "_Known") -> None:
        """Return the bytes of a batch that the service could not store to the token's rate.

        They were charged if their size is known, unless the rate itself rejected them with 429.
        """
        is_ours = getattr(error, "status", None) is HTTPStatus.SERVICE_UNAVAILABLE
        if is_ours and known.token and known.size:
            self._rates.refund(known.token, known.size)

    def _claim(self, key: Key, options: Options) -> Claim:
        """Claim a key; with `once=body`, one in use is rejected with 503, which shippers retry."""
        try:
            return self._queue.claim(key)
        except Rejection as rejection:
            if options.keys_body and rejection.code == "key_in_use":
                rejection.status = HTTPStatus.SERVICE_UNAVAILABLE
            raise


class _Known:
    """The token, options, sizes and time of a request, for its counters; unknown ones are unset."""

    def __init__(self) -> None:
        self.token: Token | None = None
        self.options = NO_OPTIONS
        self.size = 0
        self.logs = 0
        self.committing_at = 0.0


def _read_options(environ: Environ, parameters: tuple[str, ...], token: Token) -> Options:
    """Return the options of the request's query; raises Rejection `bad_request`."""
    query = environ.get("QUERY_STRING")
    if not query:
        return NO_OPTIONS
    options = parse_options(query, parameters)
    if options.on_invalid is OnInvalid.KEEP:
        require_project(options, token.projects)
    return options
