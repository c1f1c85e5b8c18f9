"""POST /v1/drain: take a batch and answer when it is stored."""

from collections.abc import Mapping
from time import perf_counter

import msgspec
from flask import Blueprint, Response, request

from astralog.api.flask_app import FixedResponse
from astralog.api.responses import json_response
from astralog.auth import Tokens
from astralog.errors import Rejection
from astralog.intake.batch import encode_batch, encode_lines
from astralog.intake.body import BodyReader
from astralog.store.commit_queue import Batch, CommitQueue
from astralog.telemetry.counters import Counters

ACCEPTED = FixedResponse(b'{"status":"accepted"}')

#: Media types of one log a line; a body of any other type, or of none, is read as JSON.
NDJSON_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl"}

#: Logs that a dry run shows as they would be stored.
SHOWN_LOGS = 20

_FLAGS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}


def create_blueprint(
    tokens: Tokens, bodies: BodyReader, queue: CommitQueue, counters: Counters
) -> Blueprint:
    """Return the blueprint of the one route that takes logs."""
    blueprint = Blueprint("drain", __name__)

    @blueprint.post("/v1/drain")
    def drain() -> Response:
        """Store a batch; 200 means that every line of it is in a segment file."""
        started_at = perf_counter()
        size = logs = 0
        environ = request.environ
        is_dry_run = False
        try:
            token = tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))
            is_dry_run = bool(environ.get("QUERY_STRING")) and _is_dry_run()
            with queue.admit() as reservation:
                is_ndjson = _is_ndjson(environ.get("CONTENT_TYPE", ""))
                body = bodies.read(environ, reservation)
                size = len(body)
                batch = (encode_lines if is_ndjson else encode_batch)(body, token.projects)
                del body  # what it was charged for is the batch from now on
                if is_dry_run:
                    return _valid(batch)
                logs = batch.logs
                committing_at = perf_counter()
                queue.commit(batch, reservation)
        except BaseException as error:
            if not is_dry_run:
                counters.reject(error, size, logs, started_at)
            raise
        counters.accept(size, logs, started_at, committing_at)
        return ACCEPTED

    return blueprint


def _is_ndjson(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in NDJSON_TYPES


def _is_dry_run() -> bool:
    text = request.args.get("dry_run", "false")
    if text not in _FLAGS:
        raise Rejection("bad_request", "dry_run is true or false.")
    return _FLAGS[text]


def _valid(batch: Batch) -> Response:
    """Show a batch as it would be stored."""
    lines = batch.lines.split(b"\n", SHOWN_LOGS)[: min(SHOWN_LOGS, batch.logs)]
    return json_response({"status": "valid", "logs": [msgspec.Raw(line) for line in lines]})
