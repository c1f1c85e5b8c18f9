"""The status page of a service in a browser, and checks for all of its views."""

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support.browser import CHROMIUM, DRIVER, Browser
from tests.support.service import TOKEN, Service, wait_for

#: What a log may hold to drive a page, a terminal, or a reader's eye.
HOSTILE = (
    "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
    "\x1b[31m \u202egnp.exe\u2028next line\0 javascript:alert(1) {{7*7}} </summary></li>"
)

MESSAGES = "return [...document.querySelectorAll('#logs .message')].map(e => e.textContent)"
SHOWN = "return !document.querySelector('#shown').hidden"

#: The contrasts of a text's colour with what is behind it, as WCAG 2.2 defines them.
CONTRASTS = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (rgb) => {
  const [r, g, b] = rgb.slice(0, 3).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const color = parse(getComputedStyle(one).backgroundColor);
    if (color.length === 3 || color[3] > 0.99) return color;
  }
};
const found = {};
for (const element of document.querySelectorAll('body *')) {
  const texts = [...element.childNodes].filter((node) => node.nodeType === 3);
  if (!texts.some((node) => node.textContent.trim()) || !element.checkVisibility()) continue;
  const one = light(parse(getComputedStyle(element).color)) + 0.05;
  const two = light(behind(element)) + 0.05;
  found[element.tagName + '.' + element.className] = Math.max(one, two) / Math.min(one, two);
}
return found;
"""


class Page:
    """The page of a service in a browser."""

    def __init__(self, browser: Browser, service: Service) -> None:
        self.browser = browser
        self.service = service
        self.host = f"127.0.0.1:{service.address[1]}"

    def open(self) -> None:
        """Open it in a tab without a token."""
        self.browser.open(f"http://{self.host}/status")
        self.browser.run("sessionStorage.clear()")
        self.browser.open(f"http://{self.host}/status")
        self.browser.messages()

    def enter(self, token: str) -> None:
        """Enter a token into the form."""
        self.browser.run("document.querySelector('#token').value = ''")
        self.browser.type("#token", token + Keys.ENTER)

    def show(self, token: str = TOKEN) -> None:
        """Open it with a token."""
        self.open()
        self.enter(token)
        wait_for(lambda: self.browser.run(SHOWN))

    def messages(self) -> list[str]:
        """Return the messages of the shown logs, newest first."""
        shown: list[str] = self.browser.run(MESSAGES)
        return shown

    def filter(self, name: str, value: str) -> None:
        """Set one of the filters through the form, and wait for its results."""
        self.browser.run("document.querySelector('#logs').replaceChildren()")
        script = (
            "const field = document.querySelector(`#filters [name=${arguments[0]}]`);"
            "field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', { bubbles: true }))"
        )
        self.browser.run(script, name, value)

    def prefer(self, **features: str) -> None:
        """Set a preference of the browser's user: `color_scheme="dark"`."""
        listed = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in features.items()
        ]
        self.browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": listed})


def store(service: Service, *logs: dict[str, Any]) -> None:
    """Store logs."""
    assert 200 == service.drain({"logs": list(logs)}).status


def make_browser(directory: Path) -> Browser:
    """Return a window of a desktop's width."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("THE STATUS PAGE IS NOT TESTED: apt-get install chromium chromium-driver")
    return Browser(directory, 1280, 1000)
