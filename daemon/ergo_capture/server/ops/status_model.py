"""What ``status``, ``top`` and the metrics show: the daemon at one moment."""

from __future__ import annotations

from typing import Any

import msgspec

from ergo_capture.journal.wal import JournalSnapshot
from ergo_capture.server.commit.meter import CommitMeterSnapshot
from ergo_capture.server.commit.writer import WriterSnapshot
from ergo_capture.server.session.session import SessionSnapshot


class MemoryStatus(msgspec.Struct, frozen=True):
    """One budget of memory, in bytes."""

    used: int
    peak: int
    limit: int


class EngineStatus(msgspec.Struct, frozen=True):
    """A graph's engine."""

    graph: str
    engine: str
    #: Whether it can run episodes now; None where it cannot be away.
    up: bool | None
    #: What the engine says of itself.
    figures: dict[str, Any]


class TotalsStatus(msgspec.Struct, frozen=True):
    """What was counted since the start, besides what the writer counts."""

    clients: int
    sessions_opened: int
    sessions_resumed: int
    sessions_finished: int
    bundles_published: int
    bundles_pruned: int
    bundles_pruned_bytes: int
    decisions_tapped: int
    decisions_skipped: int


class RunningStatus(msgspec.Struct, frozen=True):
    """What there is once the journal is recovered."""

    sessions: list[SessionSnapshot]
    #: Why each is neither served nor deleted, by session.
    quarantined: dict[str, str]
    writer: WriterSnapshot
    commits: CommitMeterSnapshot
    journal: JournalSnapshot
    engines: list[EngineStatus]
    #: By what it is for: ``queue``, ``ids``, ``held``.
    memory: dict[str, MemoryStatus]
    #: What a shutdown waits for, or would wait for if it came now: a sentence each.
    shutdown_waits_for: list[str]


class DaemonStatus(msgspec.Struct, frozen=True):
    """The daemon at one moment; times in seconds, sizes in bytes."""

    program: str
    pid: int
    #: ``starting``, ``serving`` or ``stopping``.
    phase: str
    #: What it is at, while it starts; empty otherwise.
    doing: str
    uptime_seconds: float
    socket: str
    state: str
    clients: int
    max_clients: int
    #: None where the file system does not say within a second.
    disk_free_bytes: int | None
    #: By code, every code.
    refusals: dict[str, int]
    totals: TotalsStatus
    #: None while the daemon starts.
    running: RunningStatus | None
