"""The client names its tables without its password, and tells errors apart."""

import dataclasses

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from astralog.forward.client import DATA_ERRORS, Tables, Unacceptable, Unavailable
from astralog.settings import Settings
from tests.unit.forward.fakes import make_chunk

NAME = "20261123T062500.123456Z-4711"


def make_tables(error: Exception | None = None) -> Tables:
    """Return tables whose client fails with an error, or is not connected."""
    url = "https://someone:pass%40word@host:8443/db?verify=false"
    tables = Tables(Settings(clickhouse_url=url, node="n"))
    if error:
        tables._client = Failing(error)  # type: ignore[assignment]
    return tables


class Failing:
    """A client that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def raw_insert(self, *_: object, **__: object) -> None:
        """Fail."""
        raise self._error

    raw_query = raw_insert


def test_the_name_has_no_password() -> None:
    """Neither user nor password nor option is in what is shown and kept."""
    assert make_tables().name == "https://host:8443/db/logs"
    assert "pass" not in repr(Settings(clickhouse_url="http://a:pass@host/db"))
    settings = dataclasses.replace(Settings(), clickhouse_url="http://host:8123")
    assert Tables(settings).name == "http://host:8123/logs"


@pytest.mark.parametrize("code", sorted(DATA_ERRORS))
def test_data_that_a_table_cannot_hold(code: int) -> None:
    """Such an error is final for the rows, but not for lines as they are."""
    tables = make_tables(DatabaseError("no", code=code))
    chunk = make_chunk(NAME, b"{}")
    with pytest.raises(Unacceptable):
        tables.insert(chunk, [b"{}"])
    with pytest.raises(Unavailable):
        tables.insert_dead_letters(chunk, [])


@pytest.mark.parametrize("code", [None, 60, 159, 241, 243, 252, 516])
def test_any_other_error_may_pass(code: int | None) -> None:
    """No table, no memory, no disk, no right: what does not fit is something else."""
    tables = make_tables(DatabaseError("no", code=code))
    with pytest.raises(Unavailable) as raised:
        tables.insert(make_chunk(NAME, b"{}"), [b"{}"])
    assert raised.value.code == code
    with pytest.raises(Unavailable):
        tables.held(make_chunk(NAME, b"{}"))


def test_the_cause_is_told() -> None:
    """Where there was no answer, it is the reason that is told, in one short line."""
    error = OperationalError("Error executing HTTP request")
    error.__cause__ = ConnectionRefusedError(111, "Connection\n refused " + "x" * 1000)
    with pytest.raises(Unavailable, match=r"^\[Errno 111\] Connection refused x+$") as raised:
        make_tables(error).held(make_chunk(NAME, b"{}"))
    assert len(str(raised.value)) <= 500
