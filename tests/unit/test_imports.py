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
    "marshmallow": {"intake", "api", "base"},
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


def imports_of(path: Path) -> Iterator[str]:
    """Yield the full names of a module's imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    """A package imports only packages below it."""
    mine = package_of(path)
    for name in imports_of(path):
        first, *rest = name.split(".")
        if first == "astralog" and rest != ["__version__"]:
            target = PACKAGE.joinpath(*rest[:-1] if len(rest) > 1 else rest)
            other = package_of(target / "x" if target.is_dir() else target.with_suffix(".py"))
            assert other in MAY_IMPORT[mine], f"{mine} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_are_imported_in_their_packages(path: Path) -> None:
    """Flask, gunicorn and others are imported in their own packages only."""
    for name in imports_of(path):
        allowed = LIBRARIES.get(name.partition(".")[0])
        assert allowed is None or package_of(path) in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/functional/*.py")), ids=lambda p: p.name)
def test_functional_tests_import_nothing_of_the_service(path: Path) -> None:
    """They test the service from outside, as its clients use it."""
    assert not [name for name in imports_of(path) if name.split(".")[0] == "astralog"]
