// The live page: asks /status each second and shows what it says. It has no other memory than the variables
// of this file. Whatever the app can influence becomes text (textContent), never HTML.

import {
  bytes, duration, forget, number, percent,
  quantile, rate, ratesOf, remember, seconds, sum, together,
} from "./figures.js";

const POLL = 1000; // milliseconds
const PATIENCE = 4000; // milliseconds for an answer
const HISTORY = 300; // seconds in the plots
const MOST_EVENTS = 50;
const LAG = [0.05, 0.25]; // seconds: doubtful, bad, as in monit and the alert
const SHARE = [0.7, 0.9]; // of the memory limit

const $ = (id) => document.getElementById(id);

function make(tag, text = "", attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function write(node, text, mood = "") {
  // Untouched where nothing changed: a selection stays, and nothing is read out again.
  if (node.textContent !== text) node.textContent = text;
  if ((node.dataset.mood ?? "") !== mood) node.dataset.mood = mood;
}

// --- plots ---

const PLOTS = [
  { title: "Requests/s", format: rate, least: 1, lines: [["", "requests"]] },
  { title: "Latency", format: seconds, least: 0.005, lines: [["p50", "p50"], ["p99", "p99"]] },
  { title: "Memory", format: bytes, least: 1024 ** 2, lines: [["", "memory"]] },
  { title: "In hand", format: number, least: 1, lines: [["", "inHand"]] },
];
const [WIDTH, HEIGHT] = [300, 100];
let points = []; // of the last HISTORY seconds: {time, requests, p50, p99, memory, inHand}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function preparePlots() {
  for (const plot of PLOTS) {
    const figure = make("figure");
    const caption = figure.appendChild(make("figcaption"));
    caption.append(make("span", plot.title));
    const now = caption.appendChild(make("span", "", { class: "now" }));
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
    plot.picture = figure.appendChild(svg("svg", box));
    plot.picture.append(svg("path", { class: "grid", d: `M0 ${HEIGHT / 2}H${WIDTH}M0 1H${WIDTH}` }));
    plot.paths = plot.lines.map((_, place) => plot.picture.appendChild(svg("path", { class: `line-${place}` })));
    plot.values = plot.lines.map(([label]) => {
      const value = now.appendChild(make("span"));
      if (label) value.append(make("small", label));
      return value.appendChild(make("b", "-"));
    });
    const scale = figure.appendChild(make("div", "", { class: "scale" }));
    plot.top = scale.appendChild(make("span"));
    scale.append(make("span", "last 5 min"));
    $("plots").append(figure);
  }
}

// 1, 2 or 5 times a power of ten: the scale changes seldom, and its number is short.
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= value * 0.999);
}

function path(name, top, now) {
  let [drawn, last] = ["", null];
  for (const point of points) {
    if (point[name] === null) continue;
    const x = WIDTH * (1 - (now - point.time) / HISTORY);
    const y = HEIGHT - 1 - (point[name] / top) * (HEIGHT - 2);
    // A gap, where nobody looked or there was nothing to see, is no line. A lonely point is a dot.
    const joined = last !== null && point.time - last < 3;
    const [across, down] = [x.toFixed(2), y.toFixed(2)];
    drawn += joined ? `L${across} ${down}` : `M${across} ${down}L${across} ${down}`;
    last = point.time;
  }
  return drawn;
}

function draw(plot, now) {
  const all = plot.lines.flatMap(([, name]) => points.map((point) => point[name] ?? 0));
  const highest = Math.max(plot.least, ...all);
  const unit = plot.format === bytes ? 1024 ** 2 : 1;
  const top = roundedUp(highest / unit) * unit;
  write(plot.top, `top ${plot.format(top).replace(/\.0+(?= |$)/, "")}`);
  const said = plot.lines.map(([label, name], place) => {
    const value = plot.format(points.at(-1)[name]);
    plot.paths[place].setAttribute("d", path(name, top, now));
    write(plot.values[place], value);
    return `${label} ${value}`;
  });
  plot.picture.setAttribute("aria-label", `${plot.title}: now ${said.join(", ")}; highest ${plot.format(highest)}`);
}

