"""AstraLog: a log collector that answers 200 when every line is on disk."""

from flask import Flask

from astralog import errors
from astralog.api import drain, health
from astralog.auth import Tokens
from astralog.body import BodyReader
from astralog.directory import make_directory
from astralog.pipeline import Pipeline
from astralog.settings import Settings
from astralog.web import App

__version__ = "0.1.0"


def create_app(settings: Settings | None = None, tokens: Tokens | None = None) -> Flask:
    """Join the parts to an app; without settings and tokens, those of the environment.

    Raises InvalidSettings, and OSError where the data directory cannot be made.
    """
    settings = settings or Settings.from_environ()
    make_directory(settings.data_dir)
    pipeline = Pipeline(settings)
    bodies = BodyReader(settings.max_body_bytes, settings.body_timeout_seconds)
    app = App(__name__, static_folder=None)
    app.extensions["astralog"] = pipeline
    errors.init_app(app)
    app.register_blueprint(drain.create_blueprint(tokens or Tokens(settings), bodies, pipeline))
    app.register_blueprint(health.create_blueprint(pipeline))
    return app
