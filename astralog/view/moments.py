"""Parse times that users enter: a timestamp, or a duration before now."""

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_moment(text: str) -> str:
    """Return the time of a duration before now, or of a timestamp, in the stored form.

    Raises ValueError.
    """
    from astralog.intake import timestamps  # noqa: PLC0415  # it takes long to import

    try:
        if re.fullmatch(r"([0-9]+[smhdw])+", text):
            parts = re.findall(r"([0-9]+)([smhdw])", text)
            ago = sum((timedelta(**{_UNITS[unit]: int(n)}) for n, unit in parts), timedelta())
            return timestamps.normalise((datetime.now(UTC) - ago).isoformat())
        return timestamps.normalise(text)
    except OverflowError:
        raise ValueError("before the year 1.") from None
    except ValueError as error:
        raise ValueError(f"{error} A duration such as 10m or 1h30m is also accepted.") from None
