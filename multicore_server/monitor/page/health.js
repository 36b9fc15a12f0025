// How the server is, in a mood and in words: the rules of docs/monitoring.md, as `monit` and `ps` have them.

import { $, write } from "./dom.js";

const MANY_ERRORS = [0.01, 0.05]; // shares of the responses that are 5xx: above, doubtful, bad
const LEAST_REQUESTS = 20; // of the last seconds: below, and with fewer errors, a share says nothing
const LEAST_ERRORS = 3;
const BLOCKED = 1; // seconds that an event loop is blocked
const TIMEOUT = 30; // seconds: of a server that has none, or does not say it
const PRODUCT = "multicore_server"; // what stands in the page before anything is known
const BADNESS = ["good", "doubt", "bad"];

export const SIGNS = { good: "●", doubt: "▲", bad: "✕" };
const ICONS = { good: "icon.svg", doubt: "icon-doubt.svg", bad: "icon-bad.svg" };

// How bad it is that a worker is blocked now. Where requests run in the event loop's thread, one that takes its
// time is no fault yet.
export function blocked(worker, status) {
  const seconds = worker.blocked ?? 0;
  if (seconds > (status.timeout || TIMEOUT) / 2) return worker.inline ? "doubt" : "bad";
  return seconds > BLOCKED && !worker.inline ? "doubt" : "";
}

// How bad it is that so many of so many responses were errors.
export function ofErrors(errors, requests) {
  if (requests < LEAST_REQUESTS || errors < LEAST_ERRORS) return "";
  const share = errors / requests;
  return share > MANY_ERRORS[1] ? "bad" : share > MANY_ERRORS[0] ? "doubt" : "";
}

function ofStates({ workers, configured }) {
  const count = (state) => workers.filter((worker) => worker.state === state).length;
  const errored = workers.filter((worker) => worker.state === "errored").map((worker) => worker.instance);
  const found = [];
  if (!count("ready")) found.push(["bad", "no worker is ready"]);
  if (errored.length) {
    const who = `${errored.length === 1 ? "instance" : "instances"} ${errored.join(", ")}`;
    found.push(["bad", `${who} errored: exited too often, no longer restarted`]);
  }
  const missing = configured - count("ready") - count("stopped") - errored.length;
  if (count("ready") && missing > 0) {
    const others = ["starting", "backoff", "draining"].filter(count).map((state) => `${count(state)} ${state}`);
    const where = others.length ? ` (${others.join(", ")})` : "";
    found.push(["doubt", `${missing} of ${configured} workers missing${where}`]);
  }
  return found;
}

// What is wrong, the worst first: [mood, text] each. `answered` is of the last seconds: {requests, errors}.
export function reasons(status, answered) {
  if (status.stopping) return [["doubt", "stopping"]];
  const standing = status.workers.map((worker) => [worker, blocked(worker, status)]).filter(([, mood]) => mood);
  const mood = ofErrors(answered.errors, answered.requests);
  const share = mood && `${((answered.errors / answered.requests) * 100).toFixed(1)}%`;
  return [
    ...ofStates(status),
    ...standing.map(([it, how]) => [how, `instance ${it.instance} blocked for ${it.blocked.toFixed(1)} s`]),
    ...(mood ? [[mood, `${share} of the responses are 5xx`]] : []),
  ].sort(([a], [b]) => BADNESS.indexOf(b) - BADNESS.indexOf(a));
}

// In the heading, the tab's title and its icon.
export function showHealth(status, answered) {
  const found = reasons(status, answered);
  const [mood, worst] = found[0] ?? ["good", status.reloading ? "reloading" : "serving"];
  show(mood, mood === "good" && status.reloading ? "↻" : SIGNS[mood], worst);
  document.title = `${mood === "good" ? "" : `${SIGNS[mood]} ${worst} · `}${titled(status.name)}`;
  write($("others"), found.slice(1).map(([, text]) => text).join("\n"));
  $("others").hidden = found.length < 2;
}

export function showUnknown(name) {
  show("doubt", "?", "unknown");
  $("others").hidden = true;
  document.title = `? unknown · ${titled(name)}`;
}

const titled = (name) => (name === PRODUCT ? name : `${name} · ${PRODUCT}`);

function show(mood, sign, text) {
  write($("condition"), `${sign} ${text}`, mood);
  if ($("icon").getAttribute("href") !== ICONS[mood]) $("icon").setAttribute("href", ICONS[mood]);
}
