"""The status page in a real browser, as operators use it."""

import itertools
import json
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support.browser import PHONE_WIDTH, Browser
from tests.support.service import TOKEN, Service, make_log, wait_for, write_tokens
from tests.support.status_page import (
    CONTRASTS,
    HOSTILE,
    SHOWN,
    Page,
    make_browser,
    store,
)
from tests.support.tail import make_line, make_name, make_segment

REQUESTS = "return performance.getEntriesByType('resource').length"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service of two workers that has rejected a batch of each of two tokens."""
    directory = tmp_path_factory.mktemp("service")
    tokens = directory / "tokens"
    write_tokens(tokens, "bound org-a\n")
    with Service(directory, workers=2, tokens_file=tokens) as service:
        assert 400 == service.drain({"logs": [{}]}).status
        assert 400 == service.drain({"logs": [{}]}, {"Authorization": "bound"}).status
        store(service, make_log(message="the first"))
        yield service


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a window of a desktop's width."""
    with make_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """Return the page; no test may load another host or violate a policy."""
    page = Page(browser, service)
    browser.requested_hosts()
    page.open()
    yield page
    assert {page.host} == browser.requested_hosts()
    expected = ("status of 401", "status of 503", "ERR_CONNECTION_REFUSED")
    assert [] == [text for text in browser.messages() if not any(one in text for one in expected)]


def test_a_wrong_token_shows_nothing(page: Page) -> None:
    """The page shows the service's message, and drops the token."""
    browser = page.browser
    assert "Token" in browser.text("#enter")
    page.enter("wrong")
    assert "is not known" in wait_for(lambda: browser.text("#refusal"))
    assert not browser.run(SHOWN)
    assert [0, "token"] == browser.run("return [sessionStorage.length, document.activeElement.id]")


def test_a_token_stays_in_its_tab(page: Page) -> None:
    """It survives reloads of the page, is in no address, and is dropped on request."""
    browser = page.browser
    page.show()
    browser.open(f"http://{page.host}/status")
    wait_for(lambda: browser.run(SHOWN))
    places = "return [location.href, document.cookie, JSON.stringify(localStorage)].join()"
    asked = browser.run("return performance.getEntriesByType('resource').map(e => e.name).join()")
    assert TOKEN not in browser.run(places) + asked + page.service.log()
    browser.click("#leave")
    assert [0, False] == browser.run(f"return [sessionStorage.length, (() => {{ {SHOWN} }})()]")
    assert [] == page.messages()


def test_new_logs_are_shown(page: Page) -> None:
    """Newest first, each once, and none while the page is paused."""
    page.show()
    wait_for(lambda: "the first" in page.messages())
    store(page.service, make_log(message="live one"))
    wait_for(lambda: page.messages()[:1] == ["live one"])
    page.browser.click("#pause")
    store(page.service, make_log(message="while paused"))
    time.sleep(2.5)
    assert "live one" == page.messages()[0]
    page.browser.click("#pause")
    wait_for(lambda: page.messages()[:2] == ["while paused", "live one"])
    assert 1 == page.messages().count("live one")


def test_both_filters_offer_all_known_levels(page: Page) -> None:
    """By the usual name of each rank."""
    options = "return [...document.forms[arguments[0]].level.options].map((one) => one.text)"
    names = "any trace debug info notice warning error critical alert emergency"
    for form in ("filters", "search"):
        assert page.browser.run(options, form) == names.split()


def test_filters_find_logs(page: Page) -> None:
    """By project, service, level and text, among stored and new logs."""
    page.show()
    logs = [
        make_log(message="ok", service="mailer"),
        make_log(message="broken", service="mailer", level="FATAL", project_id="org-f"),
    ]
    store(page.service, *logs)
    page.filter("level", "error")
    wait_for(lambda: page.messages() == ["broken"])
    page.filter("level", "")
    page.filter("service", "mailer")
    wait_for(lambda: page.messages() == ["broken", "ok"])
    page.filter("project", "org-f")
    wait_for(lambda: page.messages() == ["broken"])
    store(page.service, *(log | {"message": "again"} for log in logs))
    wait_for(lambda: page.messages() == ["again", "broken"])
    page.filter("q", "nothing like this")
    assert "No matching log was found" in wait_for(lambda: page.browser.text("#no-logs"))


