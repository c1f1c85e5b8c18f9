"""POST /v1/drain: accept a batch, and respond once it is stored."""

from typing import Any

import msgspec
from flask import Blueprint, Response

from astralog.api.dispatch import FixedResponse, Note, Reject, plain_view, without_parameters
from astralog.api.responses import REPLAYED_HEADERS, json_response, left_out
from astralog.intake.acceptor import Accepted, Acceptor
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.body import Environ

ACCEPTED = FixedResponse(b'{"status":"accepted"}')
REPLAYED = FixedResponse(b'{"status":"accepted"}', headers=REPLAYED_HEADERS)

#: Media types of NDJSON; a body of any other type, or without a type, is read as JSON.
NDJSON_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl"}

#: Logs that the response to a dry run shows in their stored form.
SHOWN_LOGS = 20


def create_blueprint(acceptor: Acceptor, note: Note, reject: Reject) -> Blueprint:
    blueprint = Blueprint("drain", __name__)

    @blueprint.post("/v1/drain")
    @plain_view(reject)
    def drain(environ: Environ) -> Response:
        """Store a batch; 200 means that every line of it is in a segment file."""
        is_ndjson = without_parameters(environ.get("CONTENT_TYPE", "")) in NDJSON_TYPES
        accepted = acceptor.accept(environ, decode_lines if is_ndjson else decode_json)
        invalid = accepted.decoded.invalid
        if invalid and not (invalid.are_kept or accepted.is_dry_run or accepted.is_replayed):
            note(left_out(invalid), environ)
        if invalid or accepted.is_dry_run:
            return _respond(accepted)
        return REPLAYED if accepted.is_replayed else ACCEPTED

    return blueprint


def _respond(accepted: Accepted) -> Response:
    """Return the 200 for a batch; that of a dry run shows its first logs in their stored form."""
    batch, invalid = accepted.decoded
    body: dict[str, Any] = {"status": "accepted"}
    if accepted.is_dry_run:
        shown = batch.lines.split(b"\n", SHOWN_LOGS)[: min(SHOWN_LOGS, batch.logs)]
        body = {"status": "valid", "logs": list(map(msgspec.Raw, shown))}
    if invalid:
        outcome = "kept" if invalid.are_kept else "rejected"
        body |= {outcome: invalid.count, "errors": {"logs": invalid.errors}}
    response = json_response(body)
    if accepted.is_replayed:
        response.headers.update(REPLAYED_HEADERS)
    return response
