"""Reloads: which changes they apply, which they do not, and the way to upgrade."""

import signal
import ssl
from pathlib import Path

import pytest

from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.load import Load
from tests.support.service import Service, make_batch, status_for, wait_for, write_tokens
from tests.support.upgrade import HeldService, copy_checkout, set_version

GARBAGE = "raise RuntimeError('code of another version was read')\n"


def count(service: Service, words: str) -> int:
    """Return the number of log lines with these words."""
    return sum(words in line for line in service.log().splitlines())


def reload_without_effect(service: Service) -> None:
    """Send SIGHUP, and check that it changes nothing except the log."""
    before, lines = service.worker_pids(), count(service, "not reloaded")
    service.signal(signal.SIGHUP)
    wait_for(lambda: count(service, "not reloaded") > lines)
    assert before == service.worker_pids()


# --- Code


def test_a_running_service_reads_no_code(tmp_path: Path) -> None:
    """A reload and a new worker run the code of the start, whatever happens to its files."""
    root = copy_checkout(tmp_path / "checkout")
    service = Service(tmp_path)
    service.root = root
    with service:
        for path in [*root.glob("*.py"), *root.rglob("astralog/**/*.py")]:
            path.write_text(GARBAGE)
        service.reload()
        assert 200 == service.drain(make_batch("after a reload")).status
        (worker,) = before = service.worker_pids()
        service.kill_worker(worker)
        service.wait_for_workers(other_than=before)
        assert 200 == service.drain(make_batch("after a crash")).status
        assert 1 == count(service, "reloaded tokens and certificate, replacing all workers")
        assert 0 == service.stop()
        assert ["after a reload", "after a crash"] == [log["message"] for log in service.logs()]
        assert "Traceback" not in service.log()


def test_an_upgrade_behind_a_held_socket_fails_no_request(tmp_path: Path) -> None:
    """A restart under load, with the next version's code, is only a pause for its clients."""
    root = copy_checkout(tmp_path / "checkout")
    with HeldService(tmp_path, root, workers=2) as service, Load(service) as load:
        for version in ("100.0.1", "100.0.2"):
            load.wait_for_every_worker()
            load.wait_for_acknowledged(100)
            set_version(root, version)
            assert 0 == service.stop()
            service.start()
            assert version == service.request("GET", "/").body["version"]
        load.wait_for_acknowledged(100)
        load.stop()
        assert {} == load.rejected
        assert set() == load.unanswered
        assert 0 == service.stop()
        load.check(service.logs())


def test_a_socket_that_is_passed_in_comes_before_the_address(tmp_path: Path) -> None:
    """The service listens only on inherited sockets, and logs that ASTRALOG_BIND is not used."""
    with HeldService(tmp_path, bind="127.0.0.1:1") as service:
        assert service.listener.getsockname() == service.address
        assert 200 == service.drain(make_batch("x")).status
        assert 1 == count(service, ", on a socket that was passed in, not on ASTRALOG_BIND")
        assert 0 == service.stop()


def test_a_second_master_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    """SIGUSR2 starts the next version on the same socket, and SIGTERM ends the old one."""
    root = copy_checkout(tmp_path / "checkout")
    service = Service(tmp_path, workers=2)
    service.root = root
    with service, Load(service) as load:
        load.wait_for_every_worker()
        set_version(root, "100.0.1")
        service.signal(signal.SIGUSR2)
        wait_for(lambda: count(service, "listening on") == 2)
        wait_for(lambda: len(service.pids()) == 6)
        load.wait_for_acknowledged(100)
        assert 0 == service.stop()
        assert "100.0.1" == service.request("GET", "/").body["version"]
        load.wait_for_acknowledged(100)
        load.stop()
        assert ({}, set()) == (load.rejected, load.unanswered)
        load.check(service.logs())


def test_a_second_master_that_does_not_start_leaves_the_first(tmp_path: Path) -> None:
    """Broken code ends only its own process."""
    root = copy_checkout(tmp_path / "checkout")
    service = Service(tmp_path)
    service.root = root
    with service:
        before = service.pids()
        (root / "astralog" / "app.py").write_text(GARBAGE)
        service.signal(signal.SIGUSR2)
        wait_for(lambda: GARBAGE.split("'")[1] in service.log())
        wait_for(lambda: before == service.pids())
        assert 200 == service.drain(make_batch("x")).status
        service.reload()
        assert 200 == service.drain(make_batch("y")).status
        assert 0 == service.stop()


