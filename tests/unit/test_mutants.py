"""The guards that `make mutants` takes out are all there to be taken out."""

import pytest

from tests.mutants.guards import GUARDS, Guard
from tests.support.service import ROOT


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_where_it_is_said_to_be(guard: Guard) -> None:
    """Its code stands once in its file, and its tests are there."""
    text = (ROOT / guard.path).read_text()
    assert guard.remove_from(text) != text
    assert all((ROOT / test.partition("::")[0]).exists() for test in guard.tests if "/" in test)


def test_names_are_unique() -> None:
    """A name stands for one guard."""
    assert len(GUARDS) == len({guard.name for guard in GUARDS})
