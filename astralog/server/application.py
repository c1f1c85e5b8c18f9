"""What gunicorn runs: the command that starts it, and the code that its workers have."""

import logging
import sys
from collections.abc import Callable
from importlib.abc import InspectLoader
from importlib.util import find_spec, module_from_spec
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication

from astralog.app import create_app
from astralog.settings import InvalidSettings, Settings

log = logging.getLogger(__name__)


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

    def load_or_inherit() -> Any:
        try:
            return load()
        except InvalidSettings as error:  # all others were checked, but the tokens' file changes
            log.error("tokens stay as they are: %s", "; ".join(error.problems))
            return create_app(settings, application.cfg.inherited.tokens)

    application.load = load_or_inherit
    application.reload = lambda: None


def _held_load(application: WSGIApplication) -> Callable[[], Any]:
    """Return how gunicorn loads the application, where its module's code is not read again."""
    load: Callable[[], Any] = application.load
    name = application.app_uri.partition(":")[0]
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or not isinstance(spec.loader, InspectLoader):
        return load
    code = spec.loader.get_code(name)
    if code is None:
        return load

    def load_held() -> Any:
        sys.modules[name] = module = module_from_spec(spec)
        exec(code, vars(module))  # nosec B102
        return load()

    return load_held
