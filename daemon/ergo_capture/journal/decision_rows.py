"""Decisions in the journal: rows of a JSON array, in the order of their events, one decision or refusal for each event.

* ``[0, episode, n]``: n invocations that completed at the first attempt, without effects, of episodes
  ``episode`` to ``episode + n - 1``. In most sessions nearly all decisions are of this kind.
* ``[1, episode, schedule_at]``: a deferral.
* ``[2, episode, termination, retry_count, effects, intent_acks, interruption]``: any other invocation.
* ``[3, code, message]``: a refusal. The event was not offered to the supervisor: it has no episode and does not advance
  the session's clock.
* ``[4, interruption]``: the run was interrupted; no event is decided or refused after it. The row belongs to no event.

Segments of format version 1 have no rows of the last two kinds.

The event id is in the event's line and the deadline in the constraints; neither is repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from ergo_capture.journal.payloads import Interruption
from ergo_capture.kernel.effects import ActionEffect, encode_effect
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry, RunResult
from ergo_capture.kernel.records import CapturedActionEffect, CapturedIntentAck, EpisodeInvocationRecord
from ergo_capture.kernel.time import EventTime


class PlainRun(msgspec.Struct, array_like=True, tag=0, gc=False):
    """Invocations of consecutive episodes that completed at the first attempt, without effects."""

    episode: int
    count: int


class _Deferral(msgspec.Struct, array_like=True, tag=1, gc=False):
    episode: int
    schedule_at: EventTime | None


class _Invocation(msgspec.Struct, array_like=True, tag=2):
    episode: int
    termination: Any
    retry_count: int
    effects: list[tuple[msgspec.Raw, str]]
    intent_acks: tuple[CapturedIntentAck, ...]
    interruption: str | None


class Refusal(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """A refused event: its payload, once merged with the context store, breaks the adapter's schema."""

    code: str
    message: str


