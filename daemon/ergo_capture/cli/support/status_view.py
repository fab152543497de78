"""The layout of a daemon's status in ``status`` and ``top``, and the rates between two statuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ergo_capture.cli.support.output import milliseconds, size, span
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.commit.meter import HistogramSnapshot
from ergo_capture.server.ops.status_model import DaemonStatus, EngineStatus, RetentionStatus, RunningStatus
from ergo_capture.server.session.session import SessionSnapshot
from ergo_capture.units import counted
from ergo_capture.version import PROGRAM

#: A disk with fewer free bytes than this is shown in red.
LOW_DISK_BYTES: Final = 1 << 30
#: How many reasons that a shutdown waits for are shown.
_MOST_REASONS: Final = 5
#: How many graphs' engines are shown.
_MOST_ENGINES: Final = 20
#: Columns that are left out on a narrow screen, in this order.
_OPTIONAL_COLUMNS: Final = ("part", "queue", "client", "decided", "state", "deferred", "graph")
#: Spaces between two columns.
_GAP: Final = 2


def decode_status(text: bytes) -> DaemonStatus:
    """Decode a status from the daemon's answer.

    Raises:
        ErgoCaptureError: the daemon is of another version.
    """
    try:
        return msgspec.json.decode(text, type=DaemonStatus)
    except msgspec.ValidationError as error:
        raise ErgoCaptureError(
            f"read the daemon's status: {error}",
            op="read status",
            hint="the daemon is of another version than this command; use --json, or restart the daemon",
        ) from error


@dataclass(frozen=True)
class Rates:
    """Rates per second between two statuses of one daemon."""

    events: float
    decisions: float
    commits: float
    bytes: float
    #: Mean seconds of a commit; None if there was no commit.
    commit_seconds: float | None
    by_session: dict[str, float]

    @classmethod
    def between(cls, before: DaemonStatus, after: DaemonStatus) -> Rates | None:
        """Return the rates; None if the two are the same, or not of one daemon."""
        old, new = before.running, after.running
        seconds = after.uptime_seconds - before.uptime_seconds
        if old is None or new is None or before.pid != after.pid or seconds <= 0:
            return None
        commits = new.commits.seconds.total - old.commits.seconds.total
        accepted = {session.session: session.accepted for session in old.sessions}
        return cls(
            events=(new.writer.events - old.writer.events) / seconds,
            decisions=(new.writer.decisions - old.writer.decisions) / seconds,
            commits=commits / seconds,
            bytes=(new.writer.bytes_written - old.writer.bytes_written) / seconds,
            commit_seconds=(new.commits.seconds.sum - old.commits.seconds.sum) / commits if commits else None,
            by_session={
                session.session: (session.accepted - accepted.get(session.session, session.accepted)) / seconds
                for session in new.sessions
            },
        )


def whole_view(
    status: DaemonStatus, rates: Rates | None = None, *, columns: int, rows: int | None = None
) -> RenderableType:
    """Return the whole layout.

    Args:
        status: the status.
        rates: rates since the status before, if there was one.
        columns: the width of the screen.
        rows: how many sessions are shown at most, those with the largest lag; by default all.
    """
    running = status.running
    if running is None:
        return _head(status, None)
    return Group(
        _head(status, rates), sessions_table(running.sessions, rates, rows, columns), *_troubles(running, status.phase)
    )


def _head(status: DaemonStatus, rates: Rates | None) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    running = status.running
    doing = f" ({status.doing})" if status.doing and running is None else ""
    table.add_row(
        "daemon",
        f"{status.program}, pid {status.pid}, {status.phase}{doing} for {span(status.uptime_seconds)}, "
        f"{status.clients} of {status.max_clients} clients",
    )
    if status.program != PROGRAM:
        table.add_row("", Text(f"{PROGRAM} is installed: restart the daemon to run it", style="yellow"))
    table.add_row("state", Text(status.state, overflow="fold"))
    if running is not None:
        _running_rows(table, running, rates)
    free = status.disk_free_bytes
    table.add_row(
        "disk",
        Text("does not answer", style="red")
        if free is None
        else Text(f"{size(free)} free", style="red" if free < LOW_DISK_BYTES else ""),
    )
    if status.retention is not None and (retained := _retention(status.retention)):
        table.add_row("retention", Text(retained, style="yellow"))
    rejected = {code: count for code, count in status.refusals.items() if count}
    table.add_row("rejected", ", ".join(f"{code} {count:,}" for code, count in rejected.items()) or "nothing")
    return table


def _retention(retention: RetentionStatus) -> str:
    held = (
        f"no bundle goes by its age for {span(retention.ages_held_seconds)}: the daemon was started, or the clock set"
    )
    doubted = f"{counted(retention.suspects, 'bundle')} with a time that cannot be right"
    return "; ".join(([held] if retention.ages_held_seconds else []) + ([doubted] if retention.suspects else []))


def _undecided(running: RunningStatus) -> str:
    """Return how many events were refused when their turn came, and how many are left over; empty for none."""
    refused, left_over = (
        sum(fates.get(fate, 0) for fates in running.fates.values()) for fate in ("refused", "left_over")
    )
    return (f" ({refused:,} refused)" if refused else "") + (f", {left_over:,} left over" if left_over else "")


def _running_rows(table: Table, running: RunningStatus, rates: Rates | None) -> None:
    writer, commits, journal = running.writer, running.commits, running.journal
    events = f"{writer.events:,} accepted, {writer.decisions:,} decided{_undecided(running)} since the start"
    if rates is not None:
        events += f"; {rates.events:,.0f}/s accepted, {rates.decisions:,.0f}/s decided"
    table.add_row("events", events)
    table.add_row("commits", _commits(commits.seconds, writer.last_commit_seconds, rates))
    undurable = (
        f"oldest {milliseconds(writer.oldest_undurable_seconds)}" if writer.oldest_undurable_seconds else "nothing"
    )
    table.add_row("not durable", f"{undurable}; {writer.queued:,} waiting, {size(writer.queued_bytes)}")
    segments = counted(journal.segments, "segment")
    written = "" if rates is None else f", {size(rates.bytes)}/s written"
    table.add_row("journal", f"{segments}, {size(journal.bytes)}{written}")
    if (holder := running.journal_holder) is not None:
        what = "quarantined session" if holder.quarantined else "session"
        table.add_row("", Text(f"{size(holder.bytes)} of it kept for {what} {holder.session}"))
    if (composing := running.composing) is not None and (composing.bundles or composing.suspended_seconds):
        bundles = counted(composing.bundles, "bundle")
        suspended = f"; none for {span(composing.suspended_seconds)}" if composing.suspended_seconds else ""
        table.add_row(
            "composing",
            f"{bundles} of running sessions, {composing.events:,} events, {size(composing.bytes)} of "
            f"{size(composing.limit)}{suspended}",
        )
    if (shadow := running.shadow) is not None and shadow.failed:
        failed = counted(shadow.failed, "bundle")
        table.add_row("verified", Text(f"{failed} failed, the last one {shadow.last_failed}", style="red"))
    memory = (f"{kind} {size(held.used)} of {size(held.limit)}" for kind, held in running.memory.items())
    table.add_row("memory", ", ".join(memory))
    table.add_row("engines", _engines(running))


def _commits(seconds: HistogramSnapshot, last: float, rates: Rates | None) -> str:
    if not seconds.total:
        return "none yet"
    parts = [f"{seconds.total:,}", f"last {milliseconds(last)}"]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        bound = seconds.quantile(share)
        parts.append(
            f"{name} over {seconds.bounds[-1]:g} s" if bound is None else f"{name} up to {milliseconds(bound)}"
        )
    if rates is not None:
        parts.append(f"{rates.commits:,.0f}/s")
        if rates.commit_seconds is not None:
            parts.append(f"now {milliseconds(rates.commit_seconds)}")
    return ", ".join(parts)


def _engines(running: RunningStatus) -> Text:
    """Return a line for each graph, those first whose engine is away."""
    engines = sorted(running.engines, key=lambda engine: engine.up is not False)
    lines = [_engine(engine, running.episodes.get(engine.graph, {})) for engine in engines[:_MOST_ENGINES]]
    if len(engines) > _MOST_ENGINES:
        lines.append(Text(f"and {counted(len(engines) - _MOST_ENGINES, 'more graph')}", style="dim"))
    return Text("\n").join(lines)


def _engine(engine: EngineStatus, episodes: dict[str, int]) -> Text:
    figures = " ".join(f"{name}={value}" for name, value in engine.figures.items() if value not in (None, "", 0))
    text = Text(f"{engine.graph}: {engine.engine}" + (f" ({figures})" if figures else ""))
    if engine.up is False:
        text.append(" away", style="red")
    if failed := sum(count for ended, count in episodes.items() if ended.startswith("Failed")):
        text.append(f" {counted(failed, 'episode')} failed", style="red")
    return text


@dataclass(frozen=True)
class _Column:
    """A column of the table of sessions."""

    name: str
    #: Characters of the widest usual content.
    width: int
    cell: Callable[[SessionSnapshot], str | Text]
    is_number: bool = True


def sessions_table(
    sessions: list[SessionSnapshot], rates: Rates | None, rows: int | None, columns: int
) -> RenderableType:
    """Return the table of sessions, largest lag first; on a narrow screen with fewer columns."""
    if not sessions:
        return Text("\nno sessions", style="dim")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    chosen = _fitting(_columns(rates), columns)
    for column in chosen:
        table.add_column(
            column.name,
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=column.width if column.is_number else None,
        )
    shown = sorted(sessions, key=lambda session: session.decided - session.admitted)[:rows]
    for session in shown:
        table.add_row(*(column.cell(session) for column in chosen))
    if len(shown) < len(sessions):
        left_out = len(sessions) - len(shown)
        return Group(table, Text(f"and {left_out:,} more session{'s' * (left_out != 1)}", style="dim"))
    return table


def _columns(rates: Rates | None) -> list[_Column]:
    columns = [
        _Column("session", 27, lambda session: Text(session.session), is_number=False),
        _Column("graph", 8, lambda session: Text(session.graph), is_number=False),
        _Column("state", 6, _state, is_number=False),
        _Column("client", 6, lambda session: "yes" if session.owned else "away", is_number=False),
        _Column("accepted", 9, lambda session: f"{session.accepted:,}"),
        _Column("decided", 9, lambda session: f"{session.decided:,}"),
        _Column("lag", 7, lambda session: f"{session.admitted - session.decided:,}"),
        _Column("deferred", 8, lambda session: f"{session.deferred:,}"),
        _Column("queue", 9, lambda session: size(session.queued_bytes)),
        _Column("part", 4, lambda session: str(session.part)),
    ]
    if rates is not None:
        by_session = rates.by_session
        columns.insert(4, _Column("events/s", 8, lambda session: f"{by_session.get(session.session, 0.0):,.0f}"))
    return columns


def _fitting(columns: list[_Column], room: int) -> list[_Column]:
    """Return the columns that fit into so many characters."""
    left = list(columns)
    for name in _OPTIONAL_COLUMNS:
        if sum(column.width + _GAP for column in left) <= room:
            break
        left = [column for column in left if column.name != name]
    return left


def _state(session: SessionSnapshot) -> Text:
    return Text(session.state, style="red" if session.state == "failed" else "")


def _undecided_for_good(session: SessionSnapshot) -> str:
    said = [f"{counted(session.refused, 'event')} refused by the adapter"] if session.refused else []
    if session.interrupted_by:
        said.append(f"interrupted ({session.interrupted_by}), {counted(session.left_over, 'event')} left over")
    return ", ".join(said)


def _troubles(running: RunningStatus, phase: str) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if running.writer.failed is not None:
        lines.append(Text(f"the journal has failed: {running.writer.failed}", style="red"))
    if running.writer.disk_error is not None:
        lines.append(Text(f"not ready, the disk cannot be written: {running.writer.disk_error}", style="red"))
    if running.writer.full:
        lines.append(Text("the disk is full: events are refused until there is room", style="red"))
    lines += [
        Text(f"lost of {session.session}: {session.lost.in_words}", style="red")
        for session in running.sessions
        if session.lost is not None
    ]
    lines += [
        Text(f"{session.session}: {_undecided_for_good(session)}", style="yellow")
        for session in running.sessions
        if session.refused or session.interrupted_by
    ]
    for session in running.sessions:
        if session.failure:
            lines.append(Text(f"{session.session} has failed: {session.failure}", style="red"))
        if session.delayed_by:
            lines.append(Text(f"a bundle of {session.session} waits for room: {session.delayed_by}", style="red"))
    lines += [Text(f"quarantined {name}: {reason}", style="red") for name, reason in running.quarantined.items()]
    waits = running.shutdown_waits_for
    if waits:
        lines.append(Text("waits for" if phase == "stopping" else "a shutdown would wait for", style="bold"))
        lines += [Text(f"  {sentence}") for sentence in waits[:_MOST_REASONS]]
        if len(waits) > _MOST_REASONS:
            lines.append(Text(f"  and {len(waits) - _MOST_REASONS:,} more", style="dim"))
    return lines
