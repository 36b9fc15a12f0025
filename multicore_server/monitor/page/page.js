// The live page: asks /status each second, and for new samples as often as there are any, and shows what they say.
// It has no other memory than the variables of these files.

import { $, make, write } from "./dom.js";
import { prepareEvents, showEvents } from "./events.js";
import {
  bytes, duration, forget, number, percent, quantile, rate, ratesOf, remember, seconds, short, sum,
} from "./figures.js";
import { blocked, ofErrors, showHealth, showUnknown } from "./health.js";
import { answered, drawPlots, drawSparkline, lastSeen, preparePlots, sparkline, take } from "./plots.js";

const POLL = 1000; // milliseconds
const SAMPLES = 2000; // milliseconds: as often as the monitor takes one
const PATIENCE = 4000; // milliseconds for an answer
const LAG = [0.05, 0.25]; // seconds: doubtful, bad, as in monit and the alert
const MOST_REQUESTS = 50; // of those in progress, the oldest
const MOST_CARDS = 4; // on a narrow screen, of workers that are well, as page.css has it
const SHARE = [0.7, 0.9]; // of the memory limit

// --- the server ---

function counted(counts) {
  const some = Object.entries(counts).filter(([, count]) => count);
  return some.map(([name, count]) => `${name} ${count}`).join(", ") || "none";
}

function showServer(status) {
  write($("name"), status.name);
  showHealth(status, answered());
  const { arbiter } = status;
  const facts = {
    host: status.host ?? "–", address: status.addresses.join("  "), workers: `${status.ready} of ${status.configured} ready`,
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
  return [bytes(amount), moodOf(amount / limit, SHARE), `${percent((amount / limit) * 100)} of ${short(bytes(limit))}`];
}

function state(worker, status) {
  const [sign, mood] = STATES[worker.state] ?? ["", ""];
  const standing = blocked(worker, status);
  if (standing) return ["▲ blocked", standing, `for ${duration(worker.blocked, 1)}`];
  const below = worker.processes.filter(({ pid }) => pid !== worker.pid).map((it) => `pid ${it.pid} ${it.state}`);
  if (worker.wanted) below.push(`to be replaced: ${worker.wanted}`);
  if (worker.next_restart) below.push(`next start in ${duration(Math.max(0, worker.next_restart - status.time))}`);
  return [`${sign} ${worker.state}`, mood, below.join(", ")];
}

function errors(_, { codes, passed }) {
  if (!codes) return ["–"];
  const mood = ofErrors(codes["5xx"], sum(Object.values(codes)));
  return [rate(codes["5xx"] / passed), mood, codes["499"] ? `499: ${rate(codes["499"] / passed)}` : ""];
}

// What only a process has: a dash where there is none.
const its = (value) => (worker) => [number(worker.pid === null ? null : value(worker))];

// Title, and what is in the cell: text, mood, a line below it.
const COLUMNS = [
  ["worker", (worker) => [String(worker.instance)]],
  ["pid", (worker) => [number(worker.pid)]],
  ["state", (worker, _, status) => state(worker, status)],
  ["uptime", (worker) => [duration(worker.uptime)]],
  ["restarts", (worker) => [String(sum(Object.values(worker.restarts)) ?? 0)]],
  ["CPU", (worker, rates) => [percent(worker.pid === null ? null : rates.cpu)]],
  ["memory", (worker, _, status) => memory(worker, status.settings.memory_metric)],
  ["requests/s", (_, rates) => [rate(rates.requests)]],
  ["5xx/s", errors],
  ["p50", (_, rates) => [seconds(quantile(0.5, rates.durations))]],
  ["p99", (_, rates) => [seconds(quantile(0.99, rates.durations))]],
  ["queue p95", (_, rates) => [seconds(quantile(0.95, rates.queue))]],
  ["in progress", its((worker) => worker.requests.in_progress)],
  ["connections", its((worker) => worker.connections)],
  ["loop lag", (worker) => (worker.pid === null ? ["–"] : [seconds(worker.loop_lag), moodOf(worker.loop_lag, LAG)])],
];

function rowOf(instance) {
  const row = make("tr", "", { role: "row", id: `worker-${instance}` });
  for (const [place, [title]] of COLUMNS.entries()) {
    const cell = place ? make("td", "", { role: "cell" }) : make("th", "", { role: "rowheader", scope: "row" });
    cell.dataset.title = title;
    if (title === "CPU") drawSparkline(cell.appendChild(sparkline()), instance);
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
      const [value, note] = [...row.cells[place].children].slice(-2);
      write(value, text, mood);
      write(note, below);
    }
    row.dataset.trouble = blocked(worker, status) || (STATES[worker.state]?.[1] ?? "");
    return row;
  });
  const there = [...$("workers").children];
  const same = rows.length === there.length && rows.every((row, at) => row === there[at]);
  if (!same) $("workers").replaceChildren(...rows);
  $("all-workers").hidden = !$("workers").classList.contains("few") || rows.length <= MOST_CARDS;
}

