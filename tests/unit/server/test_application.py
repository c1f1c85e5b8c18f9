import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.util import import_app

import astralog.app as app_module
from astralog.auth import Tokens
from astralog.server.application import hold_code
from astralog.settings import Settings
from tests.support.service import TOKEN

ENTRY = "from astralog.app import create_app\n\napp = create_app()\nVERSION = {}\n"


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a module like wsgi.py, whose name is `entry_point`."""
    path = tmp_path / "entry_point.py"
    path.write_text(ENTRY.format(1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(app_module, "create_app", app_module.create_app)  # is put back after it
    yield path
    sys.modules.pop("entry_point", None)


class Application:
    """gunicorn's application, as far as its code and settings go."""

    def __init__(self, app_uri: str, settings: Settings) -> None:
        self.app_uri = app_uri
        self.cfg = SimpleNamespace(inherited=SimpleNamespace(tokens=Tokens(settings)))
        self.is_configured_anew = False

    def load(self) -> Any:
        """Load the application as gunicorn does in a worker."""
        return import_app(self.app_uri)

    def reload(self) -> None:
        """Read the settings anew."""
        self.is_configured_anew = True


def test_a_worker_runs_the_code_that_was_there(entry: Path, settings: Settings) -> None:
    """What takes the file's place later is not read, by a worker or by a reload."""
    application: Any = Application("entry_point:app", settings)
    hold_code(application, settings)
    entry.write_text(ENTRY.format(2))
    application.load()
    assert 1 == sys.modules["entry_point"].VERSION
    application.reload()
    assert not application.is_configured_anew


@pytest.mark.parametrize("app_uri", ["entry_point:app", "astralog.app:create_app()"])
@pytest.mark.usefixtures("entry")
def test_a_worker_inherits_what_the_master_has_read(app_uri: str, settings: Settings) -> None:
    """The settings are those that were checked, and the tokens are not read again."""
    application: Any = Application(app_uri, settings)
    hold_code(application, settings)
    app = application.load()
    assert app.extensions["astralog_tokens"] is application.cfg.inherited.tokens
    headers = {"Authorization": TOKEN}
    assert (
        200 == app.test_client().post("/v1/drain", data=b'{"logs":[]}', headers=headers).status_code
    )
    app.extensions["astralog"].stop(1)


def test_what_is_not_there_is_left_to_gunicorn(settings: Settings) -> None:
    """Its own message says best that a module is missing."""
    application: Any = Application("no_such_module:app", settings)
    hold_code(application, settings)
    with pytest.raises(ImportError):
        application.load()
