"""From configuration to objects."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

from ergo_capture.bundle.retention import Bounds, RetentionRules
from ergo_capture.config import Config, ConfigError, GraphConfig, GraphRetentionConfig
from ergo_capture.config.settings import (
    ProcessEngineConfig,
    PythonEngineConfig,
    ScriptedEngineConfig,
    SocketEngineConfig,
)
from ergo_capture.engine.fixed import FixedEngine
from ergo_capture.engine.port import Engine
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.engine.python import PythonEngine
from ergo_capture.engine.remote import RemoteSettings
from ergo_capture.engine.scripted import ScriptedEngine
from ergo_capture.engine.socket import SocketEngine
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.time import EventTime
from ergo_capture.server.limits import ConnectionLimits, SessionLimits
from ergo_capture.server.net.admission import Admission
from ergo_capture.server.session.access import access_of
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.parts import RotationRule
from ergo_capture.units import Duration

#: The longest age that is told from another, in nanoseconds: 1,000 years.
_LONGEST: Final = 1000 * 365 * 86_400 * 1_000_000_000


def graphs_of(config: Config) -> dict[str, Graph]:
    """The graphs by name, each with its engine.

    Raises:
        ConfigError: a graph's limits or engine are not possible.
        ErgoCaptureError: an engine cannot be made, such as a script that is not there.
    """
    return {name: graph_of(name, graph) for name, graph in config.graphs.items()}


def graph_of(name: str, graph: GraphConfig, engine: Engine | None = None) -> Graph:
    """One graph, with the engine that is given or else the configured one.

    Raises:
        ConfigError: its limits or engine are not possible.
        ErgoCaptureError: its engine cannot be made.
    """
    try:
        constraints = Constraints(
            graph.max_in_flight,
            graph.max_per_window,
            _event_time(graph.rate_window),
            _event_time(graph.deadline),
            graph.max_retries,
        )
        engine = engine or engine_of(name, graph)
    except ValueError as error:
        raise ConfigError(
            f"configure graph {name!r}: {error}",
            op="configure graph",
            hint=f"mend [graphs.{name}] in the configuration",
        ) from error
    return Graph(
        name=name,
        constraints=constraints,
        adapter_provenance=graph.adapter_provenance,
        runtime_provenance=graph.runtime_provenance,
        engine=engine,
        access=access_of(graph.users, graph.groups, f"graphs.{name}"),
    )


def _event_time(duration: Duration | None) -> EventTime | None:
    return None if duration is None else EventTime.from_nanos(duration)


def engine_of(name: str, graph: GraphConfig) -> Engine:
    """The engine that a graph's table asks for.

    Raises:
        ErgoCaptureError: it cannot be made.
    """
    engine, provenance = graph.engine, graph.runtime_provenance
    if isinstance(engine, ScriptedEngineConfig):
        return ScriptedEngine(Path(engine.file))
    if isinstance(engine, PythonEngineConfig):
        return PythonEngine(engine.callable, engine.pipeline)
    if isinstance(engine, ProcessEngineConfig):
        return ProcessEngine(name, provenance, engine.command, _remote(engine))
    if isinstance(engine, SocketEngineConfig):
        return SocketEngine(name, provenance, Path(engine.path), _remote(engine))
    return FixedEngine(RunTermination.from_builtins(engine.termination))


def _remote(engine: ProcessEngineConfig | SocketEngineConfig) -> RemoteSettings:
    return RemoteSettings(
        start_timeout=engine.start_timeout.seconds,
        back_off=engine.back_off.seconds,
        back_off_limit=engine.back_off_limit.seconds,
        max_line_bytes=int(engine.max_line_bytes),
        hang_timeout=engine.hang_timeout.seconds,
        pipeline=engine.pipeline,
        when_away=engine.when_away,
    )


def limits_of(config: Config) -> ConnectionLimits:
    """What one connection may cost."""
    limits = config.limits
    return ConnectionLimits(
        max_frame_bytes=int(limits.max_frame_bytes),
        max_events_per_frame=limits.max_events_per_frame,
        max_bad_frames=limits.max_bad_frames,
        max_id_bytes=limits.max_id_bytes,
        max_name_bytes=limits.max_name_bytes,
        max_label_bytes=limits.max_label_bytes,
        session_queue_bytes=int(limits.session_queue_bytes),
        reply_bytes=int(limits.reply_bytes),
        hello_timeout=limits.hello_timeout.seconds,
        frame_timeout=limits.frame_timeout.seconds,
        idle_timeout=limits.idle_timeout.seconds,
        write_timeout=limits.write_timeout.seconds,
    )


def session_limits_of(config: Config) -> SessionLimits:
    """How many sessions there may be, and what they may hold."""
    limits = config.limits
    return SessionLimits(
        max_sessions=limits.max_sessions,
        max_user_sessions=limits.max_user_sessions,
        user_opens_per_second=limits.user_opens_per_second,
        queue_bytes=int(limits.queue_bytes),
        user_queue_bytes=int(limits.user_queue_bytes),
        ids_bytes=int(limits.ids_bytes),
        user_ids_bytes=int(limits.user_ids_bytes),
    )


def admission_of(config: Config) -> Admission:
    """Who gets in, and how many at once.

    Raises:
        ConfigError: nobody has a name that is on a list.
    """
    return Admission(
        access_of(config.access.users, config.access.groups, "access"),
        max_clients=config.limits.max_clients,
        max_user_clients=config.limits.max_user_clients,
    )


def rotation_of(config: Config) -> RotationRule:
    """When a part of a session ends."""
    rotation = config.rotation
    return RotationRule(
        max_events=rotation.max_events,
        max_bytes=int(rotation.max_bytes),
        max_age=rotation.max_age.seconds,
        force_after=rotation.force_after.seconds,
    )


def retention_of(config: Config) -> RetentionRules:
    """Which finished bundles have had their time."""
    general = config.retention
    default = Bounds(age_of(general.max_age), int(general.max_bytes), general.max_bundles)
    return RetentionRules(
        default,
        {
            name: _bounds(graph.retention, default)
            for name, graph in config.graphs.items()
            if graph.retention is not None
        },
        int(general.keep_free_bytes),
    )


def _bounds(own: GraphRetentionConfig, default: Bounds) -> Bounds:
    return Bounds(
        default.max_age if own.max_age is None else age_of(own.max_age),
        default.max_bytes if own.max_bytes is None else int(own.max_bytes),
        default.max_bundles if own.max_bundles is None else own.max_bundles,
    )


def age_of(duration: Duration) -> timedelta:
    """A duration as bundles' ages are counted."""
    # Why bounded: a span beyond it is longer than time is counted.
    return timedelta(microseconds=min(duration // 1000, _LONGEST // 1000))
