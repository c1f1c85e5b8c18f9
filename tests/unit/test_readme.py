"""What the README says is what the service does."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from astralog.errors import STATUS_OF_CODE
from astralog.settings import PREFIX, Settings
from tests.support.service import ROOT, Service

README = (ROOT / "README.md").read_text()

#: Each command with the JSON that the README shows as its answer.
EXAMPLES = re.findall(r"```sh\n((?:(?!```).)*)```\n\n```json\n(.*?)\n```", README, re.DOTALL)


def settings_table() -> str:
    """Return the table of all settings in Markdown."""
    rows = [
        f"| `{PREFIX}{field.name.upper()}` | {field.metadata['shown']} | {field.metadata['help']} |"
        for field in dataclasses.fields(Settings)
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows])


def test_the_settings_table_is_the_settings() -> None:
    """The table has every setting with its default and its help."""
    assert settings_table() in README


def test_every_rejection_is_explained() -> None:
    """The table of rejections has every code beside its status."""
    rows = [line for line in README.splitlines() if re.match(r"\| [45]", line)]
    shown = {
        (code, int(status))
        for row in rows
        for status, codes in [row.split("|")[1:3]]
        for code, status in zip(
            re.findall(r"`(\w+)`", codes), (re.findall(r"[0-9]+", status) * 4), strict=False
        )
    }
    assert {(code, int(status)) for code, status in STATUS_OF_CODE.items()} == shown


@pytest.mark.parametrize(("command", "answer"), EXAMPLES)
def test_the_examples_work_as_pasted(tmp_path: Path, command: str, answer: str) -> None:
    """A command of the README prints what the README says."""
    with Service(tmp_path, tokens=None) as service:
        pasted = command.replace("localhost:8080", f"localhost:{service.address[1]}")
        result = subprocess.run(
            ["bash", "-ec", pasted], cwd=tmp_path, capture_output=True, check=True, text=True
        )
    assert answer == result.stdout


def test_there_are_examples() -> None:
    """Good, bad and from a file."""
    assert 3 <= len(EXAMPLES)
