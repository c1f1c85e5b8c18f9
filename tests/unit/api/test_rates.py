"""A token beyond its rate: each protocol's own answer, before the body is read."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from astralog.settings import Settings
from tests.support.service import make_batch, write_tokens

MakeApp = Callable[[Settings], Flask]

MESSAGE = "The token has used up its rate (1e-06 MB/s); retry later."

REASON = f"rate_limited: {MESSAGE}"
CAUSE = {"type": "es_rejected_execution_exception", "reason": REASON}

#: The body of a 429 at each path.
BODIES: dict[str, Any] = {
    "/v1/drain": {"status": "rejected", "code": "rate_limited", "message": MESSAGE},
    "/v1/logs": {"code": 8, "message": REASON},
    "/services/collector": {"text": "Server is busy", "code": 9, "detail": REASON},
    "/services/collector/raw": {"text": "Server is busy", "code": 9, "detail": REASON},
    "/loki/api/v1/push": REASON + "\n",
    "/elasticsearch/_bulk": {"error": {"root_cause": [CAUSE], **CAUSE}, "status": 429},
}


@pytest.fixture
def client(make_app: MakeApp, settings: Settings, tmp_path: Path) -> FlaskClient:
    """Return a client of an app; its token `slow` has used up its rate for minutes."""
    path = write_tokens(tmp_path / "tokens", "slow rate=0.001KB/s\n")
    made = make_app(replace(settings, tokens="", tokens_file=str(path))).test_client()
    body = json.dumps(make_batch("x" * 1000))
    stored = made.post("/v1/drain", data=body, headers={"Authorization": "slow"})
    assert stored.status_code == 200
    return made


@pytest.mark.parametrize("path", BODIES)
def test_each_protocol_has_its_own_429(client: FlaskClient, path: str) -> None:
    """With the wait in Retry-After, and the body unread."""
    body = io.BytesIO(b"x" * 100)
    answer = client.post(
        path,
        input_stream=body,
        content_length=100,
        content_type="application/json",
        headers={"Authorization": "slow"},
    )
    assert answer.status_code == 429
    assert 900 < int(answer.headers["Retry-After"]) < 1200
    assert (answer.json if answer.is_json else answer.text) == BODIES[path]
    assert body.tell() == 0
