"""Start a ClickHouse engine in a separate process, break it, and read its tables."""

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from tests.support.launcher import FORWARD, LaunchedProcess, launch
from tests.support.service import (
    ROOT,
    TIMEOUT_SECONDS,
    one_form_each,
    read_segment,
    wait_for,
)

DATABASE = "astralog"
DDL = ROOT / "deploy" / "clickhouse" / "single.sql"

#: What an insert can be made to do: stored, but the connection is cut, or answered 500, half, a
#: byte now and then, or not at all; not stored, and the connection is cut, nothing is answered, an
#: error, or a 200 that is none of ClickHouse's, of another query, or of other rows.
COMMITTED_FAULTS = ("cut", "error", "half", "silent", "drip")
STRANGE_FAULTS = ("page", "other query", "fewer rows", "no summary", "exception")
OTHER_FAULTS = ("refuse", "mute", "full", "many parts", "read-only", "memory", *STRANGE_FAULTS)
FAULTS = COMMITTED_FAULTS + OTHER_FAULTS

#: Faults that only forward's own deadline ends.
UNANSWERED_FAULTS = ("silent", "mute", "drip")

#: The same for a question which lines a table holds.
QUERY_FAULTS = ("cut", "silent", "drip", "half a body", "memory", "page", "other query")

#: Answered as if it were stored, which it is not: an insert that the tables never show, and an
#: engine that takes no time, and knows how many lines it was sent of each segment.
LIES = ("lie", "more rows")
DISCARD = "discard"

Place = tuple[str, str, int]


