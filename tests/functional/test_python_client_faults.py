"""Programs that log through the Python client while the service fails, stalls or rejects."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.connections import free_port
from tests.support.programs import Programs, messages, url_of
from tests.support.service import Service, wait_for

#: Logs for as long as the test keeps a file.
LOG_WHILE = """
number = 0
while os.path.exists({path!r}):
    log("%d", number)
    number += 1
    time.sleep(0.0005)
handler.flush(60)
print(handler.stored, handler.rejected, handler.dropped, number, file=sys.stderr)
"""

#: Logs, and ends once the handler has reported an error.
LOG_UNTIL_REPORTED = """
reported, write = threading.Event(), sys.stderr.write
sys.stderr.write = lambda text: (write(text), reported.set())
log("a")
handler.flush(0.1)
assert reported.wait(60)
"""


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as running:
        yield running


@contextmanager
def stopped(service: Service) -> Iterator[None]:
    """Suspend the service, so that it neither responds nor ends."""
    os.killpg(service.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(service.process.pid, signal.SIGCONT)


def has_more(service: Service, stored: int) -> bool:
    return service.content().count(b"\n") > stored


@pytest.mark.parametrize("is_whole", [False, True])
def test_kills_lose_nothing(tmp_path: Path, programs: Programs, is_whole: bool) -> None:
    """Logs during kills of workers or the whole service are all stored once."""
    with Service(tmp_path, bind=f"127.0.0.1:{free_port()}", workers=2) as service:
        (tmp_path / "running").touch()
        program = programs.start(url_of(service), LOG_WHILE.format(path=str(tmp_path / "running")))
        for _ in range(3):
            stored = service.content().count(b"\n")
            wait_for(partial(has_more, service, stored))
            if is_whole:
                service.kill()
                service.start()
            else:
                pids = service.worker_pids()
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                service.wait_for_workers(other_than=pids)
        (tmp_path / "running").unlink()
        counts = programs.wait(program).splitlines()[-1]
        stored, rejected, dropped, logged = map(int, counts.split())
        assert (logged, 0, 0) == (stored, rejected, dropped)
        wait_for(lambda: not service.has_orphans())
        assert sorted(str(number) for number in range(logged)) == sorted(messages(service))


def test_a_stall_costs_the_program_no_time(tmp_path: Path, programs: Programs) -> None:
    """While the service stalls, logging continues; logs that do not fit are dropped and counted."""
    code = """
handler.flush(60)
for number in range(20_000): log("%d", number)
print("logged", handler.stored, file=sys.stderr, flush=True)
handler.flush(60)
print(handler.stored, handler.dropped, file=sys.stderr)
"""
    options: dict[str, Any] = {"queue_bytes": 1_000_000, "timeout_seconds": 60}
    with Service(tmp_path) as service:
        with stopped(service):
            program = programs.start(url_of(service), code, **options)
            assert program.stderr is not None
            assert "logged 0\n" == program.stderr.readline()
        lines = programs.wait(program).splitlines()
        stored, dropped = map(int, lines[-1].split())
        assert 20_000 == stored + dropped
        assert 5_000 < dropped < 20_000
        assert sorted(str(number) for number in range(stored)) == sorted(messages(service))
    assert "AstraLogHandler: logs dropped so far, the queue is full: " in lines[0]


def test_a_program_ends_beside_a_stall(tmp_path: Path, programs: Programs) -> None:
    """Its exit waits up to its timeout, and reports the number of lost logs."""
    code = "for number in range(1000): log('%d', number)"
    options: dict[str, Any] = {"exit_seconds": 0.5, "timeout_seconds": 3600}
    with Service(tmp_path) as service, stopped(service):
        start = time.monotonic()
        errors = programs.run(url_of(service), code, **options)
        assert 0.5 <= time.monotonic() - start
    assert "AstraLogHandler: logs not stored before the end: 1000\n" == errors


def test_a_program_ends_without_the_service(programs: Programs) -> None:
    """Its exit is bounded if nothing listens, and reports why nothing was stored."""
    url = f"http://127.0.0.1:{free_port()}"
    errors = programs.run(url, LOG_UNTIL_REPORTED, exit_seconds=0.5)
    assert "the service accepts no logs, retrying: ConnectionRefusedError" in errors
    assert "AstraLogHandler: logs not stored before the end: 1\n" in errors


def test_large_batches_are_divided(tmp_path: Path, programs: Programs) -> None:
    """If the service accepts only smaller bodies, only logs that never fit are dropped."""
    code = "for number in range(1000): log('%d', number)\nlog('x' * 20_000)\nlog('last')"
    with Service(tmp_path, max_body_bytes=16_384) as service:
        errors = programs.run(url_of(service), code)
        expected = [*(str(number) for number in range(1000)), "last"]
        assert sorted(expected) == sorted(messages(service))
    assert errors.startswith("AstraLogHandler: logs given up: 1; 413 body_too_large ")
    assert 1 == len(errors.splitlines())


def test_full_disk_is_retried(tmp_path: Path, programs: Programs) -> None:
    """Logs rejected for lack of space are stored once there is space."""
    bind = f"127.0.0.1:{free_port()}"
    code = "log('a')\nassert handler.flush(60)"
    with Service(tmp_path, bind=bind, min_free_bytes=1 << 60) as full:
        program = programs.start(url_of(full), code)
        wait_for(lambda: "storage_full" in full.log())
        assert [] == full.logs()
    with Service(tmp_path, bind=bind) as service:
        programs.wait(program)
        assert ["a"] == messages(service)


def test_one_invalid_log_costs_no_others(tmp_path: Path, programs: Programs) -> None:
    """Of a batch with invalid logs, all others are stored."""
    code = """
logging.addLevelName(35, "")
for number in range(500): logging.log(35 if number % 10 == 7 else logging.INFO, "%d", number)
"""
    with Service(tmp_path) as service:
        errors = programs.run(url_of(service), code)
        valid = {str(number) for number in range(500) if number % 10 != 7}
        assert sorted(valid) == sorted(messages(service))
    (line,) = errors.splitlines()
    assert "logs given up: 20; 400 invalid_batch 50 of 500 logs are" in line
    assert "{'level': ['Must not be empty.']}" in line


def test_an_unknown_token_is_said_once(tmp_path: Path, programs: Programs) -> None:
    """A wrong token loses the logs, and does not delay the program."""
    code = "for number in range(3): log('%d', number); handler.flush()"
    with Service(tmp_path, tokens="another-token") as service:
        errors = programs.run(url_of(service), code)
        assert [] == service.logs()
    assert errors.startswith("AstraLogHandler: logs given up: 1; 401 unauthorized ")
    assert 1 == len(errors.splitlines())


def test_logs_go_over_tls(tmp_path: Path, programs: Programs) -> None:
    """Only a service with a trusted certificate gets the logs."""
    if not can_make_certificate():
        pytest.skip("NOT TESTED: openssl is not installed")
    cert, key = make_certificate(tmp_path)
    with Service(tmp_path, tls_cert=cert, tls_key=key) as service:
        url = url_of(service).replace("http:", "https:")
        assert "" == programs.run(url, "log('a')", env={"SSL_CERT_FILE": str(cert)})
        errors = programs.run(url, LOG_UNTIL_REPORTED, exit_seconds=0.5)
        assert ["a"] == messages(service)
    assert "CERTIFICATE_VERIFY_FAILED" in errors
