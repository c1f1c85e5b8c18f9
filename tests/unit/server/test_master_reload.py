"""A reload reads the tokens and the certificate before it replaces the workers."""

import logging
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter

from astralog.server.master import Master, read_certificate, read_state
from astralog.settings import InvalidSettings, Settings
from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.service import write_tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file of tokens with one token."""
    path = tmp_path / "tokens"
    write_tokens(path, "one\n")
    return path


@pytest.fixture
def with_file(settings: Settings, path: Path) -> Settings:
    """Return settings with a file of tokens."""
    return replace(settings, tokens="", tokens_file=str(path))


@pytest.fixture
def master(with_file: Settings) -> Master:
    """Return a master that has started workers."""
    made: Any = object.__new__(Arbiter)
    made.cfg = None
    master = Master.adopt(made, read_state(with_file))
    master.worker_age = 3
    return master


def knows(master: Master, token: str) -> bool:
    return master.state.tokens.name_of({"HTTP_AUTHORIZATION": token}) is not None


def test_reload_reads_the_tokens_and_replaces_the_workers(
    master: Master, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_tokens(path, "two\n")
    master.handle_hup()
    assert [knows(master, token) for token in ("one", "two")] == [False, True]
    assert master._reloaded_age == 3
    assert caplog.messages == ["reloaded tokens and certificate, replacing all workers"]


def test_reload_keeps_the_buckets_of_rates(master: Master) -> None:
    """A token that has used up its rate gets no new burst."""
    before = master.state.tokens.rates
    master.handle_hup()
    assert master._reloaded_age == 3
    assert master.state.tokens.rates is before


def test_faulty_reload_replaces_nothing(
    master: Master, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for content in ("# none\n", "one\none\n"):
        write_tokens(path, content)
        master.handle_hup()
    path.unlink()
    master.handle_hup()
    assert master._reloaded_age == 0
    assert knows(master, "one")
    assert len(caplog.messages) == 3
    for line in caplog.messages:
        assert line.startswith(f"not reloaded, nothing changed: ASTRALOG_TOKENS_FILE: {path}")


@pytest.mark.parametrize("name", ["tls_cert", "tls_key"])
def test_a_certificate_that_cannot_be_read_is_named(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    """The line names the unreadable one of the two files."""
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    for other, path in files.items():
        if other != name:
            path.touch()
    paths = {key: str(value) for key, value in files.items()}
    with pytest.raises(InvalidSettings) as rejected:
        read_certificate(replace(settings, **paths))  # type: ignore[arg-type]
    line = f"ASTRALOG_{name.upper()}: {paths[name]}: No such file or directory."
    assert [line] == rejected.value.problems


def test_invalid_certificate_is_reported(settings: Settings, tmp_path: Path) -> None:
    """Two files without a certificate are detected before workers start."""
    path = tmp_path / "empty.pem"
    path.touch()
    with pytest.raises(InvalidSettings, match="TLS_KEY: Not a certificate and its key: "):
        read_certificate(replace(settings, tls_cert=str(path), tls_key=str(path)))


def test_no_handshake_is_repeated(settings: Settings, tmp_path: Path) -> None:
    """A client cannot renegotiate, which would cost as much as a new connection."""
    if not can_make_certificate():
        pytest.skip("RENEGOTIATION IS NOT TESTED: apt-get install openssl")
    cert, key = make_certificate(tmp_path)
    context = read_certificate(replace(settings, tls_cert=str(cert), tls_key=str(key)))
    assert context is not None
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_without_a_certificate_there_is_no_tls(settings: Settings) -> None:
    """Without one in the settings, the service speaks HTTP."""
    assert read_certificate(settings) is None
