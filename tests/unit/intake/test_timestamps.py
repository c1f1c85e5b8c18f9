import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.intake.timestamps import EXPECTED, normalise, normalise_all

ACCEPTED = [
    # RFC 3339
    ("2024-05-31T15:30:45Z", "2024-05-31T15:30:45Z"),
    ("2024-05-31t15:30:45z", "2024-05-31T15:30:45Z"),
    ("2024-05-31T15:30:45+00:00", "2024-05-31T15:30:45Z"),
    ("2024-05-31T15:30:45-00:00", "2024-05-31T15:30:45Z"),
    ("2024-05-31T15:30:45+02:00", "2024-05-31T13:30:45Z"),
    ("2024-05-31T15:30:45-05:30", "2024-05-31T21:00:45Z"),
    ("2024-05-31T23:30:45-23:59", "2024-06-01T23:29:45Z"),
    ("2024-01-01T00:00:00+00:01", "2023-12-31T23:59:00Z"),
    ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00Z"),
    # fractions, digit for digit
    ("2024-05-31T15:30:45.1Z", "2024-05-31T15:30:45.1Z"),
    ("2024-05-31T15:30:45.123456Z", "2024-05-31T15:30:45.123456Z"),
    ("2024-05-31T15:30:45.123456789Z", "2024-05-31T15:30:45.123456789Z"),
    ("2024-05-31T15:30:45.100000000+02:00", "2024-05-31T13:30:45.100000000Z"),
    ("2024-05-31T15:30:45.000Z", "2024-05-31T15:30:45.000Z"),
    ("2024-05-31T15:30:45.9999999999Z", "2024-05-31T15:30:45.9999999999Z"),
    ("2024-05-31T15:30:45,5Z", "2024-05-31T15:30:45.5Z"),
    ("2024-05-31T15:30:45." + "7" * 300 + "Z", "2024-05-31T15:30:45." + "7" * 300 + "Z"),
    # ISO 8601: calendar, week and ordinal dates, extended and basic
    ("2024-05-31", "2024-05-31T00:00:00Z"),
    ("20240531", "2024-05-31T00:00:00Z"),
    ("2024-W22-5", "2024-05-31T00:00:00Z"),
    ("2024W225", "2024-05-31T00:00:00Z"),
    ("2024-152", "2024-05-31T00:00:00Z"),
    ("2024152", "2024-05-31T00:00:00Z"),
    ("2024-366", "2024-12-31T00:00:00Z"),
    ("2020-W53-7", "2021-01-03T00:00:00Z"),
    ("2021-W01-1", "2021-01-04T00:00:00Z"),
    ("2019-W01-1", "2018-12-31T00:00:00Z"),
    ("2024-W22-5T15:30:45+02:00", "2024-05-31T13:30:45Z"),
    ("2024-152T15:30:45.25Z", "2024-05-31T15:30:45.25Z"),
    ("20240531T153045Z", "2024-05-31T15:30:45Z"),
    ("20240531t153045,125z", "2024-05-31T15:30:45.125Z"),
    ("20240531T153045+0200", "2024-05-31T13:30:45Z"),
    ("2024W225T153045Z", "2024-05-31T15:30:45Z"),
    ("2024152T1530", "2024-05-31T15:30:00Z"),
    # reduced time, no offset, short offsets
    ("2024-05-31T15", "2024-05-31T15:00:00Z"),
    ("2024-05-31T15Z", "2024-05-31T15:00:00Z"),
    ("2024-05-31T15:30", "2024-05-31T15:30:00Z"),
    ("2024-05-31T15:30+02", "2024-05-31T13:30:00Z"),
    ("20240531T15", "2024-05-31T15:00:00Z"),
    ("2024-05-31T15:30:45", "2024-05-31T15:30:45Z"),
    ("2024-05-31T15:30:45+02", "2024-05-31T13:30:45Z"),
    ("2024-05-31T15:30:45+0200", "2024-05-31T13:30:45Z"),
    # the end of the day
    ("2024-05-31T24:00:00Z", "2024-06-01T00:00:00Z"),
    ("2024-05-31T24:00:00.000Z", "2024-06-01T00:00:00.000Z"),
    ("2024-12-31T24:00:00+01:00", "2024-12-31T23:00:00Z"),
    ("2024-12-31T24", "2025-01-01T00:00:00Z"),
    ("20241231T2400", "2025-01-01T00:00:00Z"),
    ("2024-12-31 24:00:00", "2025-01-01T00:00:00Z"),
    # SQL
    ("2024-05-31 15:30", "2024-05-31T15:30:00Z"),
    ("2024-05-31 15:30:45", "2024-05-31T15:30:45Z"),
    ("2024-05-31 15:30:45.123456789", "2024-05-31T15:30:45.123456789Z"),
    ("2024-05-31 15:30:45,5", "2024-05-31T15:30:45.5Z"),
    ("2024-05-31 15:30:45Z", "2024-05-31T15:30:45Z"),
    ("2024-05-31 15:30:45 Z", "2024-05-31T15:30:45Z"),
    ("2024-05-31 15:30:45z", "2024-05-31T15:30:45Z"),
    ("2024-05-31 15:30:45UTC", "2024-05-31T15:30:45Z"),
    ("2024-05-31 15:30:45 UTC", "2024-05-31T15:30:45Z"),
    ("2024-05-31 15:30:45+02", "2024-05-31T13:30:45Z"),
    ("2024-05-31 15:30:45 +02", "2024-05-31T13:30:45Z"),
    ("2024-05-31 15:30:45+0200", "2024-05-31T13:30:45Z"),
    ("2024-05-31 15:30:45 +0200", "2024-05-31T13:30:45Z"),
    ("2024-05-31 15:30:45+02:00", "2024-05-31T13:30:45Z"),
    ("2024-05-31 15:30:45.5 -05:30", "2024-05-31T21:00:45.5Z"),
    ("2024-05-31 15:30 UTC", "2024-05-31T15:30:00Z"),
    # leap seconds
    ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
    ("2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00.5Z"),
    ("2017-01-01T00:59:60+01:00", "2017-01-01T00:00:00Z"),
    ("2016-12-31T18:29:60-05:30", "2017-01-01T00:00:00Z"),
    ("2016-12-31 23:59:60", "2017-01-01T00:00:00Z"),
    ("20161231T235960Z", "2017-01-01T00:00:00Z"),
    # the ends of the calendar
    ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ("0001-01-01T00:00:00-00:01", "0001-01-01T00:01:00Z"),
    ("0001-W01-1", "0001-01-01T00:00:00Z"),
    ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
    ("9999-12-31T24:00:00+00:01", "9999-12-31T23:59:00Z"),
    ("9999-W52-5", "9999-12-31T00:00:00Z"),
]

