"""`astralog sql`: a query reads each stored log once, and its result comes in each format."""

import csv
import json
import subprocess
import time
from pathlib import Path

import duckdb
import pytest

from tests.support.tail import (
    COMMAND,
    QUOTED_COMMAND,
    compress,
    make_line,
    make_name,
    make_segment,
    run,
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with logs in segments of each form, one of them in two forms."""
    directory = tmp_path_factory.mktemp("queried") / "data's"
    now = time.time()
    for number, start in enumerate((now - 7200, now - 3600, now - 60)):
        lines = [
            make_line(f"m{number}", start + at, metadata={"at": [at], "x": number})
            for at in range(10)
        ]
        suffix = (".ndjson.zst", ".ndjson", ".ndjson.open")[number]
        half = b'{"project_id":"half' if suffix == ".ndjson.open" else b""
        path = make_segment(
            directory, make_name(start, number + 1), *lines, half, suffix=suffix, changed=start
        )
        if suffix == ".ndjson":
            content = path.read_bytes()
            compress(path)
            path.write_bytes(content)
    (directory / "other.ndjson").write_bytes(make_line("other") + b"\n")
    return directory


def query(data_dir: Path, statement: str, *options: str) -> str:
    result = run("sql", data_dir, *options, statement)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


COUNTS = "SELECT message, count(*) AS n, sum((metadata->>'x')::INT) AS x FROM logs GROUP BY ALL"


def test_each_format_has_the_same_rows(data_dir: Path, tmp_path: Path) -> None:
    """Logs of all segments count once; half lines and other files do not."""
    expected = [["m0", 10, 0], ["m1", 10, 10], ["m2", 10, 20]]
    found = query(data_dir, f"{COUNTS} ORDER BY 1;", "--format", "json")
    assert [list(json.loads(line).values()) for line in found.splitlines()] == expected
    found = query(data_dir, f"{COUNTS} ORDER BY 1", "--format", "csv")
    assert list(csv.reader(found.splitlines()))[1:] == [list(map(str, row)) for row in expected]
    found = query(data_dir, f"{COUNTS} ORDER BY 1")
    assert [line.split()[1::2] for line in found.splitlines() if " m" in line][1:] == [
        list(map(str, row)) for row in expected
    ]
    path = tmp_path / "found.parquet"
    with path.open("wb") as output:
        command = [str(COMMAND), "sql", "--data-dir", str(data_dir), "--format", "parquet"]
        subprocess.run([*command, COUNTS], stdout=output, check=True)
    rows = duckdb.connect().execute(f"FROM '{path}' ORDER BY 1").fetchall()
    assert [list(row) for row in rows] == expected


@pytest.mark.quick
def test_since_means_the_own_timestamp(data_dir: Path) -> None:
    found = query(data_dir, COUNTS, "--since", "90m", "--format", "csv")
    assert sorted(row[0] for row in csv.reader(found.splitlines())) == ["m1", "m2", "message"]
    assert query(data_dir, COUNTS, "--since", "1s", "--format", "csv") == "message,n,x\n"


def test_directory_without_segments_has_no_rows(tmp_path: Path) -> None:
    assert query(tmp_path, "SELECT count(*) AS n FROM logs", "--format", "csv") == "n\n0\n"


def test_control_characters_are_escaped_in_tables(tmp_path: Path) -> None:
    make_segment(tmp_path, make_name(0), make_line("\x1b[31m\u202e\x9b"))
    found = query(tmp_path, "SELECT message FROM logs")
    assert not {"\x1b", "\u202e", "\x9b"} & set(found)
    failed = run("sql", tmp_path, "SELECT message::INT FROM logs").stderr
    assert r"\u001b[31m" in failed
    assert not {"\x1b", "\u202e", "\x9b"} & set(failed)


def test_errors_are_reported_without_a_traceback(data_dir: Path, tmp_path: Path) -> None:
    result = run("sql", data_dir, "SELECT nothing FROM logs")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: Binder Error")
    result = run("sql", data_dir, " ; ")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("Error: the QUERY is empty.\n")
    result = run("sql", data_dir, "SET threads = 1; SELECT 1", "--format", "csv")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("--format csv accepts a single SELECT.\n")
    result = run("sql", tmp_path / "away", "SELECT 1")
    message = f"Error: {tmp_path}/away: No such file or directory\n"
    assert (result.returncode, result.stderr) == (1, message)


def test_damaged_segment_is_explained(tmp_path: Path) -> None:
    path = make_segment(tmp_path, make_name(0), make_line("one"), suffix=".ndjson.zst")
    path.write_bytes(path.read_bytes() + b"no frame")
    result = run("sql", tmp_path, "SELECT count(*) FROM logs")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("`astralog search --count` names it.\n")


@pytest.mark.parametrize("output_format", ["table", "csv"])
def test_lost_output_is_one_line(data_dir: Path, output_format: str) -> None:
    """Also if the query has more rows, which DuckDB still writes."""
    query = "FROM range(100000)"
    options = f'--data-dir "{data_dir}" --format {output_format}'
    command = f"{QUOTED_COMMAND} sql {options} '{query}' > /dev/full"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    expected = (1, "Error: cannot write: No space left on device\n")
    assert (result.returncode, result.stderr) == expected


def test_missing_duckdb_is_one_line(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "duckdb.py").write_text("raise ImportError")
    result = run("sql", data_dir, "SELECT 1", PYTHONPATH=str(tmp_path))
    expected = "Error: astralog sql needs DuckDB: pip install duckdb\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)
