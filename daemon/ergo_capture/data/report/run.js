// The run: the bundle's columns, and what follows from them.

async function unpack() {
  const packed = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// What became of an event at once. An idle Pump found nothing due; a Pump puts back what may not run yet.
const FATES = ["run at once", "run by a Pump", "deferred", "put back", "idle Pump", "skipped", "undecided"];

function fate(run, i) {
  const decision = run.decisions[run.decision[i]], pump = run.kinds[run.kind[i]] === "Pump";
  if (decision === "Invoke") return pump ? 1 : 0;
  if (decision === "Defer") return run.more[i]?.due === undefined ? 4 : pump ? 3 : 2;
  return decision === "Skip" ? 5 : 6;
}

const failed = (run, i) => { const ended = run.terminations[run.termination[i]]; return ended !== "" && ended !== "Completed"; };

const BAD_COLOURS = ["--bad", "--bad2", "--bad3", "--bad4"];

function derive(run) {
  const count = run.secs.length;
  run.count = count;
  // The supervisor's clock: the greatest event time seen.
  run.clock = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const t = Number(run.secs[i]) + run.nanos[i] / 1e9;
    run.clock[i] = i && run.clock[i - 1] > t ? run.clock[i - 1] : t;
  }
  run.from = count ? run.clock[0] : 0;
  run.to = count ? run.clock[count - 1] : 0;
  run.fate = Array.from({ length: count }, (_, i) => fate(run, i));
  run.ran = new Map();     // place of a deferred event -> place of its run, or null
  run.origin = new Map();  // place of a run -> place of the event that was deferred
  run.waited = new Array(count).fill(null);
  for (const [began, ended] of run.spans) {
    run.ran.set(began, ended);
    if (ended === null) continue;
    run.origin.set(ended, began);
    run.waited[ended] = run.waited[began] = run.clock[ended] - run.clock[began];
  }
  // Lanes of the second chart: a name and the places of its marks.
  run.lanes = run.terminations.map((name, n) => [name, n]).filter(([name]) => name && name !== "Completed").sort()
    .map(([name, n], lane) => ({ name, colour: BAD_COLOURS[lane % BAD_COLOURS.length], places: places(run, (i) => run.termination[i] === n) }));
  run.lanes.push({ name: "retried", colour: "--again", places: places(run, (i) => Number(run.retries[i]) > 0) });
  run.lanes.push({ name: "interrupted", colour: "--bad", places: places(run, (i) => run.more[i]?.interruption !== undefined) });
  run.lanes = run.lanes.filter((lane) => lane.places.length);
  return run;
}

function places(run, wanted) {
  const found = [];
  for (let i = 0; i < run.count; i++) if (wanted(i)) found.push(i);
  return found;
}

// The run in numbers: name, value, and the filter that leaves those in the table.
function facts(run) {
  const tally = new Array(FATES.length).fill(0);
  let retries = 0, bad = 0, effects = 0, longest = 0, waited = 0, waiting = 0;
  for (let i = 0; i < run.count; i++) {
    tally[run.fate[i]]++;
    retries += Number(run.retries[i]);
    bad += failed(run, i);
    effects += run.more[i]?.effects?.length ?? 0;
  }
  for (const [began, ended] of run.spans) {
    if (ended === null) { waiting++; continue; }
    waited++;
    longest = Math.max(longest, run.waited[began]);
  }
  const found = [["events", number(run.count), {}], ["event time", span(run.to - run.from), null]];
  FATES.forEach((name, n) => tally[n] && found.push([name, number(tally[n]), { decision: name }]));
  if (waited) found.push(["longest wait", span(longest), { decision: "run by a Pump", sort: "waited" }]);
  if (waiting) found.push(["never run", number(waiting), null]);
  found.push(["retries", number(retries), { retried: "yes" }]);
  found.push(["not completed", number(bad), bad ? { termination: "not completed" } : null]);
  if (effects) found.push(["effects", number(effects), null]);
  return found;
}

// The place whose clock is nearest to t, of those in `among` (in the order of the clock); -1 for none.
function nearest(run, among, t) {
  let low = 0, high = among.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (run.clock[among[middle]] < t) low = middle + 1; else high = middle;
  }
  if (!among.length) return -1;
  if (low === among.length) return among[low - 1];
  return low && t - run.clock[among[low - 1]] < run.clock[among[low]] - t ? among[low - 1] : among[low];
}
