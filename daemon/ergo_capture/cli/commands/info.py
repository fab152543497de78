"""``ergo-capture info``: summaries of runs and of journals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ergo_capture.bundle.manifest import Manifest
from ergo_capture.bundle.statistics import RunStatistics, collect_statistics, summarized
from ergo_capture.cli.progress import ReadingBar, quiet_flag
from ergo_capture.cli.support.bundle_files import bundles_below, manifest_beside
from ergo_capture.cli.support.captures import Capture, captures_in, note_difference
from ergo_capture.cli.support.command import NAME, argument, command, config_option, flag, json_flag, state_option
from ergo_capture.cli.support.output import figures_table, print_view, printable, span, with_hint
from ergo_capture.cli.support.verification import compare
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.explanation import escaped, format_time
from ergo_capture.kernel.time import EventTime
from ergo_capture.units import counted

if TYPE_CHECKING:
    from rich.table import Table

    from ergo_capture.bundle.proof import Comparison
    from ergo_capture.journal.payloads import Loss
    from ergo_capture.journal.session_stream import PartStream

_HOUR_NANOS: Final = 3_600_000_000_000
#: The width of the output to a pipe: its readers expect whole lines.
_PIPED_WIDTH: Final = 500
#: The least width of the table of sessions, so that ids are not cut.
_TABLE_WIDTH: Final = 120


@command(examples=("ergo-capture info run.capture.json", "ergo-capture info /var/lib/ergo-capture"))
@argument(
    "captures",
    "Bundles, directories of bundles, patterns, a journal, a state directory, a session.",
    type=NAME,
    nargs=-1,
    required=True,
    metavar="CAPTURE...",
)
@state_option
@config_option
@quiet_flag
@json_flag("run")
@flag("--fast", help="Trust the manifests' summaries, and do not read the bundles beside them.")
def info(
    captures: tuple[str, ...], state_dir: str, config: Path | None, *, quiet: bool, as_json: bool, fast: bool
) -> int:
    """Summarize runs: counts, event time, decisions, retries, gaps, provenance, labels.

    For a journal or a state directory, it shows the open sessions and the bundles there; for a session, its bundles and
    the part that is only in the journal. A bundle with a summary in its manifest is read only to compare its SHA-256, and
    with --fast not at all.

    If one of several runs cannot be read, it is named, and the exit code is 1.
    """
    runs, events, size, is_whole = 0, 0, 0, True
    bar = ReadingBar(quiet=quiet)
    found = _captures(captures, state_dir, config, as_json=as_json)
    for capture in found:
        manifest = None if capture.bundle is None else manifest_beside(capture.bundle)
        try:
            with bar.reading():
                compared = None if fast else compare(capture)
                believed = _summary(capture.bundle, manifest, compared, fast=fast)
                numbers = believed or _statistics(capture, is_compared=not fast)
        except ErgoCaptureError as error:
            if len(found) == 1:
                raise
            is_whole = False
            click.echo(with_hint(f"{printable(capture.name)}: {error.message}", error.hint), err=True)
            continue
        note_difference(capture.name, compared)
        runs, events, size = runs + 1, events + numbers.events, size + numbers.file_bytes
        if fast and believed is not None:
            # Print it for every format: the figures are those of the manifest.
            click.echo(f"note: '{printable(capture.name)}' was not read: the figures are its manifest's", err=True)
        if as_json:
            click.echo(msgspec.json.encode(_as_json(capture, numbers, manifest)))
        else:
            _show(capture, numbers, manifest)
    if runs > 1 and not as_json:
        click.echo(f"{counted(runs, 'run')}, {counted(events, 'event')}, {counted(size, 'byte')}")
    return int(ExitCode.OK if is_whole else ExitCode.FAILED)


def _captures(names: tuple[str, ...], state_dir: str, config: Path | None, *, as_json: bool) -> list[Capture]:
    """Return the runs that the names stand for; print the journals among the names."""
    left = []
    for name in names:
        journal = _journal_in(Path(name))
        if journal is None:
            left.append(name)
            continue
        facts = _journal_facts(journal)
        if as_json:
            click.echo(msgspec.json.encode(facts))
        else:
            _show_journal(facts)
        bundles = Path(name) / "bundles"
        if bundles.is_dir() and bundles_below(bundles):
            left.append(str(bundles))
    return captures_in(left, state_dir, config)


def _summary(
    bundle: Path | None, manifest: Manifest | None, compared: Comparison | None, *, fast: bool
) -> RunStatistics | None:
    """Return the statistics in a bundle's manifest; None if there are none, or the bundle is not the manifest's.

    Args:
        bundle: the bundle; None for a run in a journal.
        manifest: the manifest beside it; None for none.
        compared: the comparison of the two; None if they were not compared.
        fast: whether the bundle's name and size are enough.
    """
    if bundle is None or manifest is None or (numbers := summarized(manifest)) is None:
        return None
    try:
        size = bundle.stat().st_size
    except OSError:
        # Reading it as a bundle reports the error.
        return None
    if fast:
        is_its_own = (size, bundle.name) == (manifest.stored[0], manifest.bundle)
    else:
        is_its_own = compared is not None and compared.problem is None
    return msgspec.structs.replace(numbers, file_bytes=size) if is_its_own else None


def _statistics(capture: Capture, *, is_compared: bool) -> RunStatistics:
    with capture.open(only_to_show=True, is_compared=is_compared) as stream:
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


def _journal_in(path: Path) -> Path | None:
    """Return a journal: the directory itself or the one in a state directory; None if it is neither."""
    if not path.is_dir():
        return None
    from ergo_capture.journal.segment import sequence_of  # noqa: PLC0415 - bundles need no journal

    for directory in (path, path / "journal"):
        if directory.is_dir() and any(sequence_of(entry.name) is not None for entry in directory.iterdir()):
            return directory
    return None


def _journal_facts(directory: Path) -> dict[str, Any]:
    """Return a journal's segments and sessions as JSON types, as the next start of the daemon would find them.

    Nothing is written, and a daemon may be running.

    Raises:
        ErgoCaptureError: the journal cannot be read.
    """
    from ergo_capture.journal.recovery import recover  # noqa: PLC0415 - bundles need no journal
    from ergo_capture.journal.scan import scan  # noqa: PLC0415
    from ergo_capture.journal.segment import sequence_of  # noqa: PLC0415
    from ergo_capture.storage import RealStorage  # noqa: PLC0415

    storage = RealStorage()
    try:
        found = scan(directory, storage)
        recovery = recover(directory, found, storage)
    except OSError as error:
        raise ErgoCaptureError(
            f"read journal '{directory}': {error.strerror}",
            op="read journal",
            path=directory,
            hint="check its permissions",
        ) from error
    segments = [entry for entry in directory.iterdir() if sequence_of(entry.name) is not None]
    return {
        "journal": str(directory),
        "segments": len(segments),
        "bytes": sum(segment.stat().st_size for segment in segments),
        "sealed": recovery.sealed,
        "torn_bytes": recovery.torn_bytes,
        "quarantined": recovery.reasons,
        "sessions": [
            {
                "session": session.description.session,
                "graph": session.description.graph,
                "opened_at": session.description.opened_at,
                "labels": session.description.labels,
                "accepted": session.accepted,
                "decided": session.decided,
                "deferred": session.supervisor.deferred_count,
                "part": session.part,
                "bytes": session.event_bytes,
                "ended": None if session.closing is None else session.closing.ended,
            }
            for session in recovery.sessions
        ],
    }


def _show_journal(facts: dict[str, Any]) -> None:
    """Print a journal's facts as text."""
    from rich import box  # noqa: PLC0415 - JSON needs no rich
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    # No markup: clients choose these names, and may use brackets.
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(facts["journal"])
    ended = "an orderly stop" if facts["sealed"] else "no orderly stop, or a daemon is running"
    torn = f", {facts['torn_bytes']:,} torn bytes that were never acknowledged" if facts["torn_bytes"] else ""
    console.print(f"{counted(facts['segments'], 'segment')}, {counted(facts['bytes'], 'byte')}; {ended}{torn}")
    for name, reason in facts["quarantined"].items():
        console.print(f"quarantined: {escaped(name)}: {reason}")
    if not facts["sessions"]:
        console.print("no session is open")
        return
    table = Table(box=box.SIMPLE)
    # A session's id says when it was opened.
    for column in ("session", "graph", "accepted", "decided", "deferred", "part"):
        table.add_column(column, justify="right" if column in ("accepted", "decided", "deferred", "part") else "left")
    for session in facts["sessions"]:
        numbers = (f"{session[name]:,}" for name in ("accepted", "decided", "deferred", "part"))
        names = (escaped(session[name]) for name in ("session", "graph"))
        table.add_row(*names, *numbers)
    print_view(console, table)


