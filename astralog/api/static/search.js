// The search of all stored logs, by the filters of the page's address.

import { bytes, make, many, show, showName, showStart } from "./format.js";
import { makeRow } from "./rows.js";
import { makeTree, parse } from "./tree.js";

/** Logs to load at a time, and bytes of them after which fewer are enough. */
const PAGE = 100;
const PAGE_BYTES = 4 * 1024 * 1024;

/** Seconds until a response times out, and between two attempts at most. */
const PATIENCE = 60;
const SLOWEST = 10;

/** Limits of the filter `field`, and of the characters of a value in a useful link. */
const MAX_NAME = 200;
const MAX_DOTS = 15;
const MAX_VALUE = 1000;
const CONTROLS = /[\0-\x1f\x7f]/;

const byId = (id) => document.getElementById(id);
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** The fields of a stored line, metadata as text. */
function parseLog(line) {
  const log = { project_id: "", timestamp: "", level: "", service: "", message: "", metadata: "", bytes: new TextEncoder().encode(line).length };
  try {
    for (const { name, text, members, start, end } of parse(line).members) {
      if (members) log[name] = line.slice(start, end);
      else if (text[0] === '"') log[name] = JSON.parse(text);
    }
  } catch {
    log.message = line;
  }
  return log;
}

/** The cursor for older logs, null if there are none. */
function cursorOf(answer) {
  const url = /^<([^>]+)>; rel="next"$/.exec(answer.headers.get("Link") ?? "")?.[1];
  return url ? new URL(url, location.origin).searchParams.get("before") : null;
}

function canBeField(path, value) {
  const isName = path.length <= MAX_NAME && path.split(".").length <= MAX_DOTS + 1 && !path.includes("=");
  return isName && value.length <= MAX_VALUE && !CONTROLS.test(path + value);
}

