"""The client shows its tables without its password, and classifies errors."""

import dataclasses
import io
import json
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from clickhouse_connect.driver.summary import QuerySummary

from astralog.forward.clickhouse import DATA_ERRORS, Held, Tables, Unacceptable, Unavailable
from astralog.settings import Settings
from tests.unit.forward.fakes import make_chunk

NAME = "20261123T062500.123456Z-4711"


def make_tables(client: Any = None) -> Tables:
    """Return tables with a client, or without one yet."""
    url = "https://someone:pass%40word@host:8443/db?verify=false"
    tables = Tables(Settings(clickhouse_url=url, node="nöde"))
    tables._client = client
    return tables


class Failing:
    """A client that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def raw_insert(self, *_: object, **__: object) -> None:
        """Fail."""
        raise self._error

    raw_stream = raw_insert


class Answer(io.BytesIO):
    """A server's response to a query."""

    def __init__(self, content: bytes, query_id: str | None) -> None:
        super().__init__(content)
        self.headers = {"X-ClickHouse-Query-Id": query_id} if query_id else {}


class Answering:
    """A client of a server that responds to queries with `answer`, and to inserts with `summary`.

    The response has the query's id unless another one is given.
    """

    def __init__(
        self,
        answer: bytes = b"",
        summary: dict[str, Any] | None = None,
        query_id: str | None = "the query's own",
    ) -> None:
        self._answer = answer
        self._summary = summary or {}
        self._query_id = query_id
        self.settings: dict[str, Any] = {}

    def raw_insert(
        self, table: str, columns: object, rows: Any, settings: dict[str, Any], row_format: str
    ) -> QuerySummary:
        """Accept the rows."""
        list(rows)
        return QuerySummary(self._summary | {"query_id": self._id_of(settings) or ""})

    def raw_stream(
        self, query: str, values: object, settings: dict[str, Any], row_format: str
    ) -> Answer:
        """Answer."""
        return Answer(self._answer, self._id_of(settings))

    def _id_of(self, settings: dict[str, Any]) -> str | None:
        self.settings = settings
        own = settings["query_id"]
        assert isinstance(own, str)
        return own if self._query_id == "the query's own" else self._query_id


def test_the_name_has_no_password() -> None:
    """Log and status contain neither user nor password nor options."""
    assert make_tables().name == "https://host:8443/db/logs"
    assert "pass" not in repr(Settings(clickhouse_url="http://a:pass@host/db"))
    settings = dataclasses.replace(Settings(), clickhouse_url="http://host:8123")
    assert Tables(settings).name == "http://host:8123/logs"


@pytest.mark.parametrize("code", sorted(DATA_ERRORS))
def test_data_that_does_not_fit_the_table(code: int) -> None:
    """Such an error is final for the rows, but not for dead letters."""
    tables = make_tables(Failing(DatabaseError("no", code=code)))
    chunk = make_chunk(NAME, b"{}")
    with pytest.raises(Unacceptable):
        tables.insert(chunk, [b"{}"], again=False)
    with pytest.raises(Unavailable):
        tables.insert_dead_letters(chunk, [], again=False)


@pytest.mark.parametrize("code", [None, 60, 159, 241, 243, 252, 516])
def test_any_other_error_may_pass(code: int | None) -> None:
    """A missing table, memory, disk or grant is not an error of the rows."""
    tables = make_tables(Failing(DatabaseError("no", code=code)))
    with pytest.raises(Unavailable) as raised:
        tables.insert(make_chunk(NAME, b"{}"), [b"{}"], again=False)
    assert raised.value.code == code
    with pytest.raises(Unavailable):
        tables.held(make_chunk(NAME, b"{}"))


def test_error_names_the_root_cause() -> None:
    """If there was no response, the message is the root cause in one short line."""
    error = OperationalError("Error executing HTTP request")
    error.__cause__ = ConnectionRefusedError(111, "Connection\n refused " + "x" * 1000)
    with pytest.raises(Unavailable, match=r"^\[Errno 111\] Connection refused x+$") as raised:
        make_tables(Failing(error)).held(make_chunk(NAME, b"{}"))
    assert len(str(raised.value)) <= 500


