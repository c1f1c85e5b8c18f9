"""Searches of all logs, and streams of new ones, within a worker."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from astralog.store import reader
from astralog.view import log_search
from astralog.view.log_filter import LogFilter
from tests.support.tail import make_line, make_name, make_segment


def test_read_of_a_stream_has_a_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest comes with the next ones."""
    monkeypatch.setattr(log_search, "MAX_STREAM_BYTES", 300)
    stream = log_search.LogStream(tmp_path, LogFilter())
    stream.start()
    lines = [make_line(f"m{number}") for number in range(10)]
    make_segment(tmp_path, make_name(0), *lines)
    reads = [stream.read(1.0) for _ in range(10)]
    assert [line for read in reads for line in read] == [line.rstrip() for line in lines]
    assert 1 <= max(map(len, reads)) <= 3
    stream.close()


def test_read_of_a_stream_ends_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest comes with the next ones."""
    monkeypatch.setattr(log_search, "_sleep", lambda seconds: None)
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=count().__next__))
    stream = log_search.LogStream(tmp_path, LogFilter())
    stream.start()
    lines = [make_line(f"m{number}", number) for number in range(5)]
    for number, line in enumerate(lines):
        make_segment(tmp_path, make_name(number), line, changed=number)
    reads = [stream.read(0.5) for _ in range(10)]
    assert [line for read in reads for line in read] == [line.rstrip() for line in lines]
    assert max(map(len, reads)) < 5
    stream.close()


def test_find_returns_little_more_than_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_search, "MAX_PAGE_BYTES", 300)
    make_segment(tmp_path, make_name(0), *[make_line(f"m{number}") for number in range(10)])
    found = log_search.LogSearch(tmp_path, b"secret").find(LogFilter(), 10, 60.0)
    assert 1 <= len(found.lines) <= 3
    assert found.rest


def test_find_ends_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on there with the next call."""
    monkeypatch.setattr(log_search, "_sleep", lambda seconds: None)
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=count().__next__))
    for number in range(5):
        make_segment(tmp_path, make_name(number), make_line(f"m{number}", number), changed=number)
    logs = log_search.LogSearch(tmp_path, b"secret")
    found = logs.find(LogFilter(text="m0"), 10, 0.5)
    calls = 1
    while found.rest and not found.lines:
        found = logs.find(LogFilter(text="m0"), 10, 0.5, found.rest)
        calls += 1
    assert len(found.lines) == 1
    assert calls > 2


def test_stream_does_not_sleep_for_the_time_between_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a client that did not read for long; other searches would wait for it."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("astralog.deadlines.time", clock)
    sleeps: list[float] = []
    monkeypatch.setattr(log_search, "_sleep", sleeps.append)
    stream = log_search.LogStream(tmp_path, LogFilter())
    stream.start()
    line = make_line("new")
    make_segment(tmp_path, make_name(0), line)
    clock.monotonic = lambda: 100.0
    assert stream.read(1.0) == [line.rstrip()]
    assert not sleeps
    stream.close()
