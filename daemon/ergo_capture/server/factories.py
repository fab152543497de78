"""Makes objects from the configuration."""

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
from ergo_capture.engine.port import Engine
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.engine.python import PythonEngine
from ergo_capture.engine.remote import RemoteSettings, SocketEngine
from ergo_capture.engine.scripted import FixedEngine, ScriptedEngine
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.address import AddressError
from ergo_capture.server.session.access import Access, access_of
from ergo_capture.server.session.graph import Graph
from ergo_capture.server.session.parts import RotationRule
from ergo_capture.units import Duration

#: Longer ages count as this one, in nanoseconds: 1,000 years.
_MAX_AGE: Final = 1000 * 365 * 86_400 * 1_000_000_000


def graphs_of(config: Config) -> dict[str, Graph]:
    """Return the graphs by name, each with its engine.

    Raises:
        ConfigError: a graph's limits or engine are invalid.
        ErgoCaptureError: an engine cannot be made, for example because its script is missing.
    """
    return {name: graph_of(name, graph) for name, graph in config.graphs.items()}


def graph_of(name: str, graph: GraphConfig, engine: Engine | None = None) -> Graph:
    """Return one graph.

    Args:
        name: its name.
        graph: its table in the configuration.
        engine: its engine, if it has one already; otherwise the configured one is made.

    Raises:
        ConfigError: its limits or engine are invalid.
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
    except (ValueError, AddressError) as error:
        raise ConfigError(
            f"configure graph {name!r}: {error}",
            op="configure graph",
            hint=f"correct [graphs.{name}] in the configuration",
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
    """Return the engine that a graph's table configures.

    Raises:
        ErgoCaptureError: it cannot be made.
    """
    engine, provenance = graph.engine, graph.runtime_provenance
    if isinstance(engine, ScriptedEngineConfig):
        return ScriptedEngine(Path(engine.file))
    if isinstance(engine, PythonEngineConfig):
        return PythonEngine(engine.callable, engine.pipeline)
    if isinstance(engine, ProcessEngineConfig):
        return ProcessEngine(name, provenance, engine.command, _remote_settings(engine))
    if isinstance(engine, SocketEngineConfig):
        return SocketEngine(name, provenance, engine.path, _remote_settings(engine))
    return FixedEngine(RunTermination.from_builtins(engine.termination))


def _remote_settings(engine: ProcessEngineConfig | SocketEngineConfig) -> RemoteSettings:
    return RemoteSettings(
        start_timeout=engine.start_timeout.seconds,
        back_off=engine.back_off.seconds,
        back_off_limit=engine.back_off_limit.seconds,
        max_line_bytes=int(engine.max_line_bytes),
        hang_timeout=engine.hang_timeout.seconds,
        pipeline=engine.pipeline,
        when_away=engine.when_away,
    )


def access_list(config: Config) -> Access:
    """Return who may connect.

    Raises:
        ConfigError: a listed user or group does not exist.
    """
    return access_of(config.access.users, config.access.groups, "access")


def rotation_rule(config: Config) -> RotationRule:
    """Return when a part of a session ends."""
    rotation = config.rotation
    return RotationRule(
        max_events=rotation.max_events,
        max_bytes=int(rotation.max_bytes),
        max_age=rotation.max_age.seconds,
        max_journal_bytes=int(rotation.max_journal_bytes),
        force_after=rotation.force_after.seconds,
    )


def retention_rules(config: Config) -> RetentionRules:
    """Return which finished bundles are deleted."""
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
    """Return a duration as the age of a bundle, at most 1,000 years."""
    # A longer one overflows when it is subtracted from a date.
    return timedelta(microseconds=min(duration, _MAX_AGE) // 1000)