class EndOfRun(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The run was interrupted after the events of the rows before."""

    interruption: Interruption


_Row = PlainRun | _Deferral | _Invocation | Refusal | EndOfRun

_encode: Final = msgspec.json.Encoder().encode
_rows: Final = msgspec.json.Decoder(list[_Row])
_effect: Final = msgspec.json.Decoder(ActionEffect)


class DecisionRows:
    """Collects decisions for one DECISIONS frame."""

    __slots__ = ("_rows", "_run", "bytes", "count", "is_end")

    def __init__(self) -> None:
        self._rows: list[_Row] = []
        self._run: PlainRun | None = None
        #: Decisions and refusals collected.
        self.count = 0
        #: Whether the run ends after them.
        self.is_end = False
        #: Bytes of their effects, acknowledgements, interruptions and messages.
        self.bytes = 0

    def add(self, entry: DecisionLogEntry) -> None:
        """Append one decision."""
        self.count += 1
        if (
            entry.termination is RunTermination.Completed
            and not entry.retry_count
            and not entry.effects
            and not entry.intent_acks
            and entry.interruption is None
        ):
            run = self._run
            if run is not None and run.episode + run.count == entry.episode_id:
                run.count += 1
                return
            self._run = run = PlainRun(entry.episode_id, 1)
            self._rows.append(run)
            return
        self._run = None
        if entry.decision is Decision.Defer:
            self._rows.append(_Deferral(entry.episode_id, entry.schedule_at))
            return
        assert entry.termination is not None
        effects = [(msgspec.Raw(encode_effect(e.effect)), e.effect_hash) for e in entry.effects]
        self.bytes += sum(len(text) for text, _ in effects) + _bytes_beside(entry.intent_acks, entry.interruption)
        self._rows.append(
            _Invocation(
                entry.episode_id,
                entry.termination.to_builtins(),
                entry.retry_count,
                effects,
                entry.intent_acks,
                entry.interruption,
            )
        )

    def add_plain(self, episode: int, count: int) -> None:
        """Append ``count`` plain invocations of consecutive episodes."""
        self.count += count
        run = self._run
        if run is not None and run.episode + run.count == episode:
            run.count += count
            return
        self._run = run = PlainRun(episode, count)
        self._rows.append(run)

    def add_refusal(self, refusal: Refusal) -> None:
        """Append a refusal."""
        self.count += 1
        self.bytes += len(refusal.message)
        self._run = None
        self._rows.append(refusal)

    def add_end(self, interruption: Interruption) -> None:
        """Note that the run was interrupted here: no decision or refusal follows."""
        self._run = None
        self.is_end = True
        self._rows.append(EndOfRun(interruption))

    def encode(self) -> bytes:
        """Return the body of the frame."""
        return _encode(self._rows)


def said_bytes(result: RunResult) -> int:
    """Return how many bytes a run's effects, acknowledgements and interruption take in a frame."""
    effects = sum(len(encode_effect(effect)) for effect in result.effects)
    return effects + _bytes_beside(result.intent_acks, result.interruption)


def _bytes_beside(acks: tuple[CapturedIntentAck, ...], interruption: str | None) -> int:
    return (len(_encode(acks)) if acks else 0) + (len(_encode(interruption)) if interruption else 0)


class DecisionOutcome(msgspec.Struct, frozen=True):
    """A decision as in its row, without the event id and the deadline."""

    decision: Decision
    schedule_at: EventTime | None
    episode_id: int
    termination: RunTermination | None
    retry_count: int
    effects: tuple[CapturedActionEffect, ...]
    intent_acks: tuple[CapturedIntentAck, ...]
    interruption: str | None

    def to_record(self, event_id: str, deadline: EventTime | None) -> EpisodeInvocationRecord:
        """Return the decision as in a bundle."""
        return EpisodeInvocationRecord(
            event_id,
            self.decision,
            self.schedule_at,
            self.episode_id,
            deadline,
            self.termination,
            self.retry_count,
            self.effects,
            self.intent_acks,
            self.interruption,
        )


def read_rows(body: bytes) -> Iterator[PlainRun | DecisionOutcome | Refusal | EndOfRun]:
    """Yield the rows of a DECISIONS frame, in order: deferrals and single invocations as ``DecisionOutcome``.

    Raises:
        ValueError: the body cannot be decoded.
    """
    for row in _rows.decode(body):
        if type(row) is PlainRun:
            yield row
        elif type(row) is _Deferral:
            yield DecisionOutcome(Decision.Defer, row.schedule_at, row.episode, None, 0, (), (), None)
        elif type(row) is _Invocation:
            yield DecisionOutcome(
                Decision.Invoke,
                None,
                row.episode,
                RunTermination.from_builtins(row.termination),
                row.retry_count,
                tuple(CapturedActionEffect(_effect.decode(text), digest) for text, digest in row.effects),
                row.intent_acks,
                row.interruption,
            )
        else:
            assert isinstance(row, Refusal | EndOfRun)
            yield row


def join_rows(bodies: Sequence[bytes]) -> bytes:
    """Return one body with the rows of all; each holds at least one."""
    return bodies[0] if len(bodies) == 1 else b"[%b]" % b",".join([body[1:-1] for body in bodies])


def read_decisions(body: bytes) -> Iterator[DecisionOutcome | Refusal]:
    """Yield the decisions and refusals of a DECISIONS frame, one for each event, in order.

    Raises:
        ValueError: the body cannot be decoded.
    """
    for row in read_rows(body):
        if isinstance(row, PlainRun):
            yield from expand_run(row)
        elif not isinstance(row, EndOfRun):
            yield row


def expand_run(run: PlainRun) -> Iterator[DecisionOutcome]:
    """Yield the decisions of a run, one by one."""
    for episode in range(run.episode, run.episode + run.count):
        yield DecisionOutcome(Decision.Invoke, None, episode, RunTermination.Completed, 0, (), (), None)


def end_of_run(body: bytes) -> Interruption | None:
    """Return the interruption of the run after the decisions of a DECISIONS frame; None if there is none.

    Raises:
        ValueError: the body cannot be decoded.
    """
    # Search before decoding: few frames have such a row, and it is the last one.
    if b"[4," not in body:
        return None
    last = _rows.decode(body)[-1]
    return last.interruption if isinstance(last, EndOfRun) else None
