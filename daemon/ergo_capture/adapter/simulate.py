"""Simulate a run of the reference's host from the outcomes that its engine returned."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from ergo_capture.adapter.canonical import Numbers
from ergo_capture.adapter.composition import Node, check_composition, emitted_kinds
from ergo_capture.adapter.contract import Adapter, load_adapter
from ergo_capture.adapter.egress import EgressConfig, check_owners, parse_egress_config
from ergo_capture.adapter.errors import EXTRA_MISSING, AdapterError
from ergo_capture.adapter.host import HOST_STOP, Channels, End, Host, HostError, Refusal, failed
from ergo_capture.adapter.ingress import (
    SUCCESS,
    Observation,
    Progress,
    read_fixture,
    run_driver,
    run_fixture,
)
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.constraints import NO_CONSTRAINTS, Constraints
from ergo_capture.kernel.effects import ActionEffect
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.records import CaptureBundle
from ergo_capture.kernel.time import EventTime


class CaseError(ErgoCaptureError, ValueError):
    """A case is refused, or its engine's outcomes do not fit its events."""


class EngineOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of one call of the engine."""

    event_id: str
    termination: Any
    effects: tuple[ActionEffect, ...] = ()


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run that can be simulated; ``driver_lines`` or ``fixture`` holds its events."""

    graph_id: str
    #: One for each call of the engine, in order.
    engine_outcomes: list[EngineOutcome]
    #: The lines that the driver printed.
    driver_lines: list[str] | None = None
    fixture: str | None = None
    adapter_yaml: str | None = None
    runtime_provenance: str = "rpv1:none"
    constraints: Constraints | None = None
    numbers: Numbers = "reference"
    #: The number of events after which the host stops; None for all.
    max_events: int | None = None
    #: The driver's exit status, in the reference's words.
    driver_status: str = SUCCESS
    driver_command: tuple[str, ...] = ("./driver",)
    egress_toml: str | None = None
    #: The needs of the graph's nodes; None if unknown.
    nodes: tuple[Node, ...] | None = None


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of a simulated run."""

    #: ``completed``, ``interrupted`` or ``refused``.
    status: str
    #: The reason of the interruption, or the reference's code for the refusal.
    reason: str | None = None
    channel: str | None = None
    intent_id: str | None = None
    episodes: int = 0
    events: int = 0
    invoked: int = 0
    deferred: int = 0
    #: The capture that the reference would have written; None where it refused the run.
    bundle: CaptureBundle | None = None
    refusal: Refusal | None = None
    warnings: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The line that the reference prints for it."""
        if self.refusal is not None:
            return str(self.refusal)
        words = [f"status={self.status}"]
        named = (("reason", self.reason), ("channel", self.channel), ("intent_id", self.intent_id))
        words += [f"{name}={value}" for name, value in named if value is not None]
        counts = ("episodes", "events", "invoked", "deferred")
        return " ".join([*words, *(f"{name}={getattr(self, name)}" for name in counts)])


_HINT: Final = (
    'a case is {"graph_id": ..., "driver_lines": [...] or "fixture": ..., "engine_outcomes": [{"event_id": ..., '
    '"termination": ..., "effects": [...]}], "adapter_yaml": ..., "runtime_provenance": ..., "constraints": {...}}'
)


def read_case(text: str | bytes) -> Case:
    """Return the case of a JSON text.

    Raises:
        CaseError: it is not a case; the message names the field.
    """
    try:
        case = msgspec.json.decode(text, type=Case)
        for outcome in case.engine_outcomes:
            RunTermination.from_builtins(outcome.termination)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"read case: {error}") from error
    if (case.driver_lines is None) == (case.fixture is None):
        raise _invalid("read case: exactly one of `driver_lines` and `fixture` is needed")
    return case


def _invalid(message: str) -> CaseError:
    return CaseError(message, op="simulate", hint=_HINT)


class RecordedEngine:
    """An engine that returns what was recorded, call by call."""

    def __init__(self, outcomes: Iterable[EngineOutcome]) -> None:
        self._outcomes = deque(outcomes)

    def run(self, graph_id: str, event_id: str, event: EventLike, deadline: EventTime | None) -> RunResult:
        """Return the next outcome.

        Raises:
            CaseError: it belongs to another event, or there are no more.
        """
        del graph_id, event
        found = self._outcomes and self._outcomes[0].event_id == event_id
        if not found and deadline is not None and deadline.is_zero():
            return RunResult(RunTermination.Aborted)
        if not found:
            has = f"the next is of '{self._outcomes[0].event_id}'" if self._outcomes else "there are no more"
            raise _invalid(f"engine_outcomes has none for a run of '{event_id}': {has}")
        outcome = self._outcomes.popleft()
        return RunResult(RunTermination.from_builtins(outcome.termination), outcome.effects)


