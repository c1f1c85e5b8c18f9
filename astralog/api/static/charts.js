// Small charts of the last hour, drawn as SVG.

import { clock, make } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** The runs of known values, each a list of [index, value]. */
function runs(values) {
  const found = [];
  let run = null;
  values.forEach((value, index) => {
    if (value === null) run = null;
    else if (run) run.push([index, value]);
    else found.push((run = [[index, value]]));
  });
  return found;
}

function line(values, top) {
  const y = (value) => (HEIGHT - (HEIGHT * Math.min(value, top)) / top).toFixed(1);
  return runs(values)
    .map((run) => {
      const points = run.map(([index, value]) => `${index} ${y(value)}`);
      if (points.length === 1) points.push(`${run[0][0] + 0.9} ${y(run[0][1])}`);
      return `M${points.join("L")}`;
    })
    .join("");
}

const area = (values, top) =>
  runs(values)
    .map((run) => `${line(Array(run[0][0]).fill(null).concat(run.map((point) => point[1])), top)}V${HEIGHT}H${run[0][0]}Z`)
    .join("");

/** A round number at or above the largest value. */
function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** A chart of one or two series over the last hour. */
export class Chart {
  constructor(title, format) {
    this.title = title;
    this.format = format;
    this.series = [];
    this.element = make("figure", "chart");
    this.picture = draw("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
    this.mark = draw("line", { class: "mark", y1: 0, y2: HEIGHT });
    this.scale = make("span", "scale");
    this.reading = make("figcaption", "reading");
    this.box = make("div", "plot");
    this.box.tabIndex = 0;
    this.box.setAttribute("role", "img");
    this.box.append(this.picture, this.scale);
    this.element.append(this.box, this.reading);
    this.point = null;
    this.box.addEventListener("pointermove", (event) => this.pointAt(event.offsetX / this.box.clientWidth));
    this.box.addEventListener("pointerleave", () => this.pointTo(null));
    this.box.addEventListener("blur", () => this.pointTo(null));
    this.box.addEventListener("keydown", (event) => this.step(event));
  }

  /** Show the series: one value per `seconds`, the last ones of the time `at`. */
  show(series, at, seconds, top = null) {
    this.series = series;
    this.at = at;
    this.seconds = seconds;
    const all = series.flat().filter((value) => value !== null);
    const highest = Math.max(0, ...all);
    const ceiling = top ?? roundUp(highest);
    const width = Math.max(series[0].length - 1, 1);
    this.picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.picture.replaceChildren(
      draw("path", { class: "area", d: area(series[0], ceiling) }),
      ...series.map((values, index) => draw("path", { class: `line line${index}`, d: line(values, ceiling) })).reverse(),
      this.mark,
    );
    this.scale.textContent = highest ? this.format(ceiling) : "";
    this.box.setAttribute("aria-label", this.inWords(all, highest));
    this.pointTo(this.point);
  }

  inWords(all, highest) {
    if (!all.length) return `${this.title}: no data for the last hour yet.`;
    const first = this.series[0];
    const place = first.indexOf(Math.max(...first.filter((value) => value !== null)));
    const last = first.findLast((value) => value !== null);
    const peak = place < 0 ? "" : `, the highest at ${clock(this.timeOf(place))}`;
    return `${this.title} over the last hour: from ${this.format(Math.min(...all))} to ${this.format(highest)}${peak}; the latest is ${this.format(last)}. The arrow keys read single values.`;
  }

  timeOf(index) {
    return this.at - (this.series[0].length - 1 - index) * this.seconds;
  }

  step(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30, Home: -1e6, End: 1e6 };
    if (!(event.key in steps) || !this.series.length) return;
    event.preventDefault();
    const last = this.series[0].length - 1;
    this.pointTo(Math.min(Math.max((this.point ?? last) + steps[event.key], 0), last));
  }

  pointAt(share) {
    if (!this.series.length) return;
    const last = this.series[0].length - 1;
    this.pointTo(Math.min(Math.max(Math.round(share * last), 0), last));
  }

  pointTo(index) {
    this.point = index;
    this.mark.classList.toggle("on", index !== null);
    if (index === null) {
      this.reading.textContent = "";
      this.reading.removeAttribute("role");
      return;
    }
    this.mark.setAttribute("x1", index);
    this.mark.setAttribute("x2", index);
    const values = this.series.map((values) => this.format(values[index])).reverse();
    this.reading.setAttribute("role", "status");
    this.reading.replaceChildren(make("span", "", clock(this.timeOf(index))), make("span", "", values.join(" · ")));
  }
}

/** A row of small bars, next to a number with the same meaning. */
export function bars(values) {
  const picture = draw("svg", { class: "bars", viewBox: `0 0 ${values.length * 3} 20`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const top = Math.max(1, ...values);
  values.forEach((value, index) => {
    const height = value ? Math.max((20 * value) / top, 2) : 0;
    if (height) picture.append(draw("rect", { x: index * 3, y: 20 - height, width: 2, height }));
  });
  return picture;
}