// --- the server ---

function condition(status) {
  if (status.stopping) return ["■ stopping", "doubt"];
  if (!status.ready) return ["✕ no worker is ready", "bad"];
  if (status.reloading) return ["↻ reloading", "doubt"];
  return status.ready < status.configured ? ["◐ serving, workers missing", "doubt"] : ["● serving", "good"];
}

function counted(counts) {
  const some = Object.entries(counts).filter(([, count]) => count);
  return some.map(([name, count]) => `${name} ${count}`).join(", ") || "none";
}

function showServer(status) {
  document.title = `${status.name} · multicore_server`;
  write($("name"), status.name);
  write($("condition"), ...condition(status));
  const { arbiter } = status;
  const facts = {
    address: status.addresses.join("  "), workers: `${status.ready} of ${status.configured} ready`,
    uptime: duration(arbiter.uptime), pid: String(arbiter.pid), restarts: counted(status.restarts),
    reloads: counted(status.reloads).replaceAll("_", " "),
    version: status.version,
    on: `gunicorn ${arbiter.gunicorn}, uvicorn ${arbiter.uvicorn}, Python ${arbiter.python}`,
  };
  for (const [name, text] of Object.entries(facts)) {
    let fact = $(`fact-${name}`);
    if (!fact) {
      fact = make("dd", "", { id: `fact-${name}` });
      $("facts").appendChild(make("div")).append(make("dt", name), fact);
    }
    write(fact, text);
  }
}

// --- its workers ---

const STATES = {
  ready: ["●", "good"], starting: ["◐", "doubt"], draining: ["◌", "doubt"],
  backoff: ["◷", "doubt"], stopped: ["■", ""], errored: ["✕", "bad"],
};
const moodOf = (value, [doubt, bad]) => (value >= bad ? "bad" : value >= doubt ? "doubt" : "");
const used = (worker, metric) =>
  (metric === "uss" && worker.memory.limit ? worker.memory.unique : null) ?? worker.memory.resident;

function memory(worker, metric) {
  const [amount, { limit }] = [used(worker, metric), worker.memory];
  if (!amount || !limit) return [bytes(amount)];
  return [bytes(amount), moodOf(amount / limit, SHARE), `${percent((amount / limit) * 100)} of ${bytes(limit)}`];
}

function state(worker, now) {
  const [sign, mood] = STATES[worker.state] ?? ["", ""];
  const below = worker.processes.filter(({ pid }) => pid !== worker.pid).map((it) => `pid ${it.pid} ${it.state}`);
  if (worker.wanted) below.push(`to be replaced: ${worker.wanted}`);
  if (worker.next_restart) below.push(`next start in ${duration(Math.max(0, worker.next_restart - now))}`);
  return [`${sign} ${worker.state}`, mood, below.join(", ")];
}

// Title, and what is in the cell: text, mood, a line below it.
const COLUMNS = [
  ["worker", (worker) => [String(worker.instance)]],
  ["pid", (worker) => [number(worker.pid)]],
  ["state", (worker, _, status) => state(worker, status.time)],
  ["uptime", (worker) => [duration(worker.uptime)]],
  ["restarts", (worker) => [String(sum(Object.values(worker.restarts)) ?? 0)]],
  ["CPU", (_, rates) => [percent(rates.cpu)]],
  ["memory", (worker, _, status) => memory(worker, status.settings.memory_metric)],
  ["requests/s", (_, rates) => [rate(rates.requests)]],
  ["p50", (_, rates) => [seconds(quantile(0.5, rates.durations))]],
  ["p99", (_, rates) => [seconds(quantile(0.99, rates.durations))]],
  ["in hand", (worker) => [String(worker.in_hand)]],
  ["connections", (worker) => [String(worker.connections)]],
  ["loop lag", (worker) => [seconds(worker.loop_lag), moodOf(worker.loop_lag, LAG)]],
];