REJECTED_FORMS = [
    # numbers, as dateutil and fromisoformat would read them
    "1717169445",
    "1717120112345",
    "1717169445.5",
    "171712011234567",
    "-62135596800",
    "1e9",
    "10",
    "0",
    "",
    " ",
    # any separator but T or a space
    "2024-05-31_15:30:45",
    "2024-05-31/15:30:45",
    "2024-05-31115:30:45",
    "2024-05-31  15:30:45",
    "2024-05-31\t15:30:45",
    "2024-05-31T 15:30:45",
    # half-written parts
    "2024-05-31T15:30:45.Z",
    "2024-05-31T15:30:45.",
    "2024-05-31T15:30:45,Z",
    "2024-05-31T",
    "2024-05-31 ",
    "2024-05-31T15:30:",
    "2024-05-31T15:3",
    "2024-05-31T5:30:45",
    "2024-5-31",
    "2024-05-31T15:30:45+",
    "2024-05-31T15:30:45+2",
    "2024-05-31T15:30:45+02:",
    "2024-05-31T15:30:45+02:0",
    "2024-05-31T15:30:45+02:00:00",
    "2024-05-31T15:30:45 +02:00",
    "2024-05-31T15:30:45 UTC",
    "2024-05-31T15:30:45UTC",
    "2024-05-31T15:30:45ZZ",
    "2024-05-31Z",
    "2024-05-31+02:00",
    "2024-05-31T15.5",
    "2024-05-31T15:30.5",
    # basic and extended form in one
    "20240531T15:30:45",
    "2024-05-31T153045",
    "2024-0531",
    "202405-31",
    "2024-W225",
    "20240531 15:30:45",
    # less than a full date
    "2024",
    "2024-05",
    "202405",
    "2024-W22",
    "2024W22",
    "--05-31",
    "15:30:45",
    "T15:30:45Z",
    "-0001-01-01",
    "+2024-05-31",
    "12024-05-31",
    "240531",
    # SQL forms that are none
    "2024-05-31 15",
    "2024-05-31 15:30:45  +02:00",
    "2024-05-31 15:30:45 utc",
    "2024-05-31 15:30:45 GMT",
    "2024-05-31 15:30:45 CET",
    "2024-05-31 15:30:45 Europe/Berlin",
    "2024-05-31 03:30:45 PM",
    # spelled and ambiguous dates
    "Monday",
    "now",
    "today",
    "31/05/2024",
    "05/31/2024",
    "31.05.2024",
    "31-05-2024",
    "2024/05/31",
    "May 31, 2024",
    "31 May 2024 15:30:45",
    "Fri, 31 May 2024 15:30:45 GMT",
    "Fri May 31 15:30:45 2024",
    # other digits, other characters
    "२०२४-05-31T15:30:45Z",
    "2024-05-31T15:30:4५Z",
    "2024-05-31T15:30:45.٣Z",
    "２０２４-05-31",
    "2024-05-31T15:30:45−02:00",
    "2024‐05‐31",
    "2024-05-31T15:30:45\uff3a",
    "2024-05-31T15:30:45Z\n",
    "2024-05-31T15:30:45\n",
    "2024-05-31\n",
    "2024-05-31 15:30:45\n",
    "\n2024-05-31T15:30:45Z",
    " 2024-05-31T15:30:45Z",
    "2024-05-31T15:30:45Z ",
    "2024-05-31T15:30:45Z\0",
    "2024-05-31T15:30:45\u2028Z",
    "\ufeff2024-05-31T15:30:45Z",
]