# --- Tokens


@pytest.mark.quick
def test_a_reload_with_faulty_tokens_keeps_the_newest(tmp_path: Path) -> None:
    """Nothing is replaced, and no removed token becomes valid again."""
    path = tmp_path / "tokens"
    write_tokens(path, "first\n")
    with Service(tmp_path, tokens=None, tokens_file=path) as service:
        write_tokens(path, "second\n")
        wait_for(lambda: status_for(service, "second") == 200)
        for content in ("# none\n", "second\nsecond\n", "\x01\n"):
            write_tokens(path, content)
            reload_without_effect(service)
            assert [401, 200] == [status_for(service, token) for token in ("first", "second")]
        write_tokens(path, "third\n")
        service.reload()
        assert [401, 200] == [status_for(service, token) for token in ("second", "third")]
        assert "ASTRALOG_TOKENS_FILE: " in service.log()
        assert 0 == service.stop()


def test_a_worker_that_dies_while_the_tokens_are_faulty_is_replaced(tmp_path: Path) -> None:
    """The new one inherits the tokens of the last start or reload."""
    path = tmp_path / "tokens"
    write_tokens(path, "first\n")
    with Service(tmp_path, tokens=None, tokens_file=path) as service:
        write_tokens(path, "second\n")
        service.reload()
        write_tokens(path, "# none\n")
        (worker,) = before = service.worker_pids()
        service.kill_worker(worker)
        service.wait_for_workers(other_than=before)
        assert [401, 200] == [status_for(service, token) for token in ("first", "second")]
        write_tokens(path, "third\n")
        wait_for(lambda: status_for(service, "third") == 200)
        assert 401 == status_for(service, "second")
        assert 0 == service.stop()


# --- The data directory


@pytest.mark.parametrize("tokens", [None, "test-token"])
def test_a_reload_makes_no_other_data_directory(tmp_path: Path, tokens: str | None) -> None:
    """While the disk is missing no directory is created, and no batch accepted."""
    with Service(tmp_path, tokens=tokens) as service:
        token = tokens or (service.data_dir / "token").read_text().strip()
        headers = {"Authorization": token}
        assert 200 == service.drain(make_batch("before"), headers).status
        away = service.data_dir.rename(tmp_path / "away")
        if tokens:
            service.reload()
        else:
            reload_without_effect(service)
        assert 503 == service.drain(make_batch("away"), headers).status
        assert not service.data_dir.exists()
        away.rename(service.data_dir)
        wait_for(lambda: service.drain(make_batch("back"), headers).status == 200)
        assert 0 == service.stop()
        assert {"before", "back"} == {log["message"] for log in service.logs()}


# --- The certificate


def served_certificate(service: Service) -> str:
    return ssl.get_server_certificate(service.address)


def test_reload_applies_a_new_certificate(tmp_path: Path) -> None:
    """A renewed one is served after a reload; an unusable one leaves the old one."""
    if not can_make_certificate():
        pytest.skip("NOT TESTED: openssl is not installed")
    cert, key = make_certificate(tmp_path)
    with Service(tmp_path, tls_cert=cert, tls_key=key) as service:
        old = served_certificate(service)
        other = tmp_path / "other"
        other.mkdir()
        make_certificate(other)
        cert.write_bytes((other / "cert.pem").read_bytes())
        reload_without_effect(service)  # the key does not belong to it
        assert "ASTRALOG_TLS_CERT and ASTRALOG_TLS_KEY: " in service.log()
        (worker,) = before = service.worker_pids()
        service.kill_worker(worker)
        service.wait_for_workers(other_than=before)
        assert old == served_certificate(service)
        key.write_bytes((other / "key.pem").read_bytes())
        service.reload()
        assert cert.read_text() == served_certificate(service)
        assert 0 == service.stop()
        assert "Traceback" not in service.log()
