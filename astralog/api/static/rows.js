// A log as a row, which opens.

import { make, show, showName } from "./format.js";
import { RANKS } from "./levels.js";

/** The looks of the ranks, least severe first. */
const LOOKS = ["faint", "faint", "info", "info", "warning", "error", "critical", "critical", "critical"];

/** The look of a level: as `info` if it is not known. */
function lookOf(level) {
  const name = level.trim().toLowerCase().replace(/[1-4]+$/, "");
  return LOOKS[RANKS.findIndex((names) => names.includes(name))] ?? "info";
}

/** Make the row of a log; `whole` makes what is shown of it when it is opened. */
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

/** A time to the millisecond; where there is little room, without a date that is today's. */
function makeTime(timestamp) {
  const [date, clock = ""] = timestamp.split("T");
  const time = make("span", "time");
  const isToday = date === new Date().toISOString().slice(0, 10);
  time.append(make("span", isToday ? "today" : "", `${date} `), clock.replace(/(\.\d{3})\d*Z$|Z$/, "$1"));
  return time;
}
