"""Every rejection: its code, its HTTP status and its meaning."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

RETRY_AFTER_SECONDS = 1

#: Statuses of what a client should try again, and so is told when.
RETRIED_STATUSES = (HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE)

#: Characters of a name or a text of the client's that a rejection repeats.
SHOWN_CHARACTERS = 100

#: Every code with its HTTP status. The code is also the counter's label, so it never changes.
STATUS_OF_CODE: Mapping[str, HTTPStatus] = {
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "invalid_json": HTTPStatus.BAD_REQUEST,
    "invalid_protobuf": HTTPStatus.BAD_REQUEST,
    "invalid_batch": HTTPStatus.BAD_REQUEST,
    "invalid_encoding": HTTPStatus.BAD_REQUEST,
    "bad_request": HTTPStatus.BAD_REQUEST,
    "forbidden_project": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "body_timeout": HTTPStatus.REQUEST_TIMEOUT,
    "key_in_use": HTTPStatus.CONFLICT,
    "body_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_encoding": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "key_reused": HTTPStatus.UNPROCESSABLE_ENTITY,
    "queue_full": HTTPStatus.SERVICE_UNAVAILABLE,
    "storage_full": HTTPStatus.SERVICE_UNAVAILABLE,
    "storage_failed": HTTPStatus.SERVICE_UNAVAILABLE,
    "commit_timeout": HTTPStatus.SERVICE_UNAVAILABLE,
    "status_busy": HTTPStatus.SERVICE_UNAVAILABLE,
    "stopping": HTTPStatus.SERVICE_UNAVAILABLE,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
}

#: What each code means, in a sentence.
MEANING_OF_CODE: Mapping[str, str] = {
    "unauthorized": "The token is missing or not known.",
    "invalid_json": "The body is not valid JSON.",
    "invalid_protobuf": "The body is not valid protobuf.",
    "invalid_batch": "The batch is invalid; `errors` says what, where.",
    "invalid_encoding": "The body does not inflate.",
    "bad_request": "The request is malformed.",
    "forbidden_project": "The token may not write a project of the batch.",
    "not_found": "There is no such path.",
    "method_not_allowed": "The path takes other methods.",
    "body_timeout": "The body took too long to arrive.",
    "key_in_use": "A batch with this Idempotency-Key is being stored. Try again: the answer then "
    "says what became of it.",
    "body_too_large": "The body is too large, or holds too many values; send smaller batches.",
    "unsupported_encoding": "The Content-Encoding is not known here.",
    "key_reused": "Another batch was stored with this Idempotency-Key; nothing was stored.",
    "queue_full": "Too much waits for the disk, or to be decoded; try again.",
    "storage_full": "The disk is full; nothing was stored. Try again.",
    "storage_failed": "The disk failed; nothing was stored. Try again.",
    "commit_timeout": "The disk took too long. Try again; the message says whether the batch may "
    "be stored all the same.",
    "status_busy": "Too many look at the logs at once; try again.",
    "stopping": "The service is stopping; nothing was stored. Try again.",
    "internal": "The service failed; its own log says why.",
}


class Rejection(Exception):
    """A request is rejected whole.

    `code` is a key of STATUS_OF_CODE, `message` one sentence for the client, `errors` the
    marshmallow structure that says what is malformed where, and `logs` how many logs the batch
    had, where they were counted.
    """

    def __init__(
        self, code: str, message: str, errors: Mapping[str, Any] | None = None, logs: int = 0
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS_OF_CODE[code]
        self.message = message
        self.errors = errors
        self.logs = logs
