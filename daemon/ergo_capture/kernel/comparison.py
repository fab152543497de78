"""Decisions compared: those that were captured with those that the same input leads to now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final

import msgspec

from ergo_capture.kernel.records import CapturedActionEffect, EpisodeInvocationRecord
from ergo_capture.kernel.replay_error import ReplayError


class Divergence(msgspec.Struct, frozen=True):
    """Where two decision streams part first.

    ``field`` is a field of a decision record, or ``missing`` / ``extra`` for a whole record: a captured
    decision that was not replayed, or a replayed one that was not captured.
    """

    #: Position in the decision stream, from 0.
    index: int
    event_id: str
    field: str
    captured: Any
    replayed: Any


#: The fields that are compared, in the reference's order; effects come after them.
COMPARED_FIELDS: Final = (
    "event_id",
    "decision",
    "schedule_at",
    "episode_id",
    "deadline",
    "termination",
    "retry_count",
)


def compare_decisions(captured: Sequence[EpisodeInvocationRecord], replayed: Sequence[EpisodeInvocationRecord]) -> bool:
    """Whether two decision streams are the same (``replay::compare_decisions``).

    Raises:
        ReplayError: EffectMismatch, for the first record that differs in its effects only.
    """
    if len(captured) != len(replayed):
        return False
    for cap, rep in zip(captured, replayed, strict=True):
        if _first_field(cap, rep) is not None:
            return False
        _compare_effects(cap, rep)
    return True


def first_divergence(
    captured: Iterable[EpisodeInvocationRecord], replayed: Iterable[EpisodeInvocationRecord]
) -> Divergence | None:
    """Where the streams part first, or None where they are the same; reads no further than that."""
    for index, (cap, rep) in enumerate(zip_longest(captured, replayed)):
        divergence = divergence_at(index, cap, rep)
        if divergence is not None:
            return divergence
    return None


def divergence_at(
    index: int, captured: EpisodeInvocationRecord | None, replayed: EpisodeInvocationRecord | None
) -> Divergence | None:
    """How two decisions at the same place differ, or None where they are the same; a stream that ended gives None."""
    if captured == replayed:
        return None
    if captured is None:
        assert replayed is not None
        return Divergence(index, replayed.event_id, "extra", None, replayed)
    if replayed is None:
        return Divergence(index, captured.event_id, "missing", captured, None)
    field = _first_field(captured, replayed)
    if field is not None:
        return Divergence(index, captured.event_id, field, getattr(captured, field), getattr(replayed, field))
    if captured.effects != replayed.effects:
        return Divergence(index, captured.event_id, "effects", captured.effects, replayed.effects)
    return None


def _first_field(captured: EpisodeInvocationRecord, replayed: EpisodeInvocationRecord) -> str | None:
    for field in COMPARED_FIELDS:
        if getattr(captured, field) != getattr(replayed, field):
            return field
    return None


def _compare_effects(captured: EpisodeInvocationRecord, replayed: EpisodeInvocationRecord) -> None:
    cap, rep = captured.effects, replayed.effects
    if len(cap) != len(rep):
        index = min(len(cap), len(rep))
        raise _effect_mismatch(
            captured.event_id,
            index,
            cap[index] if index < len(cap) else None,
            rep[index] if index < len(rep) else None,
            f"expected {len(cap)} effects, got {len(rep)}",
        )
    for index, (one, other) in enumerate(zip(cap, rep, strict=True)):
        if one != other:
            detail = f"effect mismatch at index {index}: expected hash '{one.effect_hash}', got '{other.effect_hash}'"
            raise _effect_mismatch(captured.event_id, index, one, other, detail)


def _effect_mismatch(
    event_id: str,
    index: int,
    expected: CapturedActionEffect | None,
    actual: CapturedActionEffect | None,
    detail: str,
) -> ReplayError:
    return ReplayError(
        "EffectMismatch",
        f"effect mismatch at index {index} for event '{event_id}': {detail}",
        event_id=event_id,
        effect_index=index,
        expected=expected,
        actual=actual,
    )
