// Figures: amounts as people read them, as monit has them; and a worker's rates and quantiles, which take two looks.

const WINDOW = 5; // seconds that rates are of: CPU seconds are counted once a second, less would flicker

// --- amounts; null is not known ---

const orDash = (format) => (value, ...others) => ((value ?? null) === null ? "–" : format(value, ...others));
export const number = orDash((value) => String(value));
export const rate = orDash((value) => value.toFixed(value > 0 && value < 9.95 ? 1 : 0));
export const percent = orDash((value) => `${value.toFixed(0)} %`);
export const seconds = orDash((value) => {
  if (value >= 1) return `${value.toFixed(2)} s`;
  return `${(value * 1000).toFixed(value < 0.1 ? 1 : 0)} ms`;
});
export const bytes = orDash((value) => {
  const power = value < 1024 ** 3 ? 2 : 3;
  return `${(value / 1024 ** power).toFixed(1)} ${["MB", "GB"][power - 2]}`;
});
export const duration = orDash((value, digits = 0) => {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60]]) {
    if (value >= length) return `${Math.floor(value / length)} ${unit}`;
  }
  return `${digits ? value.toFixed(digits) : Math.floor(value)} s`;
});
export const short = (amount) => amount.replace(/\.0+(?= |$)/, "");
// A moment, in seconds since the epoch: with its date where that is not today's.
export const clock = (value) => {
  const at = new Date(value * 1000);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? at.toLocaleTimeString() : at.toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
};
export const sum = (values) => {
  const known = values.filter((value) => value !== null);
  return known.length ? known.reduce((a, b) => a + b, 0) : null;
};

// --- what takes two looks ---

let looks = []; // of the last WINDOW seconds, oldest first: {time, arbiter: its start, workers by instance}

export function forget() {
  looks = [];
}

export function remember(status) {
  const last = looks.at(-1);
  // Another arbiter counts from zero; a clock that was set back makes no sense of a rate.
  if (last && (last.arbiter !== status.arbiter.started || last.time >= status.time)) looks = [];
  const workers = new Map(status.workers.map((worker) => [worker.instance, worker]));
  looks.push({ time: status.time, arbiter: status.arbiter.started, workers });
  while (looks.length > 2 && looks[0].time < status.time - WINDOW - 0.5) looks.shift();
}

const grown = (now, then) => Math.max(0, now - then);

// How much a histogram has grown: of its cumulative buckets, [bound, count] each.
const bucketsOf = (now = {}, then = {}) =>
  Object.entries(now)
    .map(([bound, count]) => [bound === "+Inf" ? Infinity : Number(bound), grown(count, then[bound] ?? 0)])
    .sort(([a], [b]) => a - b);

// Of a worker of the last look; null and empty where there is nothing to compare. `codes`: how many requests ended so.
export function ratesOf(worker) {
  const before = looks.find((look) => look.workers.has(worker.instance));
  const passed = looks.at(-1).time - before.time;
  if (passed <= 0) return { passed: null, cpu: null, requests: null, durations: [], queue: [], codes: null };
  const old = before.workers.get(worker.instance);
  const [now, then] = [worker.requests, old.requests];
  const codes = Object.entries(now.codes ?? {}).map(([name, count]) => [name, grown(count, then.codes[name])]);
  return {
    passed,
    cpu: (grown(worker.cpu_seconds, old.cpu_seconds) / passed) * 100,
    requests: grown(now.total, then.total) / passed,
    codes: now.codes ? Object.fromEntries(codes) : null,
    durations: bucketsOf(now.durations, then.durations),
    queue: bucketsOf(now.queue, then.queue),
  };
}

// As Prometheus' histogram_quantile() reckons it, from cumulative buckets.
export function quantile(share, buckets) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return null;
  const rank = share * total;
  let [low, below] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= rank && count > below) {
      return bound === Infinity ? low : low + ((bound - low) * (rank - below)) / (count - below);
    }
    [low, below] = [bound, count];
  }
  return low;
}
