"""POST /v1/drain: take a batch and answer when it is stored."""

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

    @blueprint.post("/v1/drain")
    def drain() -> Response:
        """Store a batch; 200 means that every line of it is in a segment file."""
        tokens.authenticate(request.environ.get("HTTP_AUTHORIZATION"))
        with pipeline.admit() as room:
            batch = encode_batch(bodies.read(request.environ, room))
            pipeline.commit(batch, room)
        return ACCEPTED

    return blueprint