def simulate(
    case: Case, *, observations: Iterable[Observation] | None = None, channels: Channels | None = None
) -> Outcome:
    """Return the outcome of a case with the reference's host.

    Args:
        case: the run.
        observations: the driver as the host observes it; by default the case's lines and then its end.
        channels: the egress channels that the case's configuration names.

    Raises:
        CaseError: the engine's outcomes do not fit the events.
        AdapterError: EXTRA_MISSING if the packages that adapters need are not installed.
    """
    warnings: list[str] = []
    try:
        return _simulate(case, observations, channels, warnings)
    except HostError as error:
        refusal = error.refusal
        return Outcome("refused", refusal.code, refusal=refusal, warnings=tuple(warnings))


def _simulate(
    case: Case, observations: Iterable[Observation] | None, channels: Channels | None, warnings: list[str]
) -> Outcome:
    egress = None if case.egress_toml is None else _read_egress(case.egress_toml)
    adapter = None if case.adapter_yaml is None else _read_adapter(case.adapter_yaml, case.nodes or ())
    if adapter is None:
        _check_needed(case.nodes or ())
    else:
        _check_owners(case.nodes, egress, adapter, warnings)
    if case.fixture is None and adapter is None:
        raise HostError(
            Refusal(
                "adapter.production_requires_adapter",
                "production session requires an adapter contract but no --adapter was provided",
                "session intent",
                "provide --adapter <adapter.yaml> for production execution, or use a fixture driver/fixture-items "
                "ingress for adapter-exempt testing",
                "RUN-CANON-2",
            )
        )
    episodes = None
    if case.fixture is not None:
        episodes = read_fixture(case.fixture, bound=adapter is not None, numbers=case.numbers)
    if channels is not None:
        channels.start()
    engine = RecordedEngine(case.engine_outcomes)
    constraints = NO_CONSTRAINTS if case.constraints is None else case.constraints
    host = Host(
        case.graph_id,
        constraints,
        engine,
        case.runtime_provenance,
        adapter=adapter,
        egress=egress,
        channels=channels,
    )
    if episodes is not None:
        progress = Progress(episode.label for episode in episodes)
        end = run_fixture(host, episodes, progress, max_events=case.max_events)
    else:
        progress = Progress(["E1"])
        end = run_driver(
            host,
            _lines(case) if observations is None else observations,
            progress,
            command=case.driver_command,
            max_events=case.max_events,
            numbers=case.numbers,
        )
    return _finish(host, progress, end, channels, warnings)


def _lines(case: Case) -> Iterable[Observation]:
    yield from (Observation("line", line) for line in case.driver_lines or [])
    yield Observation("end_of_output", status=case.driver_status)


def _read_egress(text: str) -> EgressConfig:
    try:
        return parse_egress_config(text)
    except AdapterError as error:
        where, fix = "egress config 'egress.toml'", "fix the TOML schema for egress channels/routes"
        refusal = Refusal("cli.egress_config_parse_failed", error.message, where, fix)
        raise HostError(refusal) from error


def _read_adapter(text: str, nodes: Iterable[Node]) -> Adapter:
    try:
        adapter = load_adapter(text)
        check_composition(adapter, nodes)
    except AdapterError as error:
        if error.code == EXTRA_MISSING:
            raise
        raise failed("adapter.setup_failed", error.message) from error
    return adapter


def _check_needed(nodes: Iterable[Node]) -> None:
    reading = [node.id for node in nodes if any(key.required for key in node.reads)]
    writing = [node.id for node in nodes if node.writes or node.intents]
    if not reading and not writing:
        return
    details = [f"required source context at node(s): {', '.join(reading)}"] if reading else []
    details += [f"action writes at node(s): {', '.join(writing)}"] if writing else []
    raise HostError(
        Refusal(
            "adapter.required_for_graph",
            "graph requires adapter capabilities but no --adapter was provided",
            f"node '{(reading or writing)[0]}'",
            "provide --adapter <adapter.yaml> for canonical run",
            "RUN-CANON-2",
            "\ndetail: ".join(details),
        )
    )


def _check_owners(
    nodes: tuple[Node, ...] | None, egress: EgressConfig | None, adapter: Adapter, warnings: list[str]
) -> None:
    try:
        if egress is not None:
            warnings += egress.check(adapter.effects, egress.routes if nodes is None else emitted_kinds(nodes))
        elif nodes is not None:
            check_owners(adapter.effects, emitted_kinds(nodes))
    except AdapterError as error:
        detail = f"host configuration validation failed: {error.message}"
        raise failed("host.configuration_invalid", detail) from error


def _finish(host: Host, progress: Progress, end: End, channels: Channels | None, warnings: list[str]) -> Outcome:
    for label, count in zip(progress.labels, progress.counts, strict=True):
        if not count:
            raise failed("driver.output_invalid", f"episode '{label}' has no events")
    # A failed dispatch has ended the channels.
    if channels is not None and end.channel is None:
        channels.finish(host_stop=end.reason == HOST_STOP)
    bundle = host.bundle()
    invoked = sum(record.decision is Decision.Invoke for record in bundle.decisions)
    deferred = sum(record.decision is Decision.Defer for record in bundle.decisions)
    return Outcome(
        end.status,
        end.reason,
        end.channel,
        end.intent_id,
        len(progress.labels),
        len(bundle.events),
        invoked,
        deferred,
        bundle,
        warnings=tuple(warnings),
    )
