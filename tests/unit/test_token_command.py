"""The command `astralog token`."""

import fcntl
import multiprocessing
import os
import stat
from pathlib import Path

import click.testing
import pytest
from click.testing import CliRunner

from astralog import token_command, tokens_file
from astralog.tokens_file import ALL_SCOPES, Token, parse

CONTENT = b"# senders\none org-xyz allow=write rate=0.5MB/s # shop\n\ntwo"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a tokens file with comments, and without a line break at its end."""
    path = tmp_path / "tokens"
    path.write_bytes(CONTENT)
    path.chmod(0o640)
    return path


def run(*arguments: object, path: Path | None = None) -> click.testing.Result:
    environ = {"ASTRALOG_TOKENS_FILE": str(path) if path else None}
    return CliRunner(env=environ).invoke(token_command.token, [*map(str, arguments)])


def tokens_of(path: Path) -> list[Token]:
    return parse(path.read_bytes(), "file")


def test_add_appends_one_line_and_prints_the_token(path: Path) -> None:
    """The file keeps its lines, its comments and its mode."""
    result = run("add", "--project", "a", "--project", "b", "--allow", "write", path=path)
    assert result.exit_code == 0
    line = f"{result.stdout.strip()} a b allow=write\n".encode()
    assert path.read_bytes() == CONTENT + b"\n" + line
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["tokens"]


def test_add_applies_its_options(path: Path) -> None:
    result = run("add", "--rate", "5MB/s", "--file", path)
    assert result.exit_code == 0
    *_, added = tokens_of(path)
    assert (added.projects, added.rate) == (None, 5e6)
    assert added.scopes == ALL_SCOPES


def test_add_creates_a_file_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "new"
    assert run("add", path=path).exit_code == 0
    assert len(tokens_of(path)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"# senders", b"# senders\n\n", b"one\r\ntwo a # b\r\n", b"one\rtwo\r"]
)
def test_add_keeps_the_content_of_the_file(path: Path, content: bytes) -> None:
    """With any line ends, and also if it has no token yet."""
    path.write_bytes(content)
    assert run("add", path=path).exit_code == 0
    lines = content.splitlines()
    assert path.read_bytes().splitlines()[:-1] == lines
    assert len(tokens_of(path)) == sum(line[:1] not in (b"", b"#") for line in lines) + 1


def test_add_to_a_file_with_a_byte_order_mark_changes_nothing(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfone\n")
    result = run("add", path=path)
    assert "Begins with a byte order mark" in result.output
    assert path.read_bytes() == b"\xef\xbb\xbfone\n"


def test_add_follows_a_symbolic_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path.name)
    assert run("add", path=link).exit_code == 0
    assert link.is_symlink()
    assert len(tokens_of(path)) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "5"),
        ("--rate", "5MB/s rate=6MB/s"),
        ("--allow", "all"),
        ("--project", "a b"),
        ("--project", "a=b"),
        ("--project", "#a"),
        ("--project", ""),
    ],
)
def test_add_of_a_faulty_option_changes_nothing(path: Path, arguments: tuple[str, ...]) -> None:
    assert run("add", *arguments, path=path).exit_code in (1, 2)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("option", ["--project", "--rate"])
def test_add_of_an_option_in_invalid_utf8_is_rejected(path: Path, option: str) -> None:
    """Python passes the bytes of such an argument as lone surrogates."""
    result = run("add", option, "caf\udce9", path=path)
    assert result.exit_code == 1
    assert "Error: the new token, line 1: " in result.output
    assert path.read_bytes() == CONTENT


def test_add_to_a_faulty_file_changes_nothing(path: Path) -> None:
    """A running service would reject the file, so the new token would not work."""
    path.write_bytes(b"one alow=write\n")
    result = run("add", path=path)
    assert result.exit_code == 1
    assert "line 1: Unknown option; there are allow and rate." in result.output
    assert path.read_bytes() == b"one alow=write\n"


def test_failing_write_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert isinstance(run("add", path=path).exception, OSError)
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["tokens"]


def test_add_keeps_the_owner_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service, which runs as another user than the administrator, must be able to read it."""
    kept = []
    monkeypatch.setattr(os, "fchown", lambda fd, *owner: kept.append(owner))
    status = path.stat()
    assert run("add", path=path).exit_code == 0
    assert kept == [(status.st_uid, status.st_gid)]


def add_many(path: Path) -> None:
    for _ in range(5):
        assert run("add", path=path).exit_code == 0


@pytest.mark.slow
def test_concurrent_adds_all_count(path: Path) -> None:
    """No process replaces the file by one without another process's token."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_many, args=(path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(tokens_of(path)) == 2 + 20


def test_file_is_locked_while_it_is_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def try_lock(target: Path, content: bytes) -> None:
        fd = os.open(target.parent, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append(target)
        finally:
            os.close(fd)

    monkeypatch.setattr(token_command, "_replace", try_lock)
    assert run("add", path=path).exit_code == 0
    assert held == [path]


def test_list_shows_grants_and_no_token(path: Path) -> None:
    one, two = tokens_of(path)
    assert run("list", path=path).stdout.splitlines() == [
        "name      projects  allow       rate",
        f"{one.name}  org-xyz   write       500KB/s",
        f"{two.name}  (all)     read write  (any)",
    ]


def test_check_counts_the_tokens_or_names_the_lines(path: Path) -> None:
    result = run("check", path)
    assert (result.exit_code, result.stdout) == (0, f"{path}: 2 tokens\n")
    path.write_bytes(b"one\nsecret rate=fast\none\n")
    result = run("check", path)
    assert result.exit_code == 1
    assert f"{path}, line 2: Option rate is a number" in result.output
    assert "secret" not in result.output
    path.write_bytes(b"one\none\n")
    assert "line 2: The token of" in run("check", path).output


@pytest.mark.parametrize("arguments", [("check",), ("list", "--file"), ("add", "--file")])
def test_file_that_the_service_does_not_read_is_rejected(
    path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_file, "MAX_FILE_BYTES", 3)
    result = run(*arguments, path)
    assert (result.exit_code, result.output) == (1, f"Error: {path}: Is larger than 3 bytes.\n")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("arguments", [("check",), ("list", "--file")])
def test_device_or_pipe_is_no_tokens_file(arguments: tuple[str, ...]) -> None:
    """The second path leads to a pipe without a name, as /dev/stdin may."""
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading):
        for path in ("/dev/null", f"/proc/self/fd/{reading}"):
            result = run(*arguments, path)
            expected = f"Error: {path}: Is not a file, but a pipe or a device.\n"
            assert (result.exit_code, result.output) == (1, expected)


@pytest.mark.parametrize("command", ["add", "list"])
def test_command_without_a_file_names_the_setting(command: str) -> None:
    result = run(command)
    assert result.exit_code == 2
    assert "--file" in result.output


def test_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    """`astralog` prints one line for it, as its other commands do."""
    assert isinstance(run("check", tmp_path / "none").exception, FileNotFoundError)
