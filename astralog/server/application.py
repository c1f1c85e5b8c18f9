"""What gunicorn runs: the command that starts it, and the code that its workers have."""

import sys
from collections.abc import Callable
from importlib.abc import InspectLoader
from importlib.util import find_spec, module_from_spec
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication

import astralog.app as app_module
from astralog.app import create_app
from astralog.settings import Settings


class Application(WSGIApplication):  # type: ignore[misc]
    """The service as `astralog serve` starts it: without gunicorn's command line and files."""

    def load_config(self) -> None:
        """Take the package's own settings of gunicorn."""
        self.app_uri = "astralog.app:create_app()"
        self.load_config_from_file("python:astralog.server.gunicorn_settings")


def run() -> None:
    """Serve until a signal ends the process."""
    Application().run()


def hold_code(application: WSGIApplication, settings: Settings) -> None:
    """Have every worker run the code that is there now, and have a reload read none.

    A worker that is born after another version's files took the place of these would else run a
    mixture of both, and gunicorn's settings, read anew, may ask for what the old code lacks.
    """
    load = _held_load(application)

    def create_inherited(*args: Any) -> Any:
        return create_app(*(args or (settings, application.cfg.inherited.tokens)))

    def load_inherited() -> Any:
        # What wsgi.py calls without arguments takes, in this worker, what the master has read:
        # the file of tokens may be faulty by now, and its disk may stall.
        app_module.create_app = create_inherited  # type: ignore[assignment]
        return load()

    application.load = load_inherited
    application.reload = lambda: None


def _held_load(application: WSGIApplication) -> Callable[[], Any]:
    """Return how gunicorn loads the application, where its module's code is not read again."""
    load: Callable[[], Any] = application.load
    name = application.app_uri.partition(":")[0]
    spec = None if name in sys.modules else find_spec(name)
    loader = spec.loader if spec else None
    code = loader.get_code(name) if isinstance(loader, InspectLoader) else None
    if spec is None or code is None:
        return load

    def load_held() -> Any:
        sys.modules[name] = module = module_from_spec(spec)
        exec(code, vars(module))  # nosec B102
        return load()

    return load_held
