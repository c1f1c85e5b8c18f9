"""The order of levels, including unknown ones."""

import json
import re
from itertools import pairwise

import pytest

from astralog.view.stored_log import RANKS, is_severe_enough, known_rank
from tests.support.service import ROOT

LNAV = json.loads((ROOT / "deploy" / "lnav" / "astralog.json").read_text())["astralog"]


def test_levels_are_ordered_by_severity() -> None:
    """Each usual name is less severe than the next, ignoring case."""
    order = ["trace", "debug", "info", "notice", "warning", "error", "critical", "alert"]
    assert [*order, "emergency"] == [names[0] for names in RANKS]
    for lesser, worse in pairwise(names[0] for names in RANKS):
        assert is_severe_enough(worse.upper(), lesser)
        assert not is_severe_enough(lesser, worse.title())


@pytest.mark.parametrize("names", RANKS, ids=lambda names: names[0])
def test_other_names_of_a_level_are_the_same(names: tuple[str, ...]) -> None:
    """`WARN` is as severe as `warning`, in logs and filters."""
    for name in names:
        assert is_severe_enough(f" {name.upper()} ", names[0])
        assert is_severe_enough(names[0], name.title())
        assert known_rank(names[0]) == known_rank(f"{name}3")


def test_no_name_stands_for_two_levels() -> None:
    names = [name for names in RANKS for name in names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("level", ["audit", "17", "errors", "", "é"])
def test_a_level_that_is_not_known_counts_as_info(level: str) -> None:
    """It is shown with informational logs, and not among warnings."""
    assert known_rank(level) is None
    assert is_severe_enough(level, "info")
    assert is_severe_enough(level, "debug")
    assert not is_severe_enough(level, "notice")


def test_unknown_lowest_level_selects_only_itself() -> None:
    """Custom levels can be selected, ignoring case."""
    assert is_severe_enough("Audit", " aUDIT")
    assert not is_severe_enough("error", "audit")
    assert not is_severe_enough("other", "audit")


@pytest.mark.parametrize("names", RANKS, ids=lambda names: names[0])
def test_lnav_knows_the_same_levels(names: tuple[str, ...]) -> None:
    """Every name belongs to exactly one of lnav's levels, ignoring case."""
    levels = {
        name: [level for level, pattern in LNAV["level"].items() if re.search(pattern, name)]
        for name in (*names, names[0].upper())
    }
    assert all(len(found) == 1 for found in levels.values()), levels
