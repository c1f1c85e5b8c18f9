"""The figures of searches, and the marks that they are held against."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Search:
    """A search of all segments, and a tool that finds the same, in turns; medians."""

    name: str
    tool: str
    seconds: float
    cpu_seconds: float
    tool_seconds: float
    tool_cpu_seconds: float
    factor: float  # of the times, in those of the tool
    limit: float  # for the factor


@dataclass
class Searches:
    """Searches of the same logs in plain and in compressed segments, from the page cache."""

    segments: int
    megabytes: float
    compressed_megabytes: float
    searches: list[Search]


def search_marks(found: Searches) -> Iterator[tuple[str, float, float, bool]]:
    """Yield each mark as `results.Mark` has it: name, value, limit, and whether it is at most."""
    for search in found.searches:
        yield f"search {search.name}: time of {search.tool}", search.factor, search.limit, True
