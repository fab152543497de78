// The table of decisions: filtered, sorted, a page at a time; a row opens to what else is known of it.

const PAGE = 100;

// Name, text of a cell, its class, and what it is sorted by.
const COLUMNS = [
  { name: "#", text: (run, i) => number(i), className: "number", key: (_, i) => i },
  { name: "event time", text: at, className: "number", key: (run, i) => Number(run.secs[i]) + run.nanos[i] / 1e9 },
  { name: "kind", text: (run, i) => run.kinds[run.kind[i]], key: (run, i) => run.kinds[run.kind[i]] },
  { name: "event id", text: (run, i) => run.id[i], className: "id", key: (run, i) => run.id[i] },
  { name: "decision", text: (run, i) => FATES[run.fate[i]], tone: (run, i) => `fate${run.fate[i]}`, key: (run, i) => run.fate[i] },
  { name: "episode", text: (run, i) => run.episode[i] ?? "", className: "number", key: (run, i) => Number(run.episode[i] ?? -1) },
  { name: "waited", text: (run, i) => run.waited[i] === null ? "" : span(run.waited[i]), className: "number", key: (run, i) => run.waited[i] ?? -1 },
  { name: "termination", text: (run, i) => run.terminations[run.termination[i]], tone: (run, i) => failed(run, i) ? "bad" : "", key: (run, i) => run.terminations[run.termination[i]] },
  { name: "retries", text: (run, i) => run.retries[i] || "", className: "number", tone: () => "again", key: (run, i) => Number(run.retries[i]) },
  { name: "effects", text: (run, i) => run.more[i]?.effects?.length ?? "", className: "number", key: (run, i) => run.more[i]?.effects?.length ?? 0 },
];
// Why: any few letters are in some hash.
const unhashed = (name, value) => name === "effect_hash" ? undefined : value;
const FILTERS = ["search", "kind", "decision", "termination"];

