import json
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from astralog import deadlines
from astralog.store import recent
from astralog.store.reader import BLOCK_BYTES, ReadBudget
from astralog.view import log_search, recent_logs
from astralog.view.log_filter import LogFilter
from astralog.view.recent_logs import MAX_LOGS, NAME_CHARACTERS, TEXT_CHARACTERS, RecentLogs
from astralog.view.sealer import Sealer
from tests.support.tail import make_line, make_name, make_segment

NOW = 1_700_000_000.0
SECRET = b"s" * 32
NAME = make_name(NOW)


def logs_of(data_dir: Path) -> RecentLogs:
    """Return the logs of a directory, of which the largest has 100 KB."""
    return RecentLogs(data_dir, 100_000, SECRET)


def poll(
    data_dir: Path,
    wanted: LogFilter | None = None,
    after: str | None = None,
    *,
    is_bound: bool = False,
) -> Any:
    """Return the result of one poll."""
    return json.loads(logs_of(data_dir).poll(wanted or LogFilter(), after, is_bound=is_bound))


def test_a_log_is_shown_with_its_fields(tmp_path: Path) -> None:
    """As stored, with the rank of its level, and an id for the whole log."""
    line = make_line("a\nb\0", NOW, level="WARN", metadata={"x": [1.50]})
    make_segment(tmp_path, NAME, make_line("older", NOW, level="audit"), line)
    page = poll(tmp_path)
    newest, older = page["logs"]
    assert page["is_all"]
    assert newest["bytes"] + older["bytes"] + 2 == page["searched_bytes"]
    assert ("older", None, "audit") == (older["message"], older["rank"], older["level"])
    assert {
        "id": newest["id"],
        "timestamp": "2023-11-14T22:13:20.000000Z",
        "level": "WARN",
        "rank": 4,
        "project_id": "org-xyz",
        "service": "api-gateway",
        "message": "a\nb\0",
        "metadata": '{"x":[1.5]}',
        "bytes": len(line) - 1,
        "is_shortened": False,
    } == newest
    whole = logs_of(tmp_path).find(LogFilter(), newest["id"])
    assert whole
    assert newest == json.loads(whole)


