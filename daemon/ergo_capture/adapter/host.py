"""The reference's host, as a step machine: an event in, a captured decision out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from ergo_capture.adapter.contract import Adapter
from ergo_capture.adapter.egress import EgressConfig, EgressFailure, check_intents
from ergo_capture.adapter.errors import INVALID_EFFECT, INVALID_EVENT, SCHEMA_VIOLATION, AdapterError
from ergo_capture.adapter.events import HostedEvent, without_adapter
from ergo_capture.adapter.store import SET_CONTEXT, ContextStore
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, IntentRecord
from ergo_capture.kernel.events import ExternalEvent
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.ports import MemoryDecisionLog, RuntimeInvoker
from ergo_capture.kernel.records import (
    CAPTURE_FORMAT_VERSION,
    NO_ADAPTER_PROVENANCE,
    CaptureBundle,
    CapturedIntentAck,
    EpisodeInvocationRecord,
    ExternalEventRecord,
)
from ergo_capture.kernel.supervisor import Supervisor

#: The reference's words for each code of a run that fails: message, where, fix.
_WORDS: Final[Mapping[str, tuple[str, str, str]]] = {
    "adapter.setup_failed": (
        "failed to prepare adapter setup",
        "adapter setup",
        "verify adapter manifest, composition, and binder requirements",
    ),
    "host.configuration_invalid": (
        "host configuration validation failed",
        "canonical host configuration",
        "inspect adapter, egress, and graph ownership expectations",
    ),
    "egress.start_failed": (
        "failed to start egress channels",
        "egress startup",
        "verify egress command/path and startup protocol",
    ),
    "driver.input_invalid": (
        "driver input is invalid",
        "canonical host ingress",
        "repair the fixture or driver configuration",
    ),
    "driver.start_failed": (
        "failed to start canonical run driver",
        "canonical host ingress",
        "verify the driver command/path and protocol startup",
    ),
    "driver.protocol_invalid": (
        "driver protocol is invalid",
        "canonical host ingress",
        "send hello first, then event lines, then end",
    ),
    "driver.output_incomplete": (
        "driver output is invalid",
        "canonical host ingress",
        "let the driver commit at least one event before stopping",
    ),
    "driver.output_invalid": (
        "driver output is invalid",
        "canonical host ingress",
        "repair the driver or fixture so it produces canonical episode/event output",
    ),
    "host.step_failed": (
        "canonical host step failed",
        "canonical host execution",
        "inspect ingress payload/schema and host effect handlers",
    ),
}


class Refusal(msgspec.Struct, frozen=True):
    """The reference's report of a run that failed; no capture is kept."""

    code: str
    message: str
    where: str
    fix: str
    rule: str | None = None
    detail: str | None = None

    def __str__(self) -> str:
        lines = [f"error: {self.message}", f"code: {self.code}"]
        lines += [f"rule: {self.rule}"] if self.rule else []
        lines += [f"where: {self.where}", f"fix: {self.fix}"]
        lines += [f"detail: {self.detail}"] if self.detail else []
        return "\n".join(lines)


class HostError(Exception):
    """A run failed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def failed(code: str, detail: str) -> HostError:
    """Return the error for a run that failed with one of the reference's codes."""
    message, where, fix = _WORDS[code]
    return HostError(Refusal(code, message, where, fix, detail=detail))


class Channels(Protocol):
    """The egress channels of a run."""

    def start(self) -> None:
        """Start them, in the order of their names, and wait until each is ready; raise HostError if one is not."""

    def dispatch(self, intent: IntentRecord) -> CapturedIntentAck:
        """Send an intent and return its ack; raise EgressFailure if it is not acknowledged."""

    def finish(self, *, host_stop: bool) -> None:
        """End them; raise HostError if one sends a line after its last ack, or does not end."""


