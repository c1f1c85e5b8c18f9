"""Hundreds of status pages, queries without results, and segments that vanish."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.bench import Bench, tally
from tests.faults.stall import watch_health
from tests.faults.table import Row
from tests.support.background import meanwhile
from tests.support.load import Load
from tests.support.processes import peak_bytes
from tests.support.service import TOKEN, Service
from tests.support.tail import make_line, make_name, make_segment

MIB = 1024 * 1024

#: Threads that load the pages, one after another, and those that search.
THREADS = 10
SEARCHERS = 4

#: Requests of a page, and of a search that reads as much as it may.
NUMBERS = "/status/data"
LOGS = "/status/logs?level=trace"
SEARCH = "/status/logs?q=nowhere+to+be+found"

#: Memory that pages may add to a worker.
MEMORY_BYTES = 96 * MIB


class Page:
    """A page that polls, and remembers the logs that it has shown."""

    def __init__(self, service: Service, row: Row) -> None:
        self._connection = http.client.HTTPConnection(*service.address, timeout=30)
        self._row = row
        self._seen: set[str] = set()
        self._after = ""

    def poll(self) -> None:
        """Load numbers and logs; no log may arrive twice."""
        self.ask(NUMBERS)
        answer = self.ask(LOGS + self._after)
        if answer is None:
            return
        page = json.loads(answer)
        ids = {log["id"] for log in page["logs"]}
        if ids & self._seen:
            self._row.fail("a page got a log twice")
        self._seen |= ids
        self._after = f"&after={page['after']}"

    def ask(self, path: str) -> bytes | None:
        """Return the response, None if the service is too busy."""
        self._connection.request("GET", path, headers={"Authorization": TOKEN})
        response = self._connection.getresponse()
        body = response.read()
        self._row.tried += 1
        if response.status not in (200, 503):
            self._row.fail(f"{path}: answered {response.status}")
        return body if response.status == 200 else None

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def run(bench: Bench, pages: int, segments: int, seconds: float) -> Iterator[Row]:
    """Have many pages open over a directory of many segments, while logs are drained."""
    row = Row(f"{pages} status pages and searches over {segments:,} segments that vanish")
    directory = bench.make_directory()
    sealed = [_make(directory / "data", number) for number in range(segments)]
    with Service(directory, workers=2) as service:
        memory = sum(map(peak_bytes, service.worker_pids()))
        load = Load(service, threads=2)
        with load, watch_health(service, row), meanwhile(lambda: _remove(sealed), 0.01):
            _look_on(service, row, pages, seconds)
        grown = sum(map(peak_bytes, service.worker_pids())) - memory
        if grown > 2 * MEMORY_BYTES:
            row.fail(f"the workers grew by {grown:,} bytes")
        if "Traceback" in service.log():
            row.fail("wrote a traceback")
        if service.stop() != 0:
            row.fail("did not stop with status 0")
        tally(row, load, [path for path in service.files() if path not in set(sealed)])
    bench.say(f"{row.what}: {row.tried} requests")
    yield row


def _make(data_dir: Path, number: int) -> Path:
    start = time.time() - 100_000 + number
    suffix = ".ndjson.zst" if number % 3 == 0 else ".ndjson"
    lines = [make_line(f"of {number}", start)] * 20
    return make_segment(data_dir, make_name(start, 1), *lines, suffix=suffix, changed=start)


def _remove(paths: list[Path]) -> None:
    """Remove the newest of the segments, which are those that are read."""
    if paths:
        paths.pop().unlink()


def _look_on(service: Service, row: Row, count: int, seconds: float) -> None:
    end = time.monotonic() + seconds

    def show(pages: list[Page]) -> None:
        for page in itertools.cycle(pages):
            if time.monotonic() > end:
                return
            page.poll()

    def search() -> None:
        page = Page(service, row)
        while time.monotonic() < end:
            page.ask(SEARCH)
        page.close()

    pages = [Page(service, row) for _ in range(count)]
    threads = [threading.Thread(target=show, args=[pages[n::THREADS]]) for n in range(THREADS)]
    threads += [threading.Thread(target=search) for _ in range(SEARCHERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for page in pages:
        page.close()
