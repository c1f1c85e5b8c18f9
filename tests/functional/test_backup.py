"""The commands for backup, restore and another disk lose no log while more arrive."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.service import ROOT, Service, make_batch

pytestmark = pytest.mark.skipif(
    shutil.which("rsync") is None, reason="NOT TESTED: rsync is not installed"
)

GUIDE = (ROOT / "docs" / "deployment.md").read_text().replace("\\\n", "")
BACKUP, RESTORE, MOVE = re.findall(r"^sudo (rsync .*)$", GUIDE, re.MULTILINE)


#: Files that were listed were gone when they were to be copied (rsync(1), EXIT VALUES).
FILES_VANISHED = 24


def run(command: str, **directories: Path) -> None:
    """Run a command of the guide with the test's directories."""
    for name, directory in directories.items():
        path = {
            "data": "/var/lib/astralog/",
            "backup": "backup:/srv/astralog/",
            "disk": "/mnt/logs/astralog/",
        }[name]
        assert 1 == command.count(path)
        command = command.replace(path, f"{directory}/")
    done = subprocess.run(["bash", "-ec", command], check=False, timeout=60)
    assert done.returncode in (0, FILES_VANISHED)


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_backup_is_restored_to_the_last_log(tmp_path: Path, compress: str) -> None:
    """Copied under load and again after the stop, it has each acknowledged log once."""
    backup = tmp_path / "backup"
    with Service(tmp_path, segment_bytes=20_000, compress=compress) as service:
        with Load(service, 2) as load:
            for _ in range(3):
                load.wait_for_acknowledged(30)
                run(BACKUP, data=service.data_dir, backup=backup)
        copied = sorted(path.name for path in backup.iterdir())
        assert copied
        assert {name.partition(".ndjson")[0] for name in copied} <= {
            path.name.partition(".ndjson")[0] for path in service.files()
        }
        assert 0 == service.stop()
    run(BACKUP, data=service.data_dir, backup=backup)
    shutil.rmtree(service.data_dir)
    with Service(tmp_path) as service:
        run(RESTORE, data=service.data_dir, backup=backup)
        assert 200 == service.drain(make_batch("new")).status
        logs = service.logs()
        assert 1 == len([log for log in logs if log["message"] == "new"])
        load.check([log for log in logs if log["message"] != "new"])


def test_the_old_files_follow_to_another_disk(tmp_path: Path) -> None:
    """They are moved while the service already writes there."""
    with Service(tmp_path) as service:
        assert 200 == service.drain(make_batch("old")).status
        assert 0 == service.stop()
    disk = tmp_path / "disk"
    with Service(tmp_path, data_dir=disk) as moved:
        assert 200 == moved.drain(make_batch("new")).status
        run(MOVE, data=service.data_dir, disk=disk)
        assert ["old", "new"] == [log["message"] for log in moved.logs()]
        assert [] == service.files()
