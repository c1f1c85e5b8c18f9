"""`astralog tail` with the real service: every stored log is shown once, in order, at once."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.service import ROOT, TIMEOUT_SECONDS, Service, make_batch, wait_for
from tests.support.tail import (
    COMMAND,
    QUOTED_COMMAND,
    Tail,
    make_line,
    make_name,
    make_segment,
    message_of,
    read_lines,
    tail,
    tail_on_terminal,
)


def test_every_stored_log_is_followed_once(tmp_path: Path) -> None:
    """Rotation, compression, kills and restarts neither hide a log nor show one twice.

    The lines of each segment are in their order.
    """
    with (
        Service(tmp_path, workers=2, segment_bytes=300_000, compress="zstd") as service,
        Load(service) as load,
        Tail(tmp_path, service.data_dir, "-f", "-n", "all", "--json") as follower,
    ):
        for _ in range(4):
            load.wait_for_acknowledged(300)
            service.kill()
            service.start()
        load.wait_for_acknowledged(300)
        load.stop()
        service.reload()  # which seals what is open
        wait_for(lambda: not service.files("*.ndjson") and not service.files("*.open"))
        assert 0 == service.stop()
        stored = [read_lines(path) for path in service.files()]
        shown = follower.wait_for_lines(sum(map(len, stored)))
        assert -signal.SIGINT == follower.stop()
    assert 10 < len(stored)
    place = {line: number for number, line in enumerate(shown)}
    assert len(shown) == len(place) == sum(map(len, stored))
    for lines in stored:
        places = [place[line] for line in lines]
        assert sorted(places) == places
    load.check(follower.logs())
    assert "" == follower.errors()


@pytest.mark.quick
def test_a_log_is_shown_soon_after_it_is_stored(tmp_path: Path) -> None:
    """Stored and new logs, also in the next segment; Ctrl-C ends it."""
    with Service(tmp_path, segment_bytes=1) as service:
        assert 200 == service.drain(make_batch("before", "last")).status
        with Tail(tmp_path, service.data_dir, "-f", "-n", "1") as follower:
            assert ["last"] == [line.split()[4] for line in follower.wait_for_lines(1)]
            for number in range(3):
                assert 200 == service.drain(make_batch(f"new{number}")).status
                assert f"new{number}" in follower.wait_for_lines(number + 2)[-1]
            assert -signal.SIGINT == follower.stop()
            assert 4 == len(follower.lines())
            assert "" == follower.errors()


@pytest.mark.alone
def test_waiting_takes_no_processor(tmp_path: Path) -> None:
    """With 3,000 segments and no new logs, a follower takes a hundredth of a core."""
    for number in range(3000):
        make_segment(tmp_path / "data", make_name(number), make_line("m"), changed=number)
    os.utime(tmp_path / "data", (0, 0))
    with Tail(tmp_path, tmp_path / "data", "-f") as follower:
        follower.wait_for_lines(10)
        before = follower.cpu_seconds()
        time.sleep(5)
        assert follower.cpu_seconds() - before <= 0.05


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with logs of two workers, now and an hour ago."""
    directory = tmp_path_factory.mktemp("looked-at") / "data"
    now = time.time()
    for number, start in enumerate((now - 3600, now - 3600, now - 60)):
        lines = [
            make_line(
                f"{number}-{at}",
                start + at,
                level=("info", "WARN", "error", "Fatal", "audit")[at % 5],
                service=("api", "web", "db")[at % 3],
                project_id=("shop", "blog")[at % 2],
                metadata={"Order": at},
            )
            for at in range(30)
        ]
        suffix = (".ndjson.zst", ".ndjson", ".ndjson.open")[number]
        name = make_name(start + number * 0.5, number + 1)
        make_segment(directory, name, *lines, suffix=suffix, changed=start + 30)
    return directory


def shown(data_dir: Path, *options: str) -> list[str]:
    """Return the printed messages."""
    result = tail(data_dir, "--json", *options)
    assert (0, "") == (result.returncode, result.stderr)
    return [message_of(line.encode()) for line in result.stdout.splitlines()]


