"""The search of the status page in a real browser."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support.browser import PHONE_WIDTH, Browser
from tests.support.service import TOKEN, Service, make_log, wait_for, write_tokens
from tests.support.status_page import CONTRASTS, HOSTILE, SHOWN, Page, make_browser, store

MESSAGES = "return [...document.querySelectorAll('#found .message')].map(e => e.textContent)"
FOCUSED = "return document.activeElement.name || document.activeElement.id"

#: Has the page ask a service that answers a search as it is told, and everything else as ever.
SCRIPTED = """
const real = window.fetch;
window.searches = [];
const answers = arguments[0];
window.fetch = (url, options) => {
  if (!String(url).startsWith('v1/search')) return real(url, options);
  window.searches.push(url);
  const next = answers.shift();
  if (next === undefined) return new Promise((_, reject) =>
    options.signal.addEventListener('abort', () => reject(options.signal.reason)));
  return Promise.resolve(new Response(next.body, next));
};
"""
NEXT = {"Link": '</v1/search?before=CURSOR>; rel="next"', "Searched-Bytes": "5000000"}


class SearchPage(Page):
    """The page's search."""

    def found(self) -> list[str]:
        """Return the messages of the found logs, newest first."""
        shown: list[str] = self.browser.run(MESSAGES)
        return shown

    def follow(self, fragment: str) -> None:
        """Open a link to a search in a tab with a token."""
        self.browser.run("location.hash = arguments[0]", fragment)

    def search(self, name: str, value: str) -> None:
        """Search with one filter through the form."""
        self.browser.run("document.querySelector('#search').reset()")
        self.browser.type(f"#search [name={name}]", value + Keys.ENTER)

    def state(self) -> str:
        """Return the progress of the search."""
        return self.browser.text("#search-state")

    def script(self, *answers: dict[str, Any]) -> None:
        """Set the responses to searches; later ones never arrive."""
        self.browser.run(SCRIPTED, list(answers))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service with 250 logs of two projects."""
    directory = tmp_path_factory.mktemp("service")
    tokens = directory / "tokens"
    write_tokens(tokens, "bound org-a\n")
    with Service(directory, tokens_file=tokens) as service:
        logs = [
            make_log(
                message=f"order {number}",
                project_id=("org-a", "org-b")[number % 2],
                level=("info", "error")[number % 50 == 0],
                metadata={"order": {"id": number, "tags": ["new", f"t{number}"]}},
            )
            for number in range(250)
        ]
        store(service, *logs)
        yield service


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a window of a desktop's width."""
    with make_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[SearchPage]:
    """Return the page with a token; no test may load another host."""
    page = SearchPage(browser, service)
    browser.requested_hosts()
    page.show()
    yield page
    assert {page.host} == browser.requested_hosts()
    assert [] == [text for text in browser.messages() if "status of 400" not in text]


def test_filters_find_logs(page: SearchPage) -> None:
    """By text, field, level, project and time, newest first."""
    page.browser.click("#to-search")
    wait_for(lambda: page.found()[:2] == ["order 249", "order 248"])
    assert page.browser.run("return location.hash") == "#search"
    page.search("q", "ORDER 77")
    wait_for(lambda: page.found() == ["order 77"])
    assert "All stored logs were searched · 1 log found" == page.state()
    page.search("field", "order.id=78")
    wait_for(lambda: page.found() == ["order 78"])
    page.follow("search?level=error&project=org-a&since=2024-05-31&until=1m")
    wait_for(lambda: page.found() == [f"order {number}" for number in (200, 150, 100, 50, 0)])
    page.search("since", "1h")
    wait_for(lambda: "no log found" in page.state())
    page.search("since", "yesterday")
    assert "since: Not a timestamp" in wait_for(lambda: page.browser.text("#search-problem"))


def test_older_logs_come_on_scroll_and_by_the_button(page: SearchPage) -> None:
    """Each once, with the position of the search."""
    page.follow("search")
    wait_for(lambda: len(page.found()) == 100)
    assert "There may be older logs · 100 logs found" in page.state()
    assert "back to 2024-05-31 15:30:45" in page.state()
    page.browser.run("window.scrollTo(0, document.documentElement.scrollHeight)")
    wait_for(lambda: len(page.found()) >= 200)
    wait_for(lambda: page.browser.text("#more") == "Older")
    page.browser.run("document.querySelector('#more').click()")
    wait_for(lambda: len(page.found()) == 250)
    assert page.found() == [f"order {number}" for number in reversed(range(250))]
    wait_for(lambda: "All stored logs were searched" in page.state())


