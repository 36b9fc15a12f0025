// The plots: of the samples that the monitor keeps, so they are full when the page is opened.

import { $, make, svg, write } from "./dom.js";
import { bytes, clock, number, percent, rate, seconds, short } from "./figures.js";

// `least`: what the scale goes up to, at least.
const PLOTS = [
  { title: "Requests/s", format: rate, least: 1, lines: [["", "requests"]] },
  { title: "Errors/s", format: rate, least: 1, lines: [["5xx", "5xx"], ["499", "499"]] },
  { title: "Latency", format: seconds, least: 0.005, lines: [["p50", "p50"], ["p99", "p99"]] },
  { title: "Time in the queue", format: seconds, least: 0.005, lines: [["p50", "queue_p50"], ["p95", "queue_p95"]] },
  { title: "CPU", format: percent, least: 10, lines: [["", "cpu"]] },
  { title: "Memory", format: bytes, least: 1024 ** 2, lines: [["", "memory"]] },
  { title: "In progress", format: number, least: 1, lines: [["", "in_progress"]] },
  { title: "Backlog", format: number, least: 1, lines: [["", "backlog"]] },
];
const [WIDTH, HEIGHT] = [300, 100];
const GAP = 2.5; // intervals without a sample, above which a line is broken
const SAME = 5; // seconds between two marks with the same text, below which they are one
const LATELY = 10; // seconds in which errors count for what is said of the server

let points = []; // an object of each sample, oldest first; their times are of the monitor's monotonic clock
let marks = []; // {at, kind, level, text} of reloads and crashes
let clocks = { now: 0, time: 0, every: 2, kept: 600 }; // the present on both clocks, and how samples are kept

export const lastSeen = () => points.at(-1)?.at ?? 0;

// What the monitor has noticed since `lastSeen`, or all that it has where it was not asked before.
export function take({ columns, samples, marks: noticed, ...others }) {
  if (others.now < lastSeen()) [points, marks] = [[], []]; // the machine was started again
  clocks = others;
  const isKept = ({ at }) => at > clocks.now - clocks.kept;
  const seen = lastSeen();
  const fresh = samples.map((sample) => Object.fromEntries(columns.map((name, place) => [name, sample[place]])));
  points = [...points, ...fresh.filter(({ at }) => at > seen)].filter(isKept);
  const added = noticed.map(([at, kind, level, text]) => ({ at, kind, level, text }));
  marks = [...marks, ...added.filter((mark) => !marks.some((other) => isSame(mark, other)))].filter(isKept);
}

// A monitor that was replaced finds events again, and reckons their times anew.
const isSame = (one, other) => one.text === other.text && Math.abs(one.at - other.at) < SAME;

// Of the last seconds: how many requests ended, and how many of them were errors.
export function answered() {
  const recent = points.filter(({ at, requests }) => at > clocks.now - LATELY && (requests ?? null) !== null);
  const count = (name) => recent.reduce((sum, point) => sum + point[name] * clocks.every, 0);
  return { requests: count("requests"), errors: count("5xx") };
}

export function preparePlots() {
  for (const plot of PLOTS) {
    const figure = make("figure");
    const caption = figure.appendChild(make("figcaption"));
    caption.append(make("span", plot.title));
    const now = caption.appendChild(make("span", "", { class: "now" }));
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
    plot.picture = figure.appendChild(svg("svg", box));
    plot.picture.append(svg("path", { class: "grid", d: `M0 ${HEIGHT / 2}H${WIDTH}M0 1H${WIDTH}` }));
    plot.marks = plot.picture.appendChild(svg("g"));
    plot.paths = plot.lines.map((_, place) => plot.picture.appendChild(svg("path", { class: `line-${place}` })));
    plot.values = plot.lines.map(([label]) => {
      const value = now.appendChild(make("span"));
      if (label) value.append(make("small", label));
      return value.appendChild(make("b", "–"));
    });
    plot.top = figure.appendChild(make("div", "", { class: "scale" }));
    $("plots").append(figure);
  }
}

// 1, 2 or 5 times a power of ten: the scale changes seldom, and its number is short.
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= value * 0.999);
}

const across = (at) => (WIDTH * (1 - (clocks.now - at) / clocks.kept)).toFixed(2);

// What `value` finds in the points, as a line in a box of WIDTH and HEIGHT.
function path(value, top) {
  let [drawn, last] = ["", null];
  for (const point of points) {
    const found = value(point) ?? null;
    if (found === null) continue;
    const place = `${across(point.at)} ${(HEIGHT - 1 - Math.min(1, found / top) * (HEIGHT - 2)).toFixed(2)}`;
    // A gap, where nobody looked or there was nothing to see, is no line. A lonely point is a dot.
    const joined = last !== null && point.at - last < GAP * clocks.every;
    drawn += joined ? `L${place}` : `M${place}L${place}`;
    last = point.at;
  }
  return drawn;
}

// --- a worker's CPU, as a line beside the number ---

export function sparkline() {
  const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" };
  const picture = svg("svg", box);
  picture.append(svg("path", { class: "line-0" }));
  return picture;
}

export function drawSparkline(picture, instance) {
  picture.firstChild.setAttribute("d", path((point) => point.cpu_by_worker?.[instance], 100));
}

// --- marks ---

function marked({ at, kind, level, text }) {
  const group = svg("g", { class: kind === "reload" && level === "info" ? "mark-reload" : "mark-fault" });
  const title = group.appendChild(svg("title"));
  title.textContent = `${clock(clocks.time - (clocks.now - at))} ${text}`;
  const line = { d: `M${across(at)} 0V${HEIGHT}` };
  group.append(svg("path", line), svg("path", { ...line, class: "near" })); // the wide one is easy to point at
  return group;
}

export function drawPlots() {
  const faults = marks.filter(({ kind, level }) => kind !== "reload" || level !== "info").length;
  const said = `reloads: ${marks.length - faults}, faults: ${faults}`;
  for (const plot of PLOTS) draw(plot, said);
  $("legend").hidden = !marks.length;
}

function draw(plot, marksSaid) {
  const all = plot.lines.flatMap(([, name]) => points.map((point) => point[name] ?? 0));
  const highest = Math.max(plot.least, ...all);
  const unit = plot.format !== bytes ? 1 : 1024 ** (highest < 1024 ** 3 ? 2 : 3);
  const top = roundedUp(highest / unit) * unit;
  write(plot.top, `max ${short(plot.format(top))}`);
  const said = plot.lines.map(([label, name], place) => {
    const value = plot.format(points.at(-1)?.[name]);
    plot.paths[place].setAttribute("d", path((point) => point[name], top));
    write(plot.values[place], value);
    return `${label} ${value}`.trim();
  });
  plot.marks.replaceChildren(...marks.map(marked));
  const label = `${plot.title}: now ${said.join(", ")}; highest ${plot.format(highest)}; ${marksSaid}`;
  plot.picture.setAttribute("aria-label", label);
}
