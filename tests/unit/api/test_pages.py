"""Headers from any client are parsed in linear time, whatever they contain."""

import ast
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from astralog.api.pages import has_current, prefers_html
from astralog.telemetry.prometheus import _keep_known

API = Path(__file__).parents[3] / "astralog" / "api"

BROWSERS = [
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
    "Text/HTML ; Q=1.0",
    "text/*",
    "text/html;level=1",
    "application/json;q=0.5, text/html;q=0.501",
    "*/*;q=0.1, text/html;q=0.2",
]
OTHERS = [
    *("", "*/*", "application/json", "application/json, text/html", "text/html;q=0", "text/plain"),
    *("text/html;q=0.5, application/json", "text/html;q=0.5, */*", "*/*, text/html;q=nan"),
    *("text/html;q=1e9, application/json", "text/html;q=-1, application/json", ";;;", ",,,", "="),
]


@pytest.mark.parametrize("accept", BROWSERS)
def test_a_browser_prefers_html(accept: str) -> None:
    """Its Accept header decides."""
    assert prefers_html(accept)


@pytest.mark.parametrize("accept", OTHERS)
def test_another_client_does_not_prefer_html(accept: str) -> None:
    """An invalid quality counts as 1, and an equal one is no preference."""
    assert not prefers_html(accept)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        *(('"a-1"', True), ('W/"a-1"', True), ('"x", "a-1"', True), ("*", True)),
        *(("", False), ("a-1", False), ('"a-2"', False), ('"a-1', False), ("**", False)),
    ],
)
def test_an_etag_is_found_among_those_of_a_client(header: str, expected: bool) -> None:
    """Weak comparison is enough for a conditional GET (RFC 9110, 13.1.2)."""
    assert expected == has_current(header, "a-1")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", ""),
        ("*/*", "*/*"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain",
        ),
        ("application/openmetrics-text; version=abc,text/plain", "text/plain"),
        ("text/plain;version=1.0.0;version=x", ""),
        ("text/plain; version=9.9.9.9", ""),
        ("application/openmetrics-text;version=", ""),
    ],
)
def test_invalid_version_in_accept_is_removed(accept: str, expected: str) -> None:
    """prometheus_client fails on versions that do not consist of three numbers."""
    assert expected == _keep_known(accept)


@pytest.mark.parametrize("filler", [" ", "\t", ";", ",", "a", "=", '"', "q=", "a;b=c,"])
@pytest.mark.parametrize("read", [prefers_html, _keep_known, lambda text: has_current(text, "a-1")])
def test_a_long_header_takes_linear_time(read: Callable[[str], object], filler: str) -> None:
    """A header of 16 times the length takes less than 100 times the CPU time."""
    short, long = (_cpu_seconds(read, "a/b" + filler * size + "b") for size in (2_000, 32_000))
    assert long < 100 * max(short, 0.001)


def _cpu_seconds(read: Callable[[str], object], text: str) -> float:
    """Return the lowest of three CPU times."""
    return min(_measure(read, text) for _ in range(3))


def _measure(read: Callable[[str], object], text: str) -> float:
    start = time.thread_time()
    read(text)
    return time.thread_time() - start


def attributes_of_requests(path: Path) -> Iterator[str]:
    """Yield the attributes of Flask's request that a module reads."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "request":
            yield node.attr


@pytest.mark.parametrize("path", sorted(API.glob("*.py")), ids=lambda path: path.name)
def test_no_parsed_header_is_read(path: Path) -> None:
    """Views read WSGI's environ: werkzeug parses headers in quadratic time, or fails on them."""
    assert set(attributes_of_requests(path)) <= {"environ"}
    assert "make_conditional" not in path.read_text()
