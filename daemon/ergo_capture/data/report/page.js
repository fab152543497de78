"use strict";
// Draws a capture: two charts over event time, and a table of decisions. Everything it shows is in #data; it asks for nothing.
window.addEventListener("error", (e) => { document.body.dataset.error = e.message; });
window.addEventListener("unhandledrejection", (e) => { document.body.dataset.error = String(e.reason); });

const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const PAGE = 100;

async function unpack() {
  const packed = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const number = (n) => n.toLocaleString("en");
const seconds = (n) => n === null ? "" : String(+n.toFixed(3));

function facts(data) {
  $("title").textContent = `Capture of graph ${data.graph}`;
  document.title = $("title").textContent;
  $("subtitle").textContent = data.subtitle;
  for (const [name, value] of data.facts) {
    const box = element("div");
    box.append(element("span", name), element("b", value));
    $("facts").append(box);
  }
}

// --- charts ---

function binned(data, from, to) {
  const bins = Math.min(240, Math.max(1, data.t.length)), width = Math.max((to - from) / bins, 1e-9);
  const x = Array.from({ length: bins }, (_, i) => from + (i + 0.5) * width);
  const series = data.kinds.map(() => new Array(bins).fill(0)), deferred = new Array(bins).fill(0);
  for (let i = 0; i < data.t.length; i++) {
    if (data.t[i] < from || data.t[i] > to) continue;
    const bin = Math.min(bins - 1, Math.floor((data.t[i] - from) / width));
    series[data.kind[i]][bin] += 1 / width;
    // A Pump that finds nothing due is a deferral of nothing.
    if (data.decisions[data.decision[i]] === "Defer" && data.kinds[data.kind[i]] !== "Pump") deferred[bin] += 1 / width;
  }
  return [x, ...series, deferred];
}

const COLOURS = { DataAvailable: "--data", Command: "--command", Pump: "--pump" };

function axes(label) {
  const look = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
  return [{ ...look, label: "event time, s", space: 90 }, { ...look, label, size: 80 }];
}

function rateChart(data, onZoom) {
  const options = {
    title: "Events and deferrals a second of event time", width: width(), height: 220, scales: { x: { time: false } },
    cursor: { drag: { x: true, y: false } }, axes: axes("a second"),
    series: [{ label: "time, s", value: (_, v) => v == null ? "--" : seconds(v) },
      ...data.kinds.map((kind) => ({ label: kind, stroke: css(COLOURS[kind]), width: 1.5, points: { show: false },
        value: (_, v) => v == null ? "--" : v.toPrecision(3) })),
      { label: "deferred", stroke: css("--fail"), width: 1.5, dash: [4, 3], points: { show: false },
        value: (_, v) => v == null ? "--" : v.toPrecision(3) }],
    hooks: { setSelect: [(u) => u.select.width > 3 && onZoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"))] },
  };
  return new uPlot(options, binned(data, data.from, data.to), $("rates"));
}

// Lanes from below: episodes that wait (a line from the event to its run), that failed, were tried again, completed.
const LANES = ["waiting", "failed", "retried", "run"];

function laneChart(data, onZoom) {
  const spans = data.spans;
  const tick = (u, value, lane, colour, height) => {
    const x = u.valToPos(value, "x", true), y = u.valToPos(lane, "y", true);
    u.ctx.fillStyle = colour; u.ctx.fillRect(x - 0.5, y - height / 2, 1.5, height);
  };
  const draw = (u) => {
    const { ctx, bbox } = u, lane = bbox.height / 4.6;
    ctx.save(); ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
    ctx.strokeStyle = css("--defer"); ctx.lineWidth = 1; ctx.globalAlpha = 0.8; ctx.beginPath();
    for (let i = 0; i < spans.length; i++) {
      const y = u.valToPos((i % 24) / 24 * 0.8 - 0.4, "y", true);
      ctx.moveTo(u.valToPos(data.t[spans[i][0]], "x", true), y);
      ctx.lineTo(u.valToPos(spans[i][1] === null ? data.to : data.t[spans[i][1]], "x", true) + 1, y);
    }
    ctx.stroke(); ctx.globalAlpha = data.t.length > 5000 ? 0.5 : 0.9;
    for (let i = 0; i < data.t.length; i++) {
      const ended = data.terminations[data.termination[i]];
      if (!ended) continue;
      if (data.retries[i]) tick(u, data.t[i], 2, css("--retry"), lane * 0.7);
      if (ended === "Completed") tick(u, data.t[i], 3, css("--invoke"), lane * 0.7);
      else tick(u, data.t[i], 1, css("--fail"), lane * 0.7);
    }
    ctx.restore();
  };
  const [bottom, left] = axes("");
  const options = {
    title: "Episodes: run, tried again, failed, and waiting from event to run", width: width(), height: 240, legend: { show: false },
    scales: { x: { time: false }, y: { range: [-0.6, 4 - 0.4] } }, cursor: { drag: { x: true, y: false } },
    axes: [bottom, { ...left, splits: () => [0, 1, 2, 3], values: () => LANES, grid: { show: false } }],
    series: [{}, { stroke: "transparent", points: { show: false } }],
    hooks: { draw: [draw], setSelect: [(u) => u.select.width > 3 && onZoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"))] },
  };
  return new uPlot(options, [[data.from, data.to], [0, 0]], $("lanes"));
}

const width = () => Math.max(320, document.querySelector("main").clientWidth);

// --- table ---

function table(data) {
  const state = { page: 0, from: -Infinity, to: Infinity, found: [] };
  for (const [id, names] of [["kind", data.kinds], ["decision", data.decisions], ["termination", data.terminations]]) {
    names.forEach((name) => name && $(id).append(new Option(name, name)));
  }
  const filter = () => {
    const wanted = $("search").value.toLowerCase(), kind = data.kinds.indexOf($("kind").value);
    const decision = data.decisions.indexOf($("decision").value), termination = $("termination").value ? data.terminations.indexOf($("termination").value) : -1;
    state.found = [];
    for (let i = 0; i < data.t.length; i++) {
      if (data.t[i] < state.from || data.t[i] > state.to || (kind >= 0 && data.kind[i] !== kind)) continue;
      if ((decision >= 0 && data.decision[i] !== decision) || (termination >= 0 && data.termination[i] !== termination)) continue;
      if ($("retried").checked && !data.retries[i]) continue;
      if (wanted && !data.id[i].toLowerCase().includes(wanted) && !data.payload[i].toLowerCase().includes(wanted)) continue;
      state.found.push(i);
    }
    state.page = 0;
    show();
  };
  const show = () => {
    const rows = $("rows"), start = state.page * PAGE, pages = Math.max(1, Math.ceil(state.found.length / PAGE));
    rows.replaceChildren(...state.found.slice(start, start + PAGE).map((i) => row(data, i)));
    const range = state.from === -Infinity ? "" : `, from ${seconds(state.from)} s to ${seconds(state.to)} s`;
    $("count").textContent = `${number(state.found.length)} of ${number(data.t.length)} decisions${range}`;
    $("page").textContent = `page ${state.page + 1} of ${number(pages)}`;
    $("back").disabled = state.page === 0;
    $("on").disabled = state.page + 1 >= pages;
    document.body.dataset.rows = String(state.found.length);
  };
  for (const id of ["search", "kind", "decision", "termination", "retried"]) $(id).addEventListener("input", filter);
  $("back").addEventListener("click", () => { state.page--; show(); });
  $("on").addEventListener("click", () => { state.page++; show(); });
  return { filter, between: (from, to) => { state.from = from; state.to = to; filter(); } };
}

function row(data, i) {
  const ended = data.terminations[data.termination[i]], decision = data.decisions[data.decision[i]];
  const made = element("tr", undefined, "row");
  made.tabIndex = 0;
  const cells = [[number(i)], [seconds(data.t[i])], [data.kinds[data.kind[i]]], [data.id[i], "id"], [decision, decision],
    [data.episode[i]], [seconds(data.waited[i])], [ended, ended && ended !== "Completed" ? "bad" : ""],
    [data.retries[i] || "", "again"], [data.effects[i] ? data.effects[i].length : ""]];
  made.append(...cells.map(([text, className]) => element("td", text === null ? "" : String(text), className)));
  const toggle = () => {
    if (made.nextSibling && made.nextSibling.className === "more") { made.nextSibling.remove(); return; }
    const more = element("tr", undefined, "more"), cell = element("td"), text = [];
    cell.colSpan = cells.length;
    text.push(data.payload[i] ? `payload ${data.payload[i]}` : "no payload");
    if (data.effects[i]) text.push(`effects ${JSON.stringify(data.effects[i], null, 1)}`);
    if (data.notes[i]) text.push(data.notes[i]);
    cell.append(element("pre", text.join("\n")));
    more.append(cell);
    made.after(more);
  };
  made.addEventListener("click", toggle);
  made.addEventListener("keydown", (e) => { if (e.key === "Enter") toggle(); });
  return made;
}

// --- together ---

async function main() {
  const data = await unpack();
  facts(data);
  const shown = table(data);
  let charts = [];
  const zoom = (from, to) => {
    charts.forEach((u, i) => { if (i === 0) u.setData(binned(data, from, to), false); u.setScale("x", { min: from, max: to }); u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false); });
    charts[0].setData(binned(data, from, to));
    const all = from <= data.from && to >= data.to;
    shown.between(all ? -Infinity : from, all ? Infinity : to);
  };
  const everything = () => zoom(data.from, data.to);
  if (data.t.length) {
    const draw = () => {
      charts.forEach((u) => u.destroy());
      charts = [rateChart(data, zoom), laneChart(data, zoom)];
      charts.forEach((u) => { u.over.addEventListener("dblclick", everything); u.setScale("x", { min: data.from, max: data.to }); });
    };
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    let due = 0;
    addEventListener("resize", () => { clearTimeout(due); due = setTimeout(() => charts.forEach((u) => u.setSize({ width: width(), height: u.height })), 100); });
  } else {
    $("rates").append(element("p", "The bundle holds no events."));
  }
  $("all").addEventListener("click", () => { $("filters").reset(); if (charts.length) everything(); shown.between(-Infinity, Infinity); });
  // A filter can be kept in the address: #search=...&kind=...&decision=...&termination=...
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if ($(name)) $(name).value = value;
  shown.filter();
  document.body.dataset.ready = "yes";
}
main();
