"""Stop and reload: acknowledged logs are on disk, and the stop is quick."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.service import (
    Service,
    make_batch,
    make_head,
    process_group,
    read_answer,
    wait_for,
)


def check_sealed(service: Service) -> None:
    assert [] == service.files("*.open")


def test_sigterm_under_load_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The service ends by itself with sealed files and every acknowledged batch in them."""
    with Service(tmp_path, workers=2) as service, Load(service) as load:
        load.wait_for_every_worker()
        load.wait_for_acknowledged(200)
        service.signal(signal.SIGTERM)
        assert 0 == service.wait()
        load.stop()
        check_sealed(service)
        load.check(service.logs())
        assert set() == set(load.rejected.values()) - {"stopping"}
        assert "Traceback" not in service.log()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_stop_loses_nothing_acknowledged(tmp_path: Path, number: signal.Signals) -> None:
    """A stop that does not wait for requests seals all acknowledged logs."""
    with Service(tmp_path, workers=2) as service, Load(service) as load:
        load.wait_for_every_worker()
        load.wait_for_acknowledged(100)
        service.signal(number)
        assert 0 == service.wait()
        load.stop()
        check_sealed(service)
        load.check(service.logs())
        assert "Traceback" not in service.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_worker_that_just_starts_stops(tmp_path: Path, number: signal.Signals) -> None:
    """It ends by itself, and the master need not kill it."""
    with Service(tmp_path) as service:
        (worker,) = service.worker_pids()
        service.signal(signal.SIGSTOP)
        os.kill(worker, number)
        wait_for(lambda: process_group(worker) is None)
        service.signal(number)
        service.signal(signal.SIGCONT)
        assert 0 == service.wait()


def test_idle_connections_do_not_hold_up_the_stop(tmp_path: Path) -> None:
    """Kept connections, used or not, are closed."""
    with Service(tmp_path, log_level="debug") as service:
        body = json.dumps(make_batch("kept")).encode()
        connections = [service.connect() for _ in range(20)]
        for connection in connections[:10]:
            connection.sendall(make_head(f"Content-Length: {len(body)}") + body)
            assert 200 == read_answer(connection).status
        service.signal(signal.SIGTERM)
        assert 0 == service.wait()
        for connection in connections:
            assert b"" == connection.recv(1)
            connection.close()
        assert 10 == len(service.logs())
        assert "Worker exiting" in service.log()  # it was not killed
        check_sealed(service)


def test_stalled_clients_do_not_hold_up_the_stop(tmp_path: Path) -> None:
    """The stop does not wait until clients complete a head or a body."""
    with Service(tmp_path, body_timeout_seconds=60) as service:
        assert 200 == service.drain(make_batch("stored")).status
        stalled = [
            start_request(service, make_head("Content-Length: 100") + b"{"),
            start_request(service, make_head("Transfer-Encoding: chunked") + b"5\r\n{"),
            start_request(service, make_head("X: y")[:-2]),
            start_request(service, b""),
        ]
        wait_for(lambda: "ready" in service.request("GET", "/ready").body["status"])
        service.signal(signal.SIGTERM)
        assert 0 == service.wait()
        check_sealed(service)
        assert ["stored"] == [log["message"] for log in service.logs()]
        for connection in stalled:
            connection.close()


@pytest.mark.quick
def test_open_requests_are_answered(tmp_path: Path) -> None:
    """A client that is sending its body when the stop begins can finish it."""
    with Service(tmp_path) as service:
        body = json.dumps(make_batch("late")).encode()
        connection = start_request(service, make_head(f"Content-Length: {len(body)}") + body[:10])
        assert 200 == service.drain(make_batch("before")).status
        service.signal(signal.SIGTERM)
        wait_for(lambda: rejects_connections(service))
        connection.sendall(body[10:])
        answer = read_answer(connection)
        connection.close()
        assert 200 == answer.status
        assert 0 == service.wait()
        assert ["before", "late"] == [log["message"] for log in service.logs()]
        check_sealed(service)


def test_hanging_worker_is_killed(tmp_path: Path) -> None:
    """It delays the stop only by some seconds, and loses nothing."""
    with Service(tmp_path) as service:
        assert 200 == service.drain(make_batch("stored")).status
        (worker,) = service.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        service.signal(signal.SIGTERM)
        assert 0 == service.wait()
        wait_for(lambda: not service.pids())
        assert ["stored"] == [log["message"] for log in service.logs()]


def test_sighup_under_load_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """A reload replaces the workers while the service continues."""
    with Service(tmp_path, workers=2) as service, Load(service) as load:
        for _ in range(2):
            load.wait_for_every_worker()
            load.wait_for_acknowledged(100)
            service.reload()
        load.wait_for_acknowledged(100)
        load.stop()
        assert "ready" == service.request("GET", "/ready").body["status"]
        assert 0 == service.stop()
        check_sealed(service)
        load.check(service.logs())
        assert set() == set(load.rejected.values()) - {"stopping"}
        assert "Traceback" not in service.log()


def start_request(service: Service, data: bytes) -> socket.socket:
    """Send the beginning of a request."""
    connection = service.connect()
    connection.sendall(data)
    return connection


def rejects_connections(service: Service) -> bool:
    """Return whether the service has begun to stop."""
    try:
        service.connect(timeout=1).close()
    except OSError:
        return True
    return False
