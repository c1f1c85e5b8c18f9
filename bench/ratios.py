"""Ratios of two revisions' figures, and their significance on a shared machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import comb
from statistics import median

#: A row fails if the new revision is worse by more than this.
WORSE_LIMIT = 0.03

#: Chance that the interval of a median misses the true one; small, since there are many rows.
MISS_CHANCE = 0.01

HEADINGS = ("row", "logs per CPU second", "range", "p99", "range", "outcome")


class Outcome(Enum):
    """Which conclusion the rounds of a row allow."""

    WORSE = "WORSE"  # by more than the limit, and chance does not explain it
    UNCERTAIN = "uncertain"  # the interval reaches beyond the limit: more rounds may tell
    FINE = "fine"


@dataclass
class Ratios:
    """One figure of the new revision divided by that of the old one, once per round."""

    values: list[float] = field(default_factory=list)
    is_more_better: bool = True

    @property
    def median(self) -> float:
        """The median ratio."""
        return median(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """The range that holds the true median with 99% certainty.

        It is that of the sign test, which assumes no distribution. Fewer than eight rounds cannot
        reach this certainty; theirs is the range of all values.
        """
        values = sorted(self.values)
        left_out = _left_out(len(values))
        return values[left_out], values[-1 - left_out]

    @property
    def outcome(self) -> Outcome:
        """The significance of the median and its interval."""
        low, high = self.interval
        if self.is_more_better:
            middle, best, worst = 1 - self.median, 1 - high, 1 - low
        else:
            middle, best, worst = self.median - 1, low - 1, high - 1
        if middle > WORSE_LIMIT and best > 0:
            return Outcome.WORSE
        return Outcome.UNCERTAIN if worst > WORSE_LIMIT else Outcome.FINE


@dataclass
class RowRatios:
    """The ratios of a row's two figures."""

    name: str
    efficiency: Ratios = field(default_factory=Ratios)
    p99: Ratios = field(default_factory=lambda: Ratios(is_more_better=False))

    @property
    def is_worse(self) -> bool:
        """Whether one of the figures is worse beyond chance."""
        return Outcome.WORSE in (self.efficiency.outcome, self.p99.outcome)


def table(rows: Sequence[RowRatios]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table, headings first."""
    yield HEADINGS
    for row in rows:
        yield (row.name, *_texts(row.efficiency), *_texts(row.p99), _outcome(row))


def _outcome(row: RowRatios) -> str:
    figures = (("logs per CPU second", row.efficiency), ("p99", row.p99))
    named = [
        f"{ratios.outcome.value}: {name}"
        for name, ratios in figures
        if ratios.outcome is not Outcome.FINE
    ]
    return ", ".join(named) or Outcome.FINE.value


def _texts(ratios: Ratios) -> tuple[str, str]:
    low, high = ratios.interval
    return f"{ratios.median:.3f}", f"{low:.3f}..{high:.3f}"


def _left_out(count: int) -> int:
    """Return how many values at each end lie outside the interval of the median."""
    chance = 0.0
    for left_out in range(count):
        chance += 2 * comb(count, left_out) / 2**count
        if chance > MISS_CHANCE:
            break
    return max(left_out - 1, 0)
