"""GET /health and /ready: what load balancers and orchestrators ask."""

from http import HTTPStatus

from flask import Blueprint, Response

from astralog.api.dispatch import FixedResponse, Reject, plain_view
from astralog.api.responses import json_response
from astralog.errors import RETRY_AFTER_SECONDS
from astralog.intake.body import Environ
from astralog.store.commit_queue import CommitQueue

OK = FixedResponse(b'{"status":"ok"}')
READY = FixedResponse(b'{"status":"ready"}')


def create_blueprint(queue: CommitQueue, reject: Reject) -> Blueprint:
    """Return the blueprint of the routes that need no token; `reject` answers every error."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/health")
    @plain_view(reject)
    def health(environ: Environ) -> Response:
        """Answer while the process serves, without a look at the disk."""
        return OK

    @blueprint.get("/ready")
    @plain_view(reject)
    def ready(environ: Environ) -> Response:
        """Return whether a batch would be taken now, and if not, the code that would reject it."""
        reason = queue.unavailable()
        if reason is None:
            return READY
        response = json_response(
            {"status": "unavailable", "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE
        )
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return response

    return blueprint
