"""The commands in the documents have the documented output."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.service import ROOT, Service
from tests.support.tail import COMMAND

#: Each command of a document with the JSON that is shown as its answer.
EXAMPLES = [
    pytest.param(command, answer, id=f"{path.name}-{number}")
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    for number, (command, answer) in enumerate(
        re.findall(
            r"```sh\n((?:(?!```).)*)```\n\n```json\n(.*?)\n```", path.read_text(), re.DOTALL
        ),
        1,
    )
]


@pytest.mark.parametrize(("command", "answer"), EXAMPLES)
def test_the_examples_work_as_pasted(tmp_path: Path, command: str, answer: str) -> None:
    """A command prints the block below it."""
    with Service(tmp_path, tokens=None) as service:
        pasted = command.replace("localhost:8080", f"localhost:{service.address[1]}")
        pasted = pasted.replace("/tmp/", "")  # whose files another user or test may have
        result = subprocess.run(
            ["bash", "-ec", pasted],
            cwd=tmp_path,
            env=os.environ | {"PATH": f"{COMMAND.parent}:{os.environ['PATH']}"},
            capture_output=True,
            check=True,
            text=True,
        )
    assert answer == result.stdout.removesuffix("\n")


def test_there_are_examples() -> None:
    """Accepted and rejected ones in the README, and one from a file in the API's page."""
    assert 8 <= len(EXAMPLES)
