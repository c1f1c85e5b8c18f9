"""The status page's data is the same from any worker, also after kills and reloads."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import TOKEN, Service, make_batch, wait_for

#: Requests on connections of their own, which both workers get some of.
ASKED = 12


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a service of two workers."""
    with Service(tmp_path, workers=2) as service:
        yield service


def ask(service: Service, path: str) -> Any:
    """Return the data of a path, on a new connection."""
    answer = service.request("GET", path, headers={"Authorization": TOKEN})
    assert 200 == answer.status, answer.body
    return answer.body


def known(service: Service) -> int:
    """Return the number of samples of the last hour."""
    values = ask(service, "/status/history")["backlog_bytes"]
    return len([value for value in values if value is not None])


@pytest.mark.quick
def test_each_worker_shows_the_counts_of_all(service: Service) -> None:
    """Once they are published, any worker returns the same numbers."""
    sent = 0
    while len(service.files()) < 2:
        assert 200 == service.drain(make_batch("a", "b")).status
        sent += 2
        assert sent < 1000

    def are_right() -> bool:
        shown = [ask(service, "/status/data")["accepted"]["logs"] for _ in range(ASKED)]
        return shown == [sent] * ASKED

    wait_for(are_right)
    assert {"ready": 2} == ask(service, "/status/data")["workers"]


def test_each_worker_continues_from_the_cursor_of_another(service: Service) -> None:
    """Every log is shown once, whichever worker stored it or answers.

    A new segment may be noticed half a second later.
    """
    seen: list[str] = []
    page = ask(service, "/status/logs")

    def poll() -> int:
        nonlocal page
        page = ask(service, f"/status/logs?after={page['after']}")
        seen.extend(log["message"] for log in page["logs"])
        return len(seen)

    for number in range(ASKED):
        assert 200 == service.drain(make_batch(f"m{number}")).status
        poll()
    wait_for(lambda: poll() >= ASKED)
    poll()
    assert sorted(f"m{number}" for number in range(ASKED)) == sorted(seen)


def test_the_hour_outlives_the_workers(service: Service) -> None:
    """Samples of killed and replaced workers stay, and all workers have them."""
    assert 400 == service.drain({"logs": [{}]}).status
    before = wait_for(lambda: known(service))
    pids = service.worker_pids()
    for pid in pids:
        service.kill_worker(pid)
    service.wait_for_workers(other_than=pids)
    service.reload()
    assert all(known(service) >= before for _ in range(ASKED))
    assert ask(service, "/status/data")["at"] - ask(service, "/status/data")["started_at"] > 0


def test_the_hour_goes_on_through_an_upgrade(service: Service) -> None:
    """The next master shows it too."""
    before = wait_for(lambda: known(service))
    service.signal(signal.SIGUSR2)
    wait_for(lambda: 2 == service.log().count("listening on"))
    assert 0 == service.stop()
    wait_for(lambda: ask(service, "/status/data")["workers"] == {"ready": 2})
    assert known(service) >= before


def test_log_queries_do_not_count_as_batches(service: Service) -> None:
    """Nor as rejected ones if the token is wrong."""
    for path in ("/status", "/status/data", "/status/logs", "/status/history"):
        service.request("GET", path, headers={"Authorization": "wrong"})
        service.request("GET", path, headers={"Authorization": TOKEN})
        service.request("HEAD", path, headers={"Authorization": TOKEN})
    text = service.request("GET", "/metrics").raw.decode()
    assert "astralog_received_batches_total 0.0" in text
    assert 'astralog_rejected_batches_total{code="unauthorized"} 0.0' in text
    assert "astralog_rejected_batches_by_token_total{" not in text


def test_a_service_without_the_page(tmp_path: Path) -> None:
    """It responds 404, and its own log does not mention a status."""
    with Service(tmp_path, status="off") as service:
        for path in ("/status", "/status/data", "/status/status.js"):
            answer = service.request("GET", path, headers={"Authorization": TOKEN})
            assert (404, "not_found") == (answer.status, answer.body["code"])
        headers = {"Accept": "text/html"}
        assert "/docs" == service.request("GET", "/", headers=headers).headers["Location"]
    with pytest.raises(AssertionError, match="ASTRALOG_STATUS"), Service(tmp_path, status="maybe"):
        pass
