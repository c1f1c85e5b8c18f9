"""The WSGI entry point: `gunicorn wsgi:app`.

AstraLog's own gunicorn workers call `create_app` themselves, with the tokens that their master has
read, so changes to this file have no effect there.
"""

from astralog.app import create_app

app = create_app()
