"""Searches of all logs, and streams of new ones, within a worker."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from astralog.view import log_search
from astralog.view.log_filter import LogFilter
from tests.support.tail import make_line, make_name, make_segment


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
