// The newest logs, as they arrive.

import { bytes, make, many, show } from "./format.js";
import { makeRow } from "./rows.js";

const byId = (id) => document.getElementById(id);

/** Logs of a response at most. */
const PAGE = 100;

/** Logs that stay on the page; open ones stay longer. */
const SHOWN = 300;

/** New logs that are highlighted for a moment; more would flicker. */
const MARKED = 20;

/** Names that the filters suggest, at most. */
const SUGGESTED = 50;

/** Seconds between two notifications of a screen reader. */
const NEWS_SECONDS = 15;

const MORE = "… more came in than are shown here";

/** The number of logs in a response that are newer than the last one; the others are older. */
const newsOf = (page) => page.logs.length - (page.older?.count ?? 0);

/** Indent JSON without parsing it, which would change long numbers. */
function pretty(json) {
  let depth = 0;
  const line = () => `\n${"  ".repeat(Math.min(depth, 20))}`;
  return json.replace(/"(?:[^"\\]|\\.)*"?|[[{]\s*[\]}]|[[\]{}:,]/g, (token) => {
    if (token === "{" || token === "[") return token + ((depth += 1), line());
    if (token === "}" || token === "]") return ((depth -= 1), line()) + token;
    if (token === ",") return token + line();
    return token === ":" ? ": " : token;
  });
}

/** The logs that match the filters; `ask` fetches a path with the token. */
export class Logs {
  constructor(ask) {
    this.ask = ask;
    this.list = byId("logs");
    this.filters = byId("filters");
    this.pause = byId("pause");
    this.names = { project: new Set(), service: new Set() };
    this.round = 0;
    this.pause.addEventListener("click", () => this.setPaused(!this.isPaused));
    this.filters.addEventListener("submit", (event) => {
      event.preventDefault();
      location.hash = `search?${this.query()}`;
    });
    let typing;
    this.filters.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.restart(), 300);
    });
    this.forget();
  }

  /** Remove all logs, for another token. */
  forget() {
    this.setPaused(false);
    this.filters.reset();
    this.clear();
    for (const [name, names] of Object.entries(this.names)) {
      names.clear();
      byId(`${name}s`).replaceChildren();
    }
  }

  clear() {
    this.round += 1;
    this.after = null;
    this.gap = null;
    this.list.replaceChildren();
    this.unheard = 0;
    this.heardAt = 0;
    byId("no-logs").hidden = true;
    byId("logs-state").textContent = "";
  }

  restart() {
    this.clear();
    this.onRestart?.();
  }

  setPaused(isPaused) {
    this.isPaused = isPaused;
    this.pause.setAttribute("aria-pressed", String(isPaused));
    this.pause.textContent = isPaused ? "Continue" : "Pause";
    if (!isPaused) this.onRestart?.();
  }

  query() {
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(this.filters)) if (value.trim()) query.set(name, value.trim());
    return query;
  }

  /** Poll for new logs, unless paused; return whether to poll again at once. */
  async poll() {
    if (this.isPaused) return false;
    const query = this.query();
    const isFiltered = query.size > 0;
    if (this.after !== null) query.set("after", this.after);
    const round = this.round;
    let page;
    try {
      page = await this.ask(`status/logs?${query}`);
    } catch (error) {
      if (error.status !== 400 || this.after === null || round !== this.round) throw error;
      this.clear(); // the service has restarted, and does not know the cursor
      return this.poll();
    }
    if (round !== this.round || this.isPaused) return false; // another filter was set
    const isFirst = this.after === null;
    this.after = page.after;
    this.add(page, isFirst);
    this.showState(page, isFirst, isFiltered);
    return page.older?.is_done === false;
  }

  add(page, isFirst) {
    page.logs.forEach((log) => this.suggest(log));
    const news = newsOf(page);
    const className = !isFirst && news <= MARKED ? "new" : "";
    const rows = page.logs.map((log, place) => makeRow(log, () => this.whole(log), place < news ? className : ""));
    const older = rows.splice(news);
    if (!isFirst && !page.is_all) rows.push(make("li", "gap", MORE));
    if (page.older && !this.gap) rows.push((this.gap = make("li", "gap", "… older logs are being searched")));
    this.list.prepend(...rows);
    this.gap?.before(...older);
    if (page.older?.is_done) this.endGap(page.older.has_more);
    const closed = [...this.list.children].slice(SHOWN).filter((row) => !row.querySelector("details[open]"));
    closed.forEach((row) => row.remove());
  }

  /** End the search for older logs; the list then shows no note about others. */
  endGap(hasMore) {
    if (hasMore && this.gap.nextSibling) this.gap.textContent = MORE;
    else this.gap.remove();
    this.gap = null;
  }

  showState(page, isFirst, isFiltered) {
    const isEmpty = !this.list.children.length;
    const empty = byId("no-logs");
    empty.hidden = !isEmpty;
    if (isFirst) {
      const isShort = !page.is_all && page.logs.length < PAGE;
      byId("logs-state").textContent = isShort ? `${bytes(page.searched_bytes)} were searched; older logs were not.` : "";
      if (isFiltered || !page.is_all) empty.textContent = "No matching log was found. New ones are shown here as they arrive.";
      else empty.textContent = "Nothing is stored yet. Logs are shown here as they arrive.";
    }
    this.tell(isFirst ? 0 : newsOf(page));
  }

  /** Notify a screen reader periodically of the number of new logs. */
  tell(logs) {
    this.unheard += logs;
    if (!this.unheard || performance.now() - this.heardAt < NEWS_SECONDS * 1000) return;
    byId("logs-news").textContent = `${many(this.unheard, "new log")}`;
    this.unheard = 0;
    this.heardAt = performance.now();
  }

  suggest(log) {
    for (const [name, value] of [["project", log.project_id], ["service", log.service]]) {
      const names = this.names[name];
      if (!value || names.has(value) || names.size >= SUGGESTED) continue;
      names.add(value);
      const option = make("option");
      option.value = value;
      byId(`${name}s`).append(option);
    }
  }

  /** The details of an open log. */
  whole(log) {
    const box = make("div", "whole");
    this.fill(box, log);
    if (!log.is_shortened) return box;
    const more = make("p", "more");
    const button = make("button", "quiet", `Show all ${bytes(log.bytes)}`);
    button.type = "button";
    button.addEventListener("click", () => this.showAll(box, more, log));
    more.append("Shortened. ", button);
    box.prepend(more);
    return box;
  }

  async showAll(box, more, log) {
    try {
      this.fill(box, await this.ask(`status/log?id=${encodeURIComponent(log.id)}`));
      box.tabIndex = -1;
      box.focus();
    } catch (error) {
      more.textContent = `It cannot be shown: ${error.message}`;
    }
  }

  fill(box, log) {
    const list = make("dl");
    const fields = [
      ["message", log.message],
      ["metadata", log.metadata && pretty(log.metadata)],
      ["timestamp", log.timestamp],
      ["level", log.level],
      ["project", log.project_id],
      ["service", log.service],
      ["stored", bytes(log.bytes)],
    ];
    for (const [name, text] of fields) {
      if (!text) continue;
      const value = make("dd");
      show(value, text, name === "metadata" || name === "message" ? "\n\t" : "");
      list.append(make("dt", "", name), value);
    }
    box.replaceChildren(list);
  }
}
