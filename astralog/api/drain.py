"""POST /v1/drain: take a batch and answer when it is stored."""

from collections.abc import Mapping

import msgspec
from flask import Blueprint, Response, request

from astralog.auth import Tokens
from astralog.body import BodyReader
from astralog.codec import Batch, encode_batch, encode_lines
from astralog.errors import Refusal, json_response
from astralog.pipeline import Pipeline
from astralog.web import FixedResponse

ACCEPTED = FixedResponse(b'{"status":"accepted"}')

#: Media types of one log a line; a body of any other type, or of none, is read as JSON.
NDJSON_TYPES = {"application/x-ndjson", "application/ndjson", "application/jsonl"}

#: Logs that a dry run shows as they would be stored.
SHOWN_LOGS = 20

_FLAGS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}


def create_blueprint(tokens: Tokens, bodies: BodyReader, pipeline: Pipeline) -> Blueprint:
    """Return the blueprint of the one route that takes logs."""
    blueprint = Blueprint("drain", __name__)

    @blueprint.post("/v1/drain")
    def drain() -> Response:
        """Store a batch; 200 means that every line of it is in a segment file."""
        environ = request.environ
        token = tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))
        is_dry_run = bool(environ.get("QUERY_STRING")) and _is_dry_run()
        with pipeline.admit() as room:
            encode = encode_lines if _is_ndjson(environ.get("CONTENT_TYPE", "")) else encode_batch
            batch = encode(bodies.read(environ, room), token.projects)
            if is_dry_run:
                return _valid(batch)
            pipeline.commit(batch, room)
        return ACCEPTED

    return blueprint


def _is_ndjson(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in NDJSON_TYPES


def _is_dry_run() -> bool:
    text = request.args.get("dry_run", "false")
    if text not in _FLAGS:
        raise Refusal("bad_request", "dry_run is true or false.")
    return _FLAGS[text]


def _valid(batch: Batch) -> Response:
    """Show a batch as it would be stored."""
    lines = batch.lines.split(b"\n", SHOWN_LOGS)[: min(SHOWN_LOGS, batch.logs)]
    return json_response({"status": "valid", "logs": [msgspec.Raw(line) for line in lines]})
