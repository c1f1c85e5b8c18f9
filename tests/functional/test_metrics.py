"""The books balance, across workers, whatever happens to them."""

import gzip
import json
import os
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.service import ROOT, TOKEN, Service, make_batch, wait_for

Samples = dict[str, float]

#: Limits that the storm runs into.
MAX_BODY_BYTES = 20_000
QUEUE_BYTES = 24_000

UNITS = ("batches", "logs", "bytes")

#: Seconds in which every worker has written out what it counts.
FLUSH_SECONDS = 0.5


def scrape(service: Service) -> Samples:
    """Return the value of each series by its name and labels."""
    answer = service.request("GET", "/metrics")
    assert 200 == answer.status
    return {
        " ".join([sample.name.removeprefix("astralog_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(answer.raw.decode())
        for sample in family.samples
    }


def scrape_idle(service: Service) -> Samples:
    """Return the metrics once every worker has written out what it counted."""
    time.sleep(2 * FLUSH_SECONDS)
    return scrape(service)


def rejected(samples: Samples, unit: str) -> dict[str, float]:
    """Return what was rejected by code, without the codes that never were."""
    start = f"rejected_{unit}_total "
    named = {name.removeprefix(start): n for name, n in samples.items() if name.startswith(start)}
    return {code: number for code, number in named.items() if number}


def check_balance(samples: Samples) -> None:
    """Assert that the books balance once idle."""
    for unit in UNITS:
        outcomes = samples[f"accepted_{unit}_total"] + sum(rejected(samples, unit).values())
        assert samples[f"received_{unit}_total"] == outcomes
    stored = samples["accepted_logs_total"] + samples["late_logs_total"]
    assert samples["stored_logs_total"] == stored
    assert samples["received_batches_total"] == samples["request_duration_seconds_count"]
    assert samples["accepted_batches_total"] == samples["commit_duration_seconds_count"]
    assert 0 == samples["backlog_bytes"]


class Storm:
    """Clients that send all kinds of batches at once, and count the answers."""

    def __init__(self, service: Service, clients: int = 6) -> None:
        self._service = service
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._send, args=[n]) for n in range(clients)]

    def _send(self, client: int) -> None:
        sends = kinds_of_batches(self._service)
        turn = client
        while not self._is_over.is_set():
            turn += 1
            try:
                answer = sends[turn % len(sends)]()
            except (OSError, HTTPException):  # the worker was killed
                continue
            with self._lock:
                self.answers[answer.body.get("code", "accepted")] += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int) -> None:
        """Wait until so many more requests are answered."""
        start = self.answers.total()
        wait_for(lambda: self.answers.total() >= start + answers)