REJECTED_VALUES = [
    # no such date
    ("2024-02-30T00:00:00Z", "No such date"),
    ("2023-02-29", "No such date"),
    ("2024-00-01", "No such date"),
    ("2024-13-01", "No such date"),
    ("2024-05-00", "No such date"),
    ("2024-05-32", "No such date"),
    ("2023-366", "No such date"),
    ("2024-367", "No such date"),
    ("2024-000", "No such date"),
    ("1717999", "No such date"),
    ("2024-W00-1", "No such date"),
    ("2024-W54-1", "No such date"),
    ("2024-W53-1", "No such date"),
    ("2024W531", "No such date"),
    ("2021-W53-1", "No such date"),
    ("2024-W22-0", "No such date"),
    ("2024-W22-8", "No such date"),
    ("0000-01-01T00:00:00Z", "No such date"),
    ("0000-W01-1", "No such date"),
    ("0000-001", "No such date"),
    # no such time
    ("2024-05-31T24:00:01Z", "No such time"),
    ("2024-05-31T24:01", "No such time"),
    ("2024-05-31T24:00:00.001Z", "No such time"),
    ("2024-05-31 24:00:01", "No such time"),
    ("2024-05-31T25", "No such time"),
    ("2024-05-31T15:60:00Z", "No such time"),
    ("2024-05-31T15:30:61Z", "No such time"),
    ("20240531T156000Z", "No such time"),
    ("2024-05-31T24:00:60Z", "No such time"),
    # leap seconds elsewhere
    ("2016-12-31T23:58:60Z", "leap second"),
    ("2016-12-31T22:59:60Z", "leap second"),
    ("2016-12-31T00:00:60Z", "leap second"),
    ("2016-12-31T23:59:60+01:00", "leap second"),
    ("2016-12-31T23:59:60-00:30", "leap second"),
    # no such offset
    ("2024-05-31T15:30:45+24:00", "No such offset"),
    ("2024-05-31T15:30:45+99", "No such offset"),
    ("2024-05-31T15:30:45-02:60", "No such offset"),
    ("2024-05-31 15:30:45 +2400", "No such offset"),
    # outside the years 1 to 9999, in UTC
    ("0001-01-01T00:00:00+00:01", "years 1 to 9999"),
    ("0001-01-01T01:59:59.999+02:00", "years 1 to 9999"),
    ("9999-12-31T23:59:59-00:01", "years 1 to 9999"),
    ("9999-12-31T24:00:00Z", "years 1 to 9999"),
    ("9999-12-31T23:59:60Z", "years 1 to 9999"),
]


