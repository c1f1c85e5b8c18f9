"""The targets for the cost of an idempotency key."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.results import Keyed

#: Logs per CPU second with keys in those without, by logs per batch; and the p99.
LEAST_EFFICIENCY = {500: 0.78, 100: 0.68}
MOST_P99 = 1.5


def keyed_marks(sizes: "Sequence[Keyed]") -> Iterator[tuple[str, float, float, bool]]:
    """Yield each mark: its name, its value, its limit, and whether that is the most."""
    for keyed in sizes:
        batch = keyed.plain[0].batch
        name = f"{batch} a batch, with keys"
        least = LEAST_EFFICIENCY[batch]
        yield f"{name}: logs per CPU second of none", keyed.efficiency, least, False
        yield f"{name}: p99 of none", keyed.p99_factor, MOST_P99, True
