"""Saves what can be proved of a damaged capture: a bundle that verifies, and the other events beside it.

Owns: ``salvage``, its counts, the file of events that have no provable decision.
Not here: finding the records in a damaged bundle (``anatomy.py``) or journal (``journal/salvage.py``).

The rule: events and decisions are kept from the beginning for as long as every event is whole (its hash is right,
its id new) and leads to the decision that stands at its place. That is the longest prefix that can be proved.
Nothing is decided anew: how an episode ended is known to its record only. Any other event that is whole, because it
was not decided yet or because something before it is gone, is set aside, in order, in a scenario: ``simulate`` makes
a bundle of it, under outcomes that whoever runs it has to vouch for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import msgspec

from ergo_capture.capture.atomic import AtomicFile, create_parents
from ergo_capture.capture.manifest import stem_of
from ergo_capture.capture.verification import event_of, verify_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.comparison import divergence_at
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import compute_effect_hash
from ergo_capture.kernel.records import (
    MIDDLE,
    EpisodeInvocationRecord,
    ExternalEventRecord,
    encode_constraints,
    encode_decision,
    encode_event,
    encode_head,
    encode_tail,
    encode_time,
)
from ergo_capture.kernel.rederivation import Rederivation
from ergo_capture.kernel.replay_error import ReplayError
from ergo_capture.kernel.uniqueness import SeenIds
from ergo_capture.kernel.validation import rehydrate
from ergo_capture.units import counted

#: More problems than anybody reads; the counts are of all.
MAX_PROBLEMS: Final = 100
#: Stands for a provenance that is gone.
LOST: Final = "lost"
#: Bytes written, or copied, at a time.
_WRITE_BYTES: Final = 256 * 1024
_encode: Final = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True):
    """What a bundle says besides its events and decisions."""

    graph_id: str
    config: Constraints
    adapter_provenance: str
    runtime_provenance: str
    egress_provenance: str | None = None


class Gap(msgspec.Struct, frozen=True):
    """Records that are gone, where they were."""

    #: How many; None where nothing tells.
    count: int | None
    reason: str
    #: Where in the file, if it is one file.
    offset: int | None = None


class Problem(msgspec.Struct, frozen=True):
    """Why something is not in the bundle."""

    reason: str
    offset: int | None = None

    def __str__(self) -> str:
        return self.reason if self.offset is None else f"{self.reason} (offset {self.offset})"


class Salvaged(msgspec.Struct):
    """What became of every record.

    Every event that was found is kept, set aside or refused; every decision that was found is kept or dropped.
    """

    #: In the bundle; as many decisions as events.
    kept: int = 0
    #: Whole events that have no provable decision, in the scenario beside the bundle.
    aside: int = 0
    #: Events that are there, but not as they were captured.
    refused: int = 0
    #: Events that are gone; at least so many where ``uncertain``.
    lost: int = 0
    #: Decisions that are there, but of no use without what is gone before them.
    dropped: int = 0
    #: Decisions that are known to be gone.
    lost_decisions: int = 0
    #: Whether there may have been more events that nothing tells of.
    uncertain: bool = False
    #: The same of decisions.
    uncertain_decisions: bool = False
    #: Whether the bundle ends where the decisions do.
    undecided: bool = False
    #: What is wrong, in the order in which it was met: first why the bundle ends where it does.
    problems: list[Problem] = msgspec.field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything is in the bundle."""
        return not (self.problems or self.dropped or self.lost_decisions or self.uncertain or self.uncertain_decisions)

    @property
    def only_undecided(self) -> bool:
        """Whether all that keeps events out of the bundle is that nothing was decided about them yet."""
        gone = self.refused or self.lost or self.dropped or self.lost_decisions or self.uncertain
        return self.undecided and not gone and len(self.problems) == 1

    def in_words(self) -> str:
        """The counts as a phrase."""
        parts = [f"{counted(self.kept, 'event')} with {'its decision' if self.kept == 1 else 'their decisions'} kept"]
        parts += [f"{counted(self.aside, 'event')} set aside without a provable decision"] if self.aside else []
        parts += [f"{counted(self.refused, 'event')} refused"] if self.refused else []
        parts += _lost(self.lost, "event", uncertain=self.uncertain)
        parts += [f"{counted(self.dropped, 'decision')} dropped"] if self.dropped else []
        parts += _lost(self.lost_decisions, "decision", uncertain=self.uncertain_decisions)
        return ", ".join(parts)


def _lost(number: int, what: str, *, uncertain: bool) -> list[str]:
    if not number:
        return [f"perhaps more {what}s lost"] if uncertain else []
    return [f"{'at least ' if uncertain else ''}{counted(number, what)} lost"]