function rowOf(instance) {
  const row = make("tr", "", { role: "row", id: `worker-${instance}` });
  for (const [place, [title]] of COLUMNS.entries()) {
    const cell = place ? make("td", "", { role: "cell" }) : make("th", "", { role: "rowheader", scope: "row" });
    cell.dataset.title = title;
    cell.append(make("span"), make("small"));
    row.append(cell);
  }
  return row;
}

function showWorkers(status, rates) {
  const rows = status.workers.map((worker, at) => {
    const row = $(`worker-${worker.instance}`) ?? rowOf(worker.instance);
    for (const [place, [, cell]] of COLUMNS.entries()) {
      const [text, mood = "", below = ""] = cell(worker, rates[at], status);
      write(row.cells[place].children[0], text, mood);
      write(row.cells[place].children[1], below);
    }
    return row;
  });
  const there = [...$("workers").children];
  const same = rows.length === there.length && rows.every((row, at) => row === there[at]);
  if (!same) $("workers").replaceChildren(...rows);
}

// --- what happened ---

let shown = ""; // the last event that is in the list

function showEvents(status) {
  const events = status.events.slice(-MOST_EVENTS).reverse();
  const last = JSON.stringify([status.arbiter.started, events[0]]);
  if (last === shown) return;
  shown = last;
  $("events").replaceChildren(...events.map((event) => {
    const at = new Date(event.at * 1000);
    const who = [["instance", event.instance], ["gen", event.generation], ["pid", event.pid]];
    const names = who.filter(([, value]) => value !== null).map(([name, value]) => `${name}=${value} `);
    const line = make("li");
    line.append(make("time", at.toLocaleTimeString(), { datetime: at.toISOString(), title: at.toLocaleString() }));
    const level = line.appendChild(make("span"));
    write(level, event.level, { info: "", warning: "doubt" }[event.level] ?? "bad");
    line.append(make("p", names.join("") + event.text));
    return line;
  }));
}

// --- once a second ---

function show(status) {
  remember(status);
  const [{ time: now, workers }, metric] = [status, status.settings.memory_metric];
  const rates = workers.map(ratesOf);
  const durations = together(rates.map((each) => each.durations));
  points = points.filter((point) => point.time < now && point.time > now - HISTORY);
  points.push({
    time: now, requests: sum(rates.map((each) => each.requests)),
    p50: quantile(0.5, durations), p99: quantile(0.99, durations),
    memory: sum(workers.map((worker) => used(worker, metric))),
    inHand: sum(workers.map((worker) => worker.in_hand)),
  });
  showServer(status);
  for (const plot of PLOTS) draw(plot, now);
  showWorkers(status, rates);
  showEvents(status);
}

function showTrouble(text) {
  $("trouble").hidden = !text;
  if (text) {
    write($("trouble"), text);
    write($("condition"), "? unknown", "doubt");
  }
  $("main").classList.toggle("old", Boolean(text));
}

// What the server says, or why there is nothing.
async function ask() {
  try {
    const answer = await fetch("status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    const found = await answer.json();
    return answer.ok ? [found, ""] : [null, found.error];
  } catch {
    return [null, "the server does not answer"];
  }
}

async function visible() {
  while (document.hidden) {
    forget(); // rates of the time in between would be of nothing that is shown
    await new Promise((changed) => document.addEventListener("visibilitychange", changed, { once: true }));
  }
}

async function run() {
  for (let last = new Date(); ; ) {
    await visible();
    const began = performance.now();
    const [status, trouble] = await ask();
    if (status) {
      last = new Date();
      show(status);
    }
    showTrouble(trouble && `Nothing new since ${last.toLocaleTimeString()}: ${trouble}. Asking again each second.`);
    await new Promise((over) => setTimeout(over, Math.max(POLL / 4, POLL - (performance.now() - began))));
  }
}

for (const [title] of COLUMNS) $("columns").append(make("th", title, { role: "columnheader", scope: "col" }));
preparePlots();
run().catch((error) => {
  showTrouble(`This page cannot show what the server says (${error}). Load it again.`);
  throw error; // to the console, with its place
});
