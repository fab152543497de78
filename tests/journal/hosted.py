"""Journals of a session with an adapter, written beside the reference's host, which gives the expected bundles."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from tests.adapter.test_accept import MANIFEST as WITHOUT_EGRESS
from tests.journal.journals import compose, journal_in, parts_of, recovered

from ergo_capture.adapter import AdapterError, load_adapter
from ergo_capture.adapter.binding import read_hosted_lines
from ergo_capture.adapter.egress import EgressConfig, EgressFailure, Route
from ergo_capture.adapter.host import Host
from ergo_capture.journal.decision_rows import DecisionRows, Refusal
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import (
    Ack,
    Closing,
    Contract,
    Interruption,
    LeftOver,
    Outcome,
    Publication,
    Rotation,
    SessionDescription,
    encode_body,
)
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, IntentField, IntentRecord, Value
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import ErrKind, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry, RunResult
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.kernel.time import EventTime

WHEN = "2026-11-28T12:00:00.000Z"
NO_FIELDS = "payload_schema: { type: object, additionalProperties: false }"
MANIFEST = WITHOUT_EGRESS.replace("effects: [", f"effects: [{{ name: send, {NO_FIELDS} }}, ")
EGRESS = EgressConfig(1000, {"out": ("x",)}, {"send": Route("out", None)})
CONTRACT = Contract(adapter=MANIFEST, routed=("send",))
ADAPTER = load_adapter(MANIFEST)
#: A deferral now and then, and a retry.
LIMITS = Constraints(max_per_window=3, rate_window=EventTime(2, 0), max_retries=1)

#: An event as it is sent: id, kind, seconds, semantic kind, payload.
Sent = tuple[str, str, int, str, dict[str, Any]]


def sets(**values: float) -> RunResult:
    """Return a run that writes to the context store."""
    writes = tuple(EffectWrite(key, Value(Number=value)) for key, value in values.items())
    return RunResult(RunTermination.Completed, (ActionEffect("set_context", writes),))


def sends(*intent_ids: str, **values: float) -> RunResult:
    """Return a run that writes the given values to the context store, and emits intents."""
    intents = tuple(IntentRecord("send", name, (IntentField("x", Value(Number=1)),)) for name in intent_ids)
    written = sets(**values).effects if values else ()
    return RunResult(RunTermination.Completed, (*written, ActionEffect("send", (), intents)))


FAILED = RunResult(RunTermination.Failed(ErrKind.SemanticError))


def description_of(number: int, constraints: Constraints, contract: Contract) -> SessionDescription:
    """Return the description of a session with the adapter."""
    return SessionDescription(
        session=f"20261128T120000Z-{number}-0000000{number}",
        graph="hosted",
        constraints=constraints,
        adapter_provenance=ADAPTER.provenance,
        runtime_provenance="rpv1:hosted",
        engine="fixed",
        labels={},
        peer=None,
        opened_at=WHEN,
        program="ergo-capture 0.2.0",
        contract=contract,
        egress_provenance=EGRESS.provenance(),
    )


class HostedLife:
    """A session whose frames are like the daemon's, and whose decisions the host takes.

    Args:
        number: its number in the journal.
        results: how the runs of each event end, by its id; others complete without effects.
        unacknowledged: the intents whose dispatch fails.
        constraints: the supervisor's limits.
        contract: the session's.
    """

    def __init__(
        self,
        number: int = 1,
        results: dict[str, RunResult] | None = None,
        *,
        unacknowledged: Iterable[str] = (),
        constraints: Constraints = LIMITS,
        contract: Contract = CONTRACT,
    ) -> None:
        self.number = number
        self.results = results or {}
        self.unacknowledged = set(unacknowledged)
        self.contract = contract
        self.description = description_of(number, constraints, contract)
        #: Lines accepted, and how many of them are decided or refused.
        self.lines: list[bytes] = []
        self.decided = 0
        self.refused: list[tuple[int, str]] = []
        self.interruption: Interruption | None = None
        self.part = 1
        #: The hosts of the parts, and where each part begins.
        self.hosts: list[Host] = []
        self.firsts: list[int] = []
        #: The stores at the beginnings of the parts.
        self.stores: list[dict[str, Any]] = []
        self._begin(None)

    def _begin(self, before: Host | None) -> None:
        host = Host(
            "hosted",
            self.description.constraints,
            self,
            "rpv1:hosted",
            adapter=load_adapter(MANIFEST, numbers=self.contract.numbers),
            egress=EGRESS,
            channels=self,
            store=None if before is None else before.store,
        )
        self.hosts.append(host)
        self.firsts.append(self.decided)
        self.stores.append(host.store.snapshot())

    @property
    def host(self) -> Host:
        """Return the host of the current part."""
        return self.hosts[-1]

    # --- what the host calls ---

    def run(self, graph_id: str, event_id: str, event: EventLike, deadline: EventTime | None) -> RunResult:
        """End an attempt (``RuntimeInvoker``)."""
        return self.results.get(event_id, RunResult(RunTermination.Completed))

    def start(self) -> None:
        """Do nothing (``Channels``)."""

    def dispatch(self, intent: IntentRecord) -> CapturedIntentAck:
        """Acknowledge an intent (``Channels``)."""
        if intent.intent_id in self.unacknowledged:
            raise EgressFailure("egress_ack_timeout", "out", intent.intent_id)
        return ack_of(intent.intent_id)

    def finish(self, *, host_stop: bool) -> None:
        """Do nothing (``Channels``)."""

    # --- frames ---

    def opened(self) -> PendingFrame:
        """Return the OPEN frame."""
        return PendingFrame(FrameKind.OPEN, self.number, 0, 0, encode_body(self.description))

    def events(self, *sent: Sent) -> PendingFrame:
        """Return a frame of accepted events."""
        lines = [
            json.dumps(
                {
                    "type": "event",
                    "event": {
                        "event_id": event_id,
                        "kind": kind,
                        "at": {"secs": secs, "nanos": 0},
                        "semantic_kind": semantic_kind,
                        "payload": payload,
                    },
                }
            ).encode()
            + b"\n"
            for event_id, kind, secs, semantic_kind, payload in sent
        ]
        frame = PendingFrame(FrameKind.EVENTS, self.number, len(self.lines), len(lines), b"".join(lines))
        self.lines += lines
        return frame

    def decisions(self, count: int | None = None) -> PendingFrame:
        """Return a frame of decisions and refusals about the next events, by default all."""
        first = self.decided
        end = len(self.lines) if count is None else first + count
        rows = DecisionRows()
        for event in read_hosted_lines(b"".join(self.lines[first:end]), self.contract.numbers):
            if self.interruption is not None:
                break
            try:
                entry = self.host.step(event)
            except EgressFailure as failure:
                entry = self.host.bundle().decisions[-1]
                self.interruption = Interruption(
                    reason=failure.reason, message=str(failure), channel=failure.channel, intent_id=failure.intent_id
                )
            except AdapterError as error:
                self.refused.append((self.decided, event.event_id))
                self.decided += 1
                rows.add_refusal(Refusal(error.code, error.message))
                continue
            self.decided += 1
            rows.add(cast("DecisionLogEntry", entry))
            if self.interruption is not None:
                rows.add_end(self.interruption)
        return PendingFrame(FrameKind.DECISIONS, self.number, first, rows.count, rows.encode())

    def outcome(self, result: RunResult) -> PendingFrame:
        """Return the OUTCOME frame of the next event's episode, as it is written before the intents are sent."""
        body = encode_body(Outcome.of(self.decided, 0, result))
        return PendingFrame(FrameKind.OUTCOME, self.number, self.decided, 0, body)

    def ack(self, intent_id: str) -> PendingFrame:
        """Return the ACK frame of one of the intents."""
        return PendingFrame(
            FrameKind.ACK, self.number, self.decided, 0, encode_body(Ack(self.decided, ack_of(intent_id)))
        )

    def rotated(self) -> PendingFrame:
        """Return the frame that ends a part."""
        last = read_hosted_lines(self.lines[self.decided - 1], self.contract.numbers)[0].event_id
        store = self.host.store.snapshot()
        body = Rotation(self.part, False, WHEN, self.description, last, store, len(self.refused))
        self.part += 1
        self._begin(self.host)
        return PendingFrame(FrameKind.ROTATE, self.number, self.decided, 0, encode_body(body))

    @property
    def left_over(self) -> LeftOver | None:
        """The events after the interruption; None if there are none."""
        rest = self.lines[self.decided :]
        if self.interruption is None or not rest:
            return None
        return LeftOver(self.decided, read_hosted_lines(rest[0], self.contract.numbers)[0].event_id, len(rest))

    def closed(self, ended: str = "complete") -> PendingFrame:
        """Return the frame that ends the session."""
        body = encode_body(Closing(ended, WHEN, interruption=self.interruption, left_over=self.left_over))
        rest = len(self.lines) - self.decided
        return PendingFrame(FrameKind.CLOSE, self.number, self.decided, rest, body)

    def published(self, part: int, *, final: bool) -> PendingFrame:
        """Return the frame that says that a bundle is durable."""
        body = Publication(part, "bundles/x.capture.json", "bundles/x.manifest.json", "0" * 64, final)
        return PendingFrame(FrameKind.PUBLISHED, self.number, part, int(final), encode_body(body))


def ack_of(intent_id: str) -> CapturedIntentAck:
    """Return a channel's acknowledgement."""
    return CapturedIntentAck(intent_id, "out", "accepted", "durable", f"ref-{intent_id}")


def write(directory: Path, *batches: list[PendingFrame]) -> None:
    """Commit batches to a new journal."""
    directory.mkdir(parents=True, exist_ok=True)
    journal = journal_in(directory, segment_bytes=1 << 20)
    for batch in batches:
        journal.commit(batch)
    journal.close()
    with suppress(FileNotFoundError):
        (directory / "0000000000000002.journal.new").unlink()


def publish_all(journal: Path, folder: Path, *, style: str = "compact") -> list[Path]:
    """Compose and publish each part of the one session of a journal, as the daemon does after a start."""
    recovery = recovered(journal)
    assert recovery.reasons == {}
    (session,) = recovery.sessions
    return [
        compose(
            journal,
            session,
            part,
            folder / f"s{'' if part.part == 1 else f'~{part.part}'}.capture.json",
            style=style,
            ended_at=WHEN,
        )
        for part in parts_of(session)
    ]