@pytest.mark.parametrize(
    "fields",
    [
        {"message": "x" * (TEXT_CHARACTERS + 1)},
        {"metadata": {"x": "y" * TEXT_CHARACTERS}},
        {"service": "s" * (NAME_CHARACTERS + 1)},
    ],
)
def test_long_texts_are_shortened(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The whole log is available by its id."""
    line = make_line(**{"message": "m", **fields})
    make_segment(tmp_path, NAME, line)
    (log,) = poll(tmp_path)["logs"]
    assert log["is_shortened"]
    assert len(json.dumps(log)) < 2 * TEXT_CHARACTERS + 1000
    whole = json.loads(logs_of(tmp_path).find(LogFilter(), log["id"]) or b"")
    stored = json.loads(line)
    assert (False, stored["message"], stored["service"], stored["metadata"]) == (
        whole["is_shortened"],
        whole["message"],
        whole["service"],
        json.loads(whole["metadata"]),
    )


def test_a_page_is_bounded(tmp_path: Path) -> None:
    """Of many logs the newest are returned, with a note that there are others."""
    make_segment(tmp_path, NAME, *(make_line(f"{n}", NOW) for n in range(MAX_LOGS + 1)))
    page = poll(tmp_path)
    assert ["100", "1"] == [page["logs"][place]["message"] for place in (0, -1)]
    assert not page["is_all"]


def test_line_that_is_no_log_needs_an_unbound_token(tmp_path: Path) -> None:
    """Its text is the message; bound tokens and filters do not get it."""
    make_segment(tmp_path, NAME, b'{"torn\xff' + b"x" * 10_000 + b"\n")
    (log,) = poll(tmp_path)["logs"]
    assert log["message"].startswith('{"torn\ufffdxxx')
    assert (None, "", TEXT_CHARACTERS) == (log["rank"], log["level"], len(log["message"]))
    for wanted in (LogFilter(projects={"org-xyz"}), LogFilter(text="torn")):
        assert [] == poll(tmp_path, wanted)["logs"]
    assert logs_of(tmp_path).find(LogFilter(), log["id"]) is None


def test_a_token_sees_its_projects_alone(tmp_path: Path) -> None:
    """Also for whole logs, since it may guess their ids."""
    make_segment(tmp_path, NAME, make_line("mine", NOW, project_id="a"), make_line("x", NOW))
    bound = LogFilter(projects={"a"})
    assert ["mine"] == [log["message"] for log in poll(tmp_path, bound)["logs"]]
    mine, other = reversed([log["id"] for log in poll(tmp_path)["logs"]])
    assert logs_of(tmp_path).find(bound, mine)
    assert logs_of(tmp_path).find(bound, other) is None
    assert [] == poll(tmp_path, LogFilter(projects=set()))["logs"]


@pytest.mark.parametrize("others", [0, 1, 50])
def test_bound_token_is_not_affected_by_others(tmp_path: Path, others: int) -> None:
    """Ids and cursors contain no sizes or positions of others' logs."""
    bound = LogFilter(projects={"a"})
    mine = [make_line(f"mine {number}", NOW, project_id="a") for number in range(2)]
    theirs = [make_line("x" * 1000, NOW)] * others
    path = make_segment(tmp_path, NAME, *theirs, mine[0], *theirs, suffix=".ndjson.open")
    page = poll(tmp_path, bound, is_bound=True)
    assert (True, None) == (page["is_all"], page["searched_bytes"])
    with path.open("ab") as file:
        file.writelines([*theirs, mine[1], *theirs])
    then = poll(tmp_path, bound, page["after"], is_bound=True)
    assert (True, None) == (then["is_all"], then["searched_bytes"])
    logs = [*page["logs"], *then["logs"]]
    assert ["mine 0", "mine 1"] == [log["message"] for log in logs]
    assert 1 == len({len(log["id"]) for log in logs})
    assert 1 == len({len(each["after"]) for each in (page, then)})
    for text in [page["after"], then["after"], *[log["id"] for log in logs]]:
        assert NAME not in text
        assert ":" not in text


class BoundPage:
    """Poll like a page with a token bound to one project; `messages` are newest first."""

    def __init__(self, data_dir: Path) -> None:
        self.messages: list[str] = []
        self._data_dir = data_dir
        self._after: str | None = None
        self._gap_at = 0

    def poll(self) -> Any:
        """Return the next answer."""
        page = poll(self._data_dir, LogFilter(projects={"a"}), self._after, is_bound=True)
        messages = [log["message"] for log in page["logs"]]
        older = page["older"]
        new = len(messages) - (older["count"] if older else 0)
        self.messages[:0] = messages[:new]
        self._gap_at += new
        if older:
            self.messages[self._gap_at : self._gap_at] = messages[new:]
            self._gap_at += older["count"]
        if not older or older["is_done"]:
            self._gap_at = 0
        self._after = page["after"]
        return page

    def poll_to_the_end(self) -> Any:
        """Poll until no older logs are searched; return the last answer."""
        for _ in range(200):
            page = self.poll()
            if not page["older"] or page["older"]["is_done"]:
                return page
        raise AssertionError("the search for older logs does not end")


@pytest.fixture
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit a poll to 200 kB and eight segments."""
    monkeypatch.setattr(recent_logs, "READ_BYTES", 100_000)
    monkeypatch.setattr(recent, "MAX_SEGMENTS", 8)
    monkeypatch.setattr(recent, "LIST_SECONDS", 0)
    monkeypatch.setattr(log_search, "_sleep", lambda seconds: None)


def make_logs(data_dir: Path, at: float, *own: str, others: int, suffix: str) -> None:
    """Write a segment of one project's logs behind those of another one, 1 kB each."""
    lines = [make_line("x" * 1000, at)] * others
    lines += [make_line(message, at, project_id="a") for message in own]
    make_segment(data_dir, make_name(at), *lines, suffix=suffix, changed=at + 0.5)


@pytest.mark.usefixtures("_small_reads")
@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.zst", ".ndjson.open"])
@pytest.mark.parametrize("others", [0, 100])
def test_logs_of_others_hide_no_log_of_a_bound_token(
    tmp_path: Path, suffix: str, others: int
) -> None:
    """Neither those stored before the first poll, nor those between two polls."""
    made = 0

    def make(count: int) -> None:
        nonlocal made
        for _ in range(count):
            make_logs(tmp_path, now + made, f"{made}", others=others, suffix=suffix)
            make_logs(tmp_path, now + made + 0.5, others=others, suffix=suffix)
            made += 1

    now = time.time()
    page = BoundPage(tmp_path)
    make(10)
    page.poll()
    make(1)
    page.poll_to_the_end()
    page.poll_to_the_end()
    assert page.messages == [f"{number}" for number in reversed(range(11))]
    make(10)
    page.poll()
    make(1)
    page.poll_to_the_end()
    page.poll_to_the_end()
    assert page.messages == [f"{number}" for number in reversed(range(22))]
    assert page.poll()["older"] is None
    assert made == len(page.messages)


@pytest.mark.usefixtures("_small_reads")
@pytest.mark.parametrize("others", [0, 10])
def test_bound_token_gets_its_logs_whatever_others_send(tmp_path: Path, others: int) -> None:
    """A continued search ends once the newest are found, and indicates that there are others."""
    now = time.time()
    page = BoundPage(tmp_path)
    for count in (1, 2):
        for number in range(MAX_LOGS + 10):
            at = now + 1000 * count + number
            make_logs(tmp_path, at, f"{count}-{number}", others=others, suffix=".ndjson")
        last = page.poll_to_the_end()
        assert count * MAX_LOGS == len(page.messages)
        assert [f"{count}-{MAX_LOGS + 9}", f"{count}-10"] == [
            page.messages[place] for place in (0, MAX_LOGS - 1)
        ]
        assert not last["is_all"] or last["older"]["has_more"]


@pytest.mark.usefixtures("_small_reads")
def test_a_poll_in_a_gap_reads_no_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit does not depend on the amount that others have sent."""
    budgets: list[ReadBudget] = []

    def make_budget(*args: Any, **kwargs: Any) -> ReadBudget:
        budgets.append(ReadBudget(*args, **kwargs))
        return budgets[-1]

    monkeypatch.setattr(recent_logs, "ReadBudget", make_budget)
    for number in range(20):
        make_logs(tmp_path, NOW + number, others=200, suffix=".ndjson")
    page = BoundPage(tmp_path)
    page.poll_to_the_end()
    assert 20 < len(budgets)
    assert max(budget.bytes_read for budget in budgets) < 200_000 + 2 * BLOCK_BYTES


@pytest.mark.usefixtures("_small_reads")
def test_the_cursor_of_a_gap_fits_into_a_request_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of so many segments at once that a cursor follows no more, and of many older ones."""
    monkeypatch.setattr(recent, "MAX_SEGMENTS", 256)
    now = time.time()
    for number in range(200):
        make_logs(tmp_path, now - 999 + number, others=1, suffix=".ndjson")
    chance = random.Random(3)
    page = BoundPage(tmp_path)
    for _ in range(3):
        for pid in range(1, recent.MAX_FOLLOWED + 1):
            path = tmp_path / f"{make_name(now - 5 + pid * 0.0567, pid)}.ndjson.open"
            with path.open("ab") as file:
                file.write(make_line("x" * chance.randrange(5000, 15_000), now))
        answer = page.poll()
        assert not answer["older"]["is_done"]
        assert len(answer["after"]) < 3000


def test_cursor_does_not_show_whether_logs_arrived(tmp_path: Path) -> None:
    """The next cursor always differs."""
    make_segment(tmp_path, NAME, make_line("x", NOW), suffix=".ndjson.open")
    assert poll(tmp_path)["after"] != poll(tmp_path)["after"]


@pytest.mark.usefixtures("_small_reads")
@pytest.mark.parametrize(("others", "is_found"), [(100, True), (2000, False)])
def test_a_whole_log_is_found_within_the_limit(
    tmp_path: Path, others: int, *, is_found: bool
) -> None:
    """A compressed segment is read from its beginning, but not beyond that."""
    lines = [make_line("x" * 1000, NOW)] * others
    make_segment(tmp_path, NAME, *lines, make_line("y", NOW), suffix=".ndjson.zst")
    offset = sum(map(len, lines)) + len(make_line("y", NOW))
    logs = logs_of(tmp_path)
    id = Sealer(SECRET).seal(f"{NAME}:{offset:016}")
    assert (logs.find(LogFilter(), id) is not None) == is_found


def test_cursor_of_another_service_is_invalid(tmp_path: Path) -> None:
    """Knowing its form is not enough to make one."""
    make_segment(tmp_path, NAME, make_line("x", NOW))
    other = RecentLogs(tmp_path, 100_000, b"o" * 32)
    after = json.loads(other.poll(LogFilter(), None))["after"]
    for text in (after, f"0,{NAME}:0", ""):
        with pytest.raises(ValueError):  # noqa: PT011  # of several kinds
            poll(tmp_path, after=text)


@pytest.mark.parametrize(
    "id",
    [
        "",
        ":",
        "x:1",
        f"{NAME}:",
        f"{NAME}:-1",
        f"{NAME}:9",
        f"{NAME}:٣",
        f"{NAME}:{'9' * 5000}",
        "../x:1",
    ],
)
def test_invalid_id_finds_nothing(tmp_path: Path, id: str) -> None:
    """Clients may send any text."""
    make_segment(tmp_path, NAME, make_line("x", NOW))
    assert logs_of(tmp_path).find(LogFilter(), id) is None


def test_damaged_segment_is_skipped(tmp_path: Path) -> None:
    """The others are shown; no log of the damaged one is found."""
    make_segment(tmp_path, NAME, make_line("x", NOW))
    damaged = make_segment(tmp_path, make_name(NOW, 2), make_line("y", NOW), suffix=".ndjson.zst")
    damaged.write_bytes(damaged.read_bytes()[:-5] + b"?????")
    assert ["x"] == [log["message"] for log in poll(tmp_path)["logs"]]
    assert logs_of(tmp_path).find(LogFilter(), f"{make_name(NOW, 2)}:9") is None


def test_a_large_log_does_not_hide_the_others(tmp_path: Path) -> None:
    """The largest accepted log fits into one poll."""
    make_segment(tmp_path, NAME, make_line("older", NOW), make_line("x" * 99_000, NOW))
    large, older = poll(tmp_path)["logs"]
    assert ("older", True, TEXT_CHARACTERS) == (
        older["message"],
        large["is_shortened"],
        len(large["message"]),
    )


def test_a_search_reads_no_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search without results does not read everything; the response indicates that."""
    monkeypatch.setattr(recent_logs, "READ_BYTES", 100_000)
    monkeypatch.setattr(log_search, "_sleep", lambda seconds: None)
    make_segment(tmp_path, NAME, *[make_line("x" * 1000, NOW)] * 2000)
    page = poll(tmp_path, LogFilter(text="nowhere"))
    assert ([], False) == (page["logs"], page["is_all"])
    assert 200_000 <= page["searched_bytes"] < 800_000


def test_a_search_sleeps_most_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of the worker wait while its thread computes."""
    worked = 0.0
    slept: list[float] = []

    def compute() -> float:
        """Return the time, after some work since the last call."""
        nonlocal worked
        worked += 0.3 * log_search.WORK_SECONDS
        return worked + sum(slept)

    monkeypatch.setattr(log_search, "_sleep", slept.append)
    monkeypatch.setattr(deadlines, "time", SimpleNamespace(monotonic=compute))
    make_segment(tmp_path, NAME, *[make_line("x" * 1000, NOW)] * 5000)
    page = poll(tmp_path, LogFilter(text="nowhere"))
    assert [] == page["logs"]
    assert sum(slept) > 2 * worked
    assert max(slept) < 0.1
