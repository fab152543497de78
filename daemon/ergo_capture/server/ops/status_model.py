"""The status model: the daemon at one moment, as ``status``, ``top`` and the metrics show it."""

from __future__ import annotations

from typing import Any

import msgspec

from ergo_capture.journal.wal import JournalSnapshot
from ergo_capture.server.commit.meter import CommitMeterSnapshot
from ergo_capture.server.commit.writer import WriterSnapshot
from ergo_capture.server.session.registry import JournalHolder
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
    #: Whether it can run episodes now; None if it cannot be away.
    up: bool | None
    #: The engine's own figures.
    figures: dict[str, Any]


class TotalsStatus(msgspec.Struct, frozen=True):
    """Counts since the start, besides those of the writer."""

    clients: int
    sessions_opened: int
    sessions_resumed: int
    sessions_finished: int
    bundles_published: int
    bundles_pruned: int
    bundles_pruned_bytes: int
    decisions_tapped: int
    decisions_skipped: int
    #: Resumes by clients to which missing events were acknowledged.
    acknowledged_lost: int = 0
    #: Bundles that were published beside a finished one of the same name.
    bundles_diverted: int = 0
    #: Lines of the log that were dropped because no process read standard error.
    log_lines_dropped: int = 0


class ComposingStatus(msgspec.Struct, frozen=True):
    """Bundles that are composed while their sessions run."""

    bundles: int
    #: Events in them.
    events: int
    #: Bytes of their temporary files, and the bound on them.
    bytes: int
    limit: int
    #: Seconds until sessions are followed again, after the disk was full or the worker ended; 0 if they are followed.
    suspended_seconds: float = 0.0


class ShadowStatus(msgspec.Struct, frozen=True):
    """The results of shadow verification since the start."""

    waiting: int
    passed: int
    failed: int
    #: Bundles that were not verified: too many waited, or they were gone.
    skipped: int
    #: The last bundle that failed.
    last_failed: str | None = None


class RunningStatus(msgspec.Struct, frozen=True):
    """The status of the components that exist once the journal is recovered."""

    sessions: list[SessionSnapshot]
    #: The reason of each quarantined session, by session id.
    quarantined: dict[str, str]
    writer: WriterSnapshot
    commits: CommitMeterSnapshot
    journal: JournalSnapshot
    engines: list[EngineStatus]
    #: By purpose: ``queue``, ``ids``, ``held``.
    memory: dict[str, MemoryStatus]
    #: The reasons that a shutdown waits for, or would wait for now: one sentence for each session.
    shutdown_waits_for: list[str]
    #: Episodes since the start by how they ended, by graph; every graph and every end is present.
    episodes: dict[str, dict[str, int]] = {}
    #: Intents since the start that were ``acknowledged``, and those that ``failed``, by graph; every graph is present.
    intents: dict[str, dict[str, int]] = {}
    #: Numbers of the events and runs that ``session.FATES`` names, by graph.
    fates: dict[str, dict[str, int]] = {}
    #: The session that keeps the oldest segment; None if no segment before the current one is needed.
    journal_holder: JournalHolder | None = None
    #: None if no bundles are composed while their sessions run.
    composing: ComposingStatus | None = None
    #: None if finished bundles are not verified again.
    shadow: ShadowStatus | None = None


class RetentionStatus(msgspec.Struct, frozen=True):
    """The bundles that retention does not delete."""

    #: Seconds until bundles are deleted by age again; 0 if they are. After a start or a jump of the clock they are not
    #: for a while.
    ages_held_seconds: float
    #: Bundles with an impossible time of end.
    suspects: int


class DaemonStatus(msgspec.Struct, frozen=True):
    """The daemon at one moment; times in seconds, sizes in bytes."""

    program: str
    pid: int
    #: ``starting``, ``serving`` or ``stopping``.
    phase: str
    #: The current step of the start-up; empty in the other phases.
    doing: str
    uptime_seconds: float
    socket: str
    state: str
    clients: int
    max_clients: int
    #: None if the file system does not answer within a second.
    disk_free_bytes: int | None
    #: By code; every code is present.
    refusals: dict[str, int]
    totals: TotalsStatus
    #: None while the daemon starts.
    running: RunningStatus | None

    @property
    def is_ready(self) -> bool:
        """Whether the daemon accepts events: it serves, and its disk can be written."""
        running = self.running
        broken = running is not None and (running.writer.failed or running.writer.disk_error) is not None
        return self.phase == "serving" and not broken

    #: Unix time of the start, as the clock was then; 0 from a daemon that does not report it.
    started_at: float = 0.0
    #: None if no age is bounded, and from a daemon of 0.1.0.
    retention: RetentionStatus | None = None
