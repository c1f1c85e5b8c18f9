"""What a client's headers say of the response it wants, read in linear time.

Anyone may send these headers, without a token; werkzeug takes quadratic time for them, and raises
errors for some.
"""

import re

#: Characters of a header that are read: more than any browser sends.
MAX_CHARACTERS = 1000

_QUALITY = re.compile(r"[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


def prefers_html(accept: str) -> bool:
    """Return whether an Accept header ranks text/html above application/json."""
    ranges = _parse(accept)
    return _quality(ranges, "text/html") > _quality(ranges, "application/json")


def has_current(if_none_match: str, etag: str) -> bool:
    """Return whether an If-None-Match header names the `etag`, which is without its quotes."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match[:MAX_CHARACTERS].split(",")}
    return not tags.isdisjoint(("*", f'"{etag}"'))


def _parse(accept: str) -> dict[str, float]:
    """Return the quality of each media range (RFC 9110, 12.5.1); parameters make no difference."""
    ranges = {}
    for item in accept[:MAX_CHARACTERS].split(","):
        kind, *parameters = (word.strip() for word in item.split(";"))
        qualities = map(_QUALITY.fullmatch, parameters)
        ranges[kind.lower()] = next((float(found[1]) for found in qualities if found), 1.0)
    return ranges


def _quality(ranges: dict[str, float], kind: str) -> float:
    """Return the quality of the most specific range that a media type is in, 0 without any."""
    family = kind.partition("/")[0] + "/*"
    return next((ranges[name] for name in (kind, family, "*/*") if name in ranges), 0.0)
