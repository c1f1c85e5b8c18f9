import json
from typing import Any

import pytest

from astralog.errors import Rejection
from astralog.intake import timestamps
from astralog.intake.schema import LogSchema
from tests.support.decoding import encode_batch
from tests.support.service import make_log

UNKNOWN = "Unknown field; put extra context under metadata."
MISSING = "Missing data for required field."
EMPTY = "Must not be empty."
NOT_A_STRING = "Not a valid string."


def load(*logs: Any) -> list[Any]:
    """Load a batch and return its logs in their stored form."""
    return load_json(json.dumps({"logs": logs}).encode())


def load_json(body: bytes) -> list[Any]:
    return [json.loads(line) for line in encode_batch(body).lines.splitlines()]


def rejection_of(*logs: Any) -> Rejection:
    with pytest.raises(Rejection) as rejected:
        load(*logs)
    assert "invalid_batch" == rejected.value.code
    return rejected.value


def errors_of(*logs: Any) -> Any:
    """Return the errors of a batch by the index of each log."""
    errors = rejection_of(*logs).errors
    assert errors is not None
    return errors["logs"]


def without(name: str) -> dict[str, Any]:
    """Return a log without a field."""
    return {key: value for key, value in make_log().items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"message": ""},
        {"message": "\0\n\r\u2028\U0001f600\ufeff"},
        {"level": "anything at all"},
        {"project_id": " "},
        {"metadata": {}},
        {"metadata": {"": None, "a": [1, 2.5, True, {"b": []}]}},
        {"metadata": {"n": 10**30, "m": 2**64, "k": -(2**63) - 1, "z": 0, "f": 1e300}},
        {"metadata": {"logs": [], "timestamp": "never"}},
    ],
    ids=str,
)
def test_a_log_is_stored_as_sent(change: dict[str, Any]) -> None:
    """Every value of a valid log is unchanged."""
    assert [make_log(**change)] == load(make_log(**change))


def test_fields_are_stored_in_one_order() -> None:
    """The fields of a stored line are in a fixed order, however they were sent."""
    (log,) = load(dict(reversed(make_log().items())))
    assert list(LogSchema().fields) == list(log)


@pytest.mark.parametrize("log", [make_log(metadata=None), without("metadata")])
def test_metadata_that_is_null_or_absent_is_left_out(log: dict[str, Any]) -> None:
    """Neither is stored."""
    assert [without("metadata")] == load(log)


def test_a_timestamp_is_stored_in_utc() -> None:
    """Only the timestamp is not stored as sent."""
    logs = load(make_log(timestamp="2024-05-31 15:30:45.10+02:00"), make_log())
    assert ["2024-05-31T13:30:45.10Z", "2024-05-31T15:30:45Z"] == [log["timestamp"] for log in logs]


def test_empty_batch_is_accepted() -> None:
    """A batch may have no logs."""
    assert [] == load()


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (make_log(project_id=""), {"project_id": [EMPTY]}),
        (make_log(level=""), {"level": [EMPTY]}),
        (make_log(service=""), {"service": [EMPTY]}),
        (make_log(project_id=5), {"project_id": [NOT_A_STRING]}),
        (make_log(level=True), {"level": [NOT_A_STRING]}),
        (make_log(service=["a"]), {"service": [NOT_A_STRING]}),
        (make_log(message={}), {"message": [NOT_A_STRING]}),
        (make_log(timestamp=1717169445), {"timestamp": [timestamps.EXPECTED]}),
        (make_log(message=None), {"message": ["Field may not be null."]}),
        (make_log(timestamp=None), {"timestamp": ["Field may not be null."]}),
        (make_log(timestamp="2023-02-29"), {"timestamp": ["No such date: 2023-02-29."]}),
        (without("project_id"), {"project_id": [MISSING]}),
        (without("timestamp"), {"timestamp": [MISSING]}),
        (without("level"), {"level": [MISSING]}),
        (without("service"), {"service": [MISSING]}),
        (without("message"), {"message": [MISSING]}),
        (make_log(metadata=[]), {"metadata": ["Not an object."]}),
        (make_log(metadata="{}"), {"metadata": ["Not an object."]}),
        (make_log(metadata=0), {"metadata": ["Not an object."]}),
        (make_log(host="a"), {"host": [UNKNOWN]}),
        (make_log(Message="a"), {"Message": [UNKNOWN]}),
        (make_log(level="", host=1), {"level": [EMPTY], "host": [UNKNOWN]}),
        ("a line", {"_schema": ["Not an object."]}),
        ([], {"_schema": ["Not an object."]}),
        (None, {"_schema": ["Not an object."]}),
        (5, {"_schema": ["Not an object."]}),
    ],
    ids=str,
)
def test_invalid_log_is_described_by_its_index(log: Any, expected: Any) -> None:
    """It rejects the batch, and is described under its index and field."""
    rejected = rejection_of(make_log(), log, make_log())
    assert {"logs": {1: expected}} == rejected.errors
    assert "1 of 3 logs are invalid; nothing was stored" == rejected.message


