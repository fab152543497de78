"""Create graphs, engines, egress channels, allow-lists and rules from the configuration."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from ergo_capture.bundle.receipt import place_of
from ergo_capture.bundle.retention import Bounds, RetentionRules
from ergo_capture.config import Config, ConfigError, GraphConfig, GraphRetentionConfig
from ergo_capture.config.graphs import (
    FixedEngineConfig,
    ProcessEngineConfig,
    PythonEngineConfig,
    ScriptedEngineConfig,
    SocketEngineConfig,
)
from ergo_capture.engine.port import Engine
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.engine.python import PythonEngine
from ergo_capture.engine.remote import SocketEngine
from ergo_capture.engine.scripted import FixedEngine, ScriptedEngine
from ergo_capture.journal.payloads import Contract
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.records import NO_ADAPTER_PROVENANCE
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.address import AddressError
from ergo_capture.server.session.access import Access, access_of
from ergo_capture.server.session.graph import Graph
from ergo_capture.units import Duration

if TYPE_CHECKING:
    from ergo_capture.adapter.binding import Binding
    from ergo_capture.adapter.contract import Adapter
    from ergo_capture.adapter.egress import EgressConfig

#: Longer ages count as this one, in nanoseconds: 1,000 years.
_MAX_AGE: Final = 1000 * 365 * 86_400 * 1_000_000_000


def graphs_of(config: Config) -> dict[str, Graph]:
    """Return the graphs by name, each with its engine.

    Raises:
        ConfigError: a graph's limits, adapter or engine are invalid.
        ErgoCaptureError: an engine cannot be made, for example because its script is missing.
    """
    return {name: graph_of(name, graph, int(config.limits.context_bytes)) for name, graph in config.graphs.items()}


def graph_of(name: str, graph: GraphConfig, context_bytes: int, engine: Engine | None = None) -> Graph:
    """Return one graph.

    Args:
        name: its name.
        graph: its table in the configuration.
        context_bytes: bytes of JSON that the context store of one of its sessions may take.
        engine: its engine, if it has one already; otherwise the configured one is made.

    Raises:
        ConfigError: its limits, adapter or engine are invalid.
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
    binding = _binding_of(name, graph, context_bytes)
    adapter = None if binding is None else binding[1].adapter
    contract, egress = None if binding is None else binding[0], egress_of(name, graph, adapter)
    if contract is not None and egress is not None:
        contract = msgspec.structs.replace(contract, routed=tuple(egress.routes))
    return Graph(
        name=name,
        constraints=constraints,
        adapter_provenance=graph.adapter_provenance if adapter is None else adapter.provenance,
        runtime_provenance=graph.runtime_provenance,
        engine=engine,
        egress=egress,
        access=access_of(graph.users, graph.groups, f"graphs.{name}"),
        contract=contract,
        binding=None if binding is None else binding[1],
    )


def _binding_of(name: str, graph: GraphConfig, context_bytes: int) -> tuple[Contract, Binding] | None:
    """Return the contract of a graph and its binding; None if payloads are captured as they were sent.

    Raises:
        ConfigError: the adapter cannot be read, is refused, or is not the one that ``adapter_provenance`` names.
    """
    if not graph.adapter and graph.payload == "verbatim":
        return None
    from ergo_capture.adapter.binding import Binding  # noqa: PLC0415 - slow to import, and most graphs have no adapter
    from ergo_capture.adapter.errors import EXTRA_MISSING, AdapterError  # noqa: PLC0415

    if not graph.adapter:
        return Contract(numbers=graph.numbers), Binding(None, graph.numbers)
    where = f"configure graph {name!r}"
    try:
        text = Path(graph.adapter).read_text(encoding="utf-8")
        binding = Binding(text, graph.numbers, context_bytes, name=graph.adapter)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{where}: read adapter '{graph.adapter}': {reason}",
            op="configure graph",
            path=graph.adapter,
            hint=f"check [graphs.{name}] adapter: a relative path begins at the configuration's directory",
        ) from error
    except AdapterError as error:
        place = "" if error.code == EXTRA_MISSING else f"; at {error.where} of '{graph.adapter}'"
        raise ConfigError(
            f"{where}: {error.code}: {error.message}{place}",
            op="configure graph",
            path=graph.adapter,
            hint=error.fix,
        ) from error
    assert binding.adapter is not None
    stated, provenance = graph.adapter_provenance, binding.adapter.provenance
    if stated not in (NO_ADAPTER_PROVENANCE, provenance):
        raise ConfigError(
            f"{where}: adapter_provenance is {stated!r}, and the adapter '{graph.adapter}' is {provenance!r}",
            op="configure graph",
            path=graph.adapter,
            hint="leave adapter_provenance out: it is taken from the adapter",
        )
    return Contract(adapter=text, numbers=graph.numbers, context_bytes=context_bytes), binding


