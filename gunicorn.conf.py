"""gunicorn's settings, which are the package's own; gunicorn reads this file by itself."""

from astralog.server.gunicorn_settings import *  # noqa: F403  # gunicorn reads all names
