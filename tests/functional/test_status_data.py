"""What the status page asks for is right whichever worker answers, and whatever becomes of them."""

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
    """Return what a path shows, on a connection of its own."""
    answer = service.request("GET", path, headers={"Authorization": TOKEN})
    assert 200 == answer.status, answer.body
    return answer.body


def known(service: Service) -> int:
    """Return how many samples of the last hour there are."""
    values = ask(service, "/status/history")["backlog_bytes"]
    return len([value for value in values if value is not None])


def test_each_worker_shows_what_all_have_counted(service: Service) -> None:
    """Once they have published it, the numbers are the same whoever is asked."""
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


def test_each_worker_goes_on_where_another_was(service: Service) -> None:
    """Every log is shown once, whichever worker stored it and whichever is asked for it.

    A segment that is new may be noticed half a second later.
    """
    seen: list[str] = []
    page = ask(service, "/status/logs")

    def look() -> int:
        nonlocal page
        page = ask(service, f"/status/logs?after={page['after']}")
        seen.extend(log["message"] for log in page["logs"])
        return len(seen)

    for number in range(ASKED):
        assert 200 == service.drain(make_batch(f"m{number}")).status
        look()
    wait_for(lambda: look() >= ASKED)
    look()
    assert sorted(f"m{number}" for number in range(ASKED)) == sorted(seen)


def test_the_hour_outlives_the_workers(service: Service) -> None:
    """Killed or replaced, they leave what was sampled; and all of them know it."""
    assert 400 == service.drain({"logs": [{}]}).status
    before = wait_for(lambda: known(service))
    pids = service.worker_pids()
    for pid in pids:
        service.kill_worker(pid)
    service.wait_for_workers(other_than=pids)
    service.reload()
    assert all(known(service) >= before for _ in range(ASKED))
    assert ask(service, "/status/data")["at"] - ask(service, "/status/data")["started_at"] > 0


@pytest.mark.slow
def test_the_hour_goes_on_through_an_upgrade(service: Service) -> None:
    """The next master shows it too."""
    before = wait_for(lambda: known(service))
    service.signal(signal.SIGUSR2)
    wait_for(lambda: 2 == service.log().count("listening on"))
    assert 0 == service.stop()
    wait_for(lambda: ask(service, "/status/data")["workers"] == {"ready": 2})
    assert known(service) >= before


def test_looking_is_no_batch(service: Service) -> None:
    """Nor is it counted as rejected where the token is wrong."""
    for path in ("/status", "/status/data", "/status/logs", "/status/history"):
        service.request("GET", path, headers={"Authorization": "wrong"})
        service.request("GET", path, headers={"Authorization": TOKEN})
        service.request("HEAD", path, headers={"Authorization": TOKEN})
    text = service.request("GET", "/metrics").raw.decode()
    assert "astralog_received_batches_total 0.0" in text
    assert 'astralog_rejected_batches_total{code="unauthorized"} 0.0' in text
    assert "astralog_rejected_batches_by_token_total{" not in text


def test_a_service_without_the_page(tmp_path: Path) -> None:
    """It answers 404, and its own log says nothing of a status."""
    with Service(tmp_path, status="off") as service:
        for path in ("/status", "/status/data", "/status/status.js"):
            answer = service.request("GET", path, headers={"Authorization": TOKEN})
            assert (404, "not_found") == (answer.status, answer.body["code"])
        headers = {"Accept": "text/html"}
        assert "/docs" == service.request("GET", "/", headers=headers).headers["Location"]
    with pytest.raises(AssertionError, match="ASTRALOG_STATUS"), Service(tmp_path, status="maybe"):
        pass