def test_log_content_is_shown_as_text_only(page: Page) -> None:
    """Invisible characters are shown as codes."""
    fields = ("level", "service", "project_id", "message")
    store(page.service, make_log(**dict.fromkeys(fields, HOSTILE), metadata={HOSTILE: HOSTILE}))
    page.show()
    browser = page.browser
    wait_for(lambda: page.messages() and "<script>" in page.messages()[0])
    message = page.messages()[0]
    for code in (r"\u001b[31m", r"\u202egnp.exe", r"\u2028next", r"\u0000"):
        assert code in message
    browser.click("#logs summary")
    assert "</summary></li>" in wait_for(lambda: browser.text("#logs details[open] .whole"))
    assert "AstraLog status" == browser.run("return document.title")
    assert 0 == browser.run("return document.querySelectorAll('#logs :is(script, img)').length")
    raw = browser.run("return document.querySelector('#logs').textContent")
    assert not {"\x1b", "\u202e", "\u2028", "\0"} & set(raw)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_no_log_poses_as_another_projects(page: Page) -> None:
    """A blank in a name is visible, so a level cannot imitate a level, project and service."""
    store(page.service, make_log(level="error  org-b billing\xa0paid", message="m" * 9))
    page.show()
    wait_for(lambda: page.messages()[:1] == ["m" * 9])
    columns = (
        "return [...document.querySelectorAll('#logs summary')[0].children].map(e => e.textContent)"
    )
    _, *names = page.browser.run(columns)[:4]
    assert [r"error␣␣org-b␣billing\u00a0paid", "org-xyz", "api-gateway"] == names


def test_metadata_is_shown_as_it_is_stored(page: Page) -> None:
    """Indented, with every digit of a number, and brackets in texts unchanged."""
    metadata = '{"id":12345678901234567890,"none":{},"list":[1.50,"a,{\\"b:"]}'
    log = json.dumps(make_log(message="digits"))
    head, _, _ = log.partition('"metadata"')
    assert 200 == page.service.drain(f'{{"logs":[{head}"metadata":{metadata}}}]}}'.encode()).status
    page.show()
    wait_for(lambda: page.messages()[:1] == ["digits"])
    page.browser.click("#logs summary")
    values = "return [...document.querySelectorAll('#logs .whole dd')].map(e => e.textContent)[1]"
    expected = """{
  "id": 12345678901234567890,
  "none": {},
  "list": [
    1.50,
    "a,{\\"b:"
  ]
}"""
    assert expected == wait_for(lambda: page.browser.run(values))


def test_a_long_message_is_there_as_a_whole(page: Page) -> None:
    """It is shortened until its button is used."""
    store(page.service, make_log(message="x" * (1 << 20) + "END"))
    page.show()
    wait_for(lambda: page.messages() and page.messages()[0].startswith("xxx"))
    page.browser.click("#logs summary")
    assert "1 MiB" in wait_for(lambda: page.browser.text("#logs .more button"))
    length = "return document.querySelector('#logs .whole dd').textContent.length"
    assert page.browser.run(length) < 10_000
    page.browser.click("#logs .more button")
    wait_for(lambda: page.browser.run(length) == (1 << 20) + 3)


def test_the_keyboard_is_enough(page: Page) -> None:
    """Every control is reachable in order, with visible focus."""
    browser = page.browser
    page.show()
    page.browser.open(f"http://{page.host}/status")
    wait_for(lambda: browser.run("return document.querySelectorAll('#logs li').length") > 0)
    wait_for(lambda: browser.run("return document.querySelectorAll('.plot').length") == 6)
    focused = "return document.activeElement.className + '#' + document.activeElement.id"
    body = browser.driver.switch_to.active_element
    reached: list[str] = []
    for _ in range(30):
        body.send_keys(Keys.TAB)
        body = browser.driver.switch_to.active_element
        reached.append(browser.run(focused))
        if reached[-1] == "log#":
            break
    assert "skip#" == reached[0]
    assert 6 == reached.count("plot#")
    assert reached.index("quiet#leave") < reached.index("plot#")
    assert reached.index("quiet#pause") < reached.index("log#")
    assert "none" != browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    body.send_keys(Keys.ENTER)
    assert browser.run("return document.activeElement.parentElement.open")


