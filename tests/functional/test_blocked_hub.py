"""A test fails if the service's hub is blocked, and shows the stack."""

from pathlib import Path

import pytest

from tests.support.service import Service, make_batch
from tests.support.upgrade import copy_checkout

#: Makes a request for /block use so much of the CPU that it must be noticed.
BLOCK = """

class Blocking:
    def __init__(self, app):
        self.app = app

    def __getattr__(self, name):
        return getattr(self.app, name)

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/block":
            block_on_purpose()
        return self.app(environ, start_response)


def block_on_purpose():
    import time
    end = time.thread_time() + 1
    while time.thread_time() < end:
        pass


def create_app(*args, create_app=create_app):
    app = create_app(*args)
    app.wsgi_app = Blocking(app.wsgi_app)
    return app
"""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """Return a service that blocks on request, not started."""
    root = copy_checkout(tmp_path / "checkout")
    with (root / "astralog" / "app.py").open("a") as file:
        file.write(BLOCK)
    service = Service(tmp_path)
    service.root = root
    return service


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_a_blocked_hub_fails_the_test(service: Service, is_reloaded: bool) -> None:
    """Its stack is shown when the service ends; workers of a reload are monitored too."""
    service.start()
    if is_reloaded:
        service.reload()
    assert 404 == service.request("GET", "/block").status
    with pytest.raises(AssertionError, match="block_on_purpose"):
        service.kill()


def test_a_service_that_does_not_block_passes(service: Service) -> None:
    """Neither its start, its stop, nor its first requests are reported."""
    with service:
        assert 200 == service.drain(make_batch("a")).status
        assert 404 == service.request("GET", "/nothing").status
        assert 0 == service.stop()
