"""``ergo-capture info``.

Owns: its arguments and output.
Not here: counting (``capture/survey.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ergo_capture.capture.manifest import Manifest, ManifestError, manifest_path, read_manifest
from ergo_capture.capture.survey import Survey, survey_bundle
from ergo_capture.cli.bundle_files import bundles_in
from ergo_capture.cli.journal_facts import journal_facts, journal_in, show_journal
from ergo_capture.cli.verify import printable
from ergo_capture.kernel.explanation import in_seconds
from ergo_capture.kernel.time import EventTime

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def info(
    bundles: Annotated[
        list[str], typer.Argument(help="Bundle files, directories, patterns; a journal or a state directory.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a bundle, one a line.")] = False,
) -> None:
    """Say what bundles hold: counts, event time, decisions, retries, gaps, provenance, labels.

    Of a journal or a state directory: the sessions that are open in it, and the bundles below it.
    """
    for path in _bundles(bundles, as_json=as_json):
        survey, manifest = survey_bundle(path), manifest_beside(path)
        if as_json:
            found: dict[str, Any] = {"bundle": printable(str(path)), **msgspec.to_builtins(survey)}
            typer.echo(msgspec.json.encode(found | {"manifest": msgspec.to_builtins(manifest)}))
        else:
            _show(path, survey, manifest)


def _bundles(names: list[str], *, as_json: bool) -> list[Path]:
    """The bundles that are meant; journals among the names are shown at once."""
    left = []
    for name in names:
        journal = journal_in(Path(name))
        if journal is None:
            left.append(name)
            continue
        facts = journal_facts(journal)
        if as_json:
            typer.echo(msgspec.json.encode(facts))
        else:
            show_journal(facts)
        if any((Path(name) / "bundles").rglob("*.capture.json*")):
            left.append(name)
    return bundles_in(left)


def manifest_beside(path: Path) -> Manifest | None:
    """The manifest beside the bundle, where there is one that can be read."""
    try:
        return read_manifest(manifest_path(path))
    except (ManifestError, OSError):
        return None


def _show(path: Path, survey: Survey, manifest: Manifest | None) -> None:
    from rich import box  # noqa: PLC0415 - only for the table
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_row("graph", survey.graph_id)
    if manifest is not None:
        table.add_row("session", f"{manifest.session}, part {manifest.part}, {manifest.ended}")
        table.add_row("captured", f"{manifest.opened_at} to {manifest.ended_at}, engine {manifest.engine}")
        for key, value in manifest.labels.items():
            table.add_row(f"label {key}", value)
    limits = {name: value for name, value in survey.constraints.items() if value}
    table.add_row("limits", ", ".join(f"{name} {_limit(value)}" for name, value in limits.items()) or "none")
    table.add_row("provenance", f"adapter {survey.adapter_provenance}, engine {survey.runtime_provenance}")
    table.add_row("file", f"{survey.file_bytes:,} bytes, format {survey.capture_version}")
    _events(table, survey)
    _decisions(table, survey)
    console = Console(highlight=False, soft_wrap=True)
    console.print(printable(str(path)), markup=False)
    console.print(table)


def _events(table: Table, survey: Survey) -> None:
    table.add_row("events", f"{survey.events:,}")
    for kind, count in survey.kinds.items():
        rate = survey.rate(kind)
        table.add_row(f"  {kind}", f"{count:,}" + ("" if rate is None else f", {rate:.3g} a second"))
    if survey.first is not None and survey.last is not None:
        table.add_row("event time", f"{_time(survey.first)} to {_time(survey.last)}, {_time(survey.span)} in all")
    if survey.longest_gap_before is not None:
        table.add_row("longest gap", f"{_time(survey.longest_gap)}, before event {survey.longest_gap_before!r}")
    if survey.backward:
        table.add_row("clock jumps", f"{survey.backward:,} backward, by {_time(survey.furthest_back)} at the most")
    mean = survey.payload_bytes / survey.events if survey.events else 0
    table.add_row(
        "payloads",
        f"{survey.payload_bytes:,} bytes, {mean:.0f} on average, {survey.largest_payload:,} at the most, "
        f"{survey.without_payload:,} events without",
    )


def _decisions(table: Table, survey: Survey) -> None:
    table.add_row("decisions", f"{survey.decisions:,}")
    for outcome, count in survey.outcomes.items():
        more = f", {survey.pumped:,} by a Pump" if outcome == "Invoke" and survey.pumped else ""
        table.add_row(f"  {outcome}", f"{count:,}{more}")
    for termination, count in survey.terminations.items():
        table.add_row(f"  {termination}", f"{count:,}")
    if survey.retries:
        table.add_row("retries", f"{survey.retries:,}, {survey.most_retries:,} at the most for one episode")
    if survey.effects:
        table.add_row("effects", f"{survey.effects:,}")
    if survey.interrupted:
        table.add_row("interrupted", f"{survey.interrupted:,}")


def _limit(value: object) -> str:
    return in_seconds(EventTime(value["secs"], value["nanos"])) if isinstance(value, dict) else str(value)


def _time(nanos: int) -> str:
    return in_seconds(EventTime.from_nanos(nanos))
