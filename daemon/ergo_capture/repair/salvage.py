"""Saves what can be proved of a damaged capture: a bundle that verifies, and the other events beside it.

The rule: events and decisions are kept from the beginning for as long as every event is whole (its hash is right,
its id new) and leads to the decision that stands at its place. That is the longest prefix that can be proved.
Nothing is decided anew: how an episode ended is known to its record only. Any other event that is whole, because it
was not decided yet or because something before it is gone, is set aside, in order, in a scenario: ``simulate`` makes
a bundle of it, under outcomes that whoever runs it has to vouch for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ergo_capture.bundle.verify import event_of
from ergo_capture.kernel.effects import compute_effect_hash
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.replay import Rederivation, ReplayError, divergence_at, rehydrate
from ergo_capture.kernel.uniqueness import SeenIds
from ergo_capture.repair.output import SalvageOutput
from ergo_capture.repair.report import MAX_PROBLEMS, BundleHead, Gap, Problem, SalvageReport


def salvage(
    head: BundleHead,
    events: Iterable[ExternalEventRecord | Gap],
    decisions: Iterable[EpisodeInvocationRecord | Gap],
    destination: Path | None,
) -> SalvageReport:
    """Write the provable prefix to ``destination`` and the other events beside it; without one, only count.

    Each record is looked at once and forgotten: memory does not grow but by 13 to 27 bytes an event. What is
    written is verified before it gets its name.

    Raises:
        CaptureWriteError: a file could not be written; the destination is as it was.
        ErgoCaptureError: what was written does not verify.
    """
    if destination is None:
        return _Salvage(head, None).run(events, iter(decisions))
    with SalvageOutput(head, destination) as output:
        counts = _Salvage(head, output).run(events, iter(decisions))
        output.finish(counts.kept)
    return counts


class _Salvage:
    def __init__(self, head: BundleHead, output: SalvageOutput | None) -> None:
        self.output = output
        self.counts = SalvageReport()
        self.ids = SeenIds()
        self.again = Rederivation(head.graph_id, head.config)

    def run(
        self, events: Iterable[ExternalEventRecord | Gap], decisions: Iterator[EpisodeInvocationRecord | Gap]
    ) -> SalvageReport:
        counts = self.counts
        for event in events:
            if isinstance(event, Gap):
                counts.lost += event.count or 0
                counts.uncertain |= event.count is None
                self._end(event.reason, event.offset)
                continue
            try:
                rehydrate(event)
            except ReplayError as error:
                counts.refused += 1
                self._end(error.message)
                continue
            if not counts.problems and self._keep(event, decisions):
                continue
            counts.aside += 1
            if self.output is not None:
                self.output.set_aside(event)
        for decision in decisions:
            if isinstance(decision, Gap):
                self._miss(decision)
            else:
                counts.dropped += 1
        return counts

    def _keep(self, event: ExternalEventRecord, decisions: Iterator[EpisodeInvocationRecord | Gap]) -> bool:
        """Take the event and its decision into the bundle, if they can be proved."""
        # Why no second look: that two ids have one hash happens less often than a disk lies, and nothing is lost by it.
        if self.ids.add(event.event_id):
            return self._end(f"the id {event.event_id!r} occurs twice")
        decision = next(decisions, None)
        if decision is None:
            self.counts.undecided = True
            return self._end(f"event {event.event_id!r} has no decision")
        if isinstance(decision, Gap):
            self._miss(decision)
            return self._end(decision.reason, decision.offset)
        if any(compute_effect_hash(effect.effect) != effect.effect_hash for effect in decision.effects):
            self.counts.dropped += 1
            return self._end(f"the decision about event {event.event_id!r} has an effect with a wrong hash")
        divergence = divergence_at(self.counts.kept, decision, self.again.decide(event_of(event), decision))
        if divergence is not None:
            self.counts.dropped += 1
            return self._end(
                f"decision {divergence.index}, about event {event.event_id!r}, is not the one that its event leads to "
                f"(field {divergence.field})"
            )
        self.counts.kept += 1
        if self.output is not None:
            self.output.keep(event, decision)
        return True

    def _miss(self, gap: Gap) -> None:
        self.counts.lost_decisions += gap.count or 0
        self.counts.uncertain_decisions |= gap.count is None

    def _end(self, reason: str, offset: int | None = None) -> bool:
        if len(self.counts.problems) < MAX_PROBLEMS:
            self.counts.problems.append(Problem(reason, offset))
        return False

    def __repr__(self) -> str:
        return f"<_Salvage {self.counts.in_words()}>"
