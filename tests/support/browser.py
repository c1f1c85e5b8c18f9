"""A real browser for tests: Debian's Chromium, driven by selenium.

Debian's packages are chromium and chromium-driver.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.service import wait_for

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium")

#: Compare it with a page's `scrollWidth`: `innerWidth` grows with a page that is too wide.
PHONE_WIDTH = 390

#: Without these, Chromium asks hosts of its own.
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Browser:
    """An empty window of a given size."""

    def __init__(self, directory: Path, width: int, height: int) -> None:
        assert DRIVER
        assert CHROMIUM
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (*QUIET, f"--user-data-dir={directory / 'profile'}"):
            options.add_argument(argument)
        options.add_argument(f"--window-size={width},{height}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        log = str(directory / "chromedriver.log")
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER, log_output=log))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.driver.quit()

    def open(self, url: str) -> None:
        """Load a page."""
        self.driver.get(url)

    @contextlib.contextmanager
    def imitate_phone(self) -> Iterator[None]:
        """Have the window of a phone, which is PHONE_WIDTH wide, during the block."""
        metrics = {"width": PHONE_WIDTH, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        touch = "Emulation.setTouchEmulationEnabled"
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd(touch, {"enabled": True})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd(touch, {"enabled": False})
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page and return its result."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str = "body") -> str:
        """Return the visible text of the first element that matches a CSS selector, or nothing."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return str(self.run(script, selector))

    def click(self, selector: str) -> None:
        """Click the element that matches a CSS selector, once it exists, as a person would."""
        self._find(selector).click()

    def type(self, selector: str, text: str) -> None:
        """Type a text into the field that matches a CSS selector."""
        self._find(selector).send_keys(text)

    def _find(self, selector: str) -> WebElement:
        return wait_for(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))[0]

    def messages(self) -> list[str]:
        """Return the page's console messages since the last call, including violations."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested_hosts(self) -> set[str]:
        """Return the `host:port` of every request of the page since the last call."""
        entries = self.driver.get_log("performance")
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [
            urlsplit(message["params"]["request"]["url"])
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return {url.netloc for url in urls if url.scheme not in ("data", "chrome")}

    def screenshot(self) -> bytes:
        """Return a PNG of the window."""
        return self.driver.get_screenshot_as_png()
