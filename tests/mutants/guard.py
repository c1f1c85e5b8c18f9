"""A piece of code that keeps a promise, found by its enclosing definition."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "astralog"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Guard(NamedTuple):
    """A piece of code that keeps a promise.

    `place` is `module:name`, as in `astralog.store.segment:Segment.truncate`; the name is that of
    a function, class or constant, and `astralog.store.segment` alone is the whole module. `code`
    stands once in it, and is replaced by `without`; at least one of `tests`, which are pytest's
    arguments, must then fail.
    """

    name: str
    place: str
    code: str
    without: str
    tests: tuple[str, ...]

    def find(self, root: Path) -> Path:
        """Return the file of the checkout `root` that contains the code.

        A definition that its module no longer has is searched in all others. Raises ValueError
        unless there is exactly one.
        """
        module, _, definition = self.place.partition(":")
        path = root / (module.replace(".", "/") + ".py")
        if path.exists() and (not definition or _spans(path.read_text(), definition)):
            return path
        elsewhere = [
            other
            for other in sorted((root / PACKAGE).rglob("*.py"))
            if definition and _spans(other.read_text(), definition)
        ]
        if len(elsewhere) != 1:
            places = ", ".join(str(other.relative_to(root)) for other in elsewhere) or "no module"
            raise ValueError(f"{self.name}: {definition or module} is in {places}")
        return elsewhere[0]

    def remove_from(self, text: str) -> str:
        """Return a module's text without the guard; ValueError unless its code occurs once."""
        definition = self.place.partition(":")[2]
        places = [
            place
            for start, end in (_spans(text, definition) if definition else [(0, len(text))])
            for place in _occurrences(text, self.code, start, end)
        ]
        if len(places) != 1:
            raise ValueError(f"{self.name}: {self.place} has its code {len(places)} times")
        (place,) = places
        return text[:place] + self.without + text[place + len(self.code) :]


def _occurrences(text: str, code: str, start: int, end: int) -> Iterator[int]:
    while (place := text.find(code, start, end)) >= 0:
        yield place
        start = place + 1


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def _spans(text: str, name: str) -> list[tuple[int, int]]:
    """Return the line ranges of the definitions of a dotted name, decorators included.

    A property with a setter has several, for example.
    """
    lines = text.splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    return [
        (offsets[_first_line(node) - 1], offsets[node.end_lineno or node.lineno])
        for node in _definitions(_parse(text).body, name.split("."))
    ]


def _definitions(body: list[ast.stmt], names: list[str]) -> Iterator[Definition]:
    """Yield the statements that define a name, which may be nested or under an `if`."""
    for node in body:
        if isinstance(node, Definition) and names[0] in _names(node):
            if len(names) == 1:
                yield node
            else:
                yield from _definitions(getattr(node, "body", []), names[1:])
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions([*node.body, *node.orelse], names)


def _names(node: Definition) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [node.name]


def _first_line(node: Definition) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])