@pytest.mark.parametrize(("text", "expected"), ACCEPTED)
def test_an_accepted_form_is_stored_in_utc(text: str, expected: str) -> None:
    """Every accepted form becomes RFC 3339 in UTC, alone and within a batch."""
    assert expected == normalise(text)
    assert [expected] == (normalise_all([text]) or [text])


@pytest.mark.parametrize("text", REJECTED_FORMS)
def test_another_form_is_rejected_with_the_forms_to_use(text: str) -> None:
    """The message lists the accepted forms."""
    for reject in (lambda: normalise(text), lambda: normalise_all([text])):
        with pytest.raises(ValueError) as rejected:  # noqa: PT011
            reject()
        assert EXPECTED == str(rejected.value)


@pytest.mark.parametrize(("text", "reason"), REJECTED_VALUES)
def test_a_moment_that_does_not_exist_is_rejected_with_the_reason(text: str, reason: str) -> None:
    """A wrong date, time, offset or year in a right form is named."""
    for reject in (lambda: normalise(text), lambda: normalise_all([text])):
        with pytest.raises(ValueError, match=reason):
            reject()


@pytest.mark.parametrize("text", ["9999-W52-6", "9999-W52-7", "9999W537", "9999-W53-1"])
def test_a_week_date_after_the_last_year_is_rejected(text: str) -> None:
    """A week date in the year 10000 is rejected like any other date after 9999."""
    with pytest.raises(ValueError, match=r"No such date|years 1 to 9999"):
        normalise(text)


def test_rejection_of_a_long_text_takes_linear_time() -> None:
    """A text of a million characters is rejected, or kept digit for digit."""
    digits = "1" * 1_000_000
    with pytest.raises(ValueError, match="Not a timestamp"):
        normalise(digits)
    assert f"2024-05-31T15:30:45.{digits}Z" == normalise(f"2024-05-31T15:30:45.{digits}Z")


def test_stored_forms_alone_need_no_change() -> None:
    """None means that every text is stored as it is, without a copy."""
    assert normalise_all([]) is None
    assert normalise_all(["2024-05-31T15:30:45Z", "2024-05-31T15:30:45.5Z"]) is None


def test_one_other_form_returns_every_text() -> None:
    """If one text has another form, the whole list is returned, in order."""
    texts = ["2024-05-31T15:30:45Z", "2024-05-31", "2024-05-31T15:30:45.5Z"]
    expected = ["2024-05-31T15:30:45Z", "2024-05-31T00:00:00Z", "2024-05-31T15:30:45.5Z"]
    assert expected == normalise_all(texts)


# Fragments of timestamps in any order: mostly near misses.
fragments = st.sampled_from(
    ["2024", "-", "05", "31", "T", ":", "15", "30", "60", ".", ",", "Z", "+02", "-00", " ", "UTC"]
    + ["\n", "2024-05-31", "T15:30:45", "T24:00:00", "9999-12-31", "0001-01-01", "T23:59:60"]
    + ["9999-", "W52", "W53", "-7", "1", "366", "٣", ".5", "999999999999"]
)
texts = st.one_of(
    st.sampled_from([text for text, _ in ACCEPTED]),
    st.lists(fragments, max_size=8).map("".join),
    st.tuples(
        st.datetimes().map(lambda moment: moment.isoformat()),
        st.sampled_from(["Z", "", "+00:00", "-23:59", "z", ".Z", " Z", "Z\n", "0Z"]),
    ).map("".join),
    st.text(max_size=25),
)


def normalised_or_rejected(text: str) -> str | None:
    """Return the stored form, or None; any exception except ValueError is raised."""
    try:
        return normalise(text)
    except ValueError:
        return None


@pytest.mark.slow
@given(st.lists(texts, max_size=4))
def test_batch_agrees_with_its_single_timestamps(batch: list[str]) -> None:
    """The fast check of a whole batch has the results of `normalise`."""
    expected = [normalised_or_rejected(text) for text in batch]
    try:
        actual = normalise_all(batch)
    except ValueError:
        assert None in expected
    else:
        assert expected == (batch if actual is None else actual)


@given(texts)
def test_the_stored_form_is_stored_unchanged(text: str) -> None:
    """The result itself is accepted and unchanged."""
    stored = normalised_or_rejected(text)
    if stored is not None:
        assert stored == normalise(stored)
        assert [stored] == (normalise_all([stored]) or [stored])
