"""The service matches its own OpenAPI document, as checked by schemathesis."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT, TIMEOUT_SECONDS, TOKEN, Service

#: Requests an operation, and the seed that chooses them.
EXAMPLES = 2000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 12
SEED = 20261123


@pytest.mark.timeout(300)
def test_the_service_keeps_its_own_document(tmp_path: Path) -> None:
    """Requests that the document allows get documented responses; all others are rejected.

    Among the checks: no 5xx, documented statuses, types, bodies and headers alone, no malformed
    batch taken, no request served without its token, other methods rejected.
    """
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.functional.openapi_hooks",
    }
    with Service(tmp_path) as service:
        command = [
            *(str(Path(sys.executable).parent / "schemathesis"), "run"),
            *(f"http://127.0.0.1:{service.address[1]}/openapi.json", "--checks", "all"),
            *("--header", f"Authorization: Bearer {TOKEN}", "--no-color"),
            *("--max-examples", str(EXAMPLES), "--seed", str(SEED), "--warnings", "off"),
            *("--suppress-health-check", "all", "--request-timeout", str(TIMEOUT_SECONDS)),
        ]
        run = subprocess.run(
            command, check=False, cwd=tmp_path, env=environ, capture_output=True, text=True
        )
        assert (0, "") == (run.returncode, run.stderr), run.stdout
        found = re.search(r"([0-9]+) generated, ([0-9]+) passed", run.stdout)
        assert found
        assert int(found[1]) >= EXAMPLES
        assert len(service.logs()) >= EXAMPLES // 10
        assert "Traceback" not in service.log()
        assert 0 == service.stop()
