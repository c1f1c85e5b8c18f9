"""POST /v1/drain: take a batch and answer when it is stored."""

from time import perf_counter

from flask import Blueprint, Response, request

from astralog.auth import Tokens
from astralog.body import BodyReader
from astralog.codec import encode_batch
from astralog.pipeline import Pipeline
from astralog.web import FixedResponse

ACCEPTED = FixedResponse(b'{"status":"accepted"}')


def create_blueprint(tokens: Tokens, bodies: BodyReader, pipeline: Pipeline) -> Blueprint:
    """Return the blueprint of the one route that takes logs."""
    blueprint = Blueprint("drain", __name__)
    tally = pipeline.tally

    @blueprint.post("/v1/drain")
    def drain() -> Response:
        """Store a batch; 200 means that every line of it is in a segment file."""
        started_at = perf_counter()
        size = logs = 0
        try:
            tokens.authenticate(request.environ.get("HTTP_AUTHORIZATION"))
            with pipeline.admit() as room:
                body = bodies.read(request.environ, room)
                size = len(body)
                batch = encode_batch(body)
                logs = batch.logs
                committing_at = perf_counter()
                pipeline.commit(batch, room)
        except BaseException as error:
            tally.refuse(error, size, logs, started_at)
            raise
        tally.accept(size, logs, started_at, committing_at)
        return ACCEPTED

    return blueprint