class Host:
    """One run of a graph (``HostedRunner``).

    Args:
        graph_id: the graph.
        constraints: the supervisor's limits.
        runtime: the engine.
        runtime_provenance: the engine's provenance.
        adapter: the graph's adapter; None for none.
        egress: the routes of intents; None for none.
        channels: the channels that ``egress`` names.
        store: the context store to begin with.
    """

    def __init__(
        self,
        graph_id: str,
        constraints: Constraints,
        runtime: RuntimeInvoker,
        runtime_provenance: str,
        *,
        adapter: Adapter | None = None,
        egress: EgressConfig | None = None,
        channels: Channels | None = None,
        store: ContextStore | None = None,
    ) -> None:
        self.adapter = adapter
        self.store = ContextStore() if store is None else store
        self._egress = egress
        self._channels = channels
        self._ids: set[str] = set()
        self._bundle = CaptureBundle(
            CAPTURE_FORMAT_VERSION,
            graph_id,
            constraints,
            [],
            [],
            NO_ADAPTER_PROVENANCE if adapter is None else adapter.provenance,
            runtime_provenance,
            None if egress is None else egress.provenance(),
        )
        self._supervisor = Supervisor(graph_id, constraints, MemoryDecisionLog(), runtime)

    def step(self, event: HostedEvent) -> EpisodeInvocationRecord:
        """Capture an event, decide it, and apply the effects of its episode.

        Raises:
            AdapterError: the event or an effect is refused; the reference ends the run and keeps no capture.
            EgressFailure: an intent was not acknowledged; the run is interrupted, and the capture holds the event.
        """
        external = self._build(event)
        if external.event_id in self._ids:
            raise AdapterError(
                INVALID_EVENT,
                f"duplicate event_id '{external.event_id}' in canonical host runner",
                where="event_id",
                fix="give each event of a run an id of its own",
            )
        self._ids.add(external.event_id)
        self._bundle.events.append(ExternalEventRecord.from_event(external))
        record = self._supervisor.drive(external).to_record()
        self._bundle.decisions.append(record)
        if record.decision is Decision.Invoke and record.effects:
            record = self._carry_out(record)
        return record

    def bundle(self) -> CaptureBundle:
        """Return the capture so far."""
        return self._bundle

    def _build(self, event: HostedEvent) -> ExternalEvent:
        if self.adapter is not None:
            return self.adapter.bind(event, self.store).event
        if event.payload is not None and not isinstance(event.payload, dict):
            raise AdapterError(
                SCHEMA_VIOLATION, "payload must be a JSON object", where="$", fix="send an object, or no payload"
            )
        return without_adapter(event)

    def _carry_out(self, record: EpisodeInvocationRecord) -> EpisodeInvocationRecord:
        if self.adapter is None:
            raise _effect_error("effects emitted in adapter-independent mode", "")
        acks: list[CapturedIntentAck] = []
        interruption = None
        failure = None
        try:
            for captured in record.effects:
                self._apply(captured.effect, self.adapter, acks)
        except EgressFailure as error:
            failure, interruption = error, error.interruption
        if acks or failure is not None:
            record = msgspec.structs.replace(record, intent_acks=tuple(acks), interruption=interruption)
            self._bundle.decisions[-1] = record
        if failure is not None:
            raise failure
        return record

    def _apply(self, effect: ActionEffect, adapter: Adapter, acks: list[CapturedIntentAck]) -> None:
        kind = effect.kind
        routed = self._egress is not None and kind in self._egress.routes
        if kind == SET_CONTEXT and not routed:
            if effect.intents:
                raise _effect_error(f"handler-owned effect '{kind}' must not carry intents", kind)
            self.store.apply(effect, adapter)
            return
        if not routed or self._channels is None:
            raise AdapterError(
                INVALID_EFFECT,
                f"effect application failed: no registered effect handler for kind '{kind}'",
                where=f"effect '{kind}'",
                fix=f"route '{kind}' to an egress channel",
            )
        check_intents(effect)
        for intent in effect.intents:
            acks.append(self._channels.dispatch(intent))  # noqa: PERF401 - those before a failure are kept

    def __repr__(self) -> str:
        return f"<Host {len(self._bundle.events)} events, {self.store!r}, {self._supervisor!r}>"


def _effect_error(detail: str, kind: str) -> AdapterError:
    message = detail if not kind else f"host lifecycle violation: {detail}"
    fix = "let the engine report what the graph's actions declare"
    return AdapterError(INVALID_EFFECT, message, where=f"effect '{kind}'", fix=fix)


class End(msgspec.Struct, frozen=True):
    """The end of a run's events."""

    #: ``completed`` or ``interrupted``.
    status: str
    #: The reason of the interruption.
    reason: str | None = None
    channel: str | None = None
    intent_id: str | None = None

    @classmethod
    def of(cls, failure: EgressFailure) -> End:
        """Return the end of a run by a failed dispatch."""
        return cls("interrupted", failure.reason, failure.channel, failure.intent_id)


COMPLETED: Final = End("completed")
HOST_STOP: Final = "host_stop_requested"


def interrupted(reason: str) -> End:
    """Return the end of a run that was interrupted."""
    return End("interrupted", reason)


def step_failed(error: AdapterError) -> HostError:
    """Return the error for a run in which an event or an effect was refused."""
    return failed("host.step_failed", error.message)
