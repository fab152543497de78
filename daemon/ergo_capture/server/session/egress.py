"""Send the intents of one session's episodes, so that none is lost and none is sent again once its ack is durable.

For each episode with intents, in this order:

1. commit its OUTCOME frame, together with all decisions before it;
2. send the intents one after the other, and commit the ACK frame of each but the last;
3. log the decision, which holds all acks.

Recovery continues after the OUTCOME frame: it does not run the episode again, and sends the intents without an ack
again, with the same ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import anyio
import structlog

from ergo_capture import telemetry
from ergo_capture.adapter.egress import EgressConfig, EgressFailure
from ergo_capture.backoff import Backoff
from ergo_capture.egress.channel import EgressLifecycleError
from ergo_capture.egress.channel_set import ChannelSet
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import Ack, Interruption, Outcome, encode_body
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.kernel.effects import IntentRecord
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.notifier import Notifier
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.session.decision_log import JournalDecisionLog

log = structlog.get_logger()

#: The results of sending an intent, as they are counted.
INTENT_RESULTS: Final = ("acknowledged", "failed")
#: Seconds until channels of a recovered session that failed to start are started again: at first, and at most.
_BACK_OFF: Final = (0.1, 10.0)
#: Seconds that channels have to exit when the daemon stops and the session stays open.
_STOP_SECONDS: Final = 2.0
#: Reasons of interruption for which the reference kills its channels instead of ending them.
_KILLED: Final = frozenset({"invalid_effect", "context_full"})


class SessionEgress:
    """The egress channels of one session.

    Args:
        initial: the session as recovery found it, or a new one.
        config: the channels as configured now; None where there are none any more.
        writer: makes frames durable.
        decisions: the session's decisions; those before an outcome become durable with it.
        counts: counts intents that were ``acknowledged``, and dispatches that ``failed``.
    """

    def __init__(
        self,
        initial: RecoveredSession,
        config: EgressConfig | None,
        writer: Writer,
        decisions: JournalDecisionLog,
        counts: Counter[str],
    ) -> None:
        self._number = initial.number
        self._session, self._graph = initial.description.session, initial.description.graph
        self._routed = frozenset(() if initial.description.contract is None else initial.description.contract.routed)
        self._is_other = config is None or config.provenance() != initial.description.egress_provenance
        self._writer = writer
        self._decisions = decisions
        self._counts = counts
        #: The channel that the session waits for, in words; empty for none.
        self.waits_for = ""
        self.channels = None if config is None else ChannelSet(config, report=self._on_said)

    # --- channels ---

    async def start(self) -> None:
        """Start the channels of a new session.

        Raises:
            EgressLifecycleError: one is not ready; none is left running.
        """
        if self.channels is not None:
            await self.channels.start()

    async def finish(self, interruption: Interruption | None) -> None:
        """End the channels after the run. Errors of channels are only logged."""
        if self.channels is None:
            return
        if interruption is not None and interruption.reason in _KILLED:
            await self.channels.kill()
            return
        try:
            await self.channels.finish()
        except EgressLifecycleError as error:
            self._log_failure(error.channel, error)

    async def stop(self) -> None:
        """End the channels of a session that is not over; the next start of the daemon starts new ones."""
        if self.channels is None:
            return
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_STOP_SECONDS):
                try:
                    await self.channels.finish(host_stop=True)
                except EgressLifecycleError as error:
                    self._log_failure(error.channel, error)
            await self.channels.kill()

    async def _until_up(self, intents: Iterable[IntentRecord]) -> ChannelSet:
        """Return the running channels. After a recovery, start them when the first intent needs them."""
        channels = self.channels
        if channels is None or any(intent.kind not in channels.config.routes for intent in intents):
            raise ErgoCaptureError(
                f"send intents of session {self._session!r}: graph {self._graph!r} has no egress channel for them any more",
                op="send intents",
                hint=f"restore [graphs.{self._graph}.egress] as it was when the session was opened, and start the daemon "
                "again: the session goes on from there",
            )
        backoff, reason = Backoff(*_BACK_OFF), ""
        while not channels.is_up:
            if self._is_other:
                self._is_other = False
                log.warning(telemetry.EGRESS_CHANGED, session=self._session, graph=self._graph)
            try:
                await channels.start()
            except EgressLifecycleError as error:
                self.waits_for = f"egress channel '{error.channel}' to start"
                if error.message != reason:
                    reason = error.message
                    log.warning(
                        telemetry.EGRESS_AWAY,
                        session=self._session,
                        graph=self._graph,
                        channel=error.channel,
                        error=reason,
                        hint=error.hint,
                    )
                await anyio.sleep(backoff.next_delay())
        self.waits_for = ""
        return channels

    # --- intents ---

    async def carry_out(
        self, index: int, retries: int, result: RunResult, known: tuple[CapturedIntentAck, ...] | None = None
    ) -> tuple[RunResult, Interruption | None]:
        """Send the intents of an episode.

        Args:
            index: index in the session of the event that the decision is recorded for.
            retries: attempts after the first.
            result: of the last attempt.
            known: the acks that the journal holds, of the first intents; None where it has no outcome yet.

        Returns:
            The result with the acks, and the interruption of the run; None if every intent is acknowledged.

        Raises:
            ErgoCaptureError: the journal has failed, or there are no channels for the intents.
        """
        intents = [intent for effect in result.effects if effect.kind in self._routed for intent in effect.intents]
        if not intents:
            return result, None
        if known is None:
            await self._record_outcome(Outcome.of(index, retries, result))
        channels = await self._until_up(intents)
        acks = list(known or ())
        failure: EgressFailure | None = None
        for place, intent in enumerate(intents[len(acks) :], len(acks) + 1):
            self.waits_for = f"egress channel '{channels.config.routes[intent.kind].channel}' to acknowledge an intent"
            try:
                ack = await channels.dispatch(intent)
            except EgressFailure as error:
                failure = error
                self._counts["failed"] += 1
                self._log_failure(error.channel, error, intent)
                break
            finally:
                self.waits_for = ""
            self._counts["acknowledged"] += 1
            acks.append(ack)
            if place < len(intents):
                body = encode_body(Ack(index, ack))
                await self._writer.append(PendingFrame(FrameKind.ACK, self._number, index, 0, body))
        done = RunResult(
            result.termination, result.effects, tuple(acks), None if failure is None else failure.interruption
        )
        return done, None if failure is None else _interruption_of(failure)

    async def _record_outcome(self, outcome: Outcome) -> None:
        """Commit the OUTCOME frame, together with the decisions before it that are not durable."""
        body = encode_body(outcome)
        frame = PendingFrame(FrameKind.OUTCOME, self._number, outcome.index, 0, body)
        record = _Record(frame, self._decisions)
        while record.position is None:
            if record.error is not None:
                raise record.error
            # In this order: a batch has the frames of lazy submissions in the order in which they were submitted.
            if self._decisions.waiting:
                self._writer.submit_lazily(self._decisions, urgent=True)
            self._writer.submit_lazily(record, urgent=True)
            self._writer.check()
            await record.moved.wait()

    def _log_failure(self, channel: str, error: Exception, intent: IntentRecord | None = None) -> None:
        log.error(
            telemetry.EGRESS_FAILED,
            session=self._session,
            graph=self._graph,
            channel=channel,
            **({} if intent is None else {"intent_id": intent.intent_id}),
            error=str(error),
            hint="see what the channel wrote to its standard error (egress.said)",
        )

    def _on_said(self, channel: str, line: str) -> None:
        log.info(telemetry.EGRESS_SAID, session=self._session, graph=self._graph, channel=channel, said=line)


class _Record:
    """A frame that is written only after, or with, all decisions logged so far; a ``Submission`` to the writer."""

    def __init__(self, frame: PendingFrame, decisions: JournalDecisionLog) -> None:
        self.position: Position | None = None
        self.error: ErgoCaptureError | None = None
        #: Wakes the waiting task when the frame is durable or refused, and when it has to be submitted again.
        self.moved = Notifier()
        self._frame = frame
        self._decisions = decisions

    def to_frame(self) -> PendingFrame | None:
        """Return the frame; None while decisions are in no frame yet."""
        if self._decisions.is_framed:
            return self._frame
        self.moved.notify_all()
        return None

    def on_durable(self, position: Position) -> None:
        """Note that the frame is on stable storage."""
        self.position = position
        self.moved.notify_all()

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Note that the journal has failed."""
        self.error = error
        self.moved.notify_all()


def _interruption_of(failure: EgressFailure) -> Interruption:
    return Interruption(
        reason=failure.reason, message=failure.interruption, channel=failure.channel, intent_id=failure.intent_id
    )