def _show(capture: Capture, statistics: RunStatistics, manifest: Manifest | None) -> None:
    from rich.console import Console  # noqa: PLC0415 - JSON needs no rich

    table = figures_table()
    for name, value in [("graph", statistics.graph_id), *_origin(capture.part, manifest)]:
        table.add_row(escaped(name), escaped(value))
    limits = {name: value for name, value in statistics.constraints.items() if value}
    table.add_row("limits", ", ".join(f"{name} {_limit(value)}" for name, value in limits.items()) or "none")
    provenance = f"adapter {statistics.adapter_provenance}, engine {statistics.runtime_provenance}"
    table.add_row("provenance", escaped(provenance))
    where = "file" if capture.part is None else "journal"
    table.add_row(where, f"{statistics.file_bytes:,} bytes, format {statistics.capture_version}")
    _events(table, statistics)
    _decisions(table, statistics)
    # No markup: clients choose ids and labels, and may use brackets.
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    console.print(printable(capture.name))
    print_view(console, table)


def _origin(part: PartStream | None, manifest: Manifest | None) -> Sequence[tuple[str, str]]:
    """Return rows on the session, the time of the capture and the labels."""
    if part is not None:
        about = part.description
        rows = [
            ("session", f"{about.session}, part {part.part}, {part.ended}"),
            ("captured", f"from {about.opened_at}, engine {about.engine}"),
        ]
        return [
            *rows,
            *_decided_by(about.decided_by),
            *_lost(about.lost),
            *((f"label {key}", value) for key, value in about.labels.items()),
        ]
    if manifest is None:
        return []
    rows = [
        ("session", f"{manifest.session}, part {manifest.part}, {manifest.ended}"),
        ("captured", f"{manifest.opened_at} to {manifest.ended_at}, engine {manifest.engine}"),
    ]
    return [
        *rows,
        *_decided_by(manifest.decided_by),
        *_lost(manifest.lost),
        *manifest.fates,
        *((f"label {key}", value) for key, value in manifest.labels.items()),
    ]


