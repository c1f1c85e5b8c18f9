"""`astralog search`: all stored logs are searched, as a parse of every line would."""

import contextlib
import os
import signal
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.service import TIMEOUT_SECONDS, TOKEN, Service, make_batch, wait_for
from tests.support.tail import (
    COMMAND,
    QUOTED_COMMAND,
    make_line,
    make_name,
    make_segment,
    message_of,
    run,
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with logs of two workers, compressed, sealed and open."""
    directory = tmp_path_factory.mktemp("searched") / "data"
    now = time.time()
    for number, start in enumerate((now - 7200, now - 3600, now - 60)):
        lines = [
            make_line(
                f"Order {number}-{at}",
                start + at,
                level=("info", "WARN", "error")[at % 3],
                service=("api", "web")[at % 2],
                project_id=("shop", "blog")[at % 2],
                metadata={"user": {"id": at, "name": "J\u00f6rg"}, "tags": ["a", f"t{at}"]},
            )
            for at in range(10)
        ]
        suffix = (".ndjson.zst", ".ndjson", ".ndjson.open")[number]
        make_segment(directory, make_name(start, number + 1), *lines, suffix=suffix, changed=start)
    return directory


def found(data_dir: Path, *options: str) -> list[str]:
    """Return the found messages, without their first word."""
    result = run("search", data_dir, "--json", *options)
    assert "" == result.stderr
    lines = result.stdout.encode().splitlines()
    assert (0 if lines else 1) == result.returncode
    return [message_of(line).removeprefix("Order ") for line in lines]


ALL = [f"{number}-{at}" for number in range(3) for at in range(10)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ALL),
        (("order 1-7",), ["1-7"]),
        (("order 1-7", "-s"), []),
        (("Order 1-7", "--case-sensitive"), ["1-7"]),
        (("J\u00d6RG", "-n", "2"), ["2-9", "2-8"]),
        (("nothing",), []),
        (("", "-n", "0"), []),
        (("-n", "3"), ["2-9", "2-8", "2-7"]),
        (("--service", "web", "--level", "error"), ["0-5", "1-5", "2-5"]),
        (("--project", "blog", "--project", "x", "-n", "1"), ["2-9"]),
        (("--field", "user.id=4"), ["0-4", "1-4", "2-4"]),
        (("--field", "tags=t4", "--field", "user.name=J\u00f6rg", "-n", "1"), ["2-4"]),
        (("--field", "user.id=44"), []),
        (("order [12]-3$", "--regex"), ["1-3", "2-3"]),
        (("order [12]-3$", "--regex", "-s"), []),
        (("[[O]rder 1-7", "--regex"), ["1-7"]),
        (("--since", "90m"), ALL[10:]),
        (("--since", "90m", "--until", "30m"), ALL[10:20]),
        (("--until", "90m"), ALL[:10]),
        (("1-5", "-C", "1"), ["1-4", "1-5", "1-6"]),
        (("1-5", "-A", "2"), ["1-5", "1-6", "1-7"]),
        (("1-0", "-B", "2", "-A", "1"), ["1-0", "1-1"]),
        (("1-9", "-C", "2", "-B", "1"), ["1-8", "1-9"]),
        (("0-5", "-C", "1", "-n", "1"), ["0-4", "0-5", "0-6"]),
        (("-B", "2", "-n", "2"), ["2-7", "2-8", "2-9", "2-6"]),
    ],
)
def test_filters_select_logs(data_dir: Path, options: tuple[str, ...], expected: list[str]) -> None:
    assert found(data_dir, *options) == expected


@pytest.mark.quick
def test_count_prints_the_number(data_dir: Path) -> None:
    result = run("search", data_dir, "--count", "order 1-")
    assert (result.returncode, result.stdout) == (0, "10\n")
    result = run("search", data_dir, "--count", "nothing")
    assert (result.returncode, result.stdout) == (1, "0\n")


def test_gaps_between_contexts_are_marked(data_dir: Path) -> None:
    """As grep marks them; consecutive logs are not repeated."""
    lines = run("search", data_dir, "1-[2369]", "--regex", "-A", "1").stdout.splitlines()
    shown = [line if line == "--" else line.split()[5] for line in lines]
    assert shown == ["1-2", "1-3", "1-4", "--", "1-6", "1-7", "--", "1-9"]


def test_late_logs_are_found_by_their_own_time(tmp_path: Path) -> None:
    """Segments last written over a minute before --since are not opened."""
    now = time.time()
    make_segment(tmp_path, make_name(now - 10), make_line("late", now - 9000), changed=now)
    make_segment(tmp_path, make_name(now - 900), make_line("ahead", now), changed=now - 630)
    make_segment(tmp_path, make_name(now - 900, 2), make_line("wrong", now), changed=now - 690)
    result = run("search", tmp_path, "--json", "--since", "3h", "--until", "2h")
    assert [message_of(line.encode()) for line in result.stdout.splitlines()] == ["late"]
    result = run("search", tmp_path, "--json", "--since", "10m")
    assert [message_of(line.encode()) for line in result.stdout.splitlines()] == ["ahead"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--field", "user"), "must have the form NAME=VALUE"),
        (("--field", f"{'a.' * 400}a=1"), "15 dots in the name"),
        (("(", "--regex"), "not a regular expression: missing )"),
        (("(" * 5000, "--regex"), "not a regular expression: nested too deep"),
        (("a{9999999999}", "--regex"), "not a regular expression: the repetition number"),
        (("\udcff",), "not valid UTF-8"),
        (("--service", "\udcff"), "not valid UTF-8"),
        (("--since", "1h", "--until", "2h"), "--since is later than --until"),
        (("--since", "yesterday"), "Not a timestamp"),
        (("-n", "-1"), "-1"),
        (("-C", "1000000000"), "1000000000 is not in the range 0<=x<=1000"),
        (("--data-dir", "/nowhere\n"), r"/nowhere\n: No such file or directory"),
    ],
)
def test_errors_exit_2(data_dir: Path, options: tuple[str, ...], message: str) -> None:
    result = run("search", data_dir, *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]


def test_unreadable_segment_exits_2_after_the_rest(tmp_path: Path) -> None:
    make_segment(tmp_path, make_name(0), make_line("one"), suffix=".ndjson.zst").write_bytes(b"bad")
    make_segment(tmp_path, make_name(1), make_line("two"))
    result = run("search", tmp_path, "--json")
    assert (result.returncode, message_of(result.stdout.encode())) == (2, "two")
    assert f"cannot read {make_name(0)}" in result.stderr


@pytest.mark.parametrize("options", ["", "--count"])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [("> /dev/full", "No space left on device"), (">&-", "stdout is closed")],
)
def test_lost_output_exits_2(data_dir: Path, options: str, redirection: str, reason: str) -> None:
    command = f"{QUOTED_COMMAND} search {options} --data-dir {data_dir} {redirection}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, f"Error: cannot write: {reason}\n")


def test_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    make_segment(tmp_path, make_name(0), *[make_line("x" * 1000)] * 2000)
    command = f"{QUOTED_COMMAND} search --data-dir {tmp_path} | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "" == result.stderr
    assert result.stdout.splitlines()[1] == str(128 + signal.SIGPIPE)


@pytest.mark.parametrize("moment", ["import click", "import astralog.view.options", "os.scandir"])
def test_interruption_of_the_start_is_quiet(tmp_path: Path, moment: str) -> None:
    """It ends the command at once, and does not look as if nothing was found."""
    code = f"""
import os, signal, sys
def interrupt(event, details):
    if "{moment}" in (event, " ".join([event, *map(str, details[:1])])):
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
from astralog.cli import main
main(["search", "--data-dir", "{tmp_path}"])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize("moment", ["search._Run._remove_bar", "processes.Processes.close"])
def test_interruption_of_the_end_is_quiet(tmp_path: Path, moment: str) -> None:
    """As a second Ctrl-C is; it does not look as if nothing was found."""
    code = f"""
import os, signal
from astralog.cli import main
from astralog.view import processes, search
{moment} = lambda self: os.kill(os.getpid(), signal.SIGINT)
main(["search", "--data-dir", "{tmp_path}"])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, b"", b"")


def test_processes_end_with_the_command(tmp_path: Path) -> None:
    """After Ctrl-C, a closed pipe and a kill; the status is that of a single process."""
    for number in range(4):
        line = make_line("x" * 1000)
        make_segment(tmp_path, make_name(number), *[line] * 20_000)
    for number, status in (
        (signal.SIGINT, 128 + signal.SIGINT),
        (signal.SIGPIPE, -signal.SIGPIPE),
        (signal.SIGKILL, -signal.SIGKILL),
    ):
        command = [str(COMMAND), "search", "--data-dir", str(tmp_path), "(x+)+(y|z)", "--regex"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, start_new_session=True, **options) as process:  # type: ignore[call-overload]
            try:
                wait_for(partial(has_members, process.pid, min(len(os.sched_getaffinity(0)), 2)))
                if number == signal.SIGINT:
                    os.killpg(process.pid, number)
                else:
                    process.send_signal(number)
                _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
                assert process.returncode == status
                assert b"Traceback" not in errors
                wait_for(partial(has_members, process.pid, 0))
            finally:
                for pid in members(process.pid):
                    os.kill(pid, signal.SIGKILL)


def has_members(group: int, count: int) -> bool:
    """Return whether a group has this many processes, or more if any."""
    found = len(members(group))
    return found >= count if count else not found


def members(group: int) -> list[int]:
    """Return the processes of a group."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                pids.append(int(path.parent.name))
    return pids


def start_on_terminal(
    data_dir: Path, *options: str, columns: int = 0
) -> "tuple[subprocess.Popen[bytes], int]":
    """Start a search with a terminal as stderr, and return the terminal's other end."""
    master, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    command = [str(COMMAND), "search", "--data-dir", str(data_dir), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    return process, master


@pytest.fixture(scope="module")
def slow_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that SLOW_REGEX searches for many seconds, a block in a fraction of one.

    Only its first log is found.
    """
    directory = tmp_path_factory.mktemp("slow")
    make_segment(directory, make_name(0), make_line("y"), *[make_line("x" * 50)] * 200_000)
    return directory


SLOW_REGEX = "(x|y)(x?)+z|^y"


@pytest.mark.parametrize("columns", [0, 8, 20, 40, 200])
def test_progress_fits_on_one_line(slow_dir: Path, columns: int) -> None:
    """Of any terminal; one that does not know its width gets 80 columns at most."""
    process, master = start_on_terminal(slow_dir, SLOW_REGEX, "--regex", columns=columns)
    with process:
        shown = b""
        while b"\x1b[K" not in shown:
            shown += os.read(master, 1000)
        process.kill()
    bar = shown.partition(b"\x1b[K")[0].decode().lstrip("\r")
    assert len(bar) < (columns or 80)
    assert "% " in bar
    os.close(master)


def test_progress_is_shown_and_interruption_reported(slow_dir: Path) -> None:
    """On a terminal only; results before Ctrl-C are written."""
    process, master = start_on_terminal(slow_dir, SLOW_REGEX, "--regex", "--json")
    with process:
        shown = b""
        while b"% " not in shown:
            shown += os.read(master, 1000)
        assert process.stdout
        assert message_of(process.stdout.readline()) == "y"
        process.send_signal(signal.SIGINT)
        while b"interrupted" not in shown:
            shown += os.read(master, 1000)
        assert process.wait(TIMEOUT_SECONDS) == 128 + signal.SIGINT
    assert b"1 found" in shown
    os.close(master)


def test_stop_ends_streams_of_new_logs(tmp_path: Path) -> None:
    """The response is complete; the worker need not break its connection."""
    with Service(tmp_path) as service:
        connection = service.open_connection(TIMEOUT_SECONDS)
        url, headers = "/v1/search?follow=true&q=two", {"Authorization": TOKEN}
        connection.request("GET", url, headers=headers)
        response = connection.getresponse()
        assert response.readline() == b" \n"
        assert service.drain(make_batch("one", "two")).status == 200
        assert message_of(response.readline()) == "two"
        service.signal(signal.SIGTERM)
        assert response.read().strip() == b""
        assert service.wait() == 0
        connection.close()


def test_gone_clients_free_their_streams(tmp_path: Path) -> None:
    """Although no log is sent to them."""
    url, headers = "/v1/search?follow=true&q=nothing", {"Authorization": TOKEN}
    with Service(tmp_path) as service, contextlib.ExitStack() as clients:

        def follow() -> int:
            connection = clients.enter_context(
                contextlib.closing(service.open_connection(TIMEOUT_SECONDS))
            )
            connection.request("GET", url, headers=headers)
            response = clients.enter_context(contextlib.closing(connection.getresponse()))
            return response.status

        assert [follow() for _ in range(9)] == [200] * 8 + [503]
        clients.close()
        wait_for(lambda: follow() == 200)


def test_needle_is_found_once_while_segments_change(tmp_path: Path) -> None:
    """While they are sealed, compressed, removed, and recovered after a kill."""
    settings = {"segment_bytes": 10_000, "compress": "zstd", "retain_bytes": 40_000}
    with Service(tmp_path, workers=2, **settings) as service:
        for number in range(16):
            others = [os.urandom(300).hex() for _ in range(20)]  # which compression halves
            assert 200 == service.drain(make_batch(f"needle {number}.", *others)).status
            if number == 8:
                service.kill()
                service.start()
            found = run("search", service.data_dir, "--count", f"NEEDLE {number}.")
            assert (found.stdout, found.returncode) == ("1\n", 0)
        service.reload()
        wait_for(lambda: not service.files("*.ndjson") and not service.files("*.open"))
        assert run("search", service.data_dir, "--count", "NEEDLE 15.").stdout == "1\n"
        assert run("search", service.data_dir, "--count", "NEEDLE 0.").stdout == "0\n"
