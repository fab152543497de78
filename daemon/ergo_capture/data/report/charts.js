// Three charts over event time, drawn by uPlot: what happened, what went wrong, what waited. They share cursor and range.

const DAY = 86400;
// Widths of bars and steps of axes, in seconds, that a person can read off.
const STEPS = [
  ...Array.from({ length: 9 }, (_, n) => [1, 2, 5].map((m) => m * 10 ** (n - 9))).flat(),
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600, 43200, DAY, 2 * DAY, 5 * DAY, 7 * DAY,
  ...Array.from({ length: 15 }, (_, n) => [1, 2, 5].map((m) => m * DAY * 10 ** (n + 1))).flat(),
];
const FATE_COLOURS = ["--ran", "--pumped", "--deferred", "--again", "--idle", "--skipped", "--bad"];
const KIND_COLOURS = { DataAvailable: "--pumped", Command: "--ran", Pump: "--idle" };

const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const room = () => Math.max(280, document.querySelector("main").clientWidth);

// The groups that bars are stacked from: names, colours, and the group of each event.
function groups(run, by) {
  if (by === "kind") return { names: run.kinds, colours: run.kinds.map((kind) => KIND_COLOURS[kind]), of: run.kind };
  if (by === "termination") {
    const colour = (name) => name === "" ? "--idle" : name === "Completed" ? "--ran" : run.lanes.find((lane) => lane.name === name).colour;
    return { names: run.terminations.map((name) => name || "no run"), colours: run.terminations.map(colour), of: run.termination };
  }
  return { names: FATES, colours: FATE_COLOURS, of: run.fate };
}

// Counts for each group and bar between from and to; bars begin at whole multiples of their width.
function binned(run, group, from, to) {
  const most = Math.min(260, Math.ceil(room() / 5)), wanted = (to - from) / most, step = STEPS.find((s) => s >= wanted) ?? wanted;
  const first = Math.floor(from / step), bars = Math.max(1, Math.min(most + 2, Math.floor(to / step) - first + 1));
  const counts = group.names.map(() => new Array(bars).fill(0));
  for (let i = 0; i < run.count; i++) {
    const bar = Math.floor(run.clock[i] / step) - first;
    if (bar >= 0 && bar < bars) counts[group.of[i]][bar]++;
  }
  return { step, starts: Array.from({ length: bars }, (_, n) => (first + n) * step), counts };
}

// Each group upon those before it; the tallest is drawn first. Why null: what is not there has no edge that shines through.
function stacked(bins, shown) {
  const total = new Array(bins.starts.length).fill(0);
  return shown.map((n) => bins.counts[n].map((count, bar) => { total[bar] += count; return count ? total[bar] : null; })).reverse();
}

class Charts {
  constructor(run, { onRange, onPick }) {
    Object.assign(this, { run, onRange, onPick, plots: [], hovered: null });
    // Why a margin: the first and the last event would lie on the frame. Why a least width: numbers have only so many digits.
    this.least = Math.max(1e-9, Math.abs(run.to) * 1e-12);
    const margin = run.to > run.from ? (run.to - run.from) * 0.01 : 0.5;
    this.whole = [run.from - margin, run.to + margin];
    this.range = this.whole;
    $("by").addEventListener("input", () => this.draw());
    $("whole").addEventListener("click", () => this.show(...this.whole));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    // Paper is white: the page is drawn in light colours while it is printed.
    addEventListener("beforeprint", () => { document.body.classList.add("paper"); this.draw(); });
    addEventListener("afterprint", () => { document.body.classList.remove("paper"); this.draw(); });
    let due = 0;
    addEventListener("resize", () => { clearTimeout(due); due = setTimeout(() => this.draw(), 100); });
    this.draw();
  }

  show(from, to) {
    const lack = this.least - (to - from);
    this.range = lack > 0 ? [from - lack / 2, to + lack / 2] : [from, to];
    const whole = from <= this.whole[0] && to >= this.whole[1];
    if (whole) this.range = this.whole;
    $("whole").disabled = whole;
    this.draw();
    this.onRange(whole ? null : this.range);
  }

  draw() {
    this.plots.forEach((plot) => plot.destroy());
    this.plots = [this.bars(), this.marks(), this.waits()].filter(Boolean);
  }

