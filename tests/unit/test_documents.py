"""The tables in the documents are what the code has."""

import dataclasses
import re

import pytest

from astralog.errors import STATUS_OF_CODE
from astralog.settings import PREFIX, Settings
from tests.support.service import ROOT

README_LINES = 150


def settings_table() -> str:
    """Return the table of all settings in Markdown."""
    rows = [
        f"| `{PREFIX}{field.name.upper()}` | {field.metadata['shown']} | {field.metadata['help']} |"
        for field in dataclasses.fields(Settings)
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows])


def test_the_settings_table_is_the_settings() -> None:
    """The table has every setting with its default and its help."""
    assert settings_table() in (ROOT / "docs" / "configuration.md").read_text()


def test_the_settings_for_search_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recommended can be put into the environment as it stands."""
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
    """The table of rejections has every code beside its status."""
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
    assert {(code, int(status)) for code, status in STATUS_OF_CODE.items()} == shown


def test_the_readme_stays_short() -> None:
    """What does not fit into the README belongs into docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_every_link_leads_to_a_file() -> None:
    """No document links to a file that is not there."""
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob(".github/*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("clients/*/*.md"),
    ]:
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
