"""Check the effects of decisions: their hashes, and numbers that the reference misreads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ergo_capture.kernel.effects import compute_effect_hash, encode_effect
from ergo_capture.kernel.records import EpisodeInvocationRecord
from ergo_capture.kernel.replay import Divergence
from ergo_capture.kernel.serde.numbers import as_the_reference
from ergo_capture.kernel.serde.tokens import outside_strings
from ergo_capture.units import counted

#: How many details are kept; the others are counted.
MAX_NOTES: Final = 100
_NUMBERS: Final = outside_strings(rb"(-?[0-9][-+.0-9e]*)")


class EffectChecker:
    """Checks decisions one after the other."""

    def __init__(self) -> None:
        #: The first effect with a wrong hash.
        self.wrong: Divergence | None = None
        #: The count of numbers that the reference misreads.
        self._misread = 0
        self._details: list[str] = []

    def check(self, index: int, record: EpisodeInvocationRecord) -> None:
        """Check the decision with that index, which has effects."""
        if self.wrong is None:
            for effect in record.effects:
                actual = compute_effect_hash(effect.effect)
                if actual != effect.effect_hash:
                    self.wrong = Divergence(index, record.event_id, "effect_hash", effect.effect_hash, actual)
                    break
        for note in _misread_floats(index, record):
            self._misread += 1
            if len(self._details) < MAX_NOTES:
                self._details.append(note)

    def notes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the remarks on a sound bundle, and the details that they sum up."""
        if not self._misread:
            return (), ()
        note = (
            f"the reference refuses this bundle (effect_mismatch): it misreads {counted(self._misread, 'number')} in "
            "effects; the cure is serde_json's feature `float_roundtrip` in your own build of it"
        )
        more = self._misread - len(self._details)
        return (note,), (*self._details, *([f"and {counted(more, 'more such number')}"] if more else []))


def _misread_floats(index: int, record: EpisodeInvocationRecord) -> Iterator[str]:
    """Yield a note for each number of an effect that the reference reads as another number, so that its hash differs."""
    for effect in record.effects:
        for token in _NUMBERS.finditer(encode_effect(effect.effect)):
            if token[1] is None:
                continue
            number = token[1].decode()
            read = as_the_reference(number)
            if read != float(number):
                yield f"it reads {number} in an effect of decision {index}, event {record.event_id!r}, as {read!r}"