NEW = [f"2-{at}" for at in range(30)]
OLD = [f"{number}-{at}" for at in range(30) for number in range(2)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), NEW[-10:]),
        (("-n", "0"), []),
        (("-n", "3"), NEW[-3:]),
        (("--lines", "32"), [*OLD[-2:], *NEW]),
        (("-n", "all"), OLD + NEW),
        (("-n", "1000"), OLD + NEW),
        (("--level", "error"), [m for m in OLD + NEW if int(m[2:]) % 5 in (2, 3)][-10:]),
        (("--project", "shop", "-n", "2"), ["2-26", "2-28"]),
        (("--project", "shop", "--project", "blog", "-n", "2"), NEW[-2:]),
        (("--service", "db", "--service", "x", "-n", "2"), ["2-26", "2-29"]),
        (("--grep", '"order":7', "-n", "all"), ["0-7", "1-7", "2-7"]),
        (("--grep", "2-1", "--level", "info", "--project", "blog", "-n", "3"), NEW[15:20:2]),
        (("--since", "10m"), NEW),
        (("--since", "0h10m0s", "-n", "2"), NEW[-2:]),
        (("--since", "1d"), OLD + NEW),
        (("--since", "2024-05-31"), OLD + NEW),
        (("--since", "9999-12-31 23:59:59Z"), []),
    ],
)
def test_filters_select_logs(data_dir: Path, options: tuple[str, ...], expected: list[str]) -> None:
    """In the order of arrival, across workers and compression."""
    assert expected == shown(data_dir, *options)


def test_time_may_have_any_form_of_timestamps(data_dir: Path) -> None:
    """With an offset too; logs of exactly that time are shown."""
    line = json.loads(tail(data_dir, "--json", "-n", "1").stdout)
    stamp = line["timestamp"].removesuffix("Z")
    assert ["2-29"] == shown(data_dir, "--since", stamp)
    assert ["2-29"] == shown(data_dir, "--since", stamp.replace("T", " ") + "+00:00")
    assert [] == shown(data_dir, "--since", stamp + "9")


def test_segments_last_written_before_a_time_are_not_read(tmp_path: Path) -> None:
    """Not even if a log in them has a later timestamp."""
    now = time.time()
    make_segment(tmp_path, make_name(now - 900), make_line("fast clock", now), changed=now - 700)
    make_segment(tmp_path, make_name(now - 900, 2), make_line("late", now - 300), changed=now)
    assert ["late"] == shown(tmp_path, "--since", "10m")
    assert ["fast clock", "late"] == shown(tmp_path, "--since", "12m")


def test_json_output_is_the_stored_lines(data_dir: Path) -> None:
    """Byte for byte, for other programs."""
    stored = sorted(line for path in data_dir.iterdir() for line in read_lines(path))
    assert stored == sorted(tail(data_dir, "--json", "-n", "all").stdout.splitlines())


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("-n", "-1"), 2, "neither a number of lines nor `all`"),
        (("-n", "ten"), 2, "neither a number of lines nor `all`"),
        (("--since", "yesterday"), 2, "Not a timestamp"),
        (("--since", "1y"), 2, "A duration such as 10m"),
        (("--since", "99999999w"), 2, "before the year 1"),
        (("--nonsense",), 2, "No such option"),
        (("--data-dir", "/nowhere"), 1, "/nowhere: No such file or directory"),
        (("--data-dir", "/dev/null", "-f"), 1, "/dev/null: Not a directory"),
    ],
)
def test_errors_have_their_exit_status(
    data_dir: Path, options: tuple[str, ...], status: int, message: str
) -> None:
    """A usage error and an unreadable directory have different ones."""
    result = tail(data_dir, *options)
    assert (status, "") == (result.returncode, result.stdout)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_level_is_pointed_out(data_dir: Path) -> None:
    """It may be a typing error; a known one is not mentioned."""
    result = tail(data_dir, "--json", "--level", "AUDIT")
    assert "unknown level 'AUDIT'" in result.stderr
    assert 10 == result.stdout.count('"level":"audit"') == result.stdout.count("\n")
    assert "unknown level ''" in tail(data_dir, "--level", "").stderr
    assert "" == tail(data_dir, "--level", "ERR").stderr


def test_the_directory_is_the_services_own() -> None:
    """The service's setting and default apply."""
    help = subprocess.run([COMMAND, "tail", "-h"], capture_output=True, text=True, check=True)
    assert re.search(r"env var:\s+ASTRALOG_DATA_DIR; default: data", help.stdout)


