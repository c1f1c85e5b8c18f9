"""Every rejection: its code, its HTTP status, its meaning and its messages.

`storage_error` maps the errors of a disk that is full or fails to a code and a message.
"""

import errno
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

#: The default of Retry-After, in seconds.
RETRY_AFTER_SECONDS = 1

#: Retry-After of the codes whose cause lasts. Many clients give up after a fixed number of tries:
#: with 5 retries 1 s apart, curl and OpenTelemetry's Python SDK dropped a batch after 5 s.
RETRY_AFTER_OF_CODE = {"storage_full": 5, "storage_failed": 5}

#: Statuses that carry Retry-After.
RETRIED_STATUSES = (
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)

#: Characters of a client's name or text that a rejection repeats.
SHOWN_CHARACTERS = 100

#: Every code with its HTTP status and its meaning. The code is also the counter's label, so it
#: never changes; the meaning is also the message of a rejection without its own.
_CODES = {
    "unauthorized": (401, "The token is missing or unknown."),
    "invalid_json": (400, "The body is not valid JSON."),
    "invalid_protobuf": (400, "The body is not valid protobuf."),
    "invalid_batch": (400, "The batch is invalid; `errors` lists the errors by log and field."),
    "invalid_encoding": (400, "The body is not valid compressed data."),
    "bad_request": (400, "The request is malformed."),
    "forbidden_project": (403, "The token may not write to a project of the batch."),
    "forbidden_scope": (403, "The token does not permit this request."),
    "not_found": (404, "This path does not exist."),
    "method_not_allowed": (405, "This path does not support the method."),
    "body_timeout": (408, "The body did not arrive in time."),
    "key_in_use": (
        409,
        "A batch with this Idempotency-Key is being stored; retry later to learn its outcome.",
    ),
    "length_required": (
        411,
        "The body has neither a Content-Length nor Transfer-Encoding: chunked.",
    ),
    "body_too_large": (
        413,
        "The body is too large or contains too many values; send smaller batches.",
    ),
    "unsupported_encoding": (415, "Unsupported Content-Encoding."),
    "unsupported_charset": (
        415,
        "The Content-Type declares a charset other than UTF-8; send UTF-8.",
    ),
    "key_reused": (422, "Another batch was stored with this Idempotency-Key; nothing was stored."),
    "rate_limited": (429, "The token has used up its rate; retry after the time in Retry-After."),
    "queue_full": (503, "The write queue is full; retry later."),
    "storage_full": (503, "The disk or a quota is full; nothing was stored; retry later."),
    "storage_failed": (503, "The disk failed; nothing was stored; retry later."),
    "commit_timeout": (
        503,
        "The disk took too long; retry later. The message states whether the batch may still be "
        "stored.",
    ),
    "status_busy": (503, "Too many concurrent log queries; retry later."),
    "search_busy": (503, "Too many concurrent searches; retry later."),
    "stopping": (503, "The service is stopping; nothing was stored; retry later."),
    "internal": (500, "The service failed; its log has the reason."),
}
STATUS_OF_CODE = {code: HTTPStatus(status) for code, (status, _) in _CODES.items()}
MEANING_OF_CODE = {code: meaning for code, (_, meaning) in _CODES.items()}


def retry_after_seconds(code: str) -> int:
    return RETRY_AFTER_OF_CODE.get(code, RETRY_AFTER_SECONDS)