def test_link_runs_the_search_once_the_token_is_known(page: SearchPage) -> None:
    """It has the filters and no token, and works with the browser's history."""
    page.browser.click("#to-search")
    page.search("q", "order 7&8=?#%+é")
    wait_for(lambda: "no log found" in page.state())
    page.search("q", "order 7")
    wait_for(lambda: len(page.found()) == 11)
    link = page.browser.run("return location.href")
    assert link.endswith("/status#search?q=order+7")
    assert TOKEN not in link
    page.browser.run("history.back()")
    text = "return document.querySelector('#search [name=q]').value"
    wait_for(lambda: page.browser.run(text) == "order 7&8=?#%+é")
    page.browser.run("sessionStorage.clear()")
    page.browser.open("about:blank")
    page.browser.open(link)
    assert not page.browser.run(SHOWN)
    page.enter(TOKEN)
    wait_for(lambda: len(page.found()) == 11)
    page.browser.click("#leave")
    assert page.found() == []
    assert page.browser.run("return location.href").endswith("/status")


def test_progress_is_shown_until_the_search_is_stopped(page: SearchPage) -> None:
    """Responses without a log lead to the next one, by the cursor."""
    log = json.dumps(make_log(message="one"))
    page.script({"body": "", "headers": NEXT}, {"body": log, "headers": NEXT})
    page.follow("search?q=x")
    wait_for(lambda: page.browser.run("return searches.length") == 3)
    assert page.browser.run("return searches[2]") == "v1/search?q=x&n=100&before=CURSOR"
    assert page.found() == ["one"]
    assert "Searching · 1 log found · 10 MB searched" in page.state().replace("9.5 MiB", "10 MB")
    progress = "return document.querySelector('#progress').checkVisibility()"
    assert page.browser.run(progress)
    page.browser.click("#more")
    assert page.state().startswith("Stopped · 1 log found")
    assert not page.browser.run(progress)
    page.browser.click("#more")
    wait_for(lambda: page.browser.run("return searches.length") == 4)
    page.browser.type("#more", Keys.ESCAPE)
    assert page.state().startswith("Stopped")


def test_damaged_segments_are_shown(page: SearchPage) -> None:
    """Their number over all responses, since not all logs were searched."""
    damaged = {"Unreadable-Segments": "1"}
    page.script({"body": "", "headers": NEXT | damaged}, {"body": "", "headers": damaged})
    page.follow("search?q=x")
    wait_for(lambda: page.state().endswith("· 2 damaged segments left out"))


def test_busy_service_is_asked_again(page: SearchPage) -> None:
    """With its message, until it responds."""
    busy = {"body": '{"message": "Too many concurrent searches."}', "status": 503}
    log = json.dumps(make_log(message="at last"))
    page.script(busy, busy, {"body": log})
    page.follow("search?q=x")
    problem = wait_for(lambda: page.browser.text("#search-problem"))
    assert problem == "Too many concurrent searches. Trying again."
    wait_for(lambda: page.found() == ["at last"])
    assert page.browser.text("#search-problem") == ""


def test_unknown_cursor_ends_the_search_with_its_message(page: SearchPage) -> None:
    """For example after a reload of the service; the results stay."""
    log = json.dumps(make_log(message="one"))
    refusal = {"body": '{"message": "before is not a cursor"}', "status": 400}
    page.script({"body": log, "headers": NEXT}, refusal)
    page.follow("search?q=x")
    wait_for(lambda: page.browser.text("#search-problem") == "before is not a cursor")
    assert page.found() == ["one"]


def test_metadata_is_a_tree_whose_values_filter(page: SearchPage) -> None:
    """Values in objects and arrays link to the logs that have them too."""
    page.follow("search?q=order+42")
    wait_for(lambda: page.found() == ["order 42"])
    page.browser.click("#found summary")
    tree = wait_for(lambda: page.browser.text("#found .tree"))
    assert "id: 42" in tree
    assert '"t42"' in tree
    page.browser.click("#found [aria-label='only this: field order.tags=new']")
    wait_for(lambda: page.state().startswith("All stored logs were searched"))
    assert page.browser.run("return location.hash") == "#search?q=order+42&field=order.tags%3Dnew"
    assert page.found() == ["order 42"]