/** The search; `request` fetches a path with the token. */
export class Search {
  constructor(request) {
    this.request = request;
    this.form = byId("search");
    this.list = byId("found");
    this.more = byId("more");
    this.progress = byId("progress");
    this.storedBytes = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.go();
    });
    this.more.addEventListener("click", () => (this.running ? this.stop() : this.goOn()));
    byId("search-view").addEventListener("keydown", (event) => event.key === "Escape" && this.stop());
    this.observer = new IntersectionObserver(([seen]) => seen.isIntersecting && this.goesOnAlone && this.goOn());
    this.observer.observe(this.more);
    this.forget();
  }

  /** Remove all logs, for another token. */
  forget() {
    this.running?.abort();
    this.running = null;
    this.form.reset();
    this.clear();
  }

  clear() {
    this.before = null;
    this.found = 0;
    this.searchedBytes = 0;
    this.unreadable = 0;
    this.oldest = "";
    this.goesOnAlone = false;
    this.more.hidden = true;
    this.progress.hidden = true;
    this.list.replaceChildren();
    this.say("", "");
  }

  /** Search with the filters of the form, through the page's address, which can be shared. */
  go() {
    const hash = `#search?${this.filters()}`;
    if (location.hash === hash) this.start(this.filters());
    else location.hash = hash;
  }

  filters() {
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(this.form)) if (value.trim()) query.set(name, value);
    return query;
  }

  /** Start a new search with filters, each a field of the form. */
  start(query) {
    this.forget();
    for (const [name, value] of query) this.set(name, value);
    this.query = this.filters();
    this.query.set("n", PAGE);
    return this.goOn();
  }

  set(name, value) {
    const field = this.form.elements.namedItem(name);
    if (!field?.name) return;
    field.value = value;
    if (field.value === value || field.tagName !== "SELECT") return;
    field.append(make("option", "", value)); // a custom level
    field.value = value;
  }

  stop() {
    if (!this.running) return;
    this.running.abort();
    this.end("Stopped");
  }

  /** Continue the search until there are enough logs. */
  async goOn() {
    const running = (this.running = new AbortController());
    this.goesOnAlone = false;
    this.more.hidden = false;
    this.more.textContent = "Stop";
    this.progress.hidden = false;
    this.say("Searching");
    try {
      await this.collect(running.signal);
      if (running !== this.running) return;
      this.observer.takeRecords(); // that the button was in view before these logs were above it
      this.goesOnAlone = this.before !== null;
      this.end(this.before === null ? "All stored logs were searched" : "There may be older logs");
    } catch (error) {
      if (running !== this.running) return;
      this.end("Stopped", error.message);
    }
  }

  async collect(signal) {
    let found = 0;
    let size = 0;
    do {
      const [text, before, searched, unreadable] = await this.fetch(signal);
      const lines = text.split("\n").filter(Boolean);
      this.add(lines);
      this.before = before;
      this.searchedBytes = searched === null ? null : this.searchedBytes + Number(searched);
      this.unreadable += Number(unreadable);
      this.say("Searching");
      found += lines.length;
      size += text.length;
    } while (this.before !== null && found < PAGE && size < PAGE_BYTES);
  }

  /** Fetch a response: text, cursor, searched bytes, unreadable segments; retry while the service is down. */
  async fetch(signal) {
    const query = new URLSearchParams(this.query);
    if (this.before !== null) query.set("before", this.before);
    for (let delay = 1; ; delay = Math.min(2 * delay, SLOWEST)) {
      try {
        const answer = await this.request(`v1/search?${query}`, PATIENCE, signal);
        const text = await answer.text();
        signal.throwIfAborted();
        return [text, cursorOf(answer), answer.headers.get("Searched-Bytes"), answer.headers.get("Unreadable-Segments")];
      } catch (error) {
        signal.throwIfAborted();
        if (error.status < 500) throw error;
        const message = error.status ? error.message : "The service does not respond.";
        this.say("Searching", `${message} Trying again.`);
        await pause(delay * (0.9 + 0.2 * Math.random()));
        signal.throwIfAborted();
      }
    }
  }

  add(lines) {
    const logs = lines.map(parseLog);
    this.list.append(...logs.map((log) => makeRow(log, () => this.whole(log))));
    this.found += logs.length;
    this.oldest = logs.at(-1)?.timestamp ?? this.oldest;
  }

  end(text, problem = "") {
    const isFocused = document.activeElement === this.more;
    this.running = null;
    this.progress.hidden = true;
    this.more.textContent = text === "Stopped" ? "Continue" : "Older";
    this.more.hidden = this.before === null && text !== "Stopped";
    this.say(text, problem);
    byId("search-news").textContent = byId("search-state").textContent;
    if (isFocused && this.more.hidden) byId("search-state").focus();
  }

  /** Show the progress of the search, and its error. */
  say(text, problem = "") {
    const parts = [];
    if (text) parts.push(text, this.found ? `${many(this.found, "log")} found` : "no log found");
    if (this.searchedBytes && text !== "All stored logs were searched") parts.push(`${bytes(this.searchedBytes)} searched`);
    if (this.oldest && this.before !== null) parts.push(`back to ${this.oldest.replace("T", " ").slice(0, 19)}`);
    if (this.unreadable) parts.push(`${many(this.unreadable, "damaged segment")} left out`);
    byId("search-state").textContent = parts.join(" · ");
    byId("search-problem").textContent = problem;
    byId("search-problem").hidden = !problem;
    if (this.searchedBytes && this.storedBytes) this.progress.value = Math.min(this.searchedBytes / this.storedBytes, 1);
    else this.progress.removeAttribute("value");
  }

  whole(log) {
    const box = make("div", "whole");
    const list = make("dl");
    const fields = [
      ["message", (value) => showStart(value, log.message, "\n\t")],
      ["metadata", (value) => log.metadata && value.append(makeTree(parse(log.metadata), (path, text) => canBeField(path, text) && this.only("field", `${path}=${text}`)))],
      ["timestamp", (value) => show(value, log.timestamp)],
      ["level", (value) => this.showFilter(value, "level", log.level, "this and worse")],
      ["project", (value) => this.showFilter(value, "project", log.project_id)],
      ["service", (value) => this.showFilter(value, "service", log.service)],
      ["stored", (value) => show(value, bytes(log.bytes))],
    ];
    for (const [name, fill] of fields) {
      const value = make("dd");
      fill(value);
      if (value.hasChildNodes()) list.append(make("dt", "", name), value);
    }
    box.append(list);
    return box;
  }

  showFilter(element, name, value, text) {
    showName(element, value);
    if (value.trim() && value.length <= MAX_VALUE && !CONTROLS.test(value)) element.append(" ", this.only(name, value, text));
  }

  /** Create the button that filters by a value. */
  only(name, value, text = "only this") {
    const button = make("button", "only", text);
    button.type = "button";
    button.setAttribute("aria-label", `${text}: ${name} ${value.slice(0, 100)}`);
    button.addEventListener("click", () => {
      this.set(name, value);
      this.go();
      byId("search-title").focus();
    });
    return button;
  }
}