class Rejection(Exception):
    """A request is rejected as a whole.

    `code` is a key of STATUS_OF_CODE and `message` one sentence for the client, by default the
    code's meaning. `errors` is the marshmallow structure that lists the errors by log and field,
    `logs` the number of logs of the batch, 0 if unknown. `retry_after`, the seconds after which a
    retry may succeed, and `status` are the code's by default.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        errors: Mapping[str, Any] | None = None,
        logs: int = 0,
        *,
        retry_after: int | None = None,
        status: HTTPStatus | None = None,
    ) -> None:
        message = message or MEANING_OF_CODE[code]
        super().__init__(message)
        self.code = code
        self.status = status or STATUS_OF_CODE[code]
        self.message = message
        self.errors = errors
        self.logs = logs
        self.retry_after = retry_after or retry_after_seconds(code)


class Cause(NamedTuple):
    """The cause of a rejection: the code, and the message for the client.

    Unlike an exception, it keeps none of the request's frames, and so no batch, in memory.
    """

    code: str
    message: str


# --- The messages of tokens

READING_FORBIDDEN = Cause("forbidden_scope", "The token may only write (allow=write).")
WRITING_FORBIDDEN = Cause("forbidden_scope", "The token may only read (allow=read).")
QUERY_TOKEN_FORBIDDEN = Cause(
    "forbidden_scope",
    "Only a token with allow=write may be in the query; send others in the Authorization header.",
)
ORIGIN_FORBIDDEN = Cause(
    "forbidden_scope", "Pages of this origin may not send (ASTRALOG_CORS_ORIGINS)."
)
ORIGIN_TOKEN_FORBIDDEN = Cause(
    "forbidden_scope", "Pages of other origins may only use a token with allow=write."
)
METRICS_FORBIDDEN = Cause(
    "forbidden_scope",
    "A token that is bound to projects cannot read /metrics, which shows the whole service.",
)


def rate_limited(rate: float) -> Cause:
    """Return the cause for a batch whose token has sent more than its rate, in bytes per second."""
    message = f"The token has used up its rate ({rate / 1e6:.4g} MB/s); retry later."
    return Cause("rate_limited", message)


# --- The messages of bodies

DAMAGED_ENCODING = Cause("invalid_encoding", "The body is not valid compressed data.")
UNFINISHED_ENCODING = Cause("invalid_encoding", "The compressed body ends early.")


def body_too_large(max_bytes: int) -> Cause:
    return Cause("body_too_large", f"The body is larger than {max_bytes} bytes.")


# --- The messages of the write queue and of idempotency keys

STOPPING = Cause("stopping", MEANING_OF_CODE["stopping"])
KEY_IN_USE = Cause("key_in_use", MEANING_OF_CODE["key_in_use"])
KEY_REUSED = Cause(
    "key_reused",
    "Another batch was stored with this Idempotency-Key; this one was not; use a new key for each "
    "batch.",
)


def commit_timeout(seconds: float, *, may_be_stored: bool) -> Cause:
    outcome = "the batch may still be stored" if may_be_stored else "the batch was not stored"
    limit = f"{seconds:g} seconds (ASTRALOG_COMMIT_TIMEOUT_SECONDS)"
    return Cause("commit_timeout", f"The disk took longer than {limit}; {outcome}; retry later.")


def queue_full(limit_bytes: int) -> Cause:
    limit = f"{mebibytes(limit_bytes)}, ASTRALOG_QUEUE_BYTES"
    return Cause("queue_full", f"The write queue is full ({limit}); retry later.")


def token_queue_full(token_bytes: int, limit_bytes: int) -> Cause:
    share = f"{mebibytes(token_bytes)} of {mebibytes(limit_bytes)}, ASTRALOG_QUEUE_BYTES"
    message = (
        f"The token already uses its share of the write queue, three quarters ({share}); "
        "retry later."
    )
    return Cause("queue_full", message)


def too_large_for_queue(size: int, most_bytes: int) -> Cause:
    limit = f"at most {mebibytes(most_bytes)}, three times ASTRALOG_QUEUE_BYTES"
    return _too_large(size, f"A single request may take {limit}.")


def too_large_for_token(size: int, token_bytes: int, limit_bytes: int) -> Cause:
    limit = (
        "If several tokens are configured, the batches of one token may take at most "
        f"{mebibytes(token_bytes)} of the write queue, three quarters of "
        f"{mebibytes(limit_bytes)} (ASTRALOG_QUEUE_BYTES)."
    )
    return _too_large(size, limit)


def _too_large(size: int, limit: str) -> Cause:
    message = f"The batch takes {mebibytes(size)} of memory. {limit} Send smaller batches."
    return Cause("body_too_large", message)


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.4g} MiB"


# --- The errors of the disk

#: The errors by which a system reports that a disk, or a quota, has no room left.
FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT))

#: The end of each message for a batch that the disk rejects.
_REJECTED = "nothing was stored; retry later."

DISK_FULL = Cause("storage_full", f"The disk is full; {_REJECTED}")
STORAGE_FAILED = Cause("storage_failed", f"The disk failed; {_REJECTED}")

#: The system's limit of processes counts threads too.
NO_THREAD = "No thread can be started: too many processes, or too little memory"
KEYS_NEED_THREAD = Cause("storage_failed", f"{NO_THREAD}; {_REJECTED}")


class Shortage(OSError):
    """Fewer bytes or inodes of the disk are free than ASTRALOG_MIN_FREE_BYTES keeps free.

    An ENOSPC whose `strerror`, for the log, also says how many are free.
    """

    def __init__(self, resource: Literal["bytes", "inodes"], free: int, kept: int) -> None:
        limit = f"ASTRALOG_MIN_FREE_BYTES keeps {kept}"
        super().__init__(errno.ENOSPC, f"{free} {resource} of the disk are free, {limit}")
        has = f"fewer than {kept} {resource} free (ASTRALOG_MIN_FREE_BYTES)"
        self.message = f"The disk has {has if kept else f'no {resource} free'}; {_REJECTED}"


def explain(error: BaseException) -> str:
    """Return the reason of an error, for the log: without the number and the path of an OSError."""
    return getattr(error, "strerror", None) or str(error) or "out of memory"


def storage_error(error: Exception) -> Cause:
    """Return the cause for batches that cannot be stored because of an error."""
    if isinstance(error, Shortage):
        return Cause("storage_full", error.message)
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EDQUOT:
        return Cause("storage_full", f"The disk quota is used up; {_REJECTED}")
    if number in FULL_ERRNOS:
        return DISK_FULL
    return STORAGE_FAILED
