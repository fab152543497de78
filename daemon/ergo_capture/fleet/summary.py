"""Sum up a run: counts, and the failures, the worst first; as figures or as a page of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape

import msgspec

from ergo_capture.fleet.check import OK, OUTCOMES, Result
from ergo_capture.fleet.run import RunPlan
from ergo_capture.units import counted
from ergo_capture.version import PROGRAM


class Summary(msgspec.Struct, frozen=True):
    """The summary of a run."""

    run: str
    #: The job: ``verify``, or ``replay with ENGINE``.
    what: str
    #: The release that began it.
    program: str
    #: The number of bundles, and of those without a result yet.
    bundles: int
    unfinished: int
    events: int
    #: The workers' time, in total, in seconds.
    seconds: float
    #: Bundles by outcome.
    outcomes: dict[str, int]
    #: Results that are not ``ok``, the worst first.
    failures: tuple[Result, ...]

    @property
    def in_words(self) -> str:
        """The summary in one line."""
        found = ", ".join(f"{self.outcomes[name]:,} {name}" for name in reversed(OUTCOMES) if self.outcomes.get(name))
        rest = f", {self.unfinished:,} without a result" if self.unfinished else ""
        return f"{counted(self.bundles, 'bundle')}: {found or 'none done'}{rest}"


def sum_up(run: str, plan: RunPlan, results: Iterable[Result]) -> Summary:
    """Return the summary of a run."""
    outcomes: Counter[str] = Counter()
    failures, events, seconds = [], 0, 0.0
    for result in results:
        outcomes[result.outcome] += 1
        events += result.events
        seconds += result.seconds
        if result.outcome != OK:
            failures.append(result)
    worst = {name: rank for rank, name in enumerate(OUTCOMES)}
    failures.sort(key=lambda each: (worst.get(each.outcome, 0), each.item.host, each.item.session, each.item.part))
    return Summary(
        run,
        f"replay with {plan.job.engine}" if plan.job.engine else "verify",
        plan.program,
        len(plan.items),
        len(plan.items) - sum(outcomes.values()),
        events,
        round(seconds, 3),
        dict(outcomes),
        tuple(failures),
    )


def summary_page(summary: Summary, reports: Mapping[str, str]) -> bytes:
    """Return a run as one page of HTML that needs no network.

    Args:
        summary: the run.
        reports: links to the reports of bundles, by the keys of their manifests.
    """
    figures = {
        "bundles": f"{summary.bundles:,}",
        **{name: f"{summary.outcomes[name]:,}" for name in OUTCOMES if summary.outcomes.get(name)},
        "without a result": f"{summary.unfinished:,}",
        "events": f"{summary.events:,}",
        "time of the workers": f"{summary.seconds:,.1f} s",
    }
    cells = "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in figures.items())
    rows = "".join(_row(result, reports) for result in summary.failures)
    table = (
        "<table><thead><tr><th>outcome<th>host<th>graph<th>session<th>what is wrong<th>report</thead>"
        f"<tbody>{rows}</tbody></table>"
        if rows
        else "<p>Nothing is wrong with any of them.</p>"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(summary.run)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(summary.run)}</h1><p>{escape(summary.what)}, begun by {escape(summary.program)}</p>"
        f'<section class="figures">{cells}</section>{table}'
        f"<footer>{escape(PROGRAM)}</footer></html>\n"
    ).encode("utf-8", "replace")


def _row(result: Result, reports: Mapping[str, str]) -> str:
    item = result.item
    part = f"~{item.part}" if item.part > 1 else ""
    link = reports.get(item.manifest)
    report = "" if link is None else f'<a href="{escape(link, quote=True)}">report</a>'
    return (
        f'<tr class="{escape(result.outcome)}"><td>{escape(result.outcome)}<td>{escape(item.host)}'
        f"<td>{escape(item.graph)}<td>{escape(item.session + part)}<br><code>{escape(item.object)}</code>"
        f"<td>{escape(result.problem)}<td>{report}</tr>"
    )


_STYLE = (
    ":root{color-scheme:light dark;--line:#8885}"
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
    ".figures{display:flex;flex-wrap:wrap;gap:1rem 2.5rem;margin:1.5rem 0}"
    ".figures b{display:block;font-size:1.6rem;font-variant-numeric:tabular-nums}.figures span{opacity:.7}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.4rem .8rem .4rem 0;"
    "border-bottom:1px solid var(--line)}td{overflow-wrap:anywhere}code{font-size:.75rem;opacity:.6}"
    "td:first-child{font-weight:600;white-space:nowrap}.unsound td:first-child{color:#d33}.failed td:first-child{color:#c60}"
    ".diverged td:first-child{color:#96c}footer{margin:2rem 0;opacity:.6}"
    "@media(max-width:40rem){thead{display:none}tr,td{display:block;border:0}tr{border-bottom:1px solid var(--line);"
    "padding:.6rem 0}}"
)
