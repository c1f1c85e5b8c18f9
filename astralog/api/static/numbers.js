// The cards and the tables of tokens and rejections.

import { Chart, bars } from "./charts.js";
import { bytes, count, duration, make, many, share, wait } from "./format.js";

const byId = (id) => document.getElementById(id);
const perSecond = (value) => `${bytes(value)}/s`;

const ACCEPTED = {
  title: "Accepted",
  format: (value) => `${count(value)} logs/s`,
  series: ["logs_per_second"],
  value: (now) => [count(now.accepted.logs_per_second), "logs/s"],
  note: (now) => `${now.accepted.bytes_per_second === null ? "" : `${perSecond(now.accepted.bytes_per_second)} · `}${many(now.accepted.logs, "log")} in total`,
};

const BYTES = {
  title: "Bytes accepted",
  format: perSecond,
  series: ["bytes_per_second"],
  value: (now) => split(bytes(now.accepted.bytes_per_second), "/s"),
  note: (now) => `${bytes(now.accepted.bytes)} in total`,
};

const REJECTED = {
  title: "Rejected",
  format: (value) => `${count(value)}/s`,
  series: ["rejections_per_second"],
  value: (now) => [count(now.rejected.batches_per_second), "batches/s"],
  note: (now) => `${many(now.rejected.batches, "batch")} in total`,
};

const COMMIT = {
  title: "Commit, p99",
  format: wait,
  series: ["commit_p99_seconds", "commit_p50_seconds"],
  value: (now) => split(wait(now.commit_seconds.p99)),
  note: (now) => (now.commit_seconds.p99 === null ? "no batch in the last seconds" : `half within ${wait(now.commit_seconds.p50)} (grey)`),
};

const BACKLOG = {
  title: "Backlog",
  format: bytes,
  series: ["backlog_bytes"],
  value: (now) => split(bytes(now.backlog.bytes)),
  note: (now) => `${share(now.backlog.bytes, now.backlog.limit_bytes)} of ${bytes(now.backlog.limit_bytes)}`,
  meter: (now) => now.backlog.bytes / now.backlog.limit_bytes,
};

const DISK = {
  title: "Disk free",
  format: bytes,
  series: ["free_disk_bytes"],
  top: (now) => now.disk?.total_bytes ?? null,
  value: (now) => split(bytes(now.disk?.free_bytes), now.disk ? ` of ${bytes(now.disk.total_bytes)}` : ""),
  note: (now) => (now.disk ? `${fills(now.disk.seconds_to_full)} · ${bytes(now.disk.segments_bytes)} in ${many(now.disk.segments, "segment")}${inodes(now.disk)}` : "unknown now"),
  meter: (now) => (now.disk ? 1 - Math.min(now.disk.free_bytes / now.disk.total_bytes, freeInodes(now.disk)) : 0),
};

/** The share of free inodes; 1 if there is no limit. */
const freeInodes = (disk) => (disk.total_inodes ? disk.free_inodes / disk.total_inodes : 1);

/** The inodes, if they are scarcer than the bytes. */
function inodes(disk) {
  const isShort = freeInodes(disk) < disk.free_bytes / disk.total_bytes;
  return isShort ? ` · ${count(disk.free_inodes)} of ${many(disk.total_inodes, "inode")} free` : "";
}

const FORWARD = {
  title: "Delivery lag",
  format: duration,
  series: ["lag_seconds"],
  value: (now) => [duration(now.forward.lag_seconds), ""],
  note: (now) => `${many(now.forward.waiting_segments, "segment")} waiting, ${bytes(now.forward.waiting_bytes)}${silence(now)}`,
};

const split = (text, suffix = "") => {
  const [number, unit = ""] = text.split(" ");
  return [number, unit + (unit ? suffix : "")];
};

const fills = (seconds) => (seconds === null ? "not filling up" : `full in ${duration(seconds)}`);

function silence(now) {
  const quiet = now.at - now.forward.updated_timestamp_seconds;
  return quiet > 60 ? ` · no report for ${duration(quiet)}` : "";
}

class Card {
  constructor(kind) {
    this.kind = kind;
    this.element = make("article", "card");
    const title = make("h3", "", kind.title);
    this.value = make("p", "value");
    this.note = make("p", "note");
    this.chart = new Chart(kind.title, kind.format);
    this.element.append(title, this.value, this.note);
    if (kind.meter) {
      this.meter = make("div", "meter");
      this.meter.append(make("span"));
      this.element.append(this.meter);
    }
    this.element.append(this.chart.element);
  }