def _decided_by(what: str) -> list[tuple[str, str]]:
    return [("decided by", what)] if what else []


def _lost(lost: Loss | None) -> list[tuple[str, str]]:
    return [] if lost is None else [("lost", lost.in_words)]


def _events(table: Table, statistics: RunStatistics) -> None:
    table.add_row("events", f"{statistics.events:,}")
    for kind, count in statistics.kinds.items():
        rate = statistics.rate(kind)
        table.add_row(f"  {kind}", f"{count:,}" + ("" if rate is None else f", {rate:.3g} a second"))
    if statistics.first is not None and statistics.last is not None:
        # Also in days and hours: seconds are what --since takes, but are hard to read.
        days = f" ({span(statistics.span // 1_000_000_000)})" if statistics.span >= _HOUR_NANOS else ""
        table.add_row(
            "event time",
            f"{_time(statistics.first)} to {_time(statistics.last)}, {_time(statistics.span)}{days} in all",
        )
    if statistics.longest_gap_before is not None:
        table.add_row("longest gap", f"{_time(statistics.longest_gap)}, before event {statistics.longest_gap_before!r}")
    if statistics.backward:
        table.add_row("clock jumps", f"{statistics.backward:,} backward, by {_time(statistics.furthest_back)} at most")
    mean = statistics.payload_bytes / statistics.events if statistics.events else 0
    table.add_row(
        "payloads",
        f"{statistics.payload_bytes:,} bytes, {mean:.0f} on average, {statistics.largest_payload:,} at most, "
        f"{counted(statistics.without_payload, 'event')} without",
    )


def _decisions(table: Table, statistics: RunStatistics) -> None:
    waiting = statistics.events - statistics.decisions
    table.add_row(
        "decisions", f"{statistics.decisions:,}" + (f", {counted(waiting, 'event')} not decided" if waiting > 0 else "")
    )
    for outcome, count in statistics.outcomes.items():
        more = f", {statistics.pumped:,} by a Pump" if outcome == "Invoke" and statistics.pumped else ""
        if outcome == "Defer":
            kinds = {
                counted(statistics.deferred, "episode") + " deferred": statistics.deferred,
                f"{statistics.put_back:,} put back": statistics.put_back,
                counted(statistics.idle_pumps, "idle Pump"): statistics.idle_pumps,
            }
            more = ": " + ", ".join(words for words, number in kinds.items() if number)
        table.add_row(f"  {outcome}", f"{count:,}{more}")
    for termination, count in statistics.terminations.items():
        table.add_row(f"  {termination}", f"{count:,}")
    if statistics.retries:
        table.add_row("retries", f"{statistics.retries:,}, {statistics.most_retries:,} at most for one episode")
    if statistics.effects:
        table.add_row("effects", f"{statistics.effects:,}")
    if statistics.interrupted:
        table.add_row("interrupted", f"{statistics.interrupted:,}")


def _limit(value: object) -> str:
    return format_time(EventTime(value["secs"], value["nanos"])) if isinstance(value, dict) else str(value)


def _time(nanos: int) -> str:
    return format_time(EventTime.from_nanos(nanos))