def test_values_are_shown_as_they_were_sent(page: SearchPage) -> None:
    """Every digit of a number, names with dots, and nested arrays, which have no filter."""
    metadata = '{"id":12345678901234567890,"a.b":1e999,"m":[[1],{"n":[]}],"t":"1\\n\\"2\\""}'
    line = json.dumps(make_log(message="€" * 100, metadata=0), ensure_ascii=False)
    line = line.replace('"metadata": 0', f'"metadata":{metadata}')
    page.script({"body": line})
    page.follow("search?q=x")
    page.browser.click("#found summary.log")
    tree = wait_for(lambda: page.browser.text("#found .tree")).replace(" only this", "")
    for text in ("id: 12345678901234567890", "a.b: 1e999", "n: []", 't: "1\n"2""'):
        assert text in tree
    labels = "return [...document.querySelectorAll('#found .tree .only')].map(e => e.ariaLabel)"
    assert page.browser.run(labels) == [
        "only this: field id=12345678901234567890",
        "only this: field a.b=1e999",
    ]
    assert f"stored\n{len(line.encode())} B" in page.browser.text("#found .whole")


def test_large_metadata_are_shown_in_parts(page: SearchPage) -> None:
    """So a log of megabytes, or with a thousand nested objects, opens at once."""
    deep = '{"a":' * 1000 + "1" + "}" * 1000
    values = ",".join(map(str, range(200_000)))
    text = "x" * 1_000_000
    line = json.dumps(make_log(metadata=0)).replace(
        '"metadata": 0', f'"metadata":{{"deep":{deep},"list":[{values}],"text":"{text}"}}'
    )
    page.script({"body": line})
    page.follow("search?q=x")
    page.browser.click("#found summary.log")
    wait_for(lambda: "list [200000]" in page.browser.text("#found .tree"))
    assert page.browser.run("return document.querySelectorAll('#found *').length") < 200
    page.browser.run(
        "document.querySelector('#found dd > .tree > li:nth-child(2) summary').click()"
    )
    wait_for(lambda: "199,900 more values" in page.browser.text("#found .tree"))
    page.browser.run("document.querySelector('#found dd > .tree > li:nth-child(3) button').click()")
    length = (
        "return document.querySelector('#found dd > .tree > li:nth-child(3)').textContent.length"
    )
    wait_for(lambda: page.browser.run(length) > 1_000_000)


def test_log_content_is_shown_as_text_only(page: SearchPage) -> None:
    """Also the content of a link; invisible characters are shown as codes."""
    fields = ("level", "service", "project_id", "message")
    metadata = {HOSTILE: {HOSTILE: HOSTILE}, "__proto__": 1}
    store(page.service, make_log(**dict.fromkeys(fields, HOSTILE), metadata=metadata))
    page.follow("search?q=javascript:alert&service=%3Cimg+src=x+onerror=alert(1)%3E")
    wait_for(lambda: "no log found" in page.state())
    page.follow("search?q=javascript:alert")
    wait_for(lambda: page.found() and "<script>" in page.found()[0])
    page.browser.click("#found summary")
    shown = wait_for(lambda: page.browser.text("#found .whole"))
    for code in (r"\u001b[31m", r"\u202egnp.exe", r"\u2028next", r"\u0000", "__proto__: 1"):
        assert code in shown
    assert "AstraLog status" == page.browser.run("return document.title")
    elements = "return document.querySelectorAll('#search-view :is(script, img)').length"
    assert 0 == page.browser.run(elements)
    raw = page.browser.run("return document.querySelector('#search-view').textContent")
    assert not {"\x1b", "\u202e", "\u2028", "\0"} & set(raw)
    assert page.browser.run("return document.documentElement.scrollWidth <= innerWidth")
    page.script({"body": json.dumps(make_log(message="\u05d0\u202e\u05d0"))})
    page.follow("search?q=y")
    wait_for(lambda: page.browser.run("return document.querySelector('#found .code') !== null"))
    code = "const style = getComputedStyle(document.querySelector('#found .code'));"
    code += "return [style.direction, style.unicodeBidi]"
    assert page.browser.run(code) == ["ltr", "isolate"]
    page.script({"body": '{"half a line\n[]\n{"message":1}\n'})
    page.follow("search?q=x")
    wait_for(lambda: page.found() == ['{"half a line', "", ""])


