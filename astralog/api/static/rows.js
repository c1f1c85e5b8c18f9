// A log as a row that can be opened.

import { make, show, showName } from "./format.js";
import { RANKS } from "./levels.js";

/** The styles of the ranks, least severe first. */
const LOOKS = ["faint", "faint", "info", "info", "warning", "error", "critical", "critical", "critical"];

/** The style of a level; an unknown one has that of `info`. */
function lookOf(level) {
  const name = level.trim().toLowerCase().replace(/[1-4]+$/, "");
  return LOOKS[RANKS.findIndex((names) => names.includes(name))] ?? "info";
}

/** Create the row of a log; `whole` creates its details when it is opened. */
export function makeRow(log, whole, className = "") {
  const row = make("li", className);
  const details = make("details");
  const summary = make("summary", "log");
  summary.append(makeTime(log.timestamp));
  const columns = [
    [`level ${lookOf(log.level)}`, log.level, showName],
    ["project", log.project_id, showName],
    ["service", log.service, showName],
    ["message", log.message.slice(0, 500), show],
    ["metadata", log.metadata.slice(0, 300), show],
  ];
  for (const [name, text, put] of columns) {
    const part = make("bdi", name);
    put(part, text);
    summary.append(part);
  }
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(whole(log));
  });
  row.append(details);
  return row;
}

/** A time to the millisecond; on a narrow screen, today's date is left out. */
function makeTime(timestamp) {
  const [date, clock = ""] = timestamp.split("T");
  const time = make("span", "time");
  const isToday = date === new Date().toISOString().slice(0, 10);
  time.append(make("span", isToday ? "today" : "", `${date} `), clock.replace(/(\.\d{3})\d*Z$|Z$/, "$1"));
  return time;
}