@pytest.mark.parametrize("text", ["1717120112345", "2024-05-31_15:30:45", "10", "Monday", ""])
def test_invalid_timestamp_is_rejected(text: str) -> None:
    """The message shows the accepted forms."""
    message = errors_of(make_log(timestamp=text))[0]["timestamp"][0]
    assert message.startswith("Not a timestamp.")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", "_schema"),
        (b"null", "_schema"),
        (b'"logs"', "_schema"),
        (b"5", "_schema"),
        (b"{}", "logs"),
        (b'{"logs": null}', "logs"),
        (b'{"logs": {}}', "logs"),
        (b'{"logs": "[]"}', "logs"),
        (b'{"logs": [], "more": 1}', "more"),
        (b'{"Logs": []}', "Logs"),
    ],
)
def test_json_that_is_no_batch_is_described(body: bytes, field: str) -> None:
    """The rejection explains the form of a batch."""
    with pytest.raises(Rejection) as rejected:
        encode_batch(body)
    assert "invalid_batch" == rejected.value.code
    assert rejected.value.message.endswith("; nothing was stored")
    assert rejected.value.errors is not None
    assert field in rejected.value.errors


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"logs": []} x',
        b'{"logs": [}',
        b"\xff",
        b'{"logs":' + b"[" * 100_000,
        b'{"logs":[{"metadata":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}]}",
    ],
    ids=lambda body: str(body)[:20],
)
def test_invalid_json_is_no_invalid_batch(body: bytes) -> None:
    """The two have different codes."""
    with pytest.raises(Rejection) as rejected:
        encode_batch(body)
    assert "invalid_json" == rejected.value.code


@pytest.mark.parametrize(("malformed", "described"), [(19, 19), (20, 20), (21, 20), (60, 20)])
def test_first_twenty_invalid_logs_are_described(malformed: int, described: int) -> None:
    """All invalid logs are counted."""
    logs = [make_log(level="") if i % 2 else make_log() for i in range(2 * malformed)]
    rejected = rejection_of(*logs)
    expected = f"{malformed} of {2 * malformed} logs are invalid; nothing was stored"
    assert expected == rejected.message
    assert [2 * i + 1 for i in range(described)] == list(errors_of(*logs))


@pytest.mark.parametrize(
    ("malformed", "expected"),
    [
        (999, "999 of 1500 logs are invalid"),
        (1000, "At least 1000 of 1500 logs are invalid"),
        (1500, "At least 1000 of 1500 logs are invalid"),
    ],
)
def test_counting_ends_at_a_thousand(malformed: int, expected: str) -> None:
    """A batch of only invalid logs takes no more time than a thousand of them."""
    logs = [make_log(level="")] * malformed + [make_log()] * (1500 - malformed)
    assert f"{expected}; nothing was stored" == rejection_of(*logs).message


@pytest.mark.parametrize(("unknown", "described"), [(20, 20), (21, 20), (5000, 20)])
def test_the_first_twenty_fields_of_a_log_are_described(unknown: int, described: int) -> None:
    """A log of only unknown fields does not make a rejection larger than the batch."""
    errors = errors_of(make_log() | {f"x{number}": 1 for number in range(unknown)})
    assert described == len(errors[0])


def test_a_thousand_of_a_thousand_is_the_whole_count() -> None:
    """If the last log is the thousandth invalid one, the count is complete."""
    rejected = rejection_of(*[make_log(level="")] * 1000)
    assert "1000 of 1000 logs are invalid; nothing was stored" == rejected.message


def test_a_rejection_does_not_repeat_long_texts() -> None:
    """Neither a long name nor a long value makes a rejection as large as the batch."""
    long_name, long_time = "x" * 100_000, "2024-05-31T25:00:00." + "1" * 100_000 + "Z"
    errors = errors_of(make_log(timestamp=long_time) | {long_name: 1})
    assert {"timestamp", "x" * 100} == set(errors[0])
    assert errors[0]["timestamp"][0].startswith("No such time of day")
    assert len(json.dumps(errors)) < 1000
    with pytest.raises(Rejection) as rejected:
        encode_batch(json.dumps(dict.fromkeys(map(str, range(1000)), 1)).encode())
    assert 20 == len(rejected.value.errors or {})
