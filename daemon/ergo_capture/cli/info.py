"""``ergo-capture info``.

Owns: its arguments and output.
Not here: counting (``bundle/statistics.py``), a journal as a whole (``journal_facts.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from ergo_capture.bundle.manifest import Manifest, ManifestError, read_manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.statistics import RunStatistics, collect_statistics
from ergo_capture.cli.bundle_files import bundles_below
from ergo_capture.cli.captures import Capture, ConfigOption, StateOption, captures_in
from ergo_capture.cli.figures import span
from ergo_capture.cli.journal_facts import journal_facts, journal_in, show_journal
from ergo_capture.cli.verify import printable
from ergo_capture.journal.session_stream import PartStream
from ergo_capture.kernel.explanation import in_seconds, readable
from ergo_capture.kernel.time import EventTime
from ergo_capture.units import counted

if TYPE_CHECKING:
    from rich.table import Table

#: In nanoseconds.
_HOUR: Final = 3_600_000_000_000

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_PIPED_WIDTH: Final = 500


@app.command()
def info(
    captures: Annotated[
        list[str],
        typer.Argument(
            metavar="CAPTURE", help="Bundles, directories of them, patterns, a journal, a state directory, a session."
        ),
    ],
    state_dir: StateOption = "",
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a run, one a line.")] = False,
) -> None:
    """Say what runs hold: counts, event time, decisions, retries, gaps, provenance, labels.

    Of a journal or a state directory: the sessions that are open in it, and the bundles below it. Of a session:
    its bundles, and what of it is only in the journal.
    """
    runs, events, size = 0, 0, 0
    for capture in _captures(captures, state_dir, config, as_json=as_json):
        numbers = _statistics(capture)
        runs, events, size = runs + 1, events + numbers.events, size + numbers.file_bytes
        manifest = None if capture.bundle is None else manifest_beside(capture.bundle)
        if as_json:
            typer.echo(msgspec.json.encode(_as_json(capture, numbers, manifest)))
        else:
            _show(capture, numbers, manifest)
    if runs > 1 and not as_json:
        typer.echo(f"{counted(runs, 'run')}, {counted(events, 'event')}, {counted(size, 'byte')}")


def _captures(names: list[str], state_dir: str, config: Path | None, *, as_json: bool) -> list[Capture]:
    """The runs that are meant; journals among the names are shown at once."""
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
        bundles = Path(name) / "bundles"
        if bundles.is_dir() and bundles_below(bundles):
            left.append(str(bundles))
    return captures_in(left, state_dir, config)


def _statistics(capture: Capture) -> RunStatistics:
    with capture.open() as stream:
        if capture.part is not None:
            return collect_statistics(stream, capture.part.size())
        assert capture.bundle is not None
        return collect_statistics(stream, capture.bundle.stat().st_size)


def _as_json(capture: Capture, numbers: RunStatistics, manifest: Manifest | None) -> dict[str, Any]:
    found: dict[str, Any] = {"bundle": None if capture.bundle is None else printable(str(capture.bundle))}
    found |= {**msgspec.to_builtins(numbers), "manifest": msgspec.to_builtins(manifest)}
    part = capture.part
    if part is not None:
        found["session"] = msgspec.to_builtins(part.description) | {"part": part.part, "ended": part.ended}
    return found


def manifest_beside(path: Path) -> Manifest | None:
    """The manifest beside the bundle, where there is one that can be read."""
    try:
        return read_manifest(manifest_path(path))
    except (ManifestError, OSError):
        return None


def _show(capture: Capture, statistics: RunStatistics, manifest: Manifest | None) -> None:
    from rich import box  # noqa: PLC0415 - only for the table
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, value in [("graph", statistics.graph_id), *_origin(capture.part, manifest)]:
        table.add_row(readable(name), readable(value))
    limits = {name: value for name, value in statistics.constraints.items() if value}
    table.add_row("limits", ", ".join(f"{name} {_limit(value)}" for name, value in limits.items()) or "none")
    provenance = f"adapter {statistics.adapter_provenance}, engine {statistics.runtime_provenance}"
    table.add_row("provenance", readable(provenance))
    where = "file" if capture.part is None else "journal"
    table.add_row(where, f"{statistics.file_bytes:,} bytes, format {statistics.capture_version}")
    _events(table, statistics)
    _decisions(table, statistics)
    # Why no markup: a client chooses ids and labels, and brackets in them are only brackets.
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        # Why: what reads a pipe looks for whole lines.
        console.width = max(console.width, _PIPED_WIDTH)
    console.print(printable(capture.name))
    console.print(table)


def _origin(part: PartStream | None, manifest: Manifest | None) -> Sequence[tuple[str, str]]:
    """Whose run it is, when it was, and what it was called."""
    if part is not None:
        about = part.description
        rows = [
            ("session", f"{about.session}, part {part.part}, {part.ended}"),
            ("captured", f"from {about.opened_at}, engine {about.engine}"),
        ]
        return rows + [(f"label {key}", value) for key, value in about.labels.items()]
    if manifest is None:
        return []
    rows = [
        ("session", f"{manifest.session}, part {manifest.part}, {manifest.ended}"),
        ("captured", f"{manifest.opened_at} to {manifest.ended_at}, engine {manifest.engine}"),
    ]
    return rows + [(f"label {key}", value) for key, value in manifest.labels.items()]


def _events(table: Table, statistics: RunStatistics) -> None:
    table.add_row("events", f"{statistics.events:,}")
    for kind, count in statistics.kinds.items():
        rate = statistics.rate(kind)
        table.add_row(f"  {kind}", f"{count:,}" + ("" if rate is None else f", {rate:.3g} a second"))
    if statistics.first is not None and statistics.last is not None:
        # Why also in days: seconds are what --since takes, and what nobody can picture.
        days = f" ({span(statistics.span // 1_000_000_000)})" if statistics.span >= _HOUR else ""
        table.add_row(
            "event time",
            f"{_time(statistics.first)} to {_time(statistics.last)}, {_time(statistics.span)}{days} in all",
        )
    if statistics.longest_gap_before is not None:
        table.add_row("longest gap", f"{_time(statistics.longest_gap)}, before event {statistics.longest_gap_before!r}")
    if statistics.backward:
        table.add_row(
            "clock jumps", f"{statistics.backward:,} backward, by {_time(statistics.furthest_back)} at the most"
        )
    mean = statistics.payload_bytes / statistics.events if statistics.events else 0
    table.add_row(
        "payloads",
        f"{statistics.payload_bytes:,} bytes, {mean:.0f} on average, {statistics.largest_payload:,} at the most, "
        f"{counted(statistics.without_payload, 'event')} without",
    )


def _decisions(table: Table, statistics: RunStatistics) -> None:
    waiting = statistics.events - statistics.decisions
    table.add_row(
        "decisions", f"{statistics.decisions:,}" + (f", {counted(waiting, 'event')} not decided" if waiting > 0 else "")
    )
    for outcome, count in statistics.outcomes.items():
        more = f", {statistics.pumped:,} by a Pump" if outcome == "Invoke" and statistics.pumped else ""
        table.add_row(f"  {outcome}", f"{count:,}{more}")
    for termination, count in statistics.terminations.items():
        table.add_row(f"  {termination}", f"{count:,}")
    if statistics.retries:
        table.add_row("retries", f"{statistics.retries:,}, {statistics.most_retries:,} at the most for one episode")
    if statistics.effects:
        table.add_row("effects", f"{statistics.effects:,}")
    if statistics.interrupted:
        table.add_row("interrupted", f"{statistics.interrupted:,}")


def _limit(value: object) -> str:
    return in_seconds(EventTime(value["secs"], value["nanos"])) if isinstance(value, dict) else str(value)


def _time(nanos: int) -> str:
    return in_seconds(EventTime.from_nanos(nanos))
