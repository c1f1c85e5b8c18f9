"""`make` installs where it has to, and names a missing requirement in one line."""

import shutil
import subprocess
from pathlib import Path

from tests.support.service import ROOT, TIMEOUT_SECONDS
from tests.support.small_disk import small_disk

INPUTS = ("Makefile", "setup.cfg", "pyproject.toml", "requirements")

DISK_BYTES = 8 * 1024 * 1024


def copy_inputs(directory: Path) -> None:
    """Copy the files of the checkout that an installation reads."""
    for name in INPUTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name)
        else:
            shutil.copy(ROOT / name, directory)


def fail_to_run(directory: Path, python: Path | str = "python3") -> str:
    """Run `make run` with an interpreter, and return the line of its failure."""
    command = ["make", "--no-print-directory", "run", f"PYTHON={python}", "VENV=.venv"]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 2
    [failure] = done.stderr.splitlines()
    assert failure.endswith("Error 1")
    [line] = done.stdout.splitlines()
    return line


def make_python(directory: Path, *failing: str) -> Path:
    """Return an interpreter that fails code with one of these words."""
    path = directory / "python"
    cases = "".join(f"case $2 in *{word}*) exit 1;; esac\n" for word in failing)
    path.write_text(f'#!/bin/sh\n{cases}exec python3 "$@"\n')
    path.chmod(0o755)
    return path


def test_old_python_is_named(tmp_path: Path) -> None:
    """The line has the required version, and how to choose another one."""
    copy_inputs(tmp_path)
    line = fail_to_run(tmp_path, make_python(tmp_path, "version_info"))
    assert "is not Python 3.11 or later" in line
    assert "make run PYTHON=" in line


def test_missing_python_is_named(tmp_path: Path) -> None:
    """As on an image without Python."""
    copy_inputs(tmp_path)
    assert "is not Python 3.11 or later" in fail_to_run(tmp_path, "/missing/python3")


def test_directory_with_a_quote_is_none_of_the_shell(tmp_path: Path) -> None:
    """Its name reaches each check, and the line of a failure, as it is."""
    clone = tmp_path / """Ann's "clone" `false` $HOME"""
    clone.mkdir()
    copy_inputs(clone)
    (clone / ".venv").touch()  # in the place of a directory
    assert f"make: {clone} is read-only, or not yours" in fail_to_run(clone)


def test_missing_venv_is_named(tmp_path: Path) -> None:
    """Debian's Python alone cannot make a virtual environment."""
    copy_inputs(tmp_path)
    line = fail_to_run(tmp_path, make_python(tmp_path, "ensurepip"))
    assert "sudo apt-get install python3-venv" in line


def test_full_disk_is_named(tmp_path: Path) -> None:
    """Before pip fills the disk and fails with a long message."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as directory:
        copy_inputs(directory)
        line = fail_to_run(directory)
    assert "less than 200 MB are free" in line


def test_read_only_directory_is_named(tmp_path: Path) -> None:
    """As in a clone of another user, or on a read-only mount."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as directory:
        copy_inputs(directory)
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        line = fail_to_run(directory)
    assert "is read-only, or not yours" in line


def planned(directory: Path) -> str:
    """Return the commands that `make install` would run."""
    command = ["make", "--no-print-directory", "--dry-run", "install", "VENV=.venv"]
    return subprocess.check_output(command, cwd=directory, text=True, timeout=TIMEOUT_SECONDS)


def test_environment_of_a_moved_clone_is_made_anew(tmp_path: Path) -> None:
    """The scripts of an environment hold its path."""
    clone, moved = tmp_path / "Ann's clone", tmp_path / "another place"
    (clone / ".venv").mkdir(parents=True)
    copy_inputs(clone)
    command = planned(clone).splitlines()[-1]
    assert "pwd -P > .venv/.installed" == command
    subprocess.run(command, cwd=clone, shell=True, check=True)
    assert f"{clone}\n" == (clone / ".venv/.installed").read_text()
    assert "Nothing to be done" in planned(clone)
    clone.rename(moved)
    assert "venv --clear .venv" in planned(moved)


def test_query_reaches_the_command_unchanged(tmp_path: Path) -> None:
    """Names in double quotes and paths in JSON are usual in SQL."""
    copy_inputs(tmp_path)
    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True)
    (tmp_path / ".venv/.installed").write_text(f"{tmp_path}\n")
    (tmp_path / ".venv/.installed-sql").touch()
    (binaries / "astralog").write_text('#!/bin/sh\nprintf %s "$2"\n')
    (binaries / "astralog").chmod(0o755)
    query = """SELECT "a b", metadata->>'$.user_id' FROM logs -- `id` $(id) #\\n"""
    command = ["make", "--no-print-directory", "sql", "VENV=.venv", f"SQL={query}"]
    assert query == subprocess.check_output(
        command, cwd=tmp_path, text=True, timeout=TIMEOUT_SECONDS
    )
