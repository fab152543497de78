"""A bundle as one page of HTML that needs nothing but itself.

Owns: what the page is given, in columns, and putting the page together.
Not here: drawing (``data/report/page.js`` with uPlot, whose licence lies beside it), the command (``report.py``).

What comes from the bundle is packed (deflate, base64) and shown as text only, so nothing in it can be markup or
script. The page forbids itself every connection (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from ergo_capture.capture.stream import BundleStream, open_bundle
from ergo_capture.capture.survey import Survey, survey_bundle
from ergo_capture.kernel.explanation import in_seconds, plain
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.records import EpisodeInvocationRecord
from ergo_capture.kernel.time import EventTime


def report_page(path: Path) -> bytes:
    """The page of a bundle; memory grows with the bundle, as the page does.

    Raises:
        ErgoCaptureError: it is no bundle, or cannot be read.
    """
    survey = survey_bundle(path)
    with open_bundle(path) as stream:
        columns = _columns(stream)
    data = {
        "graph": survey.graph_id,
        "subtitle": f"{path.name}, engine {survey.runtime_provenance}, adapter {survey.adapter_provenance}",
        "facts": _facts(survey),
        "from": (survey.first or 0) / 1e9,
        "to": (survey.last or 0) / 1e9,
        **columns,
    }
    packed = base64.b64encode(zlib.compress(msgspec.json.encode(data), 9)).decode()
    files = resources.files("ergo_capture") / "data" / "report"

    def part(name: str) -> str:
        return (files / name).read_text("utf-8")

    page = part("page.html")
    for mark, text in (
        ("/*STYLE*/", part("uPlot.min.css") + part("page.css")),
        ("/*UPLOT*/", part("uPlot.iife.min.js")),
        ("/*SCRIPT*/", part("page.js")),
        ("/*DATA*/", packed),
    ):
        page = page.replace(mark, text, 1)
    return page.encode()


def _facts(survey: Survey) -> list[tuple[str, str]]:
    facts = [
        ("events", f"{survey.events:,}"),
        ("event time in all", in_seconds(EventTime.from_nanos(survey.span))),
        *((f"{name}", f"{count:,}") for name, count in survey.outcomes.items()),
        *((f"ended {name}", f"{count:,}") for name, count in survey.terminations.items()),
        ("run by a Pump", f"{survey.pumped:,}"),
        ("retries", f"{survey.retries:,}"),
        ("effects", f"{survey.effects:,}"),
        ("longest gap", in_seconds(EventTime.from_nanos(survey.longest_gap))),
    ]
    limits = [f"{name} {_limit(value)}" for name, value in survey.constraints.items() if value]
    return [*facts, ("limits", ", ".join(limits) or "none")]


def _limit(value: object) -> str:
    return in_seconds(EventTime(value["secs"], value["nanos"])) if isinstance(value, dict) else str(value)


class _Names:
    """Words as small numbers, in the order in which they come."""

    def __init__(self, *first: str) -> None:
        self.names = list(first)

    def number(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)


def _columns(stream: BundleStream) -> dict[str, Any]:
    """Events and decisions, a list for each thing that is shown of them."""
    kinds, decisions, terminations = _Names(), _Names("Invoke", "Defer"), _Names("")
    rows: dict[str, list[Any]] = {
        name: []
        for name in ("t", "kind", "id", "payload", "decision", "episode", "termination", "retries", "effects", "notes")
    }
    waited: list[float | None] = []
    #: Deferred episodes that have not run yet, by their number, with the place of their event.
    open_spans: dict[int, int] = {}
    spans: list[tuple[int, int | None]] = []
    records = stream.decisions()
    for place, event in enumerate(stream.events()):
        record = next(records, None)
        rows["t"].append(event.event_time.total_nanos / 1e9)
        rows["kind"].append(kinds.number(event.kind.value))
        rows["id"].append(event.event_id)
        rows["payload"].append(event.payload.decode())
        rows["decision"].append(decisions.number("" if record is None else record.decision.value))
        rows["episode"].append(None if record is None else record.episode_id)
        rows["termination"].append(terminations.number(_ended(record)))
        rows["retries"].append(0 if record is None else record.retry_count)
        rows["effects"].append(plain(record.effects) if record is not None and record.effects else None)
        rows["notes"].append(None if record is None else record.interruption)
        waited.append(None)
        if record is None:
            continue
        if record.decision is Decision.Defer:
            if record.schedule_at is not None and event.kind.value != "Pump":
                open_spans[record.episode_id] = place
        elif (began := open_spans.pop(record.episode_id, None)) is not None:
            spans.append((began, place))
            waited[place] = rows["t"][place] - rows["t"][began]
    spans += [(began, None) for began in open_spans.values()]
    names = {"kinds": kinds.names, "decisions": decisions.names, "terminations": terminations.names}
    return {**names, **rows, "waited": waited, "spans": spans}


def _ended(record: EpisodeInvocationRecord | None) -> str:
    if record is None or record.termination is None:
        return ""
    err = record.termination.err
    return record.termination.name if err is None else f"{record.termination.name} {err.value}"
