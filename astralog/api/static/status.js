// The page: its token, its requests and their timing, and its messages without a response.

import { make } from "./format.js";
import { RANKS } from "./levels.js";
import { Logs } from "./logs.js";
import { Numbers } from "./numbers.js";
import { Search } from "./search.js";

const SECONDS = { data: 2, history: 10, logs: 2 };

/** Seconds between two attempts at most while the service is down, and for one response. */
const SLOWEST = 30;
const PATIENCE = 15;

const KEY = "astralog-token";

const byId = (id) => document.getElementById(id);
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

class Unauthorized extends Error {}

/** The value of the header, with one character per byte. */
function authorization() {
  const text = new TextEncoder().encode(sessionStorage.getItem(KEY) ?? "");
  return `Bearer ${String.fromCharCode(...text)}`;
}

/** Fetch a path with the token; an error has the status of the response. */
async function request(path, seconds, ...signals) {
  let answer;
  try {
    answer = await fetch(path, {
      headers: { Authorization: authorization() },
      cache: "no-store",
      signal: AbortSignal.any([AbortSignal.timeout(1000 * seconds), ...signals]),
    });
  } catch {
    throw new Error("The service does not respond.");
  }
  if (answer.ok) return answer;
  const { message } = await answer.json().catch(() => ({}));
  const error = answer.status === 401 ? new Unauthorized(message ?? "The token is not known.") : new Error(message ?? `The service answers ${answer.status}.`);
  throw Object.assign(error, { status: answer.status });
}

const ask = async (path) => (await request(path, PATIENCE)).json().catch(() => ({}));

for (const select of document.querySelectorAll("select[name=level]")) {
  select.append(...RANKS.map(([name]) => make("option", "", name)));
}

const numbers = new Numbers();
const logs = new Logs(ask);
const search = new Search(request);

async function showNow() {
  const now = await ask("status/data");
  search.storedBytes = now.disk?.segments_bytes ?? null;
  numbers.showNow(now);
}

const JOBS = {
  data: showNow,
  history: async () => void (isSearch() || numbers.showHour(await ask("status/history"))),
  logs: async () => !isSearch() && (await logs.poll()),
};

/** Seconds until an unfinished job continues. */
const SOON = 0.2;

/** The number of starts of each job; only its newest run continues. */
const runs = Object.fromEntries(Object.keys(JOBS).map((name) => [name, 0]));
const problems = new Map();

function showProblems() {
  const problem = byId("problem");
  const texts = [...new Set(problems.values())];
  const text = texts.length ? `${texts.join(" ")} Trying again.` : "";
  if (problem.textContent !== text) problem.textContent = text;
  problem.hidden = !text;
  document.body.classList.toggle("stale", problems.has("data"));
}

/** Repeat a job while the page is visible, less often while it fails. */
async function repeat(name) {
  const mine = (runs[name] += 1);
  let delay = SECONDS[name];
  while (mine === runs[name] && sessionStorage.getItem(KEY) && !document.hidden) {
    try {
      delay = (await JOBS[name]()) ? SOON : SECONDS[name];
      if (mine === runs[name]) problems.delete(name);
    } catch (error) {
      if (mine !== runs[name]) return;
      if (error instanceof Unauthorized) return leave(error.message);
      problems.set(name, error.message);
      delay = Math.min(2 * delay, SLOWEST);
    }
    showProblems();
    await pause(delay * (0.9 + 0.2 * Math.random())); // so that many pages do not send requests at once
  }
}

const isSearch = () => /^#search(\?|$)/.test(location.hash);

/** Show the view of the page's address: a search with its filters, or the overview. */
function showView() {
  const isShown = isSearch();
  byId("overview").hidden = isShown;
  byId("search-view").hidden = !isShown;
  for (const [id, isCurrent] of [["to-overview", !isShown], ["to-search", isShown]]) byId(id).ariaCurrent = isCurrent ? "page" : null;
  if (isShown) search.start(new URLSearchParams(location.hash.slice("#search?".length)));
  else search.forget();
}

function run() {
  problems.clear();
  showProblems();
  Object.keys(JOBS).forEach(repeat);
}

function showEntry(refusal) {
  byId("refusal").textContent = refusal;
  byId("enter").hidden = false;
  byId("token").focus();
}

function leave(refusal = "") {
  sessionStorage.removeItem(KEY);
  byId("shown").hidden = true;
  byId("leave").hidden = true;
  byId("state").hidden = true;
  byId("about").textContent = "";
  numbers.forget();
  logs.forget();
  search.forget();
  run();
  showEntry(refusal);
}

/** Show the page if there is a token. */
async function enter() {
  try {
    await showNow();
  } catch (error) {
    if (error instanceof Unauthorized) return leave(error.message);
    problems.set("data", error.message);
  }
  byId("enter").hidden = true;
  byId("shown").hidden = false;
  byId("leave").hidden = false;
  byId("token").value = "";
  showView();
  run();
}

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("token").value.trim());
  byId("refusal").textContent = "";
  enter().then(() => byId("shown").hidden || byId("main").focus({ preventScroll: true }));
});
byId("leave").addEventListener("click", () => {
  history.replaceState(null, "", location.pathname);
  leave();
});
document.addEventListener("visibilitychange", run);
window.addEventListener("hashchange", () => {
  if (byId("shown").hidden) return;
  showView();
  run();
});
logs.onRestart = () => repeat("logs");

if (sessionStorage.getItem(KEY)) enter();
else showEntry("");
