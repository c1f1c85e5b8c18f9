"""Imports between packages go one way, and each library is imported in its own package only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "astralog"

#: Each package with what it may import; the modules beside the packages are named `base`.
MAY_IMPORT = {
    "base": {"base"},
    "store": {"base", "store"},
    "intake": {"base", "store", "intake"},
    "telemetry": {"base", "store", "telemetry"},
    "api": {"base", "store", "intake", "telemetry", "view", "api"},
    "app": {"base", "store", "intake", "telemetry", "view", "api", "app"},
    "server": {"base", "store", "telemetry", "api", "app", "server"},
    "forward": {"base", "store", "forward"},
    "view": {"base", "store", "intake", "view"},
    "cli": {"base", "store", "server", "forward", "view", "cli"},
}

#: The only packages that may know a library.
LIBRARIES = {
    "flask": {"api", "app", "server"},
    "werkzeug": {"api", "server"},
    "gunicorn": {"server"},
    "marshmallow": {"intake", "base"},
    "msgspec": {"intake", "api", "view"},
    "google": {"intake"},
    "opentelemetry": {"intake"},
    "prometheus_client": {"telemetry"},
    "clickhouse_connect": {"forward"},
    "duckdb": {"view"},
}


def package_of(path: Path) -> str:
    """Return the package that a module belongs to."""
    parts = path.relative_to(PACKAGE).parts
    if len(parts) > 1:
        return parts[0]
    return path.stem if path.stem in ("app", "cli") else "base"


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements within a node."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield child
            yield from statements(child)


def imports_below(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield each module of a directory with the full name of each of its imports."""
    for path in sorted(directory.rglob("*.py")):
        for node in statements(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((path, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.fixture(scope="module")
def imports() -> list[tuple[Path, str]]:
    """Return the imports of the package's modules."""
    return list(imports_below(PACKAGE))


def imported_package(name: str) -> str | None:
    """Return the package that an import names, None if it is not one of the service's."""
    first, *rest = name.split(".")
    if first != "astralog" or rest == ["__version__"]:
        return None
    target = PACKAGE.joinpath(*rest[:-1] if len(rest) > 1 else rest)
    return package_of(target / "x" if target.is_dir() else target.with_suffix(".py"))


def test_imports_go_one_way(imports: list[tuple[Path, str]]) -> None:
    """A package imports only packages below it."""
    assert [] == [
        f"{path} imports {name}"
        for path, name in imports
        if imported_package(name) not in {None, *MAY_IMPORT[package_of(path)]}
    ]


def test_libraries_are_imported_in_their_packages(imports: list[tuple[Path, str]]) -> None:
    """Flask, gunicorn and others are imported in their own packages only."""
    allowed = [(path, name, LIBRARIES.get(name.partition(".")[0])) for path, name in imports]
    assert [] == [
        f"{path} imports {name}"
        for path, name, packages in allowed
        if packages is not None and package_of(path) not in packages
    ]


def test_functional_tests_import_nothing_of_the_service() -> None:
    """They test the service from outside, as its clients use it."""
    imports = imports_below(ROOT / "tests" / "functional")
    assert [] == [
        f"{path} imports {name}" for path, name in imports if name.split(".")[0] == "astralog"
    ]
