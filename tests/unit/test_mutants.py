"""The guards that `make mutants` removes exist in the code."""

from pathlib import Path

import pytest

from tests.mutants.guard import PACKAGE, Guard
from tests.mutants.guards import GUARDS
from tests.support.service import ROOT

MODULE = """\
LIMIT = 10


class Box:
    size: int = 3

    @property
    def content(self) -> int:
        if True:
            return LIMIT
        return 0

    @content.setter
    def content(self, value: int) -> None:
        self.size = value


def take() -> int:
    return LIMIT
"""


def files_of(guard: Guard) -> list[Path]:
    """Return the files of a guard's tests."""
    return [ROOT / test.partition("::")[0] for test in guard.tests if "/" in test]


def test_guards_exist() -> None:
    """The code of each occurs once in its definition, and its tests exist."""
    faults = []
    for guard in GUARDS:
        try:
            text = guard.find(ROOT).read_text()
            if guard.remove_from(text) == text:
                faults.append(f"{guard.name}: its removal changes nothing")
        except ValueError as error:
            faults.append(str(error))
        faults += [f"{guard.name}: no {path}" for path in files_of(guard) if not path.exists()]
    assert [] == faults


def test_keywords_of_guards_select_tests() -> None:
    """A renamed test is renamed in the guard's `-k` too; a keyword may be part of a parameter."""
    faults = []
    for guard in GUARDS:
        text = "".join(path.read_text() for path in files_of(guard))
        options = zip(guard.tests, guard.tests[1:], strict=False)
        keywords = {word for option, value in options if option == "-k" for word in value.split()}
        faults += [
            f"{guard.name}: {word} is in none of its tests"
            for word in keywords - {"and", "or", "not"}
            if word.strip("()") not in text
        ]
    assert [] == faults


def test_names_are_unique() -> None:
    """A name identifies one guard."""
    assert len(GUARDS) == len({guard.name for guard in GUARDS})


def make_guard(place: str, code: str) -> Guard:
    return Guard("a guard", f"{PACKAGE}.{place}", code, "removed", ())


@pytest.mark.parametrize(
    ("place", "code", "line"),
    [
        ("box:LIMIT", "10", "LIMIT = removed"),
        ("box:Box.size", "3", "    size: int = removed"),
        ("box:Box.content", "@property", "    removed"),
        ("box:Box.content", "return LIMIT", "            removed"),
        ("box:Box.content", "self.size = value", "        removed"),
        ("box:Box", "return LIMIT", "            removed"),
        ("box:take", "return LIMIT", "    removed"),
        ("box", "return 0", "        removed"),
    ],
)
def test_code_is_found_by_its_definition(place: str, code: str, line: str) -> None:
    """The same text elsewhere in the module makes no difference."""
    text = make_guard(place, code).remove_from(MODULE)
    assert [line] == [one for one in text.splitlines() if "removed" in one]


@pytest.mark.parametrize(
    ("place", "code"), [("box", "return LIMIT"), ("box:take", "return 0"), ("box:gone", "LIMIT")]
)
def test_missing_or_repeated_code_is_an_error(place: str, code: str) -> None:
    """Only code that occurs exactly once is removed."""
    with pytest.raises(ValueError, match=r"has its code [02] times"):
        make_guard(place, code).remove_from(MODULE)


def test_a_definition_that_moved_is_found(tmp_path: Path) -> None:
    """It is found in another module; in several modules, it is ambiguous."""
    guard = make_guard("gone:take", "return LIMIT")
    (tmp_path / PACKAGE / "store").mkdir(parents=True)
    with pytest.raises(ValueError, match="in no module"):
        guard.find(tmp_path)
    moved = tmp_path / PACKAGE / "store" / "box.py"
    moved.write_text(MODULE)
    assert moved == guard.find(tmp_path)
    (tmp_path / PACKAGE / "other.py").write_text(MODULE)
    with pytest.raises(ValueError, match="other.py, "):
        guard.find(tmp_path)
    named = tmp_path / PACKAGE / "gone.py"
    named.write_text(MODULE)
    assert named == guard.find(tmp_path)
