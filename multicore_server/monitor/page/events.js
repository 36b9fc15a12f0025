// What happened, latest first. The events of one replacement are one line, to be unfolded.

import { $, make, write } from "./dom.js";
import { clock, duration } from "./figures.js";

const MOST = 50; // lines
const AT_FIRST = 12; // lines that are shown until somebody asks for more
// What a worker does when it comes or goes, by the first thing that it does then.
const FIRST_OF = { started: "started", ready: "started", draining: "draining", gone: "draining" };
const RECENT = 600; // seconds in which a fault stands at the top of the page
const MOODS = { info: "", warning: "doubt" };

let shown = ""; // the last event that is in the list

// Lines of events, latest first; a line has several events where they are those of one replacement.
export function folded(events) {
  const lines = [];
  const open = new Map(); // by instance: the line of a replacement that may go on
  for (const event of events) {
    const isStep = event.level === "info" && FIRST_OF[event.kind] && event.instance !== null;
    const own = isStep ? begun(lines, event) : null;
    const line = own ?? (isStep ? joined(open.get(event.instance), event) : null);
    if (line) line.push(event);
    else lines.push([event]);
    // An old worker may drain for longer than it takes to replace its successor.
    if (!own) open.set(event.instance, isStep ? (line ?? lines.at(-1)) : null);
  }
  return lines.sort((a, b) => b.at(-1).id - a.at(-1).id);
}

// The line in which this worker has started to do what it has done now.
function begun(lines, { kind, instance, generation }) {
  const first = FIRST_OF[kind];
  const isFirst = (it) => it.kind === first && it.instance === instance && it.generation === generation;
  return kind === first ? null : (lines.findLast((line) => line.some(isFirst)) ?? null);
}

// The line of the other worker, which takes this one's place, or makes way for it.
const joined = (line, { kind, generation }) =>
  line && !line.some((it) => it.kind === kind || it.kind === "gone" || it.generation === generation) ? line : null;

const named = (event) =>
  [["instance", event.instance], ["gen", event.generation], ["pid", event.pid]]
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name}=${value} `)
    .join("");

export const textOf = (event) => named(event) + event.text + (event.in_hand ? `; in progress: ${event.in_hand}` : "");

// "instance=2 gen=3 pid=71 replaced by gen=4 pid=80 (reload), in 1.2 s"
function summary(line) {
  if (line.length === 1) return textOf(line[0]);
  const by = (kind) => line.find((event) => event.kind === kind);
  const [started, ready, left] = [by("started"), by("ready"), by("gone") ?? by("draining")];
  const took = duration(Math.max(0, line.at(-1).at - line[0].at), 1);
  if (!left) return named(ready) + `started, ${ready.text}`;
  if (!started && !ready) return `${named(left)}${by("gone") ? "drained and exited" : "draining"}, in ${took}`;
  const reason = by("draining")?.reason;
  const next = `gen=${(ready ?? started).generation} pid=${(ready ?? started).pid}`;
  const done = by("gone") && ready ? "replaced" : "being replaced";
  return `${named(left)}${done} by ${next}${reason ? ` (${reason})` : ""}, in ${took}`;
}

function lineOf(events, isOpen) {
  const last = events.at(-1);
  const at = new Date(last.at * 1000);
  const item = make("li");
  item.dataset.first = String(events[0].id);
  item.append(make("time", clock(last.at), { datetime: at.toISOString(), title: at.toLocaleString() }));
  write(item.appendChild(make("span")), last.level, MOODS[last.level] ?? "bad");
  if (events.length === 1) {
    item.append(make("p", summary(events)));
    return item;
  }
  const details = item.appendChild(make("details"));
  details.open = isOpen;
  details.append(make("summary", summary(events)));
  for (const event of events) details.append(make("p", `${clock(event.at)} ${textOf(event)}`));
  return item;
}

export function showEvents(status) {
  showLatestFault(status);
  const last = JSON.stringify([status.arbiter.started, status.events.at(-1)]);
  if (last === shown) return;
  shown = last;
  const opened = [...$("events").querySelectorAll("details[open]")].map((it) => it.parentNode.dataset.first);
  const lines = folded(status.events).slice(0, MOST);
  $("events").replaceChildren(...lines.map((line) => lineOf(line, opened.includes(String(line[0].id)))));
  $("more").hidden = lines.length <= AT_FIRST || !$("events").classList.contains("few");
}

// The last fault of the last minutes is said before everything else.
function showLatestFault(status) {
  const isRecent = ({ level, at }) => level !== "info" && at > status.time - RECENT;
  const fault = status.events.findLast(isRecent);
  $("fault").hidden = !fault;
  if (fault) write($("fault"), `Last fault, ${clock(fault.at)}: ${textOf(fault)}`);
}

export function prepareEvents() {
  $("more").addEventListener("click", () => {
    $("events").classList.remove("few");
    $("more").hidden = true;
  });
}
