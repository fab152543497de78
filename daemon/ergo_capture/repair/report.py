"""The salvage report: what became of every record of a damaged capture."""

from __future__ import annotations

from typing import Final

import msgspec

from ergo_capture.units import counted

#: Problems that are listed; the counts are of all of them.
MAX_PROBLEMS: Final = 100
#: Stands for a graph, a provenance or an engine that is lost.
LOST: Final = "lost"


class Gap(msgspec.Struct, frozen=True):
    """Missing records, at the place where they were."""

    #: How many; None where it is unknown.
    count: int | None
    reason: str
    #: Offset in the file; None where the records come from several files.
    offset: int | None = None


class Problem(msgspec.Struct, frozen=True):
    """The reason why records are not in the bundle."""

    reason: str
    offset: int | None = None

    def __str__(self) -> str:
        return self.reason if self.offset is None else f"{self.reason} (offset {self.offset})"


class SalvageReport(msgspec.Struct):
    """What became of every record.

    Every event that was found is kept, set aside or refused; every decision that was found is kept or dropped.
    """

    #: Events in the bundle; it has as many decisions.
    kept: int = 0
    #: Sound events without a provable decision; they are in the scenario beside the bundle.
    aside: int = 0
    #: Events that are not as they were captured.
    refused: int = 0
    #: Events that the adapter refused when their turn came, and events after an interruption of the run. They are in
    #: no bundle; the latter are in ``SESSION.rest.jsonl``.
    refused_by_adapter: int = 0
    left_over: int = 0
    #: Events that are missing; a lower bound where ``uncertain``.
    lost: int = 0
    #: Decisions that were found, but cannot be proved without what is missing before them.
    dropped: int = 0
    #: Decisions that are missing.
    lost_decisions: int = 0
    #: Whether more events may be missing than are known of.
    uncertain: bool = False
    #: Whether more decisions may be missing than are known of.
    uncertain_decisions: bool = False
    #: Whether the bundle ends where the decisions do.
    undecided: bool = False
    #: What is wrong, in the order in which it was found; the first one is why the bundle ends where it does.
    problems: list[Problem] = msgspec.field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything is in the bundle."""
        return not (self.problems or self.dropped or self.lost_decisions or self.uncertain or self.uncertain_decisions)

    @property
    def only_undecided(self) -> bool:
        """Whether nothing is missing, but events that were not decided yet are not in the bundle."""
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