def kinds_of_batches(service: Service) -> list[Callable[[], Any]]:
    """Return what sends each kind of batch: good ones, and ones that are rejected."""
    large = make_batch(*["x" * 100] * 70)
    return [
        lambda: service.drain(make_batch("a")),
        lambda: service.drain(make_batch("a", "b", "c")),
        lambda: service.drain(large),
        lambda: service.drain(
            gzip.compress(json.dumps(large).encode()), {"Content-Encoding": "gzip"}
        ),
        lambda: service.drain({"logs": []}),
        lambda: service.drain(b'{"logs": '),
        lambda: service.drain({"logs": [{}, {}]}),
        lambda: service.drain(make_batch("a"), {"Authorization": "wrong"}),
        lambda: service.drain(b"x" * (MAX_BODY_BYTES + 1)),
        lambda: service.drain(iter([b"x" * MAX_BODY_BYTES, b"x"])),
        lambda: service.drain(b"x", {"Content-Encoding": "gzip"}),
        lambda: service.drain(b"x", {"Content-Encoding": "br"}),
    ]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a service of two workers with narrow limits."""
    limits = {"max_body_bytes": MAX_BODY_BYTES, "queue_bytes": QUEUE_BYTES}
    with Service(tmp_path, workers=2, **limits) as service:
        yield service


@pytest.mark.slow
def test_the_books_are_what_clients_and_files_say(service: Service) -> None:
    """After a storm, every answer that a client had and every stored line is counted once."""
    with Storm(service) as storm:
        wait_for(lambda: storm.answers["queue_full"] and storm.answers.total() > 500)
    samples = scrape_idle(service)
    check_balance(samples)
    assert storm.answers.pop("accepted") == samples["accepted_batches_total"]
    assert storm.answers == rejected(samples, "batches")
    assert {
        *("queue_full", "unauthorized", "invalid_json", "invalid_batch"),
        *("body_too_large", "invalid_encoding", "unsupported_encoding"),
    } == set(storm.answers)
    assert len(service.logs()) == samples["stored_logs_total"]
    assert len(service.content()) == samples["stored_bytes_total"]
    assert len(service.content()) == samples["segments_bytes open"]
    assert (2, 0) == (samples["segments open"], samples["segments sealed"])
    assert 0 < samples["free_disk_bytes"]
    assert 0 < samples["last_sync_age_seconds"] < 60


@pytest.mark.slow
def test_the_books_balance_whatever_happens_to_workers(service: Service) -> None:
    """Killed and reloaded workers take along what they had not written out, but no more."""
    with Storm(service) as storm:
        seen = [scrape(service)]
        for end_workers in (kill_a_worker, Service.reload, kill_a_worker, Service.reload):
            storm.wait_for(150)
            end_workers(service)
            storm.wait_for(150)
            seen.append(scrape(service))
    seen.append(scrape_idle(service))
    for before, after in pairwise(seen):
        counters = [name for name in before if re.search(r"_(total|bucket|count)\b", name)]
        assert [] == [name for name in counters if after[name] < before[name]]
    check_balance(seen[-1])
    assert seen[-1]["stored_logs_total"] <= len(service.logs())
    assert seen[-1]["accepted_batches_total"] <= storm.answers["accepted"]
    assert 0.5 * storm.answers["accepted"] < seen[-1]["accepted_batches_total"]


def kill_a_worker(service: Service) -> None:
    """Kill a worker, and wait for the next one."""
    victim = service.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    service.wait_for_workers(other_than=[victim])


def test_a_scrape_needs_a_token_through_a_proxy(service: Service) -> None:
    """On this machine anyone may scrape; what a proxy forwards may come from anywhere."""
    assert 200 == service.request("GET", "/metrics").status
    forwarded = {"X-Forwarded-For": "203.0.113.7"}
    assert 401 == service.request("GET", "/metrics", headers=forwarded).status
    shown = {**forwarded, "Authorization": f"Bearer {TOKEN}"}
    assert 200 == service.request("GET", "/metrics", headers=shown).status


def shared_directories(service: Service) -> list[Path]:
    """Return the directories through which the service's workers share metrics."""
    memory = Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())
    return list(memory.glob(f"astralog-metrics-{service.process.pid}-*"))


@pytest.mark.slow
def test_nothing_shared_is_left_by_a_stop(tmp_path: Path) -> None:
    """The directory is the service's own while it runs, and goes with it; reloads keep it."""
    with Service(tmp_path) as service:
        assert 200 == service.drain(make_batch("a")).status
        (directory,) = shared_directories(service)
        assert 0o700 == directory.stat().st_mode & 0o777
        service.reload()
        assert 1 == scrape_idle(service)["stored_logs_total"]
        assert 0 == service.stop()
        assert not directory.exists()


def test_every_metric_is_in_the_readme(service: Service) -> None:
    """The table has each metric's name and what kind it is, and no other."""
    service.drain(make_batch("a"))
    answer = service.request("GET", "/metrics").raw.decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", answer, re.MULTILINE))
    rows = re.findall(
        r"^\| `(astralog_\w+)`[^|]*\| (\w+) \|", (ROOT / "docs" / "operations.md").read_text(), re.M
    )
    assert kinds == dict(rows)
