"""The salvage report: the counts of kept, dropped and lost records of a damaged capture."""

from __future__ import annotations

from typing import Final

import msgspec

from ergo_capture.units import counted

#: How many problems are listed; all are counted.
MAX_PROBLEMS: Final = 100
#: Placeholder for a lost graph, provenance or engine.
LOST: Final = "lost"


class Gap(msgspec.Struct, frozen=True):
    """Missing records, at the place where they were."""

    #: Their number; None if unknown.
    count: int | None
    reason: str
    #: Offset in the file; None if the records come from several files.
    offset: int | None = None


class Problem(msgspec.Struct, frozen=True):
    """The reason why records are not in the bundle."""

    reason: str
    offset: int | None = None

    def __str__(self) -> str:
        return self.reason if self.offset is None else f"{self.reason} (offset {self.offset})"


class SalvageReport(msgspec.Struct):
    """The counts of a salvage.

    Every event that was found is kept, set aside or refused; every decision that was found is kept or dropped.
    """

    #: Events in the bundle, which has as many decisions.
    kept: int = 0
    #: Sound events without a provable decision; they are in the scenario beside the bundle.
    aside: int = 0
    #: Events that differ from those that were captured.
    refused: int = 0
    #: Events that the adapter refused when their turn came, and events after an interruption of the run. They are in
    #: no bundle; the latter are in ``SESSION.rest.jsonl``.
    refused_by_adapter: int = 0
    left_over: int = 0
    #: Missing events; a lower bound if ``uncertain``.
    lost: int = 0
    #: Decisions that were found, but cannot be proved without missing records before them.
    dropped: int = 0
    #: Missing decisions.
    lost_decisions: int = 0
    #: Whether more events may be missing than were counted.
    uncertain: bool = False
    #: Whether more decisions may be missing than were counted.
    uncertain_decisions: bool = False
    #: Whether the bundle ends because there are no more decisions.
    undecided: bool = False
    #: The problems, in the order in which they were found; the first one is the reason for the end of the bundle.
    problems: list[Problem] = msgspec.field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything is in the bundle."""
        return not (self.problems or self.dropped or self.lost_decisions or self.uncertain or self.uncertain_decisions)

    @property
    def only_undecided(self) -> bool:
        """Whether only undecided events are not in the bundle, and nothing is missing."""
        gone = self.refused or self.lost or self.dropped or self.lost_decisions or self.uncertain
        return self.undecided and not gone and len(self.problems) == 1

    def in_words(self) -> str:
        """Return the counts as a phrase."""
        parts = [f"{counted(self.kept, 'event')} with {'its decision' if self.kept == 1 else 'their decisions'} kept"]
        parts += [f"{counted(self.aside, 'event')} set aside without a provable decision"] if self.aside else []
        parts += [f"{counted(self.refused, 'event')} refused"] if self.refused else []
        parts += (
            [f"{counted(self.refused_by_adapter, 'event')} refused by the adapter"] if self.refused_by_adapter else []
        )
        parts += [f"{counted(self.left_over, 'event')} left over"] if self.left_over else []
        parts += _lost(self.lost, "event", uncertain=self.uncertain)
        parts += [f"{counted(self.dropped, 'decision')} dropped"] if self.dropped else []
        parts += _lost(self.lost_decisions, "decision", uncertain=self.uncertain_decisions)
        return ", ".join(parts)


def _lost(number: int, what: str, *, uncertain: bool) -> list[str]:
    if not number:
        return [f"perhaps more {what}s lost"] if uncertain else []
    return [f"{'at least ' if uncertain else ''}{counted(number, what)} lost"]
