// Numbers, times and texts in readable forms.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Shown in place of an unknown number. */
export const UNKNOWN = "–";

const known = (format) => (value) => (value === null || value === undefined ? UNKNOWN : format(value));

export const count = known((value) => (value > 0 && value < 10 ? fine : whole).format(value));

/** A count with its word: `1 log`, `2 logs`. */
export const many = (value, word) => `${count(value)} ${word}${value === 1 ? "" : word.endsWith("ch") ? "es" : "s"}`;

export const bytes = known((value) => {
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${(size < 10 && unit ? fine : whole).format(size)} ${UNITS[unit]}`;
});

/** A short duration. */
export const wait = known((seconds) => {
  if (seconds < 1) return `${(seconds < 0.01 ? fine : whole).format(seconds * 1000)} ms`;
  return `${fine.format(seconds)} s`;
});

/** A long duration, in its two largest units. */
export const duration = known((seconds) => {
  const days = Math.floor(seconds / 86400);
  const hours = Math.floor((seconds % 86400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  if (days >= 365) return "over a year";
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes) return `${minutes} min`;
  return `${Math.floor(seconds)} s`;
});

export const share = (part, all) => (all ? `${fine.format((100 * part) / all)} %` : UNKNOWN);

export const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

// Invisible characters, line breaks, and marks that change the direction of writing.
const UNSEEN = /[\0-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]|[\u{e0000}-\u{e0fff}]/gu;
const UNSEEN_OR_BLANK = new RegExp(`${UNSEEN.source}|\\s`, "gu");
const SHORT = { "\n": "\\n", "\r": "\\r", "\t": "\\t", " ": "␣" };

/** Put a text into an element, invisible characters as codes; `keep` is left unchanged. */
export function show(element, text, keep = "", unseen = UNSEEN) {
  element.replaceChildren();
  let end = 0;
  for (const match of text.matchAll(unseen)) {
    if (keep.includes(match[0])) continue;
    const code = document.createElement("span");
    code.className = "code";
    const number = match[0].codePointAt(0).toString(16);
    code.textContent = SHORT[match[0]] ?? `\\u${number.length > 4 ? `{${number}}` : number.padStart(4, "0")}`;
    element.append(text.slice(end, match.index), code);
    end = match.index + match[0].length;
  }
  element.append(text.slice(end));
}

/** Put a name into an element, blanks as codes too, so that it looks like exactly one name. */
export const showName = (element, name) => show(element, name, "", UNSEEN_OR_BLANK);

/** Create an element with a class and a text. */
export function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Characters of a text that are shown at first. */
const START = 10_000;

/** Put a text into an element, between quotes if given; a long one with a button for the rest. */
export function showStart(element, text, keep = "", quote = "") {
  if (text.length <= 2 * START) return show(element, `${quote}${text}${quote}`, keep);
  show(element, `${quote}${text.slice(0, START)}…`, keep);
  const button = make("button", "quiet", `Show all ${count(text.length)} characters`);
  button.type = "button";
  button.addEventListener("click", () => show(element, `${quote}${text}${quote}`, keep));
  element.append(" ", button);
}