  showNow(now) {
    const [number, unit] = this.kind.value(now);
    this.value.replaceChildren(make("span", "", number), " ", make("small", "", unit));
    this.note.textContent = this.kind.note(now);
    this.top = this.kind.top?.(now) ?? null;
    if (!this.meter) return;
    const part = Math.min(Math.max(this.kind.meter(now), 0), 1);
    this.meter.classList.toggle("high", part > 0.8);
    this.meter.firstChild.style.width = `${(100 * part).toFixed(1)}%`;
  }

  showHour(hour) {
    this.chart.show(this.kind.series.map((name) => hour[name]), hour.at, hour.seconds, this.top);
  }
}

/** The numbers of the service; `forget` removes them, for another token. */
export class Numbers {
  constructor() {
    this.forget();
  }

  forget() {
    this.cards = null;
    byId("cards").replaceChildren();
    byId("numbers").hidden = true;
    byId("senders").hidden = true;
    byId("rejected").hidden = true;
  }

  showNow(now) {
    this.showState(now);
    const bound = byId("bound");
    bound.hidden = false;
    const rate = now.rate === null ? "" : ` at up to ${bytes(now.rate)} per second`;
    const grants = `Token ${now.token} may ${now.allow.join(" and ")}${rate}.`;
    bound.textContent = grants;
    if (now.projects !== null) {
      bound.textContent = `${grants} It is bound to ${now.projects.join(", ")}: you see the logs of ${now.projects.length === 1 ? "this project" : "these projects"} and the token's own batches.`;
      return;
    }
    if (Boolean(now.forward) !== this.forwards) this.cards = null;
    this.forwards = Boolean(now.forward);
    if (!this.cards) {
      this.cards = [ACCEPTED, REJECTED, COMMIT, BACKLOG, DISK, now.forward ? FORWARD : BYTES].map((kind) => new Card(kind));
      byId("cards").replaceChildren(...this.cards.map((card) => card.element));
      byId("numbers").hidden = false;
      if (this.hour) this.showHour(this.hour);
    }
    this.cards.forEach((card) => card.showNow(now));
  }

  showState(now) {
    const state = byId("state");
    const workers = Object.entries(now.workers ?? {});
    const ready = now.workers?.ready ?? 0;
    const others = workers.filter(([name]) => name !== "ready").map(([name, number]) => `${number} ${name}`);
    const named = now.workers ? ` · ${[many(ready, "worker"), ...others].join(", ")}` : "";
    state.className = `state ${now.is_ready ? "good" : "bad"}`;
    const text = `${now.is_ready ? "Ready" : "Rejects batches"}${named}`;
    if (state.textContent !== text) state.textContent = text; // or a screen reader would repeat it
    state.hidden = false;
    const age = now.started_at ? ` · up ${duration(now.at - now.started_at)}` : "";
    byId("about").textContent = `${now.version}${age}`;
  }

  showHour(hour) {
    this.hour = hour;
    if (hour.seconds) this.cards?.forEach((card) => card.showHour(hour));
    fill("senders", "no-senders", hour.tokens.map(senderRow));
    fill("rejected", "no-rejections", hour.rejections.map(rejectionRow));
  }
}

/** Show the rows of a table, or a text if there are none. */
function fill(table, empty, rows) {
  byId(table).hidden = !rows.length;
  byId(empty).hidden = Boolean(rows.length);
  byId(table).querySelector("tbody").replaceChildren(...rows);
}

function senderRow(row) {
  return tableRow(row.token, spark(row), number(row.batches), number(row.logs), make("td", "number", bytes(row.bytes)), number(row.rejected_batches));
}

function rejectionRow(row) {
  return tableRow(row.code, make("td", "mono", row.token), spark(row), number(row.last_hour), number(row.total));
}

function tableRow(name, ...cells) {
  const line = make("tr");
  const head = make("th", "mono", name);
  head.scope = "row";
  line.append(head, ...cells);
  return line;
}

const number = (value) => make("td", "number", count(value));

function spark(row) {
  const cell = make("td", "spark");
  cell.append(bars(row.per_minute));
  return cell;
}