class Table {
  constructor(run) {
    Object.assign(this, { run, page: 0, range: null, found: [], sort: "#", down: false, open: new Set() });
    this.choices();
    for (const column of COLUMNS) {
      const head = element("th", undefined, column.className), button = element("button", column.name);
      button.type = "button";
      button.addEventListener("click", () => {
        this.down = this.sort === column.name ? !this.down : column.className === "number" && column.name !== "#" && column.name !== "event time";
        this.sort = column.name;
        this.find();
      });
      head.append(button);
      $("head").append(head);
    }
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const id of [...FILTERS, "retried"]) $(id).addEventListener("input", () => this.find());
    $("back").addEventListener("click", () => { this.page--; this.show(); });
    $("on").addEventListener("click", () => { this.page++; this.show(); });
  }

  choices() {
    const { run } = this, add = (id, names) => names.forEach((name) => name && $(id).append(new Option(name, name)));
    add("kind", run.kinds);
    add("decision", run.decisions);
    add("decision", FATES.filter((_, n) => run.fate.includes(n)));
    const ends = run.terminations.filter(Boolean);
    add("termination", ends.some((name) => name !== "Completed") ? [...ends, "not completed"] : ends);
  }

  // What is asked for, as it stands in the address: #search=...&kind=...
  get wanted() {
    const wanted = Object.fromEntries(FILTERS.map((id) => [id, $(id).value]));
    return { ...wanted, retried: $("retried").checked ? "yes" : "", sort: this.sort === "#" ? "" : this.sort };
  }

  ask(wanted) {
    for (const id of FILTERS) $(id).value = wanted[id] ?? "";
    $("retried").checked = Boolean(wanted.retried);
    this.sort = COLUMNS.some((column) => column.name === wanted.sort) ? wanted.sort : "#";
    this.down = this.sort !== "#";
    this.find();
  }

  find() {
    const { run } = this, { search, kind, decision, termination, retried } = this.wanted, text = search.toLowerCase();
    const [from, to] = this.range ?? [-Infinity, Infinity];
    this.found = places(run, (i) => run.clock[i] >= from && run.clock[i] <= to
      && (!kind || run.kinds[run.kind[i]] === kind)
      && (!decision || run.decisions[run.decision[i]] === decision || FATES[run.fate[i]] === decision)
      && (!termination || (termination === "not completed" ? failed(run, i) : run.terminations[run.termination[i]] === termination))
      && (!retried || Number(run.retries[i]) > 0)
      && (!text || run.id[i].toLowerCase().includes(text) || run.payload[i].toLowerCase().includes(text)
        || (run.more[i] && JSON.stringify(run.more[i], unhashed).toLowerCase().includes(text))));
    const { key } = COLUMNS.find((column) => column.name === this.sort), sign = this.down ? -1 : 1;
    if (this.sort !== "#" || this.down) {
      const keys = new Map(this.found.map((i) => [i, key(run, i)]));
      this.found.sort((a, b) => sign * (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0) || a - b);
    }
    this.page = 0;
    this.show();
    const address = new URLSearchParams(Object.entries(this.wanted).filter(([, value]) => value)).toString();
    // Why tried: a page in a sandboxed frame has no address of its own to change.
    try { history.replaceState(null, "", address ? `#${address}` : location.href.split("#")[0]); } catch { /* it is only not kept */ }
  }

  show() {
    const { run, found } = this, start = this.page * PAGE, pages = Math.max(1, Math.ceil(found.length / PAGE));
    $("rows").replaceChildren(...found.slice(start, start + PAGE).flatMap((i) => this.row(i)));
    const { range } = this, part = range ? `, ${span(range[1] - range[0])} of event time` : "";
    $("count").textContent = `${number(found.length)} of ${number(run.count)} events with their decisions${part}`;
    $("page").textContent = `page ${number(this.page + 1)} of ${number(pages)}`;
    $("back").disabled = this.page === 0;
    $("on").disabled = this.page + 1 >= pages;
    [...$("head").children].forEach((head, n) => {
      if (COLUMNS[n].name === this.sort) head.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  row(i) {
    const made = element("tr", undefined, "row");
    made.id = `event-${i}`;
    made.tabIndex = 0;
    made.setAttribute("aria-expanded", this.open.has(i));
    for (const { text, className, tone } of COLUMNS) {
      made.append(element("td", String(text(this.run, i)), [className, tone?.(this.run, i)].filter(Boolean).join(" ")));
    }
    const toggle = () => {
      if (this.open.delete(i)) made.nextSibling.remove();
      else { this.open.add(i); made.after(this.details(i)); }
      made.setAttribute("aria-expanded", this.open.has(i));
    };
    made.addEventListener("click", () => { if (!String(getSelection())) toggle(); });
    made.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(); });
    return this.open.has(i) ? [made, this.details(i)] : [made];
  }

  details(i) {
    const { run } = this, more = run.more[i] ?? {}, list = element("dl"), row = element("tr", undefined, "more"), cell = element("td");
    const add = (name, ...content) => { const value = element("dd"); value.append(...content); list.append(element("dt", name), value); };
    const link = (text, place) => {
      const made = element("button", text, "link");
      made.type = "button";
      made.addEventListener("click", () => this.reveal(place));
      return made;
    };
    const bytes = new TextEncoder().encode(run.payload[i]).length;
    add("payload", bytes ? element("pre", run.payload[i]) : "none");
    if (bytes) add("size", `${number(bytes)} bytes`);
    // As the axes have it, so that a row can be found in a chart.
    const secs = Number(run.secs[i]);
    if (!run.dates && secs >= 86400) add("event time", `${elapsed(secs, 86400)} ${elapsed(secs, 1)}`);
    if (more.due) add("deferred until", moment(run, ...more.due));
    if (run.ran.has(i)) {
      const ran = run.ran.get(i);
      if (ran === null) add("run", "never in this bundle");
      else add("run by", link(run.id[ran], ran), ` after ${span(run.waited[i])}`);
    }
    if (run.origin.has(i)) add("runs", link(run.id[run.origin.get(i)], run.origin.get(i)), ` deferred ${span(run.waited[i])} before`);
    if (more.effects) add("effects", element("pre", JSON.stringify(more.effects, null, 2)));
    if (more.acks) add("acknowledged", element("pre", JSON.stringify(more.acks, null, 2)));
    if (more.interruption !== undefined) add("interrupted", more.interruption);
    cell.colSpan = COLUMNS.length;
    cell.append(list);
    row.append(cell);
    return row;
  }

  // Show that event, opened, whatever the filters leave out.
  reveal(i) {
    if (i < 0) return;
    if (!this.found.includes(i)) { this.range = null; this.ask({}); }
    this.page = Math.floor(this.found.indexOf(i) / PAGE);
    this.open.add(i);
    this.show();
    $(`event-${i}`).scrollIntoView({ block: "center" });
    $(`event-${i}`).focus({ preventScroll: true });
  }
}