def salvage(
    head: Head,
    events: Iterable[ExternalEventRecord | Gap],
    decisions: Iterable[EpisodeInvocationRecord | Gap],
    destination: Path | None,
) -> Salvaged:
    """Write the provable prefix to ``destination`` and the other events beside it; without one, only count.

    Each record is looked at once and forgotten: memory does not grow but by 13 to 27 bytes an event. What is
    written is verified before it gets its name.

    Raises:
        CaptureWriteError: a file could not be written; the destination is as it was.
        ErgoCaptureError: what was written does not verify.
    """
    if destination is None:
        return _Salvage(head, None).run(events, iter(decisions))
    with _Output(head, destination) as output:
        counts = _Salvage(head, output).run(events, iter(decisions))
        output.finish(counts.kept)
    return counts


def rest_path(bundle: Path) -> Path:
    """Where the events without provable decisions go that belong to a bundle."""
    return bundle.with_name(f"{stem_of(bundle).removesuffix('.json')}.rest.scenario.json")


class _Salvage:
    def __init__(self, head: Head, output: _Output | None) -> None:
        self.output = output
        self.counts = Salvaged()
        self.ids = SeenIds()
        self.again = Rederivation(head.graph_id, head.config)

    def run(
        self, events: Iterable[ExternalEventRecord | Gap], decisions: Iterator[EpisodeInvocationRecord | Gap]
    ) -> Salvaged:
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


class _Elements:
    """A file to which elements are written with commas between them, some at a time."""

    def __init__(self, destination: Path) -> None:
        self.file = AtomicFile(destination)
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._any = False

    def add(self, element: bytes) -> None:
        self._waiting += (b",", element) if self._any else (element,)
        self._any = True
        self._bytes += len(element)
        if self._bytes > _WRITE_BYTES:
            self.flush()

    def write(self, text: bytes) -> None:
        self.flush()
        self.file.write(text)

    def flush(self) -> None:
        self.file.write(b"".join(self._waiting))
        self._waiting.clear()
        self._bytes = 0


class _Output:
    """The bundle that is being written, its decisions apart until all events are there, and the other events."""

    def __init__(self, head: Head, destination: Path) -> None:
        create_parents(destination)
        self._head = head
        self._destination = destination
        self._rest: _Elements | None = None
        with ExitStack() as undo:
            self._events = _Elements(destination)
            undo.callback(self._events.file.abort)
            self._decisions = _Elements(destination)
            undo.callback(self._decisions.file.abort)
            self._events.write(encode_head(head.graph_id, head.config))
            undo.pop_all()

    def keep(self, event: ExternalEventRecord, decision: EpisodeInvocationRecord) -> None:
        self._events.add(encode_event(event))
        self._decisions.add(encode_decision(decision))

    def set_aside(self, event: ExternalEventRecord) -> None:
        if self._rest is None:
            self._rest = _Elements(rest_path(self._destination))
            head = self._head
            self._rest.write(
                b'{"graph_id":%b,"constraints":%b,"adapter_provenance":%b,"runtime_provenance":%b,"events":['
                % (
                    _encode(head.graph_id),
                    encode_constraints(head.config),
                    _encode(head.adapter_provenance),
                    _encode(head.runtime_provenance),
                )
            )
        self._rest.add(_scenario_event(event))

    def finish(self, kept: int) -> None:
        """Put the bundle together, verify it, and give the files their names."""
        head, bundle = self._head, self._events
        bundle.write(MIDDLE)
        self._decisions.flush()
        with self._decisions.file.path.open("rb") as decisions:
            while block := decisions.read(_WRITE_BYTES):
                bundle.write(block)
        bundle.write(encode_tail(head.adapter_provenance, head.runtime_provenance, head.egress_provenance) + b"\n")
        self._decisions.file.abort()
        verdict = verify_bundle(bundle.file.path)
        if not verdict.ok or (verdict.events, verdict.decisions) != (kept, kept):
            raise ErgoCaptureError(
                f"recover into '{self._destination}': what was written does not verify",
                op="recover",
                path=self._destination,
                hint="check the disk that it was written to; the source is as it was",
            )
        if self._rest is not None:
            self._rest.write(b"]}\n")
            self._rest.file.commit()
        bundle.file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self._events, self._decisions, self._rest):
            if part is not None:
                part.file.abort()


def _scenario_event(event: ExternalEventRecord) -> bytes:
    payload = _encode(event.payload.decode()) if event.payload else b"null"
    return b'{"event_id":%b,"kind":"%b","at":%b,"payload_utf8":%b}' % (
        _encode(event.event_id),
        event.kind.value.encode(),
        encode_time(event.event_time),
        payload,
    )
