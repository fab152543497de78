"""What became of every record of a damaged capture: the counts, the gaps, and the words for them."""

from __future__ import annotations

from typing import Final

import msgspec

from ergo_capture.kernel.constraints import Constraints
from ergo_capture.units import counted

#: More problems than anybody reads; the counts are of all.
MAX_PROBLEMS: Final = 100
#: Stands for a provenance that is gone.
LOST: Final = "lost"


class BundleHead(msgspec.Struct, frozen=True):
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


class SalvageReport(msgspec.Struct):
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
