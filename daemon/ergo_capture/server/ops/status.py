"""Looks the daemon over, without disturbing it.

Everything but the disk is read on the loop, in one go and without waiting, so that the figures belong together.
The disk is asked in a thread and only for a second: a status must come also when the disk hangs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec
from anyio import to_thread

from ergo_capture.engine.port import Engine
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.wal import Journal
from ergo_capture.protocol.capture import Code
from ergo_capture.server.commit.meter import CommitMeter
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.ops.status_model import DaemonStatus, EngineStatus, MemoryStatus, RunningStatus, TotalsStatus
from ergo_capture.server.publisher import BundlePublisher
from ergo_capture.server.session.budget import Budget
from ergo_capture.server.session.registry import SessionRegistry
from ergo_capture.server.session.session import Session
from ergo_capture.units import counted
from ergo_capture.version import PROGRAM

if TYPE_CHECKING:
    from ergo_capture.server.service import Service

#: Seconds to wait for the file system to say how much room it has.
_DISK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Running:
    """The parts of a daemon that has recovered its journal."""

    journal: Journal
    writer: Writer
    publisher: BundlePublisher
    registry: SessionRegistry
    meter: CommitMeter


async def take_status(service: Service) -> DaemonStatus:
    """The daemon as it is now."""
    free = await _free_bytes(service)
    running = service.running
    return DaemonStatus(
        program=PROGRAM,
        pid=os.getpid(),
        phase=service.phase,
        doing=service.doing,
        uptime_seconds=time.monotonic() - service.began,
        socket=str(service.socket_path),
        state=str(service.state.path),
        clients=len(service.clients.connections),
        max_clients=service.clients.admission.max_clients,
        disk_free_bytes=free,
        refusals={code.value: service.clients.refusals[code.value] for code in Code},
        totals=TotalsStatus(
            clients=service.clients.totals["clients"],
            sessions_opened=service.clients.totals["opened"],
            sessions_resumed=service.clients.totals["resumed"],
            sessions_finished=0 if running is None else running.registry.finished,
            bundles_published=0 if running is None else running.publisher.published,
            bundles_pruned=service.retention.pruned,
            bundles_pruned_bytes=service.retention.pruned_bytes,
            decisions_tapped=0 if running is None else running.registry.taps.shown,
            decisions_skipped=0 if running is None else running.registry.taps.skipped,
        ),
        running=None if running is None else _running(running, service.clients.held),
    )


def _running(running: Running, held: Budget) -> RunningStatus:
    registry = running.registry
    return RunningStatus(
        sessions=[session.snapshot() for session in registry.sessions.values()],
        quarantined=dict(registry.quarantined),
        writer=running.writer.snapshot(),
        commits=running.meter.snapshot(),
        journal=running.journal.snapshot(),
        engines=[_engine(graph.name, graph.engine) for graph in registry.graphs.values()],
        memory={name: _memory(budget) for name, budget in _budgets(registry, held)},
        shutdown_waits_for=shutdown_waits_for(registry.sessions.values()),
    )


def _budgets(registry: SessionRegistry, held: Budget) -> list[tuple[str, Budget]]:
    return [("queue", registry.queue), ("ids", registry.ids), ("held", held)]


def _memory(budget: Budget) -> MemoryStatus:
    return MemoryStatus(used=budget.used, peak=budget.peak, limit=budget.total)


def _engine(graph: str, engine: Engine) -> EngineStatus:
    """An engine's health, if it has any to speak of: those in this process cannot be away."""
    snapshot = getattr(engine, "snapshot", None)
    figures: dict[str, Any] = {} if snapshot is None else msgspec.to_builtins(snapshot())
    up = figures.pop("up", None)
    return EngineStatus(graph=graph, engine=engine.name, up=up, figures=figures)


def shutdown_waits_for(sessions: Iterable[Session]) -> list[str]:
    """What a shutdown waits for, a sentence for each session that has something to wait for."""
    return [_waits_for(session) for session in sessions if session.failure is None and session.intake.admitted]


def _waits_for(session: Session) -> str:
    name, undecided = session.description.session, session.intake.admitted - session.decided
    if undecided:
        return f"session {name}: {counted(undecided, 'event')} to be decided"
    events = counted(session.decided - session.parts.current.first, "event")
    return f"session {name}: its bundle of {events} to be published"


async def _free_bytes(service: Service) -> int | None:
    with anyio.move_on_after(_DISK_SECONDS):
        try:
            return await to_thread.run_sync(service.storage.free_bytes, service.state.path, abandon_on_cancel=True)
        except ErgoCaptureError:
            # Why no error: that the disk does not say is the answer, and the rest of the status is worth having.
            return None
    return None
