// The page put together. `data-ready` on the body says that it is drawn, `data-error` that something went wrong.

function complain(text) {
  document.body.dataset.error = text;
  $("trouble").hidden = false;
  $("trouble").textContent = `This page could not be drawn: ${text}`;
}
addEventListener("error", (event) => complain(event.message));
addEventListener("unhandledrejection", (event) => complain(String(event.reason)));

async function main() {
  if (!window.DecompressionStream) throw new Error("the browser is too old (no DecompressionStream)");
  const run = derive(await unpack());
  document.title = `${run.graph}: ${run.file}`;
  $("graph").textContent = run.graph;
  $("file").textContent = `${run.file}, drawn by ${run.program}`;
  for (const [name, value] of run.about) $("about").append(element("dt", name), element("dd", value));

  const table = new Table(run);
  const charts = run.count ? new Charts(run, {
    onRange: (range) => { table.range = range; table.find(); },
    onPick: (i) => table.reveal(i),
  }) : null;
  if (!charts) document.querySelector("#over-time").closest("section").replaceChildren(element("p", "The bundle holds no events.", "soft"));

  for (const [name, value, filter] of facts(run)) {
    const fact = element(filter ? "button" : "div", undefined, "fact");
    fact.append(element("span", name), element("b", value));
    if (filter) {
      fact.type = "button";
      fact.title = "show these in the table";
      fact.addEventListener("click", () => { table.ask(filter); $("decisions-title").scrollIntoView(); });
    }
    $("facts").append(fact);
  }
  $("all").addEventListener("click", () => {
    table.range = null;
    table.ask({});
    if (charts) charts.show(...charts.whole);
  });
  const asked = () => table.ask(Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
  addEventListener("hashchange", asked);
  asked();
  document.body.dataset.ready = "yes";
}
main();
