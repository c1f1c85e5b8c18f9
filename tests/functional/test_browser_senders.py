"""Pages of another origin that send logs from a real browser."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.browser import CHROMIUM, DRIVER, Browser
from tests.support.service import ROOT, Service, wait_for, write_tokens

#: The examples of docs/api.md, in their order: fetch, and sendBeacon.
EXAMPLES = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>App</title>")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def page_of_another_origin() -> Iterator[str]:
    """Yield the origin of a server on another port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def rejected_beacons(browser: Browser) -> list[str]:
    """Return the beacons that the browser reports as rejected since the last call."""
    return [text for text in browser.messages() if "drain?token=" in text and "403" in text]


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver")
def test_page_of_a_listed_origin_sends_logs(tmp_path: Path) -> None:
    """Fetch with keepalive and sendBeacon arrive, only from a listed origin."""
    path = write_tokens(tmp_path / "tokens", "PAGE-TOKEN org-xyz allow=write\nfull\n")
    browser_dir = tmp_path / "browser"
    browser_dir.mkdir()
    with page_of_another_origin() as listed, page_of_another_origin() as other:
        settings = {"tokens": None, "tokens_file": path, "cors_origins": listed}
        with Service(tmp_path, **settings) as service, Browser(browser_dir, 800, 600) as browser:
            url = f"http://127.0.0.1:{service.address[1]}"
            fetch, beacon = (text.replace("https://logs.example", url) for text in EXAMPLES)
            browser.open(listed)
            assert (
                browser.run(f"return (async () => {{ {fetch}; return response.status }})()") == 200
            )
            assert browser.run(f"{beacon}; return true")
            wait_for(lambda: len(service.logs()) == 2)
            assert {log["message"] for log in service.logs()} == {"page opened", "page left"}
            read = f"return fetch('{url}/status/data?token=PAGE-TOKEN').then(r => r.status)"
            assert browser.run(read) == 403
            browser.open(other)
            failed = f"return (async () => {{ {fetch} }})().then(() => 'sent', () => 'blocked')"
            assert browser.run(failed) == "blocked"
            browser.run(beacon)
            assert browser.run(read.replace("r => r.status", "() => 'read', () => 'blocked'")) == (
                "blocked"
            )
            wait_for(lambda: rejected_beacons(browser))
            assert len(service.logs()) == 2
            assert "PAGE-TOKEN" not in service.log()