function showAllWorkers() {
  $("workers").classList.remove("few");
  $("all-workers").hidden = true;
}

// --- what they have in progress: only the server's owner, who comes over the command socket, is told ---

function showRequests(status) {
  const told = status.workers.filter((worker) => worker.running);
  $("in-progress").hidden = !told.length;
  const found = told.flatMap((worker) => worker.running.map((request) => ({ ...request, instance: worker.instance })));
  const lines = found.sort((a, b) => b.seconds - a.seconds).slice(0, MOST_REQUESTS).map((it) => {
    const line = make("li");
    line.append(make("span", duration(it.seconds, 1)), make("span", `worker ${it.instance}`));
    line.append(make("p", `${it.method} ${it.path} ${it.client}`));
    return line;
  });
  $("requests").replaceChildren(...lines);
}

// --- once a second ---

function show(status) {
  remember(status);
  showServer(status);
  showWorkers(status, status.workers.map(ratesOf));
  showRequests(status);
  showEvents(status);
}

function showTrouble(text) {
  $("trouble").hidden = !text;
  if (text) {
    write($("trouble"), text);
    showUnknown($("name").textContent);
  }
  $("main").classList.toggle("old", Boolean(text));
}

// What the server says, or why there is nothing.
async function ask(path) {
  try {
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    const found = await answer.json();
    return answer.ok ? [found, ""] : [null, found.error];
  } catch {
    return [null, "the server does not answer"];
  }
}

async function askForSamples() {
  const [samples] = await ask(`samples?after=${lastSeen()}`);
  if (!samples) return;
  take(samples);
  drawPlots();
  for (const row of $("workers").children) {
    drawSparkline(row.querySelector(".spark"), Number(row.cells[0].textContent));
  }
}

async function visible() {
  while (document.hidden) {
    forget(); // rates of the time in between would be of nothing that is shown
    await new Promise((changed) => document.addEventListener("visibilitychange", changed, { once: true }));
  }
}

async function run() {
  for (let [last, sampled] = [null, -Infinity]; ; ) {
    await visible();
    const began = performance.now();
    if (began - sampled > SAMPLES - POLL / 4) {
      sampled = began;
      await askForSamples();
    }
    const [status, trouble] = await ask("status");
    if (status) {
      last = new Date();
      show(status);
    }
    const since = last ? `Nothing new since ${last.toLocaleTimeString()}` : "Nothing yet";
    showTrouble(trouble && `${since}: ${trouble}. Asking again each second.`);
    await new Promise((over) => setTimeout(over, Math.max(POLL / 4, POLL - (performance.now() - began))));
  }
}

for (const [title] of COLUMNS) $("columns").append(make("th", title, { role: "columnheader", scope: "col" }));
preparePlots();
prepareEvents();
$("all-workers").addEventListener("click", showAllWorkers);
run().catch((error) => {
  showTrouble(`This page cannot show the server's answer (${error}). Load the page again.`);
  throw error; // to the console, with its place
});
