"""Compose the text of decisions as in a bundle, in either style, without a record for each.

Almost all decisions are of three kinds: invoked and completed, a Pump with nothing due, a deferral. Composing the text
of a block of them and comparing it with the file's takes 0.15 us a decision; decoding the file's text to records,
deriving others and comparing them took 8 us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.kernel.records import EpisodeInvocationRecord, encode_decision, inside_quotes
from ergo_capture.kernel.supervisor import Run
from ergo_capture.kernel.time import EventTime

_PUMP: Final = ExternalEventKind.Pump
#: Placeholder for the values of a decision while its text is split.
_ID: Final = "\x7f"
_EPISODE: Final = (1 << 64) - 1
_AT: Final = EventTime((1 << 64) - 2, 999_999_999)


class DecisionTexts:
    """Composes decisions that completed at the first attempt without effects, and deferrals.

    Args:
        deadline: the configured deadline, which is in every decision.
        pretty: whether the bundle's layout is the pretty one.
    """

    def __init__(self, deadline: EventTime | None, *, pretty: bool) -> None:
        invoked = EpisodeInvocationRecord(
            _ID, Decision.Invoke, None, _EPISODE, deadline, RunTermination.Completed, 0
        )  # fmt: skip
        idle = EpisodeInvocationRecord(_ID, Decision.Defer, None, _EPISODE, deadline, None, 0)
        deferred = EpisodeInvocationRecord(_ID, Decision.Defer, _AT, _EPISODE, deadline, None, 0)
        self._invoked = _split(invoked, pretty=pretty)
        self._idle = _split(idle, pretty=pretty)
        self._deferred = _split(deferred, pretty=pretty)

    def unlimited(self, ids: Sequence[str], kinds: Sequence[ExternalEventKind], episode: int) -> bytes:
        """Return the decisions for events of a run without limits; the first of them takes that episode id."""
        if _PUMP not in kinds:
            return self.invoked(ids, episode)
        begin, middle, end = self._invoked
        idle, between, after = self._idle
        texts = [
            f"{idle}{name}{between}{number}{after}" if kind is _PUMP else f"{begin}{name}{middle}{number}{end}"
            for number, (name, kind) in enumerate(zip(inside_quotes(ids), kinds, strict=True), episode)
        ]
        return ",".join(texts).encode()

    def invoked(self, ids: Sequence[str], episode: int) -> bytes:
        """Return decisions that invoked consecutive episodes, of which the first has that id."""
        begin, middle, end = self._invoked
        # Build constant texts outside of the loop.
        names = [f"{name}{middle}{number}" for number, name in enumerate(inside_quotes(ids), episode)]
        return f"{begin}{f'{end},{begin}'.join(names)}{end}".encode()

    def of_steps(self, ids: Sequence[str], steps: Sequence[Run | DecisionLogEntry]) -> bytes:
        """Return the decisions that a supervisor's steps lead to where every episode completes."""
        begin, middle, end = self._invoked
        texts: list[str] = []
        for name, step in zip(inside_quotes(ids), steps, strict=True):
            if type(step) is Run:
                texts.append(f"{begin}{name}{middle}{step.episode_id}{end}")
                continue
            assert isinstance(step, DecisionLogEntry)
            at = step.schedule_at
            if at is None:
                one, two, three = self._idle
                texts.append(f"{one}{name}{two}{step.episode_id}{three}")
            else:
                one, two, three, four, five = self._deferred
                texts.append(f"{one}{name}{two}{at.secs}{three}{at.nanos}{four}{step.episode_id}{five}")
        return ",".join(texts).encode()


def _split(record: EpisodeInvocationRecord, *, pretty: bool) -> list[str]:
    """Return the text of a decision in pieces: those around its id, its scheduled time and its episode."""
    text = encode_decision(record)
    if pretty:
        # Format it within an object: elements are two levels deep in a bundle.
        within = msgspec.json.format(b'{"":[%b]}' % text, indent=2)
        text = within.removeprefix(b'{\n  "": [').removesuffix(b"\n  ]\n}")
    pieces = []
    marks = [_ID, *((str(_AT.secs), str(_AT.nanos)) if record.schedule_at is not None else ()), str(_EPISODE)]
    rest = text.decode()
    for mark in marks:
        before, rest = rest.split(mark, 1)
        pieces.append(before)
    return [*pieces, rest]
