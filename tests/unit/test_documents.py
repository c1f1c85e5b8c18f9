"""The tables in the documents match the code."""

import dataclasses
import re
from errno import EDQUOT, ENOSPC
from pathlib import Path

import pytest

from astralog import errors
from astralog.errors import Cause
from astralog.settings import PREFIX, Settings
from tests.support.service import ROOT

README_LINES = 150

#: Each entry of docs/errors.md: its code, and the text up to the next heading.
ERROR_ENTRIES = dict(
    re.findall(
        r"^### `(\w+)`\n\n(.*?)(?=^#|\Z)",
        (ROOT / "docs" / "errors.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)

DOCUMENTS = [
    path
    for pattern in ("*.md", ".github/*.md", "docs/*.md", "clients/*/*.md")
    for path in sorted(ROOT.glob(pattern))
]


def settings_table() -> str:
    """Return the table of all settings in Markdown."""
    rows = [
        f"| `{PREFIX}{field.name.upper()}` | {field.metadata['shown']} | {field.metadata['help']} |"
        for field in dataclasses.fields(Settings)
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows])


def test_settings_table_is_complete() -> None:
    """The table has every setting with its default and its help."""
    assert settings_table() in (ROOT / "docs" / "configuration.md").read_text()


def test_recommended_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recommended variables can be copied into the environment."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    variables = dict(re.findall(r"^(ASTRALOG_\w+)=(\S+)$", text, re.MULTILINE))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environ()
    assert ("zstd", 10.0, "until_full") == (
        settings.compress,
        settings.segment_seconds,
        settings.retain_undelivered,
    )


def test_every_rejection_is_explained() -> None:
    """The table of rejections has every code with its status."""
    lines = (ROOT / "docs" / "api.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| [45]", line)]
    shown = {
        (code, int(status))
        for row in rows
        for status, codes in [row.split("|")[1:3]]
        for code, status in zip(
            re.findall(r"`(\w+)`", codes), (re.findall(r"[0-9]+", status) * 4), strict=False
        )
    }
    assert {(code, int(status)) for code, status in errors.STATUS_OF_CODE.items()} == shown


def test_every_code_has_an_entry_in_errors() -> None:
    """The entries of docs/errors.md are exactly the codes."""
    assert sorted(errors.STATUS_OF_CODE) == sorted(ERROR_ENTRIES)


@pytest.mark.parametrize("code", ERROR_ENTRIES)
def test_entry_of_an_error_is_complete(code: str) -> None:
    """An entry has status and messages, then cause, setting, remedy and retry."""
    entry = ERROR_ENTRIES[code]
    status = errors.STATUS_OF_CODE[code]
    assert re.match(rf"{int(status)}\n\n```\n(.+\n)+```\n", entry)
    assert re.findall(r"^- \*\*(\w+):\*\*", entry, re.MULTILINE) == [
        "Cause",
        "Setting",
        "Do",
        "Retry",
    ]
    is_retried = status in (*errors.RETRIED_STATUSES, 408, 500)
    assert f"- **Retry:** {'yes' if is_retried else 'no'}" in entry


MIB = 1024 * 1024

#: Every message of `errors` without parameters, and the others with those of the default settings.
CAUSES = [
    *(value for value in vars(errors).values() if isinstance(value, Cause)),
    errors.body_too_large(10 * MIB),
    errors.commit_timeout(8.0, may_be_stored=False),
    errors.commit_timeout(8.0, may_be_stored=True),
    errors.queue_full(64 * MIB),
    errors.token_queue_full(48 * MIB, 64 * MIB),
    errors.too_large_for_queue(200 * MIB, 192 * MIB),
    errors.too_large_for_token(int(56.3 * MIB), 48 * MIB, 64 * MIB),
    errors.storage_error(errors.Shortage("bytes", 0, 256 * MIB)),
    errors.storage_error(errors.Shortage("inodes", 0, 1024)),
    errors.storage_error(OSError(ENOSPC, "")),
    errors.storage_error(OSError(EDQUOT, "")),
]


@pytest.mark.parametrize("cause", CAUSES)
def test_entry_of_an_error_has_its_messages(cause: Cause) -> None:
    """A client that searches docs/errors.md for a message finds it, word for word."""
    assert f"\n{cause.message}\n" in ERROR_ENTRIES[cause.code].partition("- **Cause")[0]


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_files_of_the_architecture_exist() -> None:
    """Each path and module that the page names exists."""
    paths = [path.relative_to(ROOT / "astralog") for path in ROOT.glob("astralog/**/*.py")]
    known = {str(path) for path in paths} | {path.name for path in paths}
    named = re.findall(r"`([a-z_/0-9]+\.py)`", ARCHITECTURE)
    assert [name for name in named if name not in known and not (ROOT / name).exists()] == []


def test_places_that_keep_invariants_exist() -> None:
    """Each `module.name` in the table of invariants is in a module of that name."""
    modules = {path.stem: path.read_text() for path in ROOT.glob("astralog/**/*.py")}
    table = ARCHITECTURE.partition("| invariant | kept in |")[2].partition("\n\n")[0]
    named = re.findall(r"`([a-z_0-9]+)\.(?!py`)(\w+)(?:\.\w+)?`", table)
    assert [place for place in named if place[1] not in modules.get(place[0], "")] == []


def test_comparison_in_the_readme_is_that_of_its_page() -> None:
    """The page has each figure of the README's table, with its method and date."""
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## How it compares") :]
    rows = re.findall(r"^\|[^|]+\|(.*[0-9].*)\|$", section, re.MULTILINE)
    figures = [figure for row in rows for figure in re.findall(r"[\d.]+(?:k\b|%| MB)", row)]
    assert len(figures) >= 10
    page = (ROOT / "docs" / "comparison.md").read_text()
    assert [figure for figure in figures if figure not in page] == []


def test_the_readme_stays_short() -> None:
    """Longer texts belong in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def headings(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    """Every relative link of a document leads to a file, and its fragment to a heading."""
    for target, fragment in re.findall(
        r"\]\((?!https?:|mailto:)([^)#]*)#?([^)]*)\)", path.read_text()
    ):
        file = path.parent / target if target else path
        assert file.exists(), f"no file {target}"
        assert not fragment or fragment in headings(file), f"no heading {target}#{fragment}"
