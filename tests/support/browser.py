"""A real browser for tests: Debian's Chromium, driven through WebDriver.

The protocol is https://www.w3.org/TR/webdriver2/. Debian's packages are chromium and
chromium-driver.
"""

import base64
import http.client
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.service import wait_for

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium")

#: Without these, Chromium asks hosts of its own.
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Browser:
    """A window of a given size with nothing in it; a narrow one is a phone's."""

    def __init__(self, directory: Path, width: int, height: int) -> None:
        self._log_path = directory / "chromedriver.log"
        self._options: dict[str, Any] = {
            "binary": CHROMIUM,
            "args": [*QUIET, f"--user-data-dir={directory / 'profile'}"],
        }
        if width < 500:
            metrics = {"width": width, "height": height, "pixelRatio": 2, "mobile": True}
            self._options["mobileEmulation"] = {"deviceMetrics": metrics}
        else:
            self._options["args"].append(f"--window-size={width},{height}")
        self._session = ""

    def __enter__(self) -> Self:
        assert DRIVER is not None
        with self._log_path.open("wb") as log:
            self._driver = subprocess.Popen([DRIVER, "--port=0"], stdout=log, stderr=log)
        try:
            port = wait_for(lambda: re.search(r"on port ([1-9]\d*)", self._log_path.read_text()))
            self._address = ("127.0.0.1", int(port[1]))
            capabilities = {
                "goog:chromeOptions": self._options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            made = self._call("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
            self._session = "/" + made["sessionId"]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._end()

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.wait(30)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, f"/session{self._session}{path}", data)
            answer = json.load(connection.getresponse())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(answer["message"])
        return answer

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str = "body") -> str:
        """Return the visible text of the first element that a CSS selector finds, or nothing."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return str(self.run(script, selector))

    def click(self, selector: str) -> None:
        """Click the element that a CSS selector finds, once it is there, as a person would."""
        element = wait_for(lambda: self._find(selector))
        self._call("POST", f"/element/{element}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type a text into the field that a CSS selector finds."""
        element = wait_for(lambda: self._find(selector))
        self._call("POST", f"/element/{element}/value", {"text": text})

    def _find(self, selector: str) -> str:
        found = self._call("POST", "/elements", {"using": "css selector", "value": selector})
        return next((str(reference) for item in found for reference in item.values()), "")

    def messages(self) -> list[str]:
        """Return what the page wrote to the console since the last call, violations included."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def requested_hosts(self) -> set[str]:
        """Return the `host:port` of every request of the page since the last call."""
        entries = self._call("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [
            urlsplit(message["params"]["request"]["url"])
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return {url.netloc for url in urls if url.scheme not in ("data", "chrome")}

    def screenshot(self) -> bytes:
        """Return a PNG of what the window shows."""
        return base64.b64decode(self._call("GET", "/screenshot"))
