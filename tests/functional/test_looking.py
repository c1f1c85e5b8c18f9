"""Other programs that read the segments, as in docs/operations.md."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.support.service import ROOT, Service, make_log, wait_for
from tests.support.tail import QUOTED_COMMAND, make_line, make_name, make_segment, tail

DOCUMENT = (ROOT / "docs" / "operations.md").read_text()
LNAV_FORMAT = ROOT / "deploy" / "lnav" / "astralog.json"
SHAPES = [None, {}, {"user_id": 1}, {"user_id": "one"}, {"user_id": {"a": [1]}}, {"new": 1.5}]

#: How many logs of these two segments name each user.
USERS = {None: 6, "1": 2, "one": 2, '{"a":[1]}': 2}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Return the directory of a stopped service with one log per level.

    One segment is compressed, one is open, with half a line at its end.
    """
    directory = tmp_path / "data"
    with Service(tmp_path) as service:
        logs = [make_log(level=level) for level in ("info", "WARN", "error", "Fatal", "audit")]
        assert 200 == service.drain({"logs": logs}).status
        assert 0 == service.stop()
    now = time.time()
    for pid, suffix in ((2, ".ndjson.zst"), (3, ".ndjson.open")):
        lines = [
            make_line(f"shape {number}", now - pid - number, level="ERROR", metadata=shape)
            for number, shape in enumerate(SHAPES)
        ]
        half = make_line("half", now)[:50] if pid == 3 else b""
        make_segment(directory, make_name(now, pid), *lines, half, suffix=suffix)
    return directory


@pytest.mark.skipif(shutil.which("zstdcat") is None, reason="NOT TESTED: zstd is not installed")
@pytest.mark.skipif(shutil.which("jq") is None, reason="NOT TESTED: jq is not installed")
def test_zstdcat_and_jq_read_compressed_segments(tmp_path: Path) -> None:
    """With the documented command, in segments that the service compressed."""
    [command] = re.findall(r"^zstdcat .*$", DOCUMENT, re.MULTILINE)
    with Service(tmp_path, compress="zstd") as service:
        for number in range(3):
            log = make_log(level="error", message=f"{number}")
            assert 200 == service.drain({"logs": [log, make_log()]}).status
            service.reload()
        wait_for(lambda: service.files() and service.files() == service.files("*.zst"))
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
    assert ["0", "1", "2"] == sorted(done.stdout.splitlines())


def run_sql(data_dir: Path, monkeypatch: pytest.MonkeyPatch, *statements: str) -> list[Any]:
    monkeypatch.chdir(data_dir.parent)
    connection = duckdb.connect()
    for statement in statements:
        connection.execute(statement)
    return connection.fetchall()


def documented_sql() -> tuple[str, str]:
    """Return the view and the query of the document."""
    view, _, query = re.findall(r'duckdb -c "\n(.*?)"\n', DOCUMENT, re.DOTALL)[0].partition(";")
    return view, re.sub(r"^.*\n", "", query)


