import logging
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from astralog.log import configure_logging
from astralog.server import start
from astralog.settings import InvalidSettings, Settings
from tests.support.decoding import encode_batch

ADDRESS = ("127.0.0.1", 8080)


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Return the service's logger, and restore it after the test."""
    logger = logging.getLogger("astralog")
    before = (logger.handlers, logger.propagate, logger.level)
    monkeypatch.setattr(logging.Formatter, "converter", logging.Formatter.converter)
    yield logger
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


# --- What the start says


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (("127.0.0.1", 8080), "http://127.0.0.1:8080"),
        (("0.0.0.0", 80), "http://0.0.0.0:80"),
        (("::1", 8080, 0, 0), "http://[::1]:8080"),
        ("/run/astralog.sock", "unix:/run/astralog.sock"),
    ],
)
def test_the_start_is_one_line_in_the_log(
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    address: str | tuple[Any, ...],
    url: str,
) -> None:
    """The line has the addresses and the storage mode; a configured token adds no line."""
    caplog.set_level(logging.INFO)
    start.announce(replace(settings, workers=3, sync="everysec"), [address], is_inherited=False)
    assert [f"listening on {url}, 3 workers, data in {tmp_path}, sync everysec"] == caplog.messages
    assert ("", "") == capsys.readouterr()


def test_data_directory_is_logged_as_absolute_path(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A relative directory is resolved."""
    caplog.set_level(logging.INFO)
    start.announce(replace(settings, data_dir=Path("data")), [ADDRESS], is_inherited=False)
    assert f"data in {Path.cwd() / 'data'}," in caplog.text


def test_inherited_sockets_are_logged(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The line has every address, and states that ASTRALOG_BIND is not used."""
    caplog.set_level(logging.INFO)
    start.announce(replace(settings, workers=1), [ADDRESS, "/run/x"], is_inherited=True)
    assert [
        f"listening on http://127.0.0.1:8080 and unix:/run/x, 1 worker, data in {tmp_path}, "
        "sync always, on a socket that was passed in, not on ASTRALOG_BIND"
    ] == caplog.messages


def test_ignored_variables_of_kubernetes_are_logged(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line lists the names with the prefix of settings."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("ASTRALOG_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("ASTRALOG_PORT", "tcp://10.0.0.1:8080")
    start.announce(settings, [ADDRESS], is_inherited=False)
    (line, _) = caplog.messages
    assert line.endswith(": ASTRALOG_PORT, ASTRALOG_SERVICE_HOST")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        (("127.0.0.1", 8080), ["http://localhost:8080/v1/drain"]),
        (("0.0.0.0", 80), ["http://localhost:80/v1/drain"]),
        ("/run/a b.sock", ["--unix-socket", "/run/a b.sock", "http://localhost/v1/drain"]),
    ],
)
def test_the_first_start_prints_a_command_to_try_it(
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    address: str | tuple[Any, ...],
    target: list[str],
) -> None:
    """In a shell, the command reads the token from its file and sends a valid log."""
    caplog.set_level(logging.INFO)
    settings = replace(settings, data_dir=tmp_path / "da ta's", tokens="")
    start.make_missing(settings)
    start.announce(settings, [address], is_inherited=False)
    printed = capsys.readouterr().err
    token = (settings.data_dir / "token").read_text().strip()
    assert token not in printed + caplog.text
    command, _, others = printed.partition("Try it:")[2].partition("Search:")
    script = 'curl() { printf "%s\\0" "$@"; }; ' + command
    sent = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    arguments = sent.split("\0")[:-1]
    expected = [*target, "-H", f"Authorization: {token}", "-d"]
    assert expected == arguments[:-1]
    assert 1 == encode_batch(arguments[-1].encode()).logs
    search, _, page = others.partition("Status page, ")
    assert shlex.split(search)[1:] == [
        *("search", "--data-dir", str(settings.data_dir.absolute())),
        "hello",
    ]
    assert page.startswith(target[-1].replace("/v1/drain", "/status"))
    assert shlex.split(page)[-1] == str(settings.data_dir.absolute() / "token")


@pytest.mark.parametrize(("tokens", "tokens_file"), [("x", ""), ("", "x"), ("x", "x")])
def test_configured_token_prints_no_command(
    settings: Settings, capsys: pytest.CaptureFixture[str], tokens: str, tokens_file: str
) -> None:
    """If the operator configured tokens, nothing is printed."""
    settings = replace(settings, tokens=tokens, tokens_file=tokens_file)
    start.announce(settings, [ADDRESS], is_inherited=False)
    assert ("", "") == capsys.readouterr()


# --- What stops the start


def test_a_start_makes_the_directory_and_the_first_token(
    settings: Settings, tmp_path: Path
) -> None:
    """Both exist before the workers start."""
    path = tmp_path / "a" / "b"
    start.make_missing(replace(settings, data_dir=path, tokens=""))
    assert ["token"] == [file.name for file in path.iterdir()]
    start.make_missing(replace(settings, data_dir=tmp_path / "c"))
    assert [] == list((tmp_path / "c").iterdir())


def test_directory_that_cannot_be_created_stops_the_start(
    settings: Settings, tmp_path: Path
) -> None:
    """One line has the variable, the path and the reason."""
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "file", "It exists, and is no directory"),
        (tmp_path / "file" / "data", "Not a directory"),
    ):
        with pytest.raises(InvalidSettings) as rejected:
            start.make_missing(replace(settings, data_dir=path))
        [problem] = rejected.value.problems
        assert problem.startswith(f"ASTRALOG_DATA_DIR: {path}: {reason}; use a directory ")


def test_a_directory_that_may_not_be_written_stops_the_start(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is found at the start, not with the first batch."""
    asked: list[int] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(mode))
    with pytest.raises(InvalidSettings) as rejected:
        start.make_missing(settings)
    [problem] = rejected.value.problems
    assert problem.startswith(f"ASTRALOG_DATA_DIR: {tmp_path}: Not readable and writable; use a ")
    assert [os.R_OK | os.W_OK | os.X_OK] == asked


# --- The log


def test_the_log_is_lines_in_utc_on_stderr(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line has its time in UTC, its level and its process."""
    configure_logging("info")
    logging.getLogger("astralog.store.writer").warning("hello %d", 5)
    logging.getLogger("astralog.store.writer").debug("unheard")
    out, err = capsys.readouterr()
    moment = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
    assert "" == out
    assert re.fullmatch(rf"{moment} WARNING \[{os.getpid()}\] hello 5\n", err)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("info", ["INFO", "WARNING", "ERROR"]),
        ("warning", ["WARNING", "ERROR"]),
        ("error", ["ERROR"]),
    ],
)
def test_log_omits_lower_levels(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], level: str, expected: list[str]
) -> None:
    """Configuring the log twice doubles no lines."""
    configure_logging("debug")
    configure_logging(level)
    for severity in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(severity, "x")
    assert expected == [text.split()[1] for text in capsys.readouterr().err.splitlines()]


def test_the_log_shows_no_local_time_in_another_zone(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are in UTC in any time zone of the server."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        configure_logging("info")
        record = logging.LogRecord("astralog", logging.INFO, "", 0, "x", None, None)
        record.created = 0.0
        line = logger.handlers[0].format(record)
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert line.startswith("1970-01-01T00:00:00Z ")
