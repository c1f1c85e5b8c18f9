"""gunicorn's worker, HTTP/1.1, and what happens at start and stop."""
