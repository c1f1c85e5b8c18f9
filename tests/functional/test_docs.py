"""The docs page in a real browser, on a desktop and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import CHROMIUM, DRIVER, PHONE_WIDTH, Browser
from tests.support.service import TOKEN, Service, wait_for

OPERATIONS = "return [...document.querySelectorAll('.opblock-summary-path')].map(e => e.innerText)"

WIDTH = "return document.documentElement.scrollWidth"

#: Zero-width spaces, with which Swagger UI lets long paths break.
ZERO_WIDTH_SPACE = "\u200b"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Return a browser window of a desktop's width."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("THE DOCS PAGE IS NOT TESTED: apt-get install chromium chromium-driver")
    with Browser(tmp_path, 1280, 1000) as browser:
        yield browser


def try_it(browser: Browser) -> str:
    """Enter the token into the page's form, send its example, and return the response shown."""
    browser.click(".scheme-container .authorize")
    browser.type(".auth-container input", TOKEN)
    browser.click(".modal-btn.authorize")
    browser.click(".btn-done")
    browser.click(".try-out__btn")
    browser.click(".execute")
    return wait_for(lambda: browser.text(".live-responses-table"))


def test_the_page_works_without_another_host(tmp_path: Path, browser: Browser) -> None:
    """It shows every operation, fits the window, and its form stores a batch."""
    with Service(tmp_path) as service:
        host = f"127.0.0.1:{service.address[1]}"
        browser.open(f"http://{host}/")
        browser.click('nav a[href="docs"]')
        wait_for(lambda: browser.text(".opblock-summary-path"))
        assert f"http://{host}/docs" == browser.run("return location.href")
        paths = {path.replace(ZERO_WIDTH_SPACE, "") for path in browser.run(OPERATIONS)}
        assert {"/v1/drain", "/health", "/ready", "/metrics", "/openapi.json"} <= paths
        assert f"curl -s http://{host}/v1/drain" in browser.text(".info")
        assert "invalid_batch" in wait_for(lambda: browser.text(".responses-table"))
        assert "project_id" in browser.text(".models")

        assert '"status": "accepted"' in try_it(browser)
        assert "curl -X 'POST'" in browser.text(".curl-command")
        assert ["User logged in"] == [log["message"] for log in service.logs()]
        assert browser.run(WIDTH) <= 1280

        with browser.imitate_phone():
            assert browser.run(WIDTH) <= PHONE_WIDTH
            browser.click(".execute")
            wait_for(lambda: len(service.logs()) == 2)

        assert [] == browser.messages()
        assert {host} == browser.requested_hosts()

        browser.run("new Image().src = 'http://127.0.0.2:9/'")
        assert "Content Security Policy" in wait_for(browser.messages)[0]
