"""Read `GET /metrics`."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, float]


def read_samples(
    text: str, parse: Callable[[str], Iterable[Any]] = text_string_to_metric_families
) -> Samples:
    """Return the value of each series by its name, without `astralog_`, and its label values."""
    return {
        " ".join([sample.name.removeprefix("astralog_"), *sample.labels.values()]): sample.value
        for family in parse(text)
        for sample in family.samples
    }