def test_the_service_setting_names_the_directory(data_dir: Path) -> None:
    """As in the service's own environment."""
    result = subprocess.run(
        [COMMAND, "tail", "-n", "1"],
        env=os.environ | {"ASTRALOG_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert " 2-29 " in result.stdout


def test_colors_are_for_terminals(data_dir: Path) -> None:
    """Not with NO_COLOR, on a terminal without colors, or in a file."""
    plain = tail(data_dir, "-n", "5").stdout
    assert "\x1b" not in plain
    colored = tail_on_terminal(data_dir, "-n", "5")
    assert colored.count("\x1b[2m{") == 5
    assert plain == re.sub(r"\x1b\[[0-9;]+m", "", colored)
    assert plain == tail_on_terminal(data_dir, "-n", "5", NO_COLOR="1")
    assert plain == tail_on_terminal(data_dir, "-n", "5", TERM="dumb")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_log_content_cannot_control_the_terminal(tmp_path: Path, options: tuple[str, ...]) -> None:
    """In the readable form and as JSON, which stays equivalent."""
    hostile = "\x1b\x07\x9b\r\n\u202e"
    line = make_line(hostile, service=hostile)
    make_segment(tmp_path, make_name(0), line)
    result = tail_on_terminal(tmp_path, *options, NO_COLOR="1")
    assert 1 == result.count("\n")
    assert not [character for character in hostile if character in result.rstrip("\n")]
    if options:
        assert json.loads(line) == json.loads(result)


def run_in_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("options", ["-n all", "-f", "-f -n 1"])
def test_closed_pipe_ends_it(data_dir: Path, options: str) -> None:
    """At once and silently, also while no log arrives."""
    command = f"{QUOTED_COMMAND} tail --data-dir {data_dir} {options}"
    result = run_in_shell(f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}")
    assert "" == result.stderr
    log, status = result.stdout.splitlines()
    assert log.startswith("2")
    assert status in ("0", str(128 + signal.SIGPIPE))


def test_closed_pipe_ends_it_with_sigpipe_blocked(data_dir: Path) -> None:
    """A blocked SIGPIPE, which a child inherits, does not keep it alive."""
    blocked = {signal.SIGPIPE}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        command = [str(COMMAND), "tail", "--data-dir", str(data_dir), "-f"]
        follower = subprocess.Popen(command, stdout=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with follower:
        assert follower.stdout
        try:
            follower.stdout.readline()
            follower.stdout.close()
            assert -signal.SIGPIPE == follower.wait(TIMEOUT_SECONDS)
        finally:
            follower.kill()


def test_an_output_that_is_full_is_an_error(data_dir: Path) -> None:
    """It is one line on stderr."""
    result = run_in_shell(f"{QUOTED_COMMAND} tail --data-dir {data_dir} > /dev/full")
    assert (1, "Error: cannot write: No space left on device\n") == (
        result.returncode,
        result.stderr,
    )


def test_missing_directory_is_waited_for(tmp_path: Path) -> None:
    """Before the first start, and while its disk is not mounted."""
    path = tmp_path / "data"
    with Tail(tmp_path, path, "-f") as follower:
        wait_for(lambda: "No such file or directory; waiting" in follower.errors())
        make_segment(path, make_name(0), make_line("one"))
        follower.wait_for_lines(1)
        wait_for(lambda: "available again" in follower.errors())
        away = path.rename(tmp_path / "away")
        wait_for(lambda: 2 == follower.errors().count("waiting"))
        make_segment(away, make_name(1), make_line("two"))
        away.rename(path)
        assert " two " in follower.wait_for_lines(2)[1]
        assert 2 == len(follower.lines())
        wait_for(lambda: 4 == len(follower.errors().splitlines()))


def test_the_command_starts_without_the_service(data_dir: Path) -> None:
    """Slow imports are left to the commands that need them."""
    imported = tail(data_dir, PYTHONPROFILEIMPORTTIME="1").stderr
    names = {line.rpartition("|")[2].strip() for line in imported.splitlines()}
    assert "astralog.store.merge" in names
    assert not names & {
        "flask",
        "gevent",
        "marshmallow",
        "environs",
        "dateutil",
        "prometheus_client",
    }


def test_make_tail_follows() -> None:
    """With the given options."""
    command = ["make", "--dry-run", "--silent", "tail", "TAIL=--level error"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1].endswith("bin/astralog tail -f --level error")


def test_the_command_lists_its_commands() -> None:
    """Without a command it prints the list; an unknown one is a usage error."""
    help = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert re.search(r"^  tail +\S", help.stdout, re.MULTILINE)
    wrong = subprocess.run([COMMAND, "tial"], capture_output=True, text=True, check=False)
    assert 2 == wrong.returncode
    assert "tial" in wrong.stderr
