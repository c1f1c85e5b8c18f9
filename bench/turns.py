"""Several loads in turns: other work of the machine disturbs all of them alike."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from statistics import median

from bench.load import Load, Outcome, Phase, Plan
from bench.open_loop import OpenLoop

#: Seconds of a turn. The shorter, the more alike what else runs in two that follow each other:
#: beside eight busy processes on two cores, the ratio of two equal revisions has a standard
#: deviation of 15% per round with turns of 0.2 s, and of 2% with 0.05 or 0.1 s.
TURN_SECONDS = 0.1

#: Index of a load for each turn, again and again; the next round starts with the other one.
ORDERS = ((0, 1, 1, 0), (1, 0, 0, 1))


def order_of_turns(number: int, turns: int) -> list[int]:
    """Return the order of a warm-up and so many turns of two loads, in round `number`."""
    return list(islice(cycle(ORDERS[number % len(ORDERS)]), 2 * (1 + turns)))


def run_in_turns(plans: Sequence[Plan], order: Sequence[int]) -> list[Outcome]:
    """Run the phases of several plans one at a time, and return the outcome of each plan.

    `order` holds the index of a plan for each phase to run. Run this in a separate process.
    """
    loads = [OpenLoop(plan) if plan.rate else Load(plan) for plan in plans]
    seconds = [iter(plan.phase_seconds) for plan in plans]
    phases: list[list[Phase]] = [[] for _ in plans]
    try:
        for turn in order:
            phases[turn].append(loads[turn].run_phase(next(seconds[turn])))
    finally:
        for load in loads:
            load.close()
    return [
        Outcome(own, load.sent, load.rejected, load.unanswered)
        for own, load in zip(phases, loads, strict=True)
    ]


def median_ratio(
    read: Callable[[Phase], float], new: Sequence[Phase], old: Sequence[Phase]
) -> float:
    """Return the median ratio of a figure in turns that follow each other."""
    return median(read(one) / read(other) for one, other in zip(new, old, strict=True))


def efficiency(phase: Phase) -> float:
    """Return the requests per CPU second of all processes of the service."""
    return phase.acknowledged / phase.server_cpu
