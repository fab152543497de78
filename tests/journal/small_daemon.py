"""A daemon of one session with an adapter and egress channels, as small as one can be: it yields the frames it commits.

It can be stopped after any frame, and taken up again from what a recovery finds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from tests.journal.hosted import CONTRACT, LIMITS, WHEN, Sent, ack_of, description_of

from ergo_capture.adapter.binding import read_hosted_lines
from ergo_capture.adapter.egress import EgressFailure
from ergo_capture.adapter.events import HostedEvent
from ergo_capture.journal.decision_rows import DecisionRows, Refusal
from ergo_capture.journal.derivation import Derivation
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import (
    Ack,
    Body,
    Closing,
    Contract,
    Interruption,
    LeftOver,
    Outcome,
    Rotation,
    SessionDescription,
    encode_body,
)
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry, RunResult
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.kernel.supervisor import Run

PLAIN = RunResult(RunTermination.Completed)


@dataclass
class Script:
    """The actions of clients, engine and channels, and the ends of parts."""

    #: Frames of events.
    events: list[list[Sent]]
    #: The results of the runs of each event; others complete without effects.
    results: dict[str, RunResult]
    unacknowledged: set[str] = field(default_factory=set)
    #: Decided events after which a part ends, where nothing is deferred.
    rotate_after: set[int] = field(default_factory=set)
    #: Frames of events that are accepted before the first of them is decided.
    lag: int = 0
    contract: Contract = CONTRACT
    #: Intents that were sent, over all starts.
    sent: list[str] = field(default_factory=list)
    #: Events whose episode ran, over all starts.
    ran: list[str] = field(default_factory=list)

    @property
    def description(self) -> SessionDescription:
        """Return the description of the session."""
        return description_of(1, LIMITS, self.contract)

    def lines(self) -> list[list[bytes]]:
        """Return the events as they are sent, by frame."""
        return [[_line(sent) for sent in frame] for frame in self.events]


def _line(sent: Sent) -> bytes:
    event_id, kind, secs, semantic_kind, payload = sent
    event = {"event_id": event_id, "kind": kind, "at": {"secs": secs, "nanos": 0}}
    event |= {"semantic_kind": semantic_kind, "payload": payload}
    return json.dumps({"type": "event", "event": event}).encode() + b"\n"


class SmallDaemon:
    """Runs a script.

    Args:
        script: the script.
        session: what a recovery found of its session; None for the first start, and where there was nothing.
    """

    def __init__(self, script: Script, session: RecoveredSession | None) -> None:
        self.script = script
        self.is_new = session is None
        self.session = session or RecoveredSession.new(1, script.description, 1)
        self.session.supervisor.rebind(self, None)
        contract = script.description.contract
        assert contract is not None
        self.derivation = Derivation(contract, self.session.store)
        self.decided = self.session.decided
        self.accepted = self.session.accepted
        self.refused = self.session.refused
        self.part, self.first = self.session.part, self.session.first
        self.interruption = self.session.interruption
        self.waiting: list[HostedEvent] = read_hosted_lines(self.session.undecided_lines, contract.numbers)
        self.last_event_id = self.session.last_event_id
        self.rows = DecisionRows()

    def log(self, entry: DecisionLogEntry) -> None:
        """Take a decision (``DecisionLog``)."""
        self.rows.add(entry)

    def _frame(self, kind: FrameKind, body: Body, first: int, count: int = 0) -> PendingFrame:
        return PendingFrame(kind, 1, first, count, encode_body(body))

    def run(self) -> Iterator[PendingFrame]:
        """Yield every frame, durable before the next one is asked for, to the end of the session."""
        if self.session.closing is not None:
            return
        if self.is_new:
            yield self._frame(FrameKind.OPEN, self.script.description, 0)
        yield from self._decide_waiting(0)
        index = 0
        for lines in self.script.lines():
            rest = lines[max(0, self.accepted - index) :]
            index += len(lines)
            if self.interruption is not None:
                break
            if rest:
                yield PendingFrame(FrameKind.EVENTS, 1, self.accepted, len(rest), b"".join(rest))
                self.accepted += len(rest)
                self.waiting += read_hosted_lines(b"".join(rest), CONTRACT.numbers)
                yield from self._decide_waiting(self.script.lag)
        yield from self._decide_waiting(0)
        left_over = self.session.left_over
        if self.interruption is not None and self.waiting:
            left_over = LeftOver(self.decided, self.waiting[0].event_id, len(self.waiting))
        ended = "complete" if self.interruption is None else "interrupted"
        closing = Closing(ended, WHEN, interruption=self.interruption, left_over=left_over)
        yield self._frame(FrameKind.CLOSE, closing, self.decided, 0 if left_over is None else left_over.count)

    def _decide_waiting(self, lag: int) -> Iterator[PendingFrame]:
        yield from self._rotate()
        while self.interruption is None and len(self.waiting) > lag:
            yield from self._decide(self.waiting.pop(0))
            yield from self._rotate()
        yield from self._flush()

    def _flush(self) -> Iterator[PendingFrame]:
        rows, self.rows = self.rows, DecisionRows()
        if rows.count or rows.is_end:
            yield PendingFrame(FrameKind.DECISIONS, 1, self.decided - rows.count, rows.count, rows.encode())

    def _rotate(self) -> Iterator[PendingFrame]:
        # Between two frames of events, as the daemon does.
        if self.decided == self.first or self.decided not in accumulate(map(len, self.script.events)):
            return
        wanted = 1 + sum(after <= self.decided for after in self.script.rotate_after)
        if self.interruption is None and self.part < wanted and not self.session.supervisor.deferred_count:
            yield from self._flush()
            store = self.derivation.snapshot()
            body = Rotation(self.part, False, WHEN, self.script.description, self.last_event_id, store, self.refused)
            yield self._frame(FrameKind.ROTATE, body, self.decided)
            self.part, self.first = self.part + 1, self.decided
            fresh = RecoveredSession.new(1, self.script.description, 1)
            self.session.supervisor = fresh.supervisor
            self.session.supervisor.rebind(self, None)

    def _decide(self, event: HostedEvent) -> Iterator[PendingFrame]:
        bound = self.derivation.bind(event)
        self.last_event_id = event.event_id
        if isinstance(bound, Refusal):
            self.rows.add_refusal(bound)
            self.refused += 1
            self.decided += 1
            return
        supervisor = self.session.supervisor
        step = supervisor.offer(bound.event)
        if not isinstance(step, Run):
            self.decided += 1
            return
        pending, self.session.outcome = self.session.outcome, None
        acks: list[CapturedIntentAck] = []
        interruption: str | None = None
        if pending is not None:
            result, acks = pending.outcome.to_result(), list(pending.acks)
            retries = pending.outcome.retry_count
        else:
            self.script.ran.append(step.origin.event_id)
            result = self.script.results.get(step.origin.event_id) or PLAIN
            retries = LIMITS.max_retries if result.termination.retryable else 0
        outcome = Outcome.of(self.decided, retries, result)
        if outcome.intents and pending is None:
            yield from self._flush()
            yield self._frame(FrameKind.OUTCOME, outcome, self.decided)
        for intent in outcome.intents[len(acks) :]:
            self.script.sent.append(intent.intent_id)
            if intent.intent_id in self.script.unacknowledged:
                failure = EgressFailure("egress_ack_timeout", "out", intent.intent_id)
                interruption = failure.interruption
                self.interruption = Interruption(
                    reason=failure.reason, message=str(failure), channel="out", intent_id=intent.intent_id
                )
                break
            acks.append(ack_of(intent.intent_id))
            yield self._frame(FrameKind.ACK, Ack(self.decided, acks[-1]), self.decided)
        ended = RunResult(result.termination, result.effects, tuple(acks), interruption)
        supervisor.settle(step, ended.termination, retries, ended)
        self.decided += 1
        self.interruption = self.derivation.settle(ended.effects) or self.interruption
        if self.interruption is not None:
            self.rows.add_end(self.interruption)