def _event_time(duration: Duration | None) -> EventTime | None:
    return None if duration is None else EventTime.from_nanos(duration)


def engine_of(name: str, graph: GraphConfig) -> Engine:
    """Return the engine that a graph's table configures.

    Raises:
        ErgoCaptureError: it cannot be made.
    """
    engine, provenance = graph.engine, graph.runtime_provenance
    if isinstance(engine, FixedEngineConfig):
        return FixedEngine(RunTermination.from_builtins(engine.termination))
    if isinstance(engine, ScriptedEngineConfig):
        return ScriptedEngine(Path(engine.file))
    if isinstance(engine, PythonEngineConfig):
        return PythonEngine(engine.callable, engine.pipeline)
    if isinstance(engine, ProcessEngineConfig):
        return ProcessEngine(name, provenance, engine.command, engine)
    if isinstance(engine, SocketEngineConfig):
        return SocketEngine(name, provenance, engine.path, engine)
    assert_never(engine)


def egress_of(name: str, graph: GraphConfig, adapter: Adapter | None) -> EgressConfig | None:
    """Return the egress channels that a graph's tables configure; None where it has none.

    Raises:
        ConfigError: the graph has no adapter, or a kind of intents is not one that it accepts, or has two channels.
    """
    if not graph.egress:
        return None
    from ergo_capture.adapter.egress import EgressConfig, Route, check_owners  # noqa: PLC0415 - few graphs have any
    from ergo_capture.adapter.errors import AdapterError  # noqa: PLC0415
    from ergo_capture.adapter.store import SET_CONTEXT  # noqa: PLC0415

    def refused(why: str, hint: str) -> ConfigError:
        return ConfigError(f"configure graph {name!r}: {why}", op="configure graph", hint=hint)

    if adapter is None:
        raise refused("it has egress channels and no adapter", f"set [graphs.{name}] adapter: it names the intents")
    routes: dict[str, Route] = {}
    for channel, table in graph.egress.items():
        for kind, route in table.routes.items():
            if kind in routes:
                both = f"'{routes[kind].channel}' and '{channel}'"
                raise refused(f"intents of kind '{kind}' go to the egress channels {both}", "name each kind once")
            routes[kind] = Route(channel, None if route.ack_timeout is None else _millis(route.ack_timeout, refused))
    config = EgressConfig(
        _millis(graph.default_ack_timeout, refused),
        {channel: table.command for channel, table in sorted(graph.egress.items())},
        dict(sorted(routes.items())),
    )
    try:
        config.check(adapter.effects, ())
        check_owners(adapter.effects, {SET_CONTEXT} & {*adapter.effects}, routes)
    except AdapterError as error:
        raise refused(f"{error.message}, in '{graph.adapter}'", error.fix) from error
    return config


def _millis(duration: Duration, refused: Callable[[str, str], ConfigError]) -> int:
    millis, rest = divmod(duration, 1_000_000)
    if rest or not millis:
        raise refused(f"the ack time-out {duration} is not in whole milliseconds, at least 1", "write 500ms or 2s")
    return millis


def access_list(config: Config) -> Access:
    """Return the allow-list of users and groups that may connect.

    Raises:
        ConfigError: a listed user or group does not exist.
    """
    return access_of(config.access.users, config.access.groups, "access")


def retention_rules(config: Config) -> RetentionRules:
    """Return the rules by which finished bundles are deleted."""
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
        {name: place_of(config.ship.targets[name]) for name in general.shipped_to},
        age_of(general.give_up_after),
        config.ship.announce.subject if config.ship.announce.servers else "",
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
