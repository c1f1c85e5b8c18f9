import logging
import ssl
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from astralog.server import inheritance
from astralog.server.inheritance import Inherited
from astralog.settings import InvalidSettings, Settings
from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.service import write_tokens


class Master:
    """gunicorn's master, as far as a reload knows it."""

    num_workers = 3

    def __init__(self) -> None:
        inherited = Inherited.read(Settings(tokens="first"))
        self.cfg = SimpleNamespace(inherited=inherited)
        self.reloads = 0

    def reload(self) -> None:
        """Count what would replace the workers."""
        self.reloads += 1


@pytest.fixture
def master() -> Any:
    """Return a master after its start."""
    return Master()


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


def knows(master: Any, token: str) -> bool:
    return master.cfg.inherited.tokens.name_of({"HTTP_AUTHORIZATION": token}) is not None


def test_a_reload_reads_before_it_replaces(
    master: Any, with_file: Settings, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The new workers inherit what the file says now, and one line says so."""
    caplog.set_level(logging.INFO)
    inheritance.reload(master, with_file)
    write_tokens(path, "two\n")
    inheritance.reload(master, with_file)
    assert [False, True] == [knows(master, token) for token in ("one", "two")]
    assert 2 == master.reloads
    assert ["reloaded tokens and certificate, replacing all workers"] * 2 == caplog.messages


def test_reload_keeps_the_buckets_of_rates(master: Any, with_file: Settings) -> None:
    """A token that has used up its rate gets no new burst by a reload."""
    before = master.cfg.inherited.tokens.rates
    inheritance.reload(master, with_file)
    assert knows(master, "one")
    assert master.cfg.inherited.tokens.rates is before


def test_a_reload_that_reads_nothing_of_use_replaces_nothing(
    master: Any, with_file: Settings, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers that die later inherit what was of use, and the line names what was not."""
    inheritance.reload(master, with_file)
    for content in ("# none\n", "one\none\n"):
        write_tokens(path, content)
        inheritance.reload(master, with_file)
    path.unlink()
    inheritance.reload(master, with_file)
    assert 1 == master.reloads
    assert knows(master, "one")
    assert 3 == len(caplog.messages)
    for line in caplog.messages:
        assert line.startswith(f"not reloaded, all stays as it is: ASTRALOG_TOKENS_FILE: {path}")


@pytest.mark.parametrize("name", ["tls_cert", "tls_key"])
def test_a_certificate_that_cannot_be_read_is_named(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    """The line says which of the two files it is."""
    files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    for other, path in files.items():
        if other != name:
            path.touch()
    paths = {key: str(value) for key, value in files.items()}
    with pytest.raises(InvalidSettings) as rejected:
        Inherited.read(replace(settings, **paths))  # type: ignore[arg-type]
    line = f"ASTRALOG_{name.upper()}: {paths[name]}: No such file or directory."
    assert [line] == rejected.value.problems


def test_what_is_no_certificate_is_told(settings: Settings, tmp_path: Path) -> None:
    """Two files that say nothing of a certificate are found out before they are served."""
    path = tmp_path / "empty.pem"
    path.touch()
    with pytest.raises(InvalidSettings, match="TLS_KEY: Not a certificate and its key: "):
        Inherited.read(replace(settings, tls_cert=str(path), tls_key=str(path)))


def test_no_handshake_is_repeated(settings: Settings, tmp_path: Path) -> None:
    """A client cannot have one done anew, which would cost as much as a new connection."""
    if not can_make_certificate():
        pytest.skip("RENEGOTIATION IS NOT TESTED: apt-get install openssl")
    cert, key = make_certificate(tmp_path)
    context = Inherited.read(replace(settings, tls_cert=str(cert), tls_key=str(key))).tls
    assert context is not None
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_without_a_certificate_there_is_no_tls(settings: Settings) -> None:
    """The service speaks HTTP where the settings name none."""
    assert Inherited.read(settings).tls is None
