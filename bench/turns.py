"""Several loads in turns: other work of the machine disturbs all of them alike."""

from collections.abc import Sequence

from bench.load import Load, Phase, Plan
from bench.open_loop import OpenLoop


def run_in_turns(plans: Sequence[Plan], order: Sequence[int]) -> list[list[Phase]]:
    """Run the phases of several plans one at a time, and return the phases of each plan.

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
    return phases