def test_keyboard_is_enough(page: SearchPage) -> None:
    """For the form, the logs, their metadata and filters."""
    page.follow("search?q=order+42")
    wait_for(lambda: page.found() == ["order 42"])
    page.browser.run("document.querySelector('#to-search').focus()")
    names: list[str] = []
    body = page.browser.driver.switch_to.active_element
    while not page.browser.run("return document.activeElement.matches('.log')"):
        body.send_keys(Keys.TAB)
        body = page.browser.driver.switch_to.active_element
        names.append(page.browser.run(FOCUSED))
        assert len(names) < 20
    expected = ["q", "project", "service", "level", "field", "since", "until"]
    assert [name for name in names if name in expected] == expected
    body.send_keys(Keys.ENTER)
    wait_for(lambda: page.browser.text("#found .tree"))
    while not page.browser.run("return document.activeElement.matches('.only')"):
        assert "none" != page.browser.run(
            "return getComputedStyle(document.activeElement).outlineStyle"
        )
        body.send_keys(Keys.TAB)
        body = page.browser.driver.switch_to.active_element
    body.send_keys(Keys.ENTER)
    wait_for(lambda: "field=order.id%3D42" in page.browser.run("return location.hash"))
    assert page.browser.run(FOCUSED) == "search-title"


def test_bound_token_finds_its_project_alone(page: SearchPage) -> None:
    """And does not learn the number of searched bytes."""
    page.show("bound")
    page.follow("search?q=order")
    wait_for(lambda: len(page.found()) == 100)
    names = "return [...document.querySelectorAll('#found .project')].map(e => e.textContent)"
    assert set(page.browser.run(names)) == {"org-a"}
    assert "searched ·" not in page.state()


def test_live_filters_lead_to_a_search(page: SearchPage) -> None:
    """With the same filters; the newest logs are not read meanwhile."""
    page.browser.type("#filters [name=q]", "order 77" + Keys.ENTER)
    wait_for(lambda: page.found() == ["order 77"])
    page.browser.click("#to-overview")
    wait_for(lambda: page.browser.run("return !document.querySelector('#overview').hidden"))
    assert page.found() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(page: SearchPage, scheme: str) -> None:
    """With enough contrast (WCAG AA), in the user's color scheme."""
    page.prefer(color_scheme=scheme)
    page.follow("search?q=order+42")
    wait_for(lambda: page.found() == ["order 42"])
    page.browser.click("#found summary")
    wait_for(lambda: page.browser.text("#found .only"))
    contrasts = page.browser.run(CONTRASTS)
    assert {} == {name: value for name, value in contrasts.items() if value < 4.5}
    page.prefer()


def test_phone_shows_all_of_it(page: SearchPage) -> None:
    """Nothing is wider than the window, and touch targets are large enough."""
    metadata = {"k" * 900: "v" * 900, "deep": json.loads('{"a":' * 40 + "1" + "}" * 40)}
    long = {name: name * 50 for name in ("level", "service", "project_id")}
    store(page.service, make_log(message="phone" * 1000, metadata=metadata, **long))
    browser = page.browser
    with browser.imitate_phone():
        page.follow("search?q=phonephone")
        wait_for(lambda: len(page.found()) == 1)
        width = "return Math.max(...[...document.querySelectorAll('#found .log > *')]"
        width += ".map(e => e.getBoundingClientRect().right))"
        assert browser.run(width) <= PHONE_WIDTH - 26
        browser.click("#found summary")
        wait_for(lambda: browser.text("#found .tree"))
        for _ in range(40):
            browser.run(
                "document.querySelectorAll('.tree details:not([open]) > summary')"
                ".forEach(e => e.click())"
            )
        wait_for(lambda: "a: 1" in browser.text("#found .tree"))
        assert browser.run("return document.documentElement.scrollWidth") <= PHONE_WIDTH
        sizes = browser.run(
            "return [...document.querySelectorAll('#search-view :is(button, input, select)')]"
            ".filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect())"
            ".map(e => Math.min(e.width, e.height))"
        )
        assert min(sizes) >= 24