def insert(tables: Tables, again: bool = False) -> int:
    """Insert a row; return the number of written rows."""
    return tables.insert(make_chunk(NAME, b"{}"), [b"{}"], again)


def test_only_an_answer_with_the_querys_id_counts() -> None:
    """A page or another query's response is not an answer; the rows are in doubt."""
    summary = {"written_rows": "1"}
    assert insert(make_tables(Answering(summary=summary))) == 1
    good = b'{"data": [[[1]]], "rows": 1}'
    assert make_tables(Answering(good)).held(make_chunk(NAME, b"{}")) == {1}
    for query_id in (None, "logs/another"):
        with pytest.raises(Unavailable, match="no X-ClickHouse-Query-Id of this query"):
            insert(make_tables(Answering(summary=summary, query_id=query_id)))
        with pytest.raises(Unavailable, match="no X-ClickHouse-Query-Id of this query"):
            make_tables(Answering(good, query_id=query_id)).held(make_chunk(NAME, b"{}"))


@pytest.mark.parametrize(
    ("summary", "written"),
    [({}, 0), ({"written_rows": "0"}, 0), ({"written_rows": "7"}, 7), ({"read_rows": "1"}, 0)],
)
def test_written_rows_need_clickhouses_count(summary: dict[str, Any], written: int) -> None:
    """Without ClickHouse's own number, no row counts as written."""
    assert insert(make_tables(Answering(summary=summary))) == written


@pytest.mark.parametrize("written", ["x", None, [1], "-"])
def test_malformed_summary_is_ignored(written: object) -> None:
    """A value that is not a number is not an answer."""
    with pytest.raises(Unavailable):
        insert(make_tables(Answering(summary={"written_rows": written})))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1\n2\n",
        b"<html>Scheduled maintenance</html>",
        b'{"data": [[[1, 2]]], "rows": 1',
        b'{"data": [], "rows": 0}',
        b'{"data": [[[1]]], "rows": 2}',
        b'{"data": [[[1]]]}',
        b'{"rows": 1}',
        b'{"data": [[["x"]]], "rows": 1}',
        b'{"data": [[[1]]], "rows": 1, "exception": "Code: 241"}',
        b"[]",
        b"null",
        b"\xff",
        b'{"data": [[[1]]], "rows": 1}\nCode: 241. DB::Exception',
    ],
)
def test_truncated_or_foreign_answer_is_an_error(content: bytes) -> None:
    """Neither half an answer nor another server's shows the content of the table."""
    with pytest.raises(Unavailable):
        make_tables(Answering(content)).held(make_chunk(NAME, b"{}"))


def test_counts_of_segments() -> None:
    """Numbers may be quoted; segments that the table does not have are absent."""
    data = [["a", 3, 2, 7], ["b", "1", "1", "1"]]
    content = json.dumps({"meta": [], "data": data, "rows": 2}).encode()
    answer = make_tables(Answering(content)).count(["a", "b", "c"])
    assert answer == {"a": Held(3, 2, 7), "b": Held(1, 1, 1)}
    assert [answer["a"].is_whole, answer["b"].is_whole] == [False, True]


def test_tokens_and_ids() -> None:
    """A chunk always has the same token and id, and others for missing lines."""
    client = Answering()
    tables = make_tables(client)
    for again in (False, False, True):
        insert(tables, again)
        token = f"nöde/{NAME}/0-3" + "/again" * again
        assert client.settings["insert_deduplication_token"] == token
        assert client.settings["query_id"] == "logs/" + token.replace("ö", "%C3%B6")


def test_error_names_the_deadline() -> None:
    """It is reported as a timeout, not as the error that it caused."""
    error = TimeoutError("no complete answer within 60 s")
    with pytest.raises(Unavailable, match="^no complete answer within 60 s$"):
        insert(make_tables(Failing(error)))
