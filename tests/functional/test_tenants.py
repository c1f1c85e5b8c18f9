"""Two tenants: one floods the service with two tokens, and the other is not affected."""

import itertools
import json
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.service import (
    Answer,
    Service,
    make_head,
    make_log,
    wait_for,
    write_tokens,
)

TOKENS = "loud org-loud\nfast org-loud rate=100KB/s\nquiet org-quiet\n"

#: Bodies of the loud tenant that arrive in part and never end, by their bytes: they exceed the
#: queue, and the small ones fill the room that the large ones leave.
IDLE_BODIES = 200
IDLE_BYTES = (600_000, 600_000, 600_000, 50_000, 10_000)

#: Batches of the quiet tenant, and clients per token that send those of the loud one, one after
#: another.
BATCHES = 20
SENDERS = 2

#: Headers that differ from answer to answer.
VARIABLE_HEADERS = {"date", "link", "connection"}


def start(directory: Path) -> Service:
    directory.mkdir()
    path = write_tokens(directory / "tokens", TOKENS)
    return Service(directory, tokens=None, tokens_file=path)


def send(service: Service, token: str, project: str, size: int) -> Answer:
    log = make_log(project_id=project, message="x" * 1000)
    batch = {"logs": [log] * (size // 1000)}
    return service.drain(batch, {"Authorization": token})


class Flood:
    """The requests of the loud tenant; `codes` counts the outcomes of its complete batches."""

    def __init__(self, service: Service) -> None:
        self.codes: Counter[str] = Counter()
        self._service = service
        self._stop = threading.Event()

    @contextmanager
    def run(self) -> Iterator[None]:
        """Flood the service until the end of the block."""
        tokens = ["loud", "fast"] * SENDERS
        threads = [threading.Thread(target=self._send, args=[token]) for token in tokens]
        threads.append(threading.Thread(target=self._hold_bodies))
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: min(self.codes["rate_limited"], self.codes["queue_full"]) > 5)
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _hold_bodies(self) -> None:
        """Keep the bodies open, and replace each one that the service rejects."""
        sizes = itertools.cycle(IDLE_BYTES)
        held: list[socket.socket] = []
        while not self._stop.wait(0.001):
            for connection in select.select(held, [], [], 0)[0]:
                held.remove(connection)
                connection.close()
            if len(held) < IDLE_BODIES:
                held.append(self._open_body(next(sizes)))
        for connection in held:
            connection.close()

    def _open_body(self, size: int) -> socket.socket:
        connection = self._service.connect()
        head = make_head(f"Content-Length: {2 * size}", token="loud")
        with suppress(BrokenPipeError, ConnectionResetError):  # rejected: the share is used up
            connection.sendall(head + b" " * size)
        return connection

    def _send(self, token: str) -> None:
        while not self._stop.is_set():
            answer = send(self._service, token, "org-loud", 1_000_000)
            self.codes[answer.body.get("code", "accepted")] += 1


def answers_of(service: Service) -> Iterator[tuple[str, int, Any, dict[str, str]]]:
    """Yield the responses to the quiet tenant, without times and cursors."""

    def named(name: str, answer: Answer, body: Any) -> tuple[str, int, Any, dict[str, str]]:
        headers = {key.lower(): value for key, value in answer.headers.items()}
        shown = {key: headers[key] for key in headers if key not in VARIABLE_HEADERS}
        shown.pop("content-length" if isinstance(body, dict) else "", None)  # of times, too
        return name, answer.status, body, shown

    def get(path: str, **headers: str) -> Answer:
        return service.request("GET", path, headers={"Authorization": "quiet", **headers})

    for _ in range(BATCHES):
        answer = send(service, "quiet", "org-quiet", 100_000)
        yield named("batch", answer, answer.body)
    own = {"Authorization": "quiet"}
    for log in ({}, make_log(project_id="org-loud")):
        answer = service.drain({"logs": [log]}, own)
        yield named("rejected", answer, answer.body)
    for path in ("/v1/search?n=5", "/v1/search?project=org-loud", "/v1/search?q=no+such+text"):
        answer = get(path)
        yield named(path, answer, [json.loads(line) for line in answer.raw.splitlines()])
    answer = get("/status/logs")
    shown = answer.body["logs"]
    while (older := answer.body["older"]) and not older["is_done"]:
        answer = get(f"/status/logs?after={answer.body['after']}")
        shown += answer.body["logs"]
    yield named("/status/logs", answer, {"logs": [log["message"] for log in shown]})
    answer = get("/metrics", **{"X-Forwarded-For": "192.0.2.1"})
    yield named("/metrics", answer, answer.body)
    answer = get("/status/data")
    yield named("/status/data", answer, answer.body)
    body = (answer := get("/status/history")).body
    for row in [*body["tokens"], *body["rejections"]]:
        row["per_minute"] = sum(row["per_minute"])
    del body["at"]
    yield named("/status/history", answer, body)


def test_answers_to_one_tenant_are_the_same_during_the_flood_of_another(tmp_path: Path) -> None:
    """Idle bodies, large batches and an exceeded rate reject none of its batches."""
    with start(tmp_path / "alone") as service:
        expected = list(answers_of(service))
    assert [answer[:2] for answer in expected[:BATCHES]] == [("batch", 200)] * BATCHES
    with start(tmp_path / "flooded") as service:
        flood = Flood(service)
        with flood.run():
            during = list(answers_of(service))
        assert 0 == service.stop()
        stored = sum(log["project_id"] == "org-quiet" for log in service.logs())
    for one, other in zip(during, expected, strict=True):
        assert one == other
    assert stored == 100 * BATCHES
    assert flood.codes.keys() <= {"accepted", "rate_limited", "queue_full"}