def test_each_part_has_a_name(page: Page) -> None:
    """For screen readers: landmarks, headings, labels and live regions."""
    page.show()
    named = "return document.querySelectorAll('.plot[aria-label]').length"
    wait_for(lambda: page.browser.run(named) == 6)
    tree = page.browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nodes = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"]
    ]
    for role in ("button", "combobox", "searchbox", "link", "image", "region", "search"):
        assert [name for one, name in nodes if one == role], role
        assert "" not in [name for one, name in nodes if one == role], role
    assert {"banner", "main", "navigation", "status", "heading", "table"} <= {
        role for role, _ in nodes
    }
    levels = page.browser.run(
        "return [...document.querySelectorAll('h1, h2, h3')].filter(e => e.checkVisibility())"
        ".map(e => Number(e.tagName[1]))"
    )
    assert 1 == levels[0]
    assert all(two - one <= 1 for one, two in itertools.pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_are_the_users(page: Page, scheme: str) -> None:
    """Every text has enough contrast (WCAG AA), and nothing moves by default."""
    page.prefer(color_scheme=scheme, reduced_motion="reduce")
    for level in ("debug", "info", "warning", "error", "fatal", "audit"):
        store(page.service, make_log(level=level, message=f"{level}\n"))
    page.show()
    browser = page.browser
    wait_for(lambda: len(page.messages()) >= 6)
    browser.click("#logs summary")
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (scheme == "dark") == (sum(json.loads(f"[{background[4:-1]}]")) < 300)
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 20
    assert {} == {name: value for name, value in contrasts.items() if value < 4.5}
    moving = "return document.getAnimations().length"
    store(page.service, make_log(message="new"))
    wait_for(lambda: page.messages()[0] == "new")
    assert 0 == browser.run(moving)
    page.prefer()


def test_a_bound_token_sees_its_project_alone(page: Page) -> None:
    """And its own rejections, but no number of the whole service."""
    store(page.service, make_log(message="another's", project_id="org-b"))
    own = {"logs": [make_log(message="mine", project_id="org-a")]}
    assert 200 == page.service.drain(own, {"Authorization": "bound"}).status
    page.show("bound")
    wait_for(lambda: page.messages() == ["mine"])
    browser = page.browser
    assert "bound to org-a" in browser.text("#bound")
    assert "" == browser.text("#cards")
    assert "invalid_batch" in wait_for(lambda: browser.text("#rejected tbody"))
    for table in ("#rejected", "#senders"):
        rows = f"return document.querySelectorAll('{table} tbody tr').length"
        assert 1 == browser.run(rows)
    name = sha256(b"bound").hexdigest()[:8]
    wait_for(lambda: browser.text("#senders tbody").split()[:3] == [name, "1", "1"])
    assert "Ready" == browser.text("#state")


def test_logs_of_others_hide_no_log_of_a_bound_token(tmp_path: Path, browser: Browser) -> None:
    """The page continues its search, and shows new logs above the logs that it finds."""
    tokens = tmp_path / "tokens"
    write_tokens(tokens, "bound org-a\n")
    at = time.time() - 1000
    own = [make_line(f"mine {number}", at, project_id="org-a") for number in range(2)]
    make_segment(tmp_path / "data", make_name(at), *own, changed=at)
    others = [make_line("x" * 1000, at, project_id="org-b")] * 12_000
    for number in range(1, 6):
        make_segment(tmp_path / "data", make_name(at + number), *others, changed=at + number)
    with Service(tmp_path, tokens_file=tokens) as service:
        page = Page(browser, service)
        page.open()
        page.show("bound")
        log = make_log(message="new", project_id="org-a")
        assert 200 == service.drain({"logs": [log]}, {"Authorization": "bound"}).status
        wait_for(lambda: page.messages() == ["new", "mine 1", "mine 0"])
        wait_for(lambda: "older logs" not in browser.text("#logs"))


def test_hidden_tab_sends_no_requests(page: Page) -> None:
    """A tab in the background is silent, and continues at once when it is visible."""
    page.show()
    wait_for(page.messages)
    hide = (
        "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.browser.run(hide, True)

    def is_silent() -> bool:
        before = page.browser.run(REQUESTS)
        time.sleep(2.5)
        return bool(before == page.browser.run(REQUESTS))

    wait_for(is_silent)  # what it had asked for when it was hidden may come late
    before = page.browser.run(REQUESTS)
    page.browser.run(hide, False)
    wait_for(lambda: page.browser.run(REQUESTS) > before)


def test_the_page_recovers_alone(tmp_path: Path, browser: Browser) -> None:
    """It shows an outage, continues after it, and asks for another token if needed."""
    tokens = tmp_path / "tokens"
    write_tokens(tokens, f"{TOKEN}\n")
    service = Service(tmp_path, tokens=None, tokens_file=tokens)
    with service:
        page = Page(browser, service)
        page.show()
        service.stop()
        assert "does not respond" in wait_for(lambda: browser.text("#problem"))
        service._environ["ASTRALOG_BIND"] = page.host
        with service:
            store(service, make_log(message="after the pause"))
            wait_for(lambda: "after the pause" in page.messages())
            wait_for(lambda: browser.text("#problem") == "")
            write_tokens(tokens, "another\n")
            assert "is not known" in wait_for(lambda: browser.text("#refusal"))
            assert not browser.run(SHOWN)
    browser.messages()


def test_the_numbers_are_shown(page: Page) -> None:
    """Each has a chart of the last hour, with a description in words."""
    browser = page.browser
    wait_for(lambda: len(known_intervals(page.service)) >= 2)
    page.show()
    assert "Ready · 2 workers" == wait_for(lambda: browser.text("#state"))
    titles = "return [...document.querySelectorAll('.card h3')].map(e => e.textContent)"
    names = ["Accepted", "Rejected", "Commit, p99", "Backlog", "Disk free", "Bytes accepted"]
    assert names == wait_for(lambda: browser.run(titles))
    labels = (
        "return [...document.querySelectorAll('.plot')].filter(e => e.querySelector('.line')"
        "?.getAttribute('d')).map(e => e.getAttribute('aria-label')).join('\\n')"
    )
    for name in ("Accepted", "Rejected", "Backlog", "Disk free"):
        wait_for(lambda: f"{name} over the last hour: from" in browser.run(labels))  # noqa: B023
    rows = "return [...document.querySelectorAll('#rejected tbody tr')].map(e => e.innerText)"
    shown = sorted(row.split() for row in browser.run(rows))
    assert [["invalid_batch", "1", "1"]] * 2 == [[row[0], *row[2:]] for row in shown]
    digests = [sha256(token.encode()).hexdigest()[:8] for token in (TOKEN, "bound")]
    assert sorted(digests) == sorted(row[1] for row in shown)
    assert "in total" in browser.text(".card .note")


def known_intervals(service: Service) -> list[float]:
    """Return the known rates of the history."""
    answer = service.request("GET", "/status/history", headers={"Authorization": TOKEN})
    return [rate for rate in answer.body["logs_per_second"] if rate is not None]


def test_a_chart_is_read_by_its_values(page: Page) -> None:
    """The arrow keys work too."""
    browser = page.browser
    wait_for(lambda: len(known_intervals(page.service)) >= 2)
    page.show()
    wait_for(
        lambda: browser.run("return !!document.querySelector('.plot .line')?.getAttribute('d')")
    )
    browser.run("document.querySelector('.plot').focus()")
    browser.driver.switch_to.active_element.send_keys(Keys.END)
    assert "logs/s" in wait_for(lambda: browser.text(".reading"))
    browser.driver.switch_to.active_element.send_keys(Keys.HOME)
    assert "–" in wait_for(lambda: browser.text(".reading"))


def test_a_phone_shows_all_of_it(page: Page) -> None:
    """Nothing is wider than the window, before and after the token."""
    width = "return document.documentElement.scrollWidth"
    log = make_log(message="m" * 5000, service="s" * 300, metadata={"k" * 900: "v" * 900})
    store(page.service, log)
    browser = page.browser
    with browser.imitate_phone():
        page.open()
        assert browser.run(width) <= PHONE_WIDTH
        page.enter(TOKEN)
        wait_for(page.messages)
        browser.click("#logs summary")
        assert browser.run(width) <= PHONE_WIDTH
        assert "Ready" in browser.text("#state")