  // What the three have in common.
  options(id, height, pick, more) {
    const look = () => ({ stroke: css("--soft"), font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
      grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 } });
    const label = this.run.dates ? "event time, UTC" : "event time since 0";
    const time = { ...look(), label, size: 30, gap: 4, labelSize: 16, labelGap: 0, space: 85 };
    time.incrs = STEPS;
    time.values = (_, splits, __, ___, step) => splits.map((value) => this.tick(value, step));
    const dragged = { now: false };
    return {
      width: room(), height, ...more,
      scales: { x: { time: false, range: () => this.range }, ...more.scales },
      axes: [time, { ...look(), size: 60, labelSize: 18, ...more.y }],
      cursor: { sync: { key: "run" }, drag: { x: true, y: false, setScale: false }, points: { show: false }, y: false, ...more.cursor },
      hooks: {
        init: [(plot) => {
          plot.over.addEventListener("mouseenter", () => { this.hovered = plot; });
          plot.over.addEventListener("click", () => { if (!dragged.now) this.onPick(pick(plot)); dragged.now = false; });
          plot.over.addEventListener("dblclick", () => this.show(...this.whole));
          plot.root.setAttribute("role", "img");
          plot.root.setAttribute("aria-label", $(id).parentElement.querySelector("figcaption").textContent);
        }],
        setSelect: [(plot) => {
          if (plot !== this.hovered || plot.select.width < 4) return;
          dragged.now = true;
          const { left, width } = plot.select;
          // Why later: uPlot is still in the middle of the event that would take its chart away.
          setTimeout(() => this.show(plot.posToVal(left, "x"), plot.posToVal(left + width, "x")));
        }],
        setCursor: [(plot) => {
          if (plot !== this.hovered) return;
          const i = plot.cursor.left >= 0 ? pick(plot) : -1;
          $("near").textContent = i < 0 ? " " : this.words(i);
        }],
        ...more.hooks,
      },
    };
  }

  words(i) {
    const run = this.run, ended = run.terminations[run.termination[i]];
    return [`#${number(i)}`, at(run, i), run.kinds[run.kind[i]], run.id[i], FATES[run.fate[i]],
      ended && ended !== "Completed" ? ended : "", run.waited[i] === null ? "" : `waited ${span(run.waited[i])}`].filter(Boolean).join(" · ");
  }

  bars() {
    const { run } = this, group = groups(run, $("by").value), bins = binned(run, group, ...this.range);
    const used = group.names.map((_, n) => n).filter((n) => group.of.some((own) => own === n));
    const shown = used.length ? used : [0];
    $("bars-title").textContent = `Events per ${span(bins.step)}, by ${$("by").value}`;
    const everything = Array.from({ length: run.count }, (_, i) => i);
    const pick = (plot) => nearest(run, everything, plot.posToVal(plot.cursor.left, "x"));
    const path = uPlot.paths.bars({ size: [1, Infinity], align: 1, gap: bins.starts.length > 100 ? 0 : 1 });
    const series = shown.map((n) => ({ label: group.names[n], fill: css(group.colours[n]), stroke: css(group.colours[n]), width: 0,
      paths: path, points: { show: false }, value: (_, __, ___, bar) => bar == null ? "" : number(bins.counts[n][bar] ?? 0) })).reverse();
    const time = { label: "from", value: (_, value) => value == null ? "" : this.when(value, bins.step) };
    const options = this.options("bars", 240, pick, {
      series: [time, ...series], y: { label: "events", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6] },
      // The bar below the pointer, not the one that begins nearest to it.
      cursor: { dataIdx: (plot, _, __, x) => Math.max(0, Math.min(bins.starts.length - 1, Math.floor((x - bins.starts[0]) / bins.step))) },
      scales: { y: { range: (_, __, most) => [0, Math.max(1, most * 1.05)] } },
    });
    return this.plot("bars", options, [bins.starts, ...stacked(bins, shown)]);
  }

  // A time on the axis: the day where one begins, else the time of day.
  tick(seconds, step) {
    const begins = seconds % DAY === 0 && (seconds !== 0 || this.run.dates);
    if (!this.run.dates || Math.abs(seconds) >= LAST_DATE) return begins || step >= DAY ? elapsed(seconds, DAY) : elapsed(seconds % DAY, step);
    return begins || step >= DAY ? new Date(seconds * 1000).toISOString().slice(0, 10) : elapsed(seconds % DAY, step);
  }

  // Day and time of day.
  when(seconds, step) {
    const day = this.tick(Math.floor(seconds / DAY) * DAY, DAY);
    return step < DAY && seconds >= 0 && seconds < 1e12 ? `${day} ${elapsed(seconds % DAY, step)}` : day;
  }

  marks() {
    const { run } = this, { lanes } = run, height = 34;
    if (!lanes.length) return this.nothing("marks", run.terminations.includes("Completed") ? "Every run completed at the first attempt." : "Nothing ran.");
    const pick = (plot) => {
      const lane = lanes[Math.floor(plot.cursor.top / plot.over.clientHeight * lanes.length)];
      return lane ? nearest(run, lane.places, plot.posToVal(plot.cursor.left, "x")) : -1;
    };
    const draw = (plot) => {
      const { ctx, bbox } = plot, ratio = devicePixelRatio, each = bbox.height / lanes.length;
      ctx.save(); ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
      lanes.forEach((lane, n) => {
        const top = bbox.top + n * each, inView = lane.places.filter((i) => run.clock[i] >= this.range[0] && run.clock[i] <= this.range[1]);
        ctx.fillStyle = css("--ink"); ctx.font = `${12 * ratio}px system-ui, sans-serif`; ctx.textBaseline = "top"; ctx.textAlign = "left";
        ctx.fillText(`${lane.name} (${number(inView.length)})`, bbox.left + 4 * ratio, top + 3 * ratio);
        ctx.fillStyle = css(lane.colour);
        for (const i of inView) ctx.fillRect(plot.valToPos(run.clock[i], "x", true) - ratio, top + each * 0.52, 2 * ratio, each * 0.44);
      });
      ctx.restore();
    };
    const options = this.options("marks", 68 + lanes.length * height, pick, {
      legend: { show: false }, series: [{}, { stroke: "transparent", points: { show: false } }],
      // As wide as the others' with their labels, so that times lie below each other.
      y: { values: () => [], splits: () => lanes.map((_, n) => n), ticks: { show: false }, size: 78 },
      scales: { y: { range: () => [0, lanes.length] } }, hooks: {},
    });
    options.hooks.draw = [draw];
    return this.plot("marks", options, [this.range, [0, 0]]);
  }

  waits() {
    const { run } = this, { spans } = run;
    if (!spans.length) return this.nothing("waits", "Nothing was deferred.");
    const inView = spans.filter(([began, ended]) => run.clock[began] <= this.range[1] && (ended === null || run.clock[ended] >= this.range[0]));
    const rows = inView.reduce((most, [, , row]) => Math.max(most, row + 1), 1);
    const pick = (plot) => {
      const x = plot.posToVal(plot.cursor.left, "x"), y = Math.floor(plot.posToVal(plot.cursor.top, "y"));
      const slack = 3 * (this.range[1] - this.range[0]) / plot.over.clientWidth;
      const found = inView.find(([began, ended, row]) => row === y && run.clock[began] <= x + slack && (ended === null || run.clock[ended] >= x - slack));
      return found ? found[0] : -1;
    };
    const draw = (plot) => {
      const { ctx, bbox } = plot, one = devicePixelRatio;
      const tall = Math.max(one, bbox.height / rows - (bbox.height / rows > 4 * one ? one : 0));
      ctx.save(); ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
      const colours = [css("--deferred"), css("--bad")];
      for (const [began, ended, row] of inView) {
        const left = plot.valToPos(run.clock[began], "x", true), top = plot.valToPos(row + 1, "y", true);
        const right = ended === null ? bbox.left + bbox.width : plot.valToPos(run.clock[ended], "x", true);
        ctx.fillStyle = colours[ended === null ? 1 : 0];
        ctx.fillRect(left, top, Math.max(1.5 * one, right - left), tall);
      }
      ctx.restore();
    };
    const never = spans.filter(([, ended]) => ended === null).length;
    $("waits-title").textContent = "Deferred episodes, from event to run" + (never ? `; ${number(never)} never ran (red, open to the right)` : "");
    const options = this.options("waits", Math.min(260, Math.max(116, 70 + rows * 18)), pick, {
      legend: { show: false }, series: [{}, { stroke: "transparent", points: { show: false } }],
      // With few rows there is no room for more.
      y: { label: rows < 5 ? "waiting" : "waiting at once", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6], space: 18 },
      scales: { y: { range: () => [0, rows] } }, hooks: {},
    });
    options.hooks.draw = [draw];
    return this.plot("waits", options, [this.range, [0, 0]]);
  }

  nothing(id, text) {
    $(id).replaceChildren(element("p", text, "soft"));
    return null;
  }

  plot(id, options, data) {
    $(id).replaceChildren();
    return new uPlot(options, data, $(id));
  }
}