class ClickHouse:
    """An engine whose tables outlive its process; with a certificate and a key, it uses TLS."""

    def __init__(self, directory: Path, *certificate: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._certificate = certificate
        self._log_path = directory / "front.log"
        self._port = 0

    def start(self) -> Self:
        """Start the engine with the shipped tables, on its earlier port."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.support.clickhouse_front",
                    str(self._port),
                    str(self._directory / "engine"),
                    *map(str, self._certificate),
                ],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self._wait_until_listening()
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_until_listening(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stdout:
            port = stdout.readline()
        assert port, f"the engine did not start:\n{self._log_path.read_text()}"
        if not self._port:
            self._port = int(port)
            self.query(f"CREATE DATABASE {DATABASE} ENGINE = Atomic", database="")
            self.create_tables()

    def kill(self) -> None:
        """Kill the engine, whatever it is doing."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(TIMEOUT_SECONDS)

    def restart(self) -> None:
        """Kill the engine and start it again."""
        self.kill()
        self.start()

    @property
    def url(self) -> str:
        """The tables' address as a setting of forward; any user and password are accepted."""
        scheme = "https" if self._certificate else "http"
        return f"{scheme}://someone:a-password@127.0.0.1:{self._port}/{DATABASE}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def query(self, text: str, database: str = DATABASE, timeout: float = TIMEOUT_SECONDS) -> str:
        """Run a statement and return its result."""
        return self._post("/?" + urlencode({"database": database}), text, timeout)

    def _post(self, path: str, body: str = "", timeout: float = TIMEOUT_SECONDS) -> str:
        address = ("127.0.0.1", self._port)
        connection = http.client.HTTPConnection(*address, timeout=timeout)
        if self._certificate:
            trust = ssl.create_default_context(cafile=self._certificate[0])
            connection = http.client.HTTPSConnection(*address, timeout=timeout, context=trust)
        try:
            connection.request("POST", path, body.encode())
            response = connection.getresponse()
            answer = response.read().decode()
        finally:
            connection.close()
        assert response.status == 200, answer
        return answer

    def create_tables(self) -> None:
        """Run the shipped statements for one server, as clickhouse-client would."""
        text = re.sub("--.*", "", DDL.read_text())
        for statement in filter(str.strip, text.split(";")):
            self.query(statement)

    def break_inserts(
        self, fault: str, times: int = 1, after: int = 0, seconds: float = 30.0
    ) -> None:
        """Let inserts after the next ones fail with one of FAULTS; silences have a duration.

        Earlier faults are dropped.
        """
        assert fault in (*FAULTS, *LIES, DISCARD)
        self._break("insert", fault, times, after, seconds)

    def break_queries(self, fault: str, times: int = 1, after: int = 0) -> None:
        """Let forward's queries after the next ones fail with one of QUERY_FAULTS."""
        assert fault in QUERY_FAULTS
        self._break("query", fault, times, after, 30.0)

    def clear_faults(self) -> None:
        """Let all statements succeed again, whatever an earlier test left."""
        for kind in ("insert", "query"):
            self._break(kind, "cut", times=0, after=0, seconds=30.0)

    def _break(self, kind: str, fault: str, times: int, after: int, seconds: float) -> None:
        fields = {"of": kind, "name": fault, "times": times, "after": after, "seconds": seconds}
        self._post("/fault?" + urlencode(fields))

    def faults_left(self) -> int:
        """Return the number of statements until the faults are over."""
        return int(self._post("/faults"))

    def rows(self, table: str = "logs", columns: str = "*") -> list[dict[str, Any]]:
        """Return all rows of a table."""
        answer = self.query(f"SELECT {columns} FROM {table} FORMAT JSONEachRow")
        return [json.loads(line) for line in answer.split("\n") if line]

    def count(self) -> int:
        """Return the number of rows in both tables."""
        answer = self.query(
            "SELECT (SELECT count() FROM logs) + (SELECT count() FROM logs_dead_letter)"
        )
        return int(answer)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


class Difference(NamedTuple):
    """The errors in the tables, by the places of their lines."""

    lost: list[Place]
    doubled: list[Place]
    foreign: list[Place]
    changed: list[Place]


def compare(clickhouse: ClickHouse, stored: dict[Place, bytes]) -> Difference:
    """Compare the tables with the stored lines."""
    rows = clickhouse.rows(columns="* EXCEPT timestamp, toString(timestamp) AS timestamp")
    dead = clickhouse.rows("logs_dead_letter")
    found = Counter(map(place_of, [*rows, *dead]))
    changed = [
        place
        for row in rows
        if (place := place_of(row)) in stored and not is_same(row, json.loads(stored[place]))
    ]
    changed += [
        place
        for row in dead
        if (place := place_of(row)) in stored and row["raw"].encode() != stored[place]
    ]
    return Difference(
        lost=sorted(stored.keys() - found.keys()),
        doubled=sorted(place for place, count in found.items() if count > 1),
        foreign=sorted(found.keys() - stored.keys()),
        changed=changed,
    )


def place_of(row: dict[str, Any]) -> Place:
    """Return the place of a row's line."""
    return row["node"], row["segment"], int(row["line"])


def is_same(row: dict[str, Any], log: dict[str, Any]) -> bool:
    """Return whether a row has the same values as a log."""
    day, _, rest = log["timestamp"].removesuffix("Z").partition("T")
    seconds, _, fraction = rest.partition(".")
    expected = {
        **log,
        "timestamp": f"{day} {seconds}.{fraction:0<9}",
        "metadata": log.get("metadata"),
    }
    actual = {name: row[name] for name in expected}
    actual["metadata"] = json.loads(row["metadata"]) if row["metadata"] else None
    return actual == expected and repr(actual["metadata"]) == repr(expected["metadata"])


def stored_lines(node: str, paths: Iterable[Path]) -> Iterator[tuple[Place, bytes]]:
    """Yield each line of segment files, with the expected place of its row."""
    for path in one_form_each(paths):
        segment = path.name.partition(".ndjson")[0]
        for number, line in enumerate(read_segment(path).split(b"\n")[:-1], 1):
            yield (node, segment, number), line


class Forward:
    """A process of `astralog forward`."""

    def __init__(
        self,
        directory: Path,
        url: str,
        data_dir: Path,
        log_name: str = "forward.log",
        **settings: object,
    ) -> None:
        self._log_path = directory / log_name
        self.data_dir = data_dir
        self._environ = {
            name: value for name, value in os.environ.items() if not name.startswith("ASTRALOG_")
        }
        self.set(clickhouse_url=url, data_dir=data_dir, node="node-1")
        self.set(**settings)
        #: How long it waits for a replica, if not as long as it does for users.
        self.replica_seconds: float | None = None
        self.process: LaunchedProcess | subprocess.Popen[bytes]

    def set(self, **settings: object) -> None:
        """Change settings for the next start; None is the default."""
        for name, value in settings.items():
            self._environ.pop("ASTRALOG_" + name.upper(), None)
            if value is not None:
                self._environ["ASTRALOG_" + name.upper()] = str(value)

    def _command(self) -> list[str]:
        if self.replica_seconds is None:
            return [str(Path(sys.executable).parent / "astralog")]
        code = (
            "import astralog.cli, astralog.forward.delivery as delivery; "
            f"delivery.REPLICA_SECONDS = {self.replica_seconds}; astralog.cli.main()"
        )
        return [sys.executable, "-c", code]

    def start(self, *arguments: str, stderr: int | None = None) -> Self:
        """Start it and return at once; its stderr goes to its log unless another file is given."""
        command = [*self._command(), "forward", *arguments]
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            if self.replica_seconds is None and stderr is None:
                self.process = launch(ROOT, FORWARD, command, self._environ, log)
            else:
                self.process = subprocess.Popen(
                    command, cwd=ROOT, env=self._environ, stdout=log, stderr=stderr or log
                )
        return self

    def run_once(self, timeout: float = TIMEOUT_SECONDS) -> int:
        """Deliver the sealed segments, and return the exit status."""
        with self.start("--once"):
            return self.wait(timeout)

    def wait(self, timeout: float = TIMEOUT_SECONDS) -> int:
        """Wait for its end and return its exit status."""
        return self.process.wait(timeout)

    def stop(self) -> int:
        """Stop it as an operator would, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill it, whatever it is doing."""
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def log(self) -> str:
        """Return its log since it was last started."""
        return self._log_path.read_bytes()[self._log_start :].decode()

    def all_logs(self) -> str:
        """Return its whole log."""
        return self._log_path.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def wait_for_rows(clickhouse: ClickHouse, count: int, timeout: float = 3 * TIMEOUT_SECONDS) -> None:
    """Return when both tables have this number of rows; more is a failure."""
    wait_for(lambda: clickhouse.count() >= count, timeout)
    assert clickhouse.count() == count


def write_segment(directory: Path, lines: Iterable[bytes], number: int = 0) -> Path:
    """Write a sealed segment as the service does; a higher number is a later one."""
    path = directory / f"20261123T{number:06d}.000000Z-1.ndjson"
    draft = path.with_suffix(".draft")
    draft.write_bytes(b"".join(line + b"\n" for line in lines))
    draft.rename(path)
    return path


def make_line(number: int, **fields: Any) -> bytes:
    """Return a unique stored line."""
    log = {
        "project_id": "org-xyz",
        "timestamp": "2024-05-31T15:30:45.123Z",
        "level": "info",
        "service": "api-gateway",
        "message": f"line {number}",
        "metadata": {"number": number},
    }
    return json.dumps(log | fields, ensure_ascii=False, separators=(",", ":")).encode()


def damage_cursor(path: Path, damage: str) -> None:
    """Damage a cursor as a disk fault or an operator might."""
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garbled":
        path.write_bytes(content.replace(b"done", b"dune"))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other table":
        path.write_bytes(content.replace(b"/logs ", b"/dogs ", 1))
    else:
        path.rename(path.with_suffix(".old"))
        path.write_bytes(content)
