"""The wheel is complete: installed anywhere, `astralog serve` starts the service."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.service import ROOT, Service, make_batch

#: What a wheel is built of.
SOURCES = ("astralog", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "Makefile")


def run(*command: str | Path) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the installed tools, from a copy, since building leaves files behind.

    `make wheel` removes the wheel of an older version.
    """
    directory = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / "source" / name)
        else:
            (directory / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, directory / "source")
    dist = directory / "source" / "dist"
    dist.mkdir()
    (dist / "astralog-0.0.1-py3-none-any.whl").touch()
    make = f"make -C {directory / 'source'} -o install wheel BIN={Path(sys.executable).parent}"
    run(*make.split())
    (path,) = dist.glob("astralog-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a separate environment, which sees the locked dependencies."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=True)
    paths = {"base": str(directory), "platbase": str(directory)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    # The directory alone: the checkout's own entry in it is another .pth file, and not followed.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = "-m pip install --quiet --no-deps --no-index --disable-pip-version-check"
    python = directory / "bin" / "python"
    run(python, *install.split(), wheel)
    assert run(python, "-I", "-c", "import astralog; print(astralog.__file__)").startswith(
        str(packages)
    )
    return directory / "bin"


#: Other interpreters to install the wheel with, from the index: `make test-wheel` sets these.
PYTHONS = os.environ.get("WHEEL_PYTHONS", "").split()


class InstalledService(Service):
    """A service that `astralog serve` starts in a directory without a checkout."""

    def __init__(self, directory: Path, installed: Path, **settings: object) -> None:
        super().__init__(directory, **settings)
        self._installed = installed
        self.root = directory

    def command(self) -> list[str]:
        """Return the command that starts the service."""
        return [str(self._installed / "astralog"), "serve"]


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    """It has no files outside the package, and the package's data files."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {"astralog"} == {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    for name in ("py.typed", "api/static/docs.html", "server/gunicorn_settings.py", "cli.py"):
        assert f"astralog/{name}" in names


def test_an_installed_service_serves(tmp_path: Path, installed: Path) -> None:
    """It stores, shows its page and reloads, in a directory without the checkout."""
    with InstalledService(tmp_path, installed, workers=2) as service:
        assert 200 == service.drain(make_batch("a")).status
        assert b"AstraLog" in service.request("GET", "/docs").raw
        service.reload()
        assert 200 == service.drain(make_batch("b")).status
        assert 0 == service.stop()
        assert ["a", "b"] == [log["message"] for log in service.logs()]
        assert "Traceback" not in service.log()
    assert [] == [path for path in tmp_path.iterdir() if path.name not in ("data", "stderr.log")]


def test_an_installed_service_names_a_wrong_setting(tmp_path: Path, installed: Path) -> None:
    """A failed start has one line, as from the checkout."""
    service = InstalledService(tmp_path, installed, workers=0)
    assert 1 == service.fail_to_start()
    assert 1 == len(service.log().splitlines())
    assert service.log().startswith("ASTRALOG_WORKERS: ")


def test_the_command_prints_tokens_and_its_version(installed: Path) -> None:
    """A token is long and random; the version is the package's."""
    tokens = {run(installed / "astralog", "token").strip() for _ in range(2)}
    assert 2 == len(tokens)
    assert all(len(token) >= 40 for token in tokens)
    init = (ROOT / "astralog" / "__init__.py").read_text()
    version = run(installed / "astralog", "--version").split()[-1]
    assert f'__version__ = "{version}"' in init


def test_help_is_quick(installed: Path) -> None:
    """Help lists every command, and imports no part of the service."""
    python = installed / "python"
    script = "import sys; from astralog import cli; print(*sys.modules)"
    loaded = run(python, "-I", "-c", script).split()
    assert not {"flask", "gunicorn", "gevent", "msgspec"} & set(loaded)
    assert {"serve", "token"} <= set(run(installed / "astralog", "--help").split())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "python",
    PYTHONS
    or [pytest.param("", marks=pytest.mark.skip("NOT TESTED: other Pythons; use make test-wheel"))],
)
def test_wheel_serves_on_every_python(tmp_path: Path, wheel: Path, python: str) -> None:
    """With the locked dependencies it stores, serves its docs page and passes its own check."""
    run(python, "-m", "venv", tmp_path / "venv")
    pip = (tmp_path / "venv" / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--require-hashes", "-r", ROOT / "requirements" / "base.lock")
    run(*pip, "--no-deps", wheel)
    with InstalledService(tmp_path, tmp_path / "venv" / "bin") as service:
        assert 200 == service.drain(make_batch("a")).status
        assert b"AstraLog" in service.request("GET", "/docs").raw
        url = "http://{}:{}".format(*service.address)
        run(tmp_path / "venv" / "bin" / "astralog", "check", "--read-only", url)
        assert 0 == service.stop()
        assert ["a"] == [log["message"] for log in service.logs()]
