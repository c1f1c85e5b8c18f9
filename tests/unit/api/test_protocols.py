"""The protocols of other products cost nothing until they are used."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from astralog.app import create_app
from astralog.settings import Settings

client = create_app(Settings(data_dir=Path(sys.argv[1]), tokens="t")).test_client()
client.get("/health")
loaded = {name for name in sys.modules if name.startswith("astralog.")}
protocols = {
    "hec": "/services/collector",
    "loki": "/loki/api/v1/push",
    "elasticsearch": "/elasticsearch/_bulk",
}
for name, path in protocols.items():
    for module in (f"astralog.intake.{name}", f"astralog.api.{name}"):
        assert module not in loaded, module
    assert client.post(path).status_code in (401, 403)
    assert f"astralog.api.{name}" in sys.modules
assert "astralog.intake.foreign" not in loaded
"""


@pytest.mark.slow
def test_a_protocol_is_imported_with_its_first_request(tmp_path: object) -> None:
    """A service that receives no Splunk events needs no memory for them."""
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, timeout=60)