def test_duckdb_reads_every_log(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the documented columns, for any metadata, in compressed and open segments."""
    view, _ = documented_sql()
    rows = run_sql(
        data_dir,
        monkeypatch,
        view,
        "SELECT message, level, epoch_ms(timestamp), metadata FROM logs",
    )
    stored = [
        json.loads(line) for line in tail(data_dir, "--json", "-n", "all").stdout.splitlines()
    ]
    assert 5 + 2 * len(SHAPES) == len(rows) == len(stored)
    assert sorted(log["message"] for log in stored) == sorted(row[0] for row in rows)
    shapes = [row[3] and json.loads(row[3]) for row in rows if row[0].startswith("shape")]
    assert all(2 == shapes.count(shape) for shape in SHAPES)
    assert {row[2] for row in rows if row[0] == "User logged in"} == {1717169445000}


def test_duckdb_counts_the_errors_of_the_last_hour(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documented query finds them by a field of their metadata."""
    view, query = documented_sql()
    rows = run_sql(data_dir, monkeypatch, view, f"SELECT service, user_id, errors FROM ({query})")
    assert {("api-gateway", user): errors for user, errors in USERS.items()} == {
        (service, user): errors for service, user, errors in rows
    }


def test_duckdb_needs_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types inferred from the first logs fail with different later ones; the view does not."""
    lines = [make_line("m", metadata={"user_id": number}) for number in range(30_000)]
    make_segment(tmp_path / "data", make_name(0), *lines, make_line("m", metadata=SHAPES[-2]))
    inferred = "SELECT count(metadata) FROM read_json('data/*.ndjson*')"
    with pytest.raises(duckdb.InvalidInputException, match="columns"):
        run_sql(tmp_path / "data", monkeypatch, inferred)
    view, _ = documented_sql()
    counted = run_sql(tmp_path / "data", monkeypatch, view, "SELECT count(metadata) FROM logs")
    assert [(30_001,)] == counted


@pytest.fixture
def lnav_environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which lnav has the service's format."""
    if not shutil.which("lnav"):
        pytest.skip("NOT TESTED: lnav is not installed")
    home = tmp_path / "home"
    home.mkdir()
    environ = os.environ | {"HOME": str(home), "TERM": "dumb", "TZ": "America/New_York"}
    environ.pop("XDG_CONFIG_HOME", None)
    subprocess.run(["lnav", "-i", LNAV_FORMAT], env=environ, check=True, capture_output=True)
    return environ


def query_lnav(environ: dict[str, str], path: Path, columns: str) -> list[dict[str, Any]]:
    """Return columns of all logs from lnav."""
    query = f";SELECT {columns} FROM astralog WHERE log_level <> 'invalid'"
    command = ["lnav", "-n", "-c", query, "-c", ":write-jsonlines-to -", str(path)]
    result = subprocess.run(command, env=environ, capture_output=True, check=True, text=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_lnav_reads_every_log(data_dir: Path, lnav_environ: dict[str, str]) -> None:
    """In compressed and open segments too; levels have the service's rank."""
    columns = "log_level, level, project_id, service, log_body, metadata"
    rows = query_lnav(lnav_environ, data_dir, columns)
    assert 5 + 2 * len(SHAPES) == len(rows)
    assert {"org-xyz"} == {row["project_id"] for row in rows}
    assert {"api-gateway"} == {row["service"] for row in rows}
    ranks = {row["level"]: row["log_level"] for row in rows if row["log_body"] == "User logged in"}
    assert {
        "info": "info",
        "WARN": "warning",
        "error": "error",
        "Fatal": "fatal",
        "audit": "info",
    } == ranks
    assert 2 == sum(row["metadata"] == {"user_id": "one"} for row in rows)


def seconds_of(second: int, fraction: str = ".125") -> str:
    return f"2024-05-31T15:{second // 60:02d}:{second % 60:02d}{fraction}Z"


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.open", ".ndjson.zst"])
def test_lnav_shows_each_logs_own_time(
    tmp_path: Path, lnav_environ: dict[str, str], suffix: str
) -> None:
    """In any order of arrival; lnav sorts them."""
    data_dir = tmp_path / "data"
    times = [seconds_of((number * 997) % 3600) for number in range(100)]
    for pid in (1, 2):
        lines = [make_line(time, timestamp=time) for time in times[pid - 1 :: 2]]
        make_segment(data_dir, make_name(0, pid), *lines, suffix=suffix)
    rows = query_lnav(lnav_environ, data_dir, "log_time, log_body")
    assert sorted(times) == [row["log_body"] for row in rows]
    for row in rows:
        assert row["log_body"] == row["log_time"].replace(" ", "T") + "Z"


def test_lnav_shows_times_with_and_without_a_fraction(
    tmp_path: Path, lnav_environ: dict[str, str]
) -> None:
    """With the documented command, which changes no other timestamp of a log."""
    times = [seconds_of(number, ("", ".250", ".123456")[number % 3]) for number in range(30)]
    lines = [
        make_line(
            time, project_id='","timestamp":"1Z"', timestamp=time, metadata={"timestamp": time}
        )
        for time in times
    ]
    make_segment(tmp_path / "data", make_name(0), *lines)
    [command] = re.findall(
        r"^.venv/bin/astralog (tail .* sed .*) > /tmp/logs.ndjson$", DOCUMENT, re.M
    )
    result = tmp_path / "logs.ndjson"
    subprocess.run(
        ["bash", "-ec", f"{QUOTED_COMMAND} {command} > {result}"], cwd=tmp_path, check=True
    )
    stored = [json.loads(line) for line in result.read_text().splitlines()]
    assert times == [log["metadata"]["timestamp"] for log in stored]
    rows = query_lnav(lnav_environ, result, "log_time, log_body")
    assert times == [row["log_body"] for row in rows]
    for row in rows:
        assert row["log_time"].replace(" ", "T")[:19] == row["log_body"][:19]
