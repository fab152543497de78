"""Take the status of a daemon without disturbing it.

Everything except the free space is read on the loop without waiting, so that the figures are of the same moment. The
free space is read in a thread, for one second at most, so that a status comes even if the disk hangs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any, Final

import anyio
import msgspec
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.engine.port import Engine
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.protocol.capture import Code
from ergo_capture.server.components import Components, Phase, Running
from ergo_capture.server.ops.state_directory import StateDirectory
from ergo_capture.server.ops.status_model import DaemonStatus, EngineStatus, MemoryStatus, RunningStatus, TotalsStatus
from ergo_capture.server.session.budget import Budget
from ergo_capture.server.session.egress import INTENT_RESULTS
from ergo_capture.server.session.registry import SessionRegistry
from ergo_capture.server.session.session import FATES, Session
from ergo_capture.units import counted
from ergo_capture.version import PROGRAM

#: Seconds to wait for the free space of the file system.
_DISK_SECONDS: Final = 1.0
_TERMINATIONS: Final = RunTermination.every()


async def take_status(components: Components) -> DaemonStatus:
    """Return the status of the daemon at this moment."""
    free = await _free_bytes(components.state)
    running, clients, retention = components.running, components.clients, components.retention
    return DaemonStatus(
        program=PROGRAM,
        pid=os.getpid(),
        phase=components.phase.value,
        doing=components.progress if components.phase is Phase.STARTING else "",
        uptime_seconds=time.monotonic() - components.started_at,
        socket=str(components.socket_path),
        state=str(components.state.path),
        clients=len(clients.connections),
        max_clients=clients.admission.max_clients,
        disk_free_bytes=free,
        refusals={code.value: clients.refusals[code] for code in Code},
        totals=TotalsStatus(
            clients=clients.totals["clients"],
            sessions_opened=clients.totals["opened"],
            sessions_resumed=clients.totals["resumed"],
            sessions_finished=0 if running is None else running.registry.finished,
            acknowledged_lost=0 if running is None else running.registry.losses,
            bundles_published=0 if running is None else running.publisher.published,
            bundles_pruned=retention.pruned,
            bundles_pruned_bytes=retention.pruned_bytes,
            decisions_tapped=0 if running is None else running.registry.taps.shown,
            decisions_skipped=0 if running is None else running.registry.taps.skipped,
            bundles_diverted=0 if running is None else running.publisher.diverted,
            log_lines_dropped=telemetry.dropped_lines(),
        ),
        running=None if running is None else _running_status(running, clients.held),
        started_at=components.start_time,
        retention=retention.status(),
    )


def _running_status(running: Running, held: Budget) -> RunningStatus:
    registry = running.registry
    budgets = {"queue": registry.queue, "ids": registry.ids, "held": held}
    return RunningStatus(
        sessions=[session.snapshot() for session in registry.sessions.values()],
        quarantined=dict(registry.quarantined),
        writer=running.writer.snapshot(),
        commits=running.writer.meter.snapshot(),
        journal=running.journal.snapshot(),
        engines=[_engine_status(graph.name, graph.engine) for graph in registry.graphs.values()],
        memory={name: MemoryStatus(used=b.used, peak=b.peak, limit=b.total) for name, b in budgets.items()},
        shutdown_waits_for=shutdown_waits_for(registry.sessions.values()),
        episodes=_episodes(registry),
        intents=_intents(registry),
        fates=_fates(registry),
        journal_holder=registry.journal_holder(),
        composing=running.publisher.follower.status(),
        shadow=running.shadow.status(),
    )


def _fates(registry: SessionRegistry) -> dict[str, dict[str, int]]:
    graphs = dict.fromkeys([*registry.graphs, *registry.fates])
    return {graph: {fate: registry.fates[graph][fate] for fate in FATES} for graph in graphs}


def _intents(registry: SessionRegistry) -> dict[str, dict[str, int]]:
    graphs = dict.fromkeys([*registry.graphs, *registry.intents])
    return {graph: {result: registry.intents[graph][result] for result in INTENT_RESULTS} for graph in graphs}


def _episodes(registry: SessionRegistry) -> dict[str, dict[str, int]]:
    graphs = dict.fromkeys([*registry.graphs, *registry.episodes])
    return {graph: {ended.label: registry.episodes[graph][ended] for ended in _TERMINATIONS} for graph in graphs}


def _engine_status(graph: str, engine: Engine) -> EngineStatus:
    """Return an engine's health; an engine inside this process has none, because it cannot be away."""
    snapshot = getattr(engine, "snapshot", None)
    figures: dict[str, Any] = {} if snapshot is None else msgspec.to_builtins(snapshot())
    up = figures.pop("up", None)
    return EngineStatus(graph=graph, engine=engine.name, up=up, figures=figures)


def shutdown_waits_for(sessions: Iterable[Session]) -> list[str]:
    """Return the reasons that a shutdown would wait for: one sentence for each session that is not drained."""
    return [_wait_of(session) for session in sessions if session.failure is None and session.admission.admitted]


def _wait_of(session: Session) -> str:
    name, undecided = session.description.session, session.admission.admitted - session.decided
    if undecided:
        waits_for = "" if session.egress is None or not session.egress.waits_for else f", {session.egress.waits_for}"
        return f"session {name}: {counted(undecided, 'event')} to be decided{waits_for}"
    events = counted(session.decided - session.parts.current.first, "event")
    return f"session {name}: its bundle of {events} to be published"


async def _free_bytes(state: StateDirectory) -> int | None:
    with anyio.move_on_after(_DISK_SECONDS):
        try:
            return await to_thread.run_sync(state.free_bytes, abandon_on_cancel=True)
        except ErgoCaptureError:
            # Report the rest of the status.
            return None
    return None
